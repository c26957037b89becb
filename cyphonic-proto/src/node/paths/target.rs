//! One path that a tunnel has or may have, and what is known of it.

use super::candidate::Class;
use crate::ConnectionId;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Probes of one path whose answers are awaited; the oldest is forgotten for one more.
const AWAITED: usize = 8;

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::node) struct Target {
    pub(super) remote: SocketAddr,
    /// What stands on the wire: the peer's own connection ID, or that of its leg.
    pub(super) wire_cid: ConnectionId,
    pub(super) class: Class,
    /// Whether the peer named it; the others are where authenticated probes of it came from
    /// ("peer-reflexive", RFC 8445 §7.3.1.3).
    pub(super) named: bool,
    /// Smoothed as in RFC 9002 §5.3.
    pub(super) rtt: Option<Duration>,
    /// The latest time at which the path is known to have worked: when the probe was sent that was answered
    /// last.
    pub(super) proved: Option<Instant>,
    /// Whether it was ever probed.
    pub(super) tried: bool,
    awaited: VecDeque<([u8; 8], Instant)>,
}

impl Target {
    pub(super) fn direct(remote: SocketAddr, peer: ConnectionId, named: bool) -> Self {
        Self::new(remote, peer, Class::of(&remote), named)
    }

    pub(super) fn relay(remote: SocketAddr, leg: ConnectionId) -> Self {
        Self::new(remote, leg, Class::Relay, true)
    }

    fn new(remote: SocketAddr, wire_cid: ConnectionId, class: Class, named: bool) -> Self {
        Self {
            remote,
            wire_cid,
            class,
            named,
            rtt: None,
            proved: None,
            tried: false,
            awaited: VecDeque::new(),
        }
    }

    pub(super) fn is_relay(&self) -> bool {
        self.class == Class::Relay
    }

    /// A challenge with this data leaves for it now.
    pub(super) fn sent(&mut self, now: Instant, data: [u8; 8]) {
        if self.awaited.len() >= AWAITED {
            self.awaited.pop_front();
        }
        self.tried = true;
        self.awaited.push_back((data, now));
    }

    /// Whether the data is an answer of this path.
    pub(super) fn answered(&mut self, now: Instant, data: [u8; 8]) -> bool {
        let Some(at) = self.awaited.iter().position(|(awaited, _)| *awaited == data) else { return false };
        let Some((_, sent)) = self.awaited.remove(at) else { return false };
        let sample = now.saturating_duration_since(sent);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.proved = self.proved.max(Some(sent));
        true
    }

    /// Whether it is known to have worked at this time or later.
    pub(super) fn is_proved_since(&self, since: Instant) -> bool {
        self.proved.is_some_and(|at| at >= since)
    }

    /// Whether it is worth leaving the other for it: a better kind, or the same and clearly faster, so that
    /// two that are alike do not take turns.
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        let faster = || match (self.rtt, other.rtt) {
            (Some(own), Some(others)) => own * 5 / 4 + Duration::from_millis(1) < others,
            _ => false,
        };
        self.class < other.class || (self.class == other.class && faster())
    }

    /// Its place among those that answered.
    pub(super) fn rank(&self) -> (Class, Duration) {
        (self.class, self.rtt.unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn target(remote: &str, rtt: u32) -> Target {
        let mut target =
            Target::direct(remote.parse().unwrap(), ConnectionId::from_random_data([1; 8]), true);
        target.rtt = Some(MS * rtt);
        target
    }

    #[test]
    fn only_answers_to_what_was_sent_count_and_each_once() {
        let (mut target, now) = (target("192.0.2.1:7", 8), Instant::now());
        assert!(!target.answered(now, [1; 8]));
        target.sent(now, [1; 8]);
        assert!(target.answered(now + MS * 16, [1; 8]));
        assert!(!target.answered(now + MS * 16, [1; 8]));
        assert_eq!((target.rtt, target.proved), (Some(MS * 9), Some(now)));
        assert!(target.is_proved_since(now) && !target.is_proved_since(now + MS));
    }

    #[test]
    fn alike_paths_do_not_take_turns() {
        let (v6, a, b) =
            (target("[2001:db8::1]:7", 90), target("192.0.2.1:7", 20), target("192.0.2.2:7", 18));
        assert!(v6.is_better_than(&a) && !a.is_better_than(&v6));
        assert!(!a.is_better_than(&b) && !b.is_better_than(&a));
        assert!(target("192.0.2.3:7", 9).is_better_than(&b));
    }

    #[test]
    fn what_is_awaited_is_bounded() {
        let (mut target, now) = (target("192.0.2.1:7", 1), Instant::now());
        (0..100).for_each(|n| target.sent(now, [n; 8]));
        assert_eq!(target.awaited.len(), AWAITED);
        assert!(!target.answered(now, [0; 8]) && target.answered(now, [99; 8]));
    }
}
