//! Whether one send takes many segments. Pure.
//!
//! A way out refuses that (no checksum offload, IPsec, some drivers), not the port: another peer's, or the
//! one after the next move, may take it. The kernel does not say so; it is asked again after a while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One refused send in this time costs nothing that could be measured.
const RETRY: Duration = Duration::from_secs(30);

/// Shared by all who send; while nothing is refused, asking it reads one word that nobody writes.
#[derive(Debug)]
pub(super) struct Segmentation {
    most: usize,
    start: Instant,
    /// When it is tried again, in milliseconds after the start; 0 where it was not refused.
    retry_at: AtomicU64,
}

impl Segmentation {
    /// Of this many segments at most, unless refused.
    pub(super) fn new(most: usize, now: Instant) -> Self {
        Self { most, start: now, retry_at: AtomicU64::new(0) }
    }

    /// Segments that one send may have.
    #[inline]
    pub(super) fn segments(&self, now: impl FnOnce() -> Instant) -> usize {
        match self.retry_at.load(Ordering::Relaxed) {
            0 => self.most,
            retry_at if self.elapsed(now()) < retry_at => 1,
            retry_at => {
                // The clock is not read again, unless another was refused meanwhile.
                let _ = self.retry_at.compare_exchange(retry_at, 0, Ordering::Relaxed, Ordering::Relaxed);
                self.most
            }
        }
    }

    /// A send of several segments was refused, and one of a single segment was not.
    #[cold]
    pub(super) fn refused(&self, now: Instant) {
        self.retry_at.store(self.elapsed(now + RETRY), Ordering::Relaxed);
    }

    fn elapsed(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_it_is_tried_again_after_a_while() {
        let start = Instant::now();
        let segmentation = Segmentation::new(64, start);
        let at = |after: Duration| segmentation.segments(|| start + after);
        assert_eq!(segmentation.segments(|| panic!("no clock is read")), 64);
        let mut now = Duration::ZERO;
        for _ in 0..2 {
            segmentation.refused(start + now);
            assert_eq!([at(now), at(now + RETRY - Duration::from_millis(1))], [1, 1]);
            now += RETRY;
            assert_eq!(at(now), 64);
            assert_eq!(segmentation.segments(|| panic!("no clock is read")), 64);
        }
    }
}
