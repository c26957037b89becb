//! Waiting longer after each failure, and never all at once.

use std::time::Duration;

use rand::Rng;

/// Exponential back-off with "equal jitter": each wait is drawn from the upper half of an interval that
/// doubles, so that nodes which lost one service together do not come back together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn failures(self) -> u32 {
        self.failures
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// As after so many failures, if there were more.
    pub(crate) fn forgive_but(&mut self, failures: u32) {
        self.failures = self.failures.min(failures);
    }

    pub(crate) fn next(&mut self, least: Duration, most: Duration, rng: &mut impl Rng) -> Duration {
        let ceiling = least.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(rng.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_vary() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next(least, most, &mut rng)).collect();
        for (n, wait) in waits.iter().enumerate() {
            let ceiling = (least * (1 << n)).min(most);
            assert!(*wait >= ceiling / 2 && *wait <= ceiling, "{n}: {wait:?}");
        }
        assert_ne!(waits[10], waits[11]);
        backoff.forgive_but(1);
        assert!(backoff.next(least, most, &mut rng) <= least * 2);
        backoff.forgive_but(5);
        assert!(backoff.next(least, most, &mut rng) <= least * 4, "there were two");
        backoff.reset();
        assert!(backoff.next(least, most, &mut rng) <= least);
    }
}
