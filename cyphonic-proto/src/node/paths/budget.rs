//! How many probes may be sent.

use std::time::Instant;

/// Probes of all tunnels together but for those of paths in use and relays; each has 1,200 bytes. Many may
/// leave at once: a network change concerns all tunnels.
const OF_NODE: Rate = Rate { per_second: 100, at_once: 400 };
/// What probes of addresses that have never answered leave of the node's: for those that have, which peers
/// can ask for too.
pub(super) const FOR_PROVED: u32 = 200;
/// Those to addresses that one peer named and that have never answered, and those of rounds, which come as
/// often as the peer likes. The addresses may be anybody's: two rounds of as many as there can be, and then
/// about a round of as many as are common in 20 s.
const OF_PEER: Rate = Rate { per_second: 2, at_once: 224 };
/// What rounds leave of a peer's: for where it is heard from, as after a move.
pub(super) const RESERVE: u32 = 16;

#[derive(Clone, Copy)]
struct Rate {
    per_second: u32,
    at_once: u32,
}

/// How many probes may be sent now: a token bucket.
pub(in crate::node) struct ProbeBudget {
    rate: Rate,
    left: u32,
    since: Instant,
}

impl ProbeBudget {
    pub(in crate::node) const fn of_node(now: Instant) -> Self {
        Self { rate: OF_NODE, left: OF_NODE.at_once, since: now }
    }

    pub(in crate::node) const fn of_peer(now: Instant) -> Self {
        Self { rate: OF_PEER, left: OF_PEER.at_once, since: now }
    }

    /// Takes one, if more than `reserve` are left.
    pub(super) fn take(&mut self, now: Instant, reserve: u32) -> bool {
        let granted = self.has(now, reserve);
        self.left -= u32::from(granted);
        granted
    }

    pub(super) fn has(&mut self, now: Instant, reserve: u32) -> bool {
        let passed = now.saturating_duration_since(self.since).as_millis();
        let grown = u32::try_from(passed * u128::from(self.rate.per_second) / 1000).unwrap_or(u32::MAX);
        if grown > 0 {
            self.left = self.left.saturating_add(grown).min(self.rate.at_once);
            self.since = now;
        }
        self.left > reserve
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
    fn probes_are_bounded_and_come_back_with_time() {
        let now = Instant::now();
        let mut budget = ProbeBudget::of_node(now);
        let granted = |budget: &mut ProbeBudget, at| (0..1000).filter(|_| budget.take(at, 0)).count();
        assert_eq!(granted(&mut budget, now), 400);
        assert_eq!(granted(&mut budget, now + Duration::from_millis(500)), 50);
        assert_eq!(granted(&mut budget, now + Duration::from_secs(3600)), 400);
    }
}
