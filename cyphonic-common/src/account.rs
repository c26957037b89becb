//! How often something may happen, as one moment of state and without a timer.
//!
//! A virtual scheduling algorithm (a leaky bucket as a meter, ITU-T I.371), as
//! [`relay::rate`](crate::relay::rate) is for the bytes of a leg: whatever happens costs time, and may happen
//! while the time that all before it has cost is at most the burst ahead of the clock.

use core::time::Duration;

/// What was spent of something that comes back at a rate. Nothing was by the default.
///
/// Times are those since a moment that the caller chooses, the same for all calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// When all that was spent has come back.
    paid_until: Duration,
}

impl Account {
    /// Takes one out, if there is one: one comes back `every` so often, and who has taken none for long has
    /// as many as come back in a `burst`.
    #[must_use]
    pub fn spend(&mut self, now: Duration, every: Duration, burst: Duration) -> bool {
        let next = self.paid_until.max(now).saturating_add(every);
        let within = next <= now.saturating_add(burst);
        if within {
            self.paid_until = next;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ns(range: core::ops::Range<u64>) -> impl Strategy<Value = Duration> {
        range.prop_map(Duration::from_nanos)
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_passes_than_the_rate_and_the_burst(
            start in ns(0..1 << 60), every in ns(1..1_000_000), most in 0u32..100,
            steps in proptest::collection::vec(ns(0..3_000_000), 0..300),
        ) {
            let (mut account, mut now, mut passed) = (Account::default(), start, 0);
            for step in steps {
                now += step;
                passed += u128::from(account.spend(now, every, every * most));
                prop_assert!(passed <= u128::from(most) + (now - start).as_nanos() / every.as_nanos());
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(
            start in ns(0..1 << 60), every in ns(1..1_000_000),
            more in proptest::collection::vec(ns(0..3_000_000), 0..300),
        ) {
            let (mut account, mut now) = (Account::default(), start);
            for more in more {
                prop_assert!(account.spend(now, every, every));
                now += every + more;
            }
        }

        #[test]
        fn after_a_burst_of_silence_there_is_a_burst_and_no_more(
            now in ns(0..1 << 60), every in ns(1..1_000_000), most in 0u32..100, spent in 0u32..200, silent in ns(0..1 << 60),
        ) {
            let (mut account, burst) = (Account::default(), every * most);
            (0..spent).for_each(|_| _ = account.spend(now, every, burst));
            let later = now + burst + silent;
            let passed = (0..300).filter(|_| account.spend(later, every, burst)).count();
            prop_assert_eq!(passed, most as usize);
        }

        #[test]
        fn a_refusal_costs_nothing_and_no_time_overflows(
            paid_until: u64, now: u64, every: u64, burst: u64,
        ) {
            let [paid_until, now, every, burst] =
                [paid_until, now, every, burst].map(|seconds| Duration::new(seconds, 999_999_999));
            let before = Account { paid_until };
            let mut account = before;
            if !account.spend(now, every, burst) {
                prop_assert_eq!(account, before);
            }
        }
    }
}
