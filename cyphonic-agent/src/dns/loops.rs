//! When the host's own DNS servers are asked whether they ask us in turn.
//!
//! Whoever takes its servers from `/etc/resolv.conf`, as dnsmasq and VPNs do, may take ours, and be one of
//! those that we relay to. Then a query goes around until nobody waits for it any more.
//!
//! There is no steady traffic: servers are asked when they are others, and when queries have failed, ever
//! more rarely while that is not the reason. Only while one is known to ask us is it asked again by the
//! clock.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

/// Whoever follows the file finds our edit, and asks us, a moment after it.
const SETTLED: Duration = Duration::from_secs(2);

/// Between two rounds, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LAST_PAUSE: Duration = Duration::from_secs(3_600);

/// What gives reason for a round.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    others: Notify,
    failed: Notify,
}

impl Reasons {
    /// The servers are others.
    pub(super) fn others(&self) {
        self.others.notify_one();
    }

    /// A query had no answer, or a refusal.
    pub(super) fn failed(&self) {
        self.failed.notify_one();
    }

    /// Looks when there is reason to, for as long as it is polled.
    pub(super) async fn watch<F: Future<Output = Found>>(&self, look: impl Fn() -> F) {
        let (mut pace, mut stands) = (Pace::default(), false);
        loop {
            let next = pace.next;
            tokio::select! {
                () = self.others.notified() => {
                    sleep(SETTLED).await;
                    pace = Pace::default();
                }
                () = sleep_until(next), if stands => {}
                () = async { sleep_until(next).await; self.failed.notified().await } => {}
            }
            let found = look().await;
            stands = found == Found::Stands;
            pace.looked(Instant::now(), found);
        }
    }
}

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// There was one.
    Gone,
    Stands,
}

/// How soon the next round may be.
#[derive(Debug)]
struct Pace {
    pause: Duration,
    next: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, next: Instant::now() }
    }
}

impl Pace {
    fn looked(&mut self, now: Instant, found: Found) {
        if found != Found::Nothing {
            self.pause = FIRST_PAUSE;
        }
        self.next = now + self.pause;
        self.pause = self.pause.saturating_mul(2).min(LAST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::timeout;

    use super::*;

    /// Runs for so long, with a query that fails as often as this: how often it was looked.
    async fn rounds(reasons: &Reasons, lasting: Duration, fails_every: Duration, found: Found) -> u32 {
        let rounds = AtomicU32::new(0);
        let failing = async {
            loop {
                sleep(fails_every).await;
                reasons.failed();
            }
        };
        let watching = reasons.watch(|| async {
            rounds.fetch_add(1, Ordering::Relaxed);
            found
        });
        let _ = timeout(lasting, async { tokio::join!(watching, failing) }).await;
        rounds.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_asked_when_they_are_others_and_when_queries_fail() {
        let (reasons, day) = (Reasons::default(), 24 * LAST_PAUSE);
        assert_eq!(rounds(&reasons, day, 2 * day, Found::Nothing).await, 0, "no reason");
        reasons.others();
        assert_eq!(rounds(&reasons, day, 2 * day, Found::Nothing).await, 1);
        reasons.others();
        assert_eq!(rounds(&reasons, FIRST_PAUSE, Duration::from_secs(1), Found::Nothing).await, 1);
        assert_eq!(rounds(&reasons, 2 * FIRST_PAUSE, 2 * day, Found::Nothing).await, 1, "it was failing");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_for_other_reasons_are_looked_into_ever_more_rarely() {
        let (reasons, day, second) = (Reasons::default(), 24 * LAST_PAUSE, Duration::from_secs(1));
        let in_a_day = rounds(&reasons, day, second, Found::Nothing).await;
        assert!((20..32).contains(&in_a_day), "{in_a_day} in a day");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_is_asked_for_by_the_clock() {
        let (reasons, hour) = (Reasons::default(), LAST_PAUSE);
        reasons.others();
        assert_eq!(rounds(&reasons, hour, 2 * hour, Found::Stands).await, 60);
        reasons.others();
        assert_eq!(rounds(&reasons, hour, 2 * hour, Found::Gone).await, 1);
    }
}
