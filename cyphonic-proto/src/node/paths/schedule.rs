//! Schedules: when the probes of a round and of a doubt leave, and lists of candidates.

use std::time::{Duration, Instant};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Probes of a round, from its begin. The second follows before the peer's first can have arrived over most
/// paths, so that whichever end began later finds the other's NAT open; the last leaves the peer half a
/// second of the 3 s in which a pair that can be joined is to be joined.
const ROUND: [Duration; 7] = [ms(0), ms(50), ms(150), ms(350), ms(750), ms(1500), ms(2500)];
/// The end of a round.
const ROUND_END: Duration = ms(3000);
/// Challenges of a path in doubt, from the begin of the doubt: enough that a path which loses one packet in
/// ten is not given up for it.
const DOUBT: [Duration; 10] =
    [ms(0), ms(100), ms(200), ms(350), ms(750), ms(1500), ms(2500), ms(4500), ms(6500), ms(8500)];
/// A doubt that nothing has resolved by then will not be by waiting.
const DOUBT_END: Duration = ms(9000);
/// A relay that sees this node elsewhere wants a proof before it lets packets from there pass (decision
/// 0021). That goes to its process, and what is sent with it to its fast path, which is there first.
pub(super) const PROOF: Duration = ms(10);
/// Waits between lists of candidates until the peer has told its own.
const TELLING: [Duration; 5] = [ms(0), ms(200), ms(600), ms(1500), ms(3500)];
/// Waits between rounds that brought nothing, while the tunnel is in use.
pub(super) const PAUSE_LEAST: Duration = Duration::from_secs(30);
pub(super) const PAUSE_MOST: Duration = Duration::from_secs(3600);

/// A schedule in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub(super) began: Instant,
    steps: &'static [Duration],
    end: Duration,
    next: usize,
}

impl Steps {
    pub(super) fn round(now: Instant) -> Self {
        Self { began: now, steps: &ROUND, end: ROUND_END, next: 0 }
    }

    pub(super) fn doubt(now: Instant) -> Self {
        Self { began: now, steps: &DOUBT, end: DOUBT_END, next: 0 }
    }

    pub(super) fn telling(now: Instant) -> Self {
        Self { began: now, steps: &TELLING, end: ms(5000), next: 0 }
    }

    /// Whether a step is due; each is taken once.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let due = self.steps.get(self.next).is_some_and(|step| self.began + *step <= now);
        // After a pause of the whole machine one is enough for all that were missed.
        while self.steps.get(self.next).is_some_and(|step| self.began + *step <= now) {
            self.next += 1;
        }
        due
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.began + self.end <= now
    }

    /// When something is to be done.
    pub(super) fn due(&self) -> Instant {
        self.began + self.steps.get(self.next).copied().unwrap_or(self.end)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_once_and_in_time() {
        let now = Instant::now();
        let mut steps = Steps::round(now);
        assert!(steps.take(now) && !steps.take(now));
        assert_eq!(steps.due(), now + ms(50));
        assert!(steps.take(now + ms(400)), "three were missed: one is made up for");
        assert_eq!(steps.due(), now + ms(750));
        assert!(steps.take(now + ms(2600)) && !steps.is_over(now + ms(2600)));
        assert_eq!(steps.due(), now + ROUND_END);
        assert!(steps.is_over(now + ROUND_END) && !steps.take(now + ROUND_END));
    }
}
