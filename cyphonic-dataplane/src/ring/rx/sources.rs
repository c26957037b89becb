//! What a tunnel's owner is told of packets from other addresses than the path's, and how often.
//!
//! Packets of two paths may alternate for as long as they like, and each is worth one report a while.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often one address is reported for one reason.
const INTERVAL: Duration = Duration::from_millis(250);
/// Addresses that are remembered; while all are fresh, more are not reported.
const MAX_SOURCES: usize = 8;
/// Lists of candidates that are passed on within a second.
const LISTS: u32 = 10;

/// What came from an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sign {
    /// The newest packet, and not to try a path.
    Moved,
    /// A challenge.
    Probed,
}

/// See the module.
#[derive(Default)]
pub(super) struct Sources {
    reported: Vec<(SocketAddr, Sign, Instant)>,
    lists: Option<(Instant, u32)>,
}

impl Sources {
    /// Whether the owner should hear of this now.
    pub(super) fn is_news(&mut self, from: SocketAddr, sign: Sign, now: Instant) -> bool {
        self.reported.retain(|(_, _, at)| now.saturating_duration_since(*at) < INTERVAL);
        let known = self.reported.iter().any(|(other, what, _)| *other == from && *what == sign);
        if known || self.reported.len() >= MAX_SOURCES {
            return false;
        }
        self.reported.push((from, sign, now));
        true
    }

    /// Whether one more list of candidates is passed on.
    pub(super) fn takes_list(&mut self, now: Instant) -> bool {
        let (since, lists) = self
            .lists
            .filter(|(since, _)| now.saturating_duration_since(*since) < Duration::from_secs(1))
            .unwrap_or((now, 0));
        self.lists = Some((since, lists + 1));
        lists < LISTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 7000))
    }

    #[test]
    fn two_paths_in_turn_are_reported_once_each_until_time_has_passed() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        for (from, sign) in [(at(1), Sign::Moved), (at(2), Sign::Moved), (at(1), Sign::Probed)] {
            assert!(sources.is_news(from, sign, now));
            assert!(!sources.is_news(from, sign, now));
        }
        assert!(sources.is_news(at(1), Sign::Moved, now + INTERVAL));
    }

    #[test]
    fn a_peer_of_many_addresses_is_reported_for_few() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        let reported = (0..100).filter(|n| sources.is_news(at(*n), Sign::Probed, now)).count();
        assert_eq!(reported, MAX_SOURCES);
    }

    #[test]
    fn lists_are_passed_on_at_a_bounded_rate() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        let passed = (0..100).filter(|_| sources.takes_list(now)).count();
        assert_eq!(passed, 10);
        assert!(sources.takes_list(now + Duration::from_secs(1)));
    }
}
