//! A candidate: one path that a tunnel has or may have, and what is known of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_common::frame::MAX_CANDIDATES;

use super::class::Class;
use crate::ConnectionId;
use crate::address::Prefix;
use crate::message::endpoint;

/// Probes of one path whose answers are awaited; the oldest is forgotten for one more.
const AWAITED: usize = 8;

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::node) struct Candidate {
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

impl Candidate {
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

/// The peer's addresses, as they came: canonical, and only those that packets may be sent to.
pub(super) fn checked(endpoints: &[SocketAddr], overlay: Prefix) -> Vec<SocketAddr> {
    let canonical = endpoints.iter().copied().map(endpoint::canonical);
    unique(canonical.filter(|address| endpoint::is_candidate(address.ip(), overlay) && address.port() != 0))
}

/// As many of them as a list has room for, each once.
pub(super) fn unique(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses {
        if unique.len() < MAX_CANDIDATES && !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn candidate(remote: &str, rtt: u32) -> Candidate {
        let mut candidate = Candidate::direct(at(remote), ConnectionId::from_random_data([1; 8]), true);
        candidate.rtt = Some(MS * rtt);
        candidate
    }

    #[test]
    fn only_answers_to_what_was_sent_count_and_each_once() {
        let (mut candidate, now) = (candidate("192.0.2.1:7", 8), Instant::now());
        assert!(!candidate.answered(now, [1; 8]));
        candidate.sent(now, [1; 8]);
        assert!(candidate.answered(now + MS * 16, [1; 8]));
        assert!(!candidate.answered(now + MS * 16, [1; 8]));
        assert_eq!((candidate.rtt, candidate.proved), (Some(MS * 9), Some(now)));
        assert!(candidate.is_proved_since(now) && !candidate.is_proved_since(now + MS));
    }

    #[test]
    fn alike_paths_do_not_take_turns() {
        let (v6, a, b) =
            (candidate("[2001:db8::1]:7", 90), candidate("192.0.2.1:7", 20), candidate("192.0.2.2:7", 18));
        assert!(v6.is_better_than(&a) && !a.is_better_than(&v6));
        assert!(!a.is_better_than(&b) && !b.is_better_than(&a));
        assert!(candidate("192.0.2.3:7", 9).is_better_than(&b));
    }

    #[test]
    fn what_is_awaited_is_bounded() {
        let (mut candidate, now) = (candidate("192.0.2.1:7", 1), Instant::now());
        (0..100).for_each(|n| candidate.sent(now, [n; 8]));
        assert_eq!(candidate.awaited.len(), AWAITED);
        assert!(!candidate.answered(now, [0; 8]) && candidate.answered(now, [99; 8]));
    }

    #[test]
    fn of_the_peers_addresses_only_those_are_taken_that_packets_may_be_sent_to() {
        let named = ["[::ffff:127.0.0.1]:53", "[::1]:53", "224.0.0.1:53", "[::ffff:192.0.2.9]:9"].map(at);
        let overlay = "fd12:3456:789a::/48".parse().unwrap();
        assert_eq!(checked(&named, overlay), [at("192.0.2.9:9")]);
    }
}
