//! Which relay, of those that both ends reach.
//!
//! The one with the least sum of both ends' measured round trips, since that is what their packets take. A
//! relay that an end has not measured comes after those that both have, in the NMS's order. A node may pin
//! one: then it is that, or none.

use std::time::Duration;

use super::{NodeNetwork, reaches};
use crate::node::Relay;

/// The relay for a pair, without those that `failed` just now, by name.
pub(super) fn choose<'a>(
    initiator: &NodeNetwork,
    responder: &NodeNetwork,
    failed: &[String],
    relays: &'a [Relay],
) -> Option<&'a Relay> {
    let ends = [initiator, responder];
    let usable = |relay: &&Relay| {
        ends.iter()
            .all(|end| reaches(end, relay) && end.pinned_relay.as_ref().is_none_or(|pin| *pin == relay.name))
            && !failed.contains(&relay.name)
    };
    let cost = |relay: &&Relay| -> Duration {
        let latencies = ends.iter().map(|end| end.relay_latencies.get(&relay.name).copied());
        latencies.sum::<Option<Duration>>().unwrap_or(Duration::MAX)
    };
    // The first of several equal ones.
    relays.iter().filter(usable).min_by_key(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(latencies: &[(&str, u64)]) -> NodeNetwork {
        NodeNetwork {
            addresses: vec!["198.51.100.7:7000".parse().unwrap()],
            relay_latencies: latencies
                .iter()
                .map(|(name, ms)| ((*name).to_owned(), Duration::from_millis(*ms)))
                .collect(),
            ..NodeNetwork::default()
        }
    }

    fn relays() -> Vec<Relay> {
        let relay = |n: u8| Relay { name: format!("r{n}"), addresses: vec![([192, 0, 2, n], 443).into()] };
        vec![relay(1), relay(2), relay(3)]
    }

    fn name(a: &NodeNetwork, b: &NodeNetwork, failed: &[&str]) -> Option<String> {
        let failed: Vec<_> = failed.iter().map(|name| (*name).to_owned()).collect();
        choose(a, b, &failed, &relays()).map(|relay| relay.name.clone())
    }

    #[test]
    fn the_least_sum_of_both_ends_is_taken() {
        let a = end(&[("r1", 5), ("r2", 20), ("r3", 12)]);
        let b = end(&[("r1", 60), ("r2", 20), ("r3", 14)]);
        assert_eq!(name(&a, &b, &[]).as_deref(), Some("r3"));
        assert_eq!(name(&a, &b, &["r3"]).as_deref(), Some("r2"));
        assert_eq!(name(&a, &b, &["r1", "r2", "r3"]), None);
    }

    #[test]
    fn what_only_one_end_has_measured_comes_later() {
        let (a, b) = (end(&[("r1", 1), ("r2", 90)]), end(&[("r2", 90)]));
        assert_eq!(name(&a, &b, &[]).as_deref(), Some("r2"));
        assert_eq!(name(&end(&[]), &b, &[]).as_deref(), Some("r1"), "nothing is known of the pair");
    }

    #[test]
    fn a_pinned_relay_is_the_only_one() {
        let (mut a, mut b) = (end(&[("r1", 1), ("r2", 9)]), end(&[("r1", 1), ("r2", 9)]));
        a.pinned_relay = Some("r2".into());
        assert_eq!(name(&a, &b, &[]).as_deref(), Some("r2"));
        assert_eq!(name(&b, &a, &["r2"]), None);
        b.pinned_relay = Some("r1".into());
        assert_eq!(name(&a, &b, &[]), None);
    }
}
