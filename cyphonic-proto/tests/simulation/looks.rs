//! What a node's looks at its network told is kept as long as it holds, and missed answers are asked for again.

use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::netcheck::{FamilyFindings, Findings, Mapping};

use crate::net::Gate::PortRestricted;
use crate::net::Uplink;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

const OUTER: &str = "198.51.100.1:40000";

impl World {
    fn finds(&mut self, name: &'static str, findings: Findings) {
        let life = self.hosts[name].life;
        self.with_node(name, life, |node, now| node.handle_findings(now, findings));
    }

    fn v4(&self, name: &str) -> FamilyFindings {
        self.hosts[name].node.as_ref().unwrap().findings().v4.clone()
    }

    /// The times between a device's looks.
    fn waits(&self, name: &str) -> Vec<Duration> {
        self.looks[name].windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

fn alone(seed: u64) -> World {
    let mut world = World::new(seed);
    world.add("a", Some(PortRestricted), None);
    world.settle();
    world
}

fn seen_at(outer: &str, v4: FamilyFindings) -> Findings {
    let outer: SocketAddr = outer.parse().unwrap();
    Findings { v4, observations: vec![("192.0.2.9:3478".parse().unwrap(), outer)], ..Findings::default() }
}

fn found(outer: &str, mapping: Mapping, seconds: Option<u64>) -> Findings {
    let lifetime = seconds.map(Duration::from_secs);
    seen_at(outer, FamilyFindings { mapping, lifetime, ..FamilyFindings::default() })
}

/// What minutes of probing have found out is kept as long as the node seems to be where it was.
#[test]
fn the_lifetime_of_mappings_is_forgotten_only_in_another_network() {
    let lifetime = |world: &World| world.v4("a").lifetime;
    let known = |seconds| found(OUTER, Mapping::EndpointIndependent, Some(seconds));
    let mut world = alone(3);
    world.finds("a", known(120));
    world.finds("a", known(2));
    assert_eq!(lifetime(&world), Some(120 * SECOND), "another look has only begun");
    world.hear_again("a");
    world.run(2 * SECOND);
    assert_eq!(lifetime(&world), Some(120 * SECOND));
    // The same address behind another NAT: services see that, also after a look that nobody answered.
    world.finds("a", Findings::default());
    assert_eq!(lifetime(&world), Some(120 * SECOND));
    let uplink = &mut world.hosts.get_mut("a").unwrap().uplinks[0];
    *uplink = Uplink::new(uplink.own, PortRestricted, [198, 51, 100, 99].into());
    world.hear_again("a");
    world.run(2 * SECOND);
    assert_eq!(lifetime(&world), None);
}

/// Servers refuse what many nodes behind one address ask them at once.
#[test]
fn what_a_look_could_not_tell_stays_as_an_earlier_one_found_it() {
    let mut world = alone(3);
    let v4 = FamilyFindings {
        mapping: Mapping::AddressDependent,
        lifetime: Some(60 * SECOND),
        port_delta: Some(2),
        ..FamilyFindings::default()
    };
    world.finds("a", seen_at(OUTER, v4.clone()));
    world.finds("a", found(OUTER, Mapping::Unknown, None));
    assert_eq!(world.v4("a"), v4);
    world.finds("a", Findings::default());
    assert_eq!(world.v4("a"), v4);
    // Neither of a NAT that behaves in another way, nor of another one.
    world.finds("a", found(OUTER, Mapping::EndpointIndependent, None));
    assert_eq!(world.v4("a"), found(OUTER, Mapping::EndpointIndependent, None).v4);
    world.finds("a", seen_at(OUTER, v4));
    let elsewhere = "198.51.100.77:40000";
    world.finds("a", found(elsewhere, Mapping::Unknown, None));
    assert_eq!(world.v4("a"), FamilyFindings::default());
}

#[test]
fn a_look_that_told_too_little_is_repeated_soon_and_then_less_and_less_often() {
    let mut world = alone(5);
    world.run(120 * MINUTE);
    let waits = world.waits("a");
    for (n, wait) in (0u32..).zip(&waits) {
        let most = (2 * MINUTE * 2u32.pow(n.min(10))).min(20 * MINUTE);
        assert!((most / 2..=most).contains(wait), "{n}: {wait:?}");
    }
    assert!(waits.len() >= 8, "{waits:?}");
    // As soon as nothing is missing there is time.
    world.finds("a", found(OUTER, Mapping::EndpointIndependent, Some(120)));
    let looks = world.looks["a"].len();
    world.run(80 * MINUTE);
    let usual = 15 * MINUTE..=25 * MINUTE;
    let later = &world.waits("a")[looks - 1..];
    assert!(later.len() >= 3 && later.iter().all(|wait| usual.contains(wait)), "{later:?}");
}

/// Power that is back lets hundreds look at once; they are not to do so for good.
#[test]
fn nodes_that_came_together_look_at_different_times() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let mut world = World::new(7);
    for name in NAMES {
        world.add(name, Some(PortRestricted), None);
    }
    world.settle();
    for name in NAMES {
        world.finds(name, found(OUTER, Mapping::EndpointIndependent, Some(120)));
    }
    world.run(26 * MINUTE);
    let mut second: Vec<_> = NAMES.iter().map(|name| world.looks[name][1]).collect();
    second.sort();
    let spread = second[NAMES.len() - 1] - second[0];
    assert!(spread > 2 * MINUTE, "{spread:?}");
}
