//! How a worker rests between packets.
//!
//! A worker that is faster than whoever feeds it finds its queue empty after each packet. Sleeping until the
//! next one then costs both sides more than the packet: the feeder a wake-up, the worker a system call for a
//! send of one. So while packets come in a stream, the worker pauses for a fixed short time instead, as
//! network cards moderate their interrupts, and finds a batch. Packets that come one by one (an echo, a
//! request and its answer) never wait.

use std::time::{Duration, Instant};

/// Packets come in a stream when one comes at least this often: no request and answer follow each other so
/// fast.
const STREAM: Duration = Duration::from_micros(8);
/// The pause while they do: a worker outranks who feeds it, so it would come back to a few packets each time.
const PAUSE: Duration = Duration::from_micros(100);
/// Packets after which the rate is looked at.
const WINDOW: u32 = 32;
/// Pauses in a row that brought less than a stream would, after which it is over.
const PATIENCE: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pacing {
    since: Instant,
    packets: u32,
    /// Pauses that are left before the worker sleeps for good; none while there is no stream.
    left: u32,
}

impl Pacing {
    pub(crate) fn new(now: Instant) -> Self {
        // Otherwise the kernel takes 50 µs more than it is asked for. Where it refuses, pauses are longer.
        let _ = nix::sys::prctl::set_timerslack(1);
        Self { since: now, packets: 0, left: 0 }
    }

    /// Counts what a turn has brought.
    #[inline]
    pub(crate) fn count(&mut self, packets: u32) {
        self.packets += packets;
    }

    /// Nothing is there. Pauses and returns true where packets come in a stream; otherwise they must be
    /// waited for.
    pub(crate) fn pause(&mut self) -> bool {
        if !self.judge(Instant::now()) {
            return false;
        }
        std::thread::sleep(PAUSE);
        true
    }

    /// Whether packets come in a stream.
    fn judge(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < STREAM * self.packets {
            if self.packets < WINDOW {
                // Too few to tell by: as it was.
                return self.left > 0;
            }
            self.left = PATIENCE;
        } else {
            self.left = self.left.saturating_sub(1);
        }
        self.packets = 0;
        self.since = now;
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rests of a worker that packets come to, `packets` at a time, every `gap`: how many were pauses.
    fn pauses(gap: Duration, packets: u32, rests: u32) -> u32 {
        let mut now = Instant::now();
        let mut pacing = Pacing::new(now);
        (0..rests)
            .map(|_| {
                pacing.count(packets);
                now += gap;
                u32::from(pacing.judge(now))
            })
            .sum()
    }

    #[test]
    fn a_stream_is_paused_for() {
        assert!(pauses(Duration::from_micros(3), 1, 1000) > 900);
        assert!(pauses(Duration::from_micros(50), 20, 1000) > 900);
    }

    #[test]
    fn packets_that_come_one_by_one_never_wait() {
        for gap in [9, 20, 100, 10_000] {
            assert_eq!(pauses(Duration::from_micros(gap), 1, 1000), 0, "{gap} µs");
        }
    }

    #[test]
    fn a_stream_ends() {
        let mut now = Instant::now();
        let mut pacing = Pacing::new(now);
        pacing.count(100);
        now += Duration::from_micros(100);
        assert!(pacing.judge(now));
        let after: Vec<bool> = (0..4)
            .map(|_| {
                now += PAUSE;
                pacing.judge(now)
            })
            .collect();
        assert_eq!(after, [true, false, false, false]);
    }
}
