//! How many DATAGRAMs one device may send: what handshakes of peers need, which no tunnel's packets travel
//! by. Pure.
//!
//! Those of all devices wait in one queue. Whoever could fill it would lose the others' handshakes; and two
//! that take DATAGRAMs for a way of their own would carry by it what a leg's rate limit keeps from them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use cyphonic_common::Account;
use cyphonic_dataplane::sync;

/// A second. A handshake takes about ten of each end.
const RATE: u32 = 256;

/// How far ahead of its rate a device may be: it has 50 handshakes at once after a restart.
const BURST: Duration = Duration::from_secs(2);

/// What one connection has sent.
#[derive(Debug)]
pub(super) struct Meter {
    start: Instant,
    sent: Mutex<Sent>,
}

#[derive(Debug, Default)]
struct Sent {
    /// By the time since `start`.
    account: Account,
    dropped: u64,
}

/// Whether a DATAGRAM goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    /// One too many; so many were, with it.
    Drop(u64),
}

impl Meter {
    /// Of a connection that has sent none yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, sent: Mutex::default() }
    }

    /// It sends one.
    pub(super) fn judge(&self, now: Instant) -> Verdict {
        let passed = now.saturating_duration_since(self.start);
        let mut sent = sync::lock(&self.sent);
        if sent.account.spend(passed, Duration::from_secs(1) / RATE, BURST) {
            return Verdict::Pass;
        }
        sent.dropped += 1;
        Verdict::Drop(sent.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pass_at_once_and_the_rest_at_their_rate() {
        let start = Instant::now();
        let meter = Meter::new(start);
        let passed = |at: u64| {
            let at = start + Duration::from_secs(at);
            (0..10_000).filter(|_| meter.judge(at) == Verdict::Pass).count()
        };
        assert_eq!(passed(0), 512);
        assert_eq!(passed(1), 256);
        assert_eq!(passed(60), 512, "who was silent has no more than at the beginning");
        assert_eq!(meter.judge(start), Verdict::Drop(30_000 - 1_280 + 1));
    }
}
