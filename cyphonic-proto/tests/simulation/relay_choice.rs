//! Several relays: the nearest are kept warm, a pair takes the one nearest to both, and another when that one
//! dies.

use std::time::Duration;

use cyphonic_proto::node::{NodeStatus, ResolveError, Service, ServiceState};

use crate::cloud::nth_relay;
use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::world::{Victim, World, virtual_address};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A pair that needs a relay, of which there are two.
fn two_relays(warm: usize) -> World {
    let mut world = World::new(5);
    world.cloud.listed = 2;
    world.cloud.revive(Victim::Nms, world.now, world.now);
    world.warm_relays = warm;
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world
}

/// A device measured its round trips to both relays.
fn measured(world: &mut World, name: &'static str, round_trips: [u64; 2]) {
    let measured: Vec<_> = round_trips
        .into_iter()
        .enumerate()
        .map(|(number, ms)| (nth_relay(number).addresses[0], Duration::from_millis(ms)))
        .collect();
    let life = world.hosts[name].life;
    world.with_node(name, life, |node, now| node.handle_latencies(now, &measured));
}

fn status(world: &World, name: &str) -> NodeStatus {
    world.hosts[name].node.as_ref().unwrap().status()
}

/// The relays to which a device holds a connection.
fn warm(world: &World, name: &str) -> Vec<String> {
    let services = status(world, name).services;
    let up = services.into_iter().filter(|service| service.state == ServiceState::Connected);
    up.filter_map(|service| match service.service {
        Service::Trs(name) => Some(name),
        Service::As | Service::Nms => None,
    })
    .collect()
}

/// The relay that joins the pair.
fn relay_of(world: &World) -> Option<String> {
    status(world, "a").peers[0].relay.clone()
}

#[test]
fn the_nearest_relays_are_kept_warm_and_no_others() {
    let mut world = two_relays(1);
    assert_eq!(warm(&world, "a"), ["trs.lab"], "nothing is measured: the NMS's order");
    measured(&mut world, "a", [40, 5]);
    world.run(SECOND);
    assert_eq!(warm(&world, "a"), ["trs2.lab"]);
    measured(&mut world, "a", [40, 44]);
    world.run(SECOND);
    assert_eq!(warm(&world, "a"), ["trs.lab"]);
}

#[test]
fn a_pair_takes_the_relay_that_is_nearest_to_both() {
    let mut world = two_relays(1);
    measured(&mut world, "a", [10, 30]);
    measured(&mut world, "b", [60, 15]);
    world.run(SECOND);
    world.resolves("a", "b").unwrap();
    assert_eq!(relay_of(&world).as_deref(), Some("trs2.lab"));
    assert!(world.talk("a", "b", SECOND));
    assert_eq!(warm(&world, "a"), ["trs.lab", "trs2.lab"], "the one in use beside the nearest");
}

#[test]
fn a_relay_that_dies_for_good_is_replaced_by_the_next() {
    for (dead, next) in [(Victim::Trs, "trs2.lab"), (Victim::SecondTrs, "trs.lab")] {
        let mut world = two_relays(2);
        let near = if dead == Victim::Trs { [5, 9] } else { [9, 5] };
        measured(&mut world, "a", near);
        measured(&mut world, "b", near);
        world.run(SECOND);
        world.resolves("a", "b").unwrap();
        assert!(world.talk("a", "b", SECOND));
        assert_ne!(relay_of(&world).as_deref(), Some(next));
        // Its host: dials of it get no answer.
        world.cut(dead);
        let start = world.now;
        while !world.talk("a", "b", SECOND) {
            assert!(world.now < start + 15 * SECOND, "the pair stays apart for {:?}", world.now - start);
        }
        assert_eq!(relay_of(&world).as_deref(), Some(next), "{dead:?}");
        assert!(world.talk("b", "a", SECOND));
    }
}

/// The NMS cannot know: the nearest relay is one that the responder, or the asker, alone does not reach.
#[test]
fn a_pair_meets_through_another_relay_where_one_of_them_does_not_reach_the_nearest() {
    for warm in [0, 2] {
        for (asker, other, lacks) in [("a", "b", "a"), ("a", "b", "b"), ("b", "a", "a"), ("b", "a", "b")] {
            let mut world = World::new(6);
            world.cloud.listed = 2;
            world.cloud.revive(Victim::Nms, world.now, world.now);
            world.warm_relays = warm;
            world.without_trs.insert(lacks);
            world.add("a", Some(Symmetric), None);
            world.add("b", Some(PortRestricted), None);
            world.settle();
            measured(&mut world, "a", [5, 9]);
            measured(&mut world, "b", [5, 9]);
            world.run(20 * SECOND);
            let began = world.now;
            let met = world.resolves(asker, other);
            let took = world.now - began;
            let case = format!("{warm}, {asker} asks, {lacks} lacks it: {took:?}");
            assert_eq!(met, Ok(()), "{case}");
            assert!(warm == 0 || took < SECOND, "what fails is known: {case}");
            assert!(world.talk(asker, other, SECOND), "{case}");
            assert_eq!(relay_of(&world).as_deref(), Some("trs2.lab"), "{case}");
        }
    }
}

/// A pair that only relays join, though nobody knows that before it has tried; both are near the first one.
fn pair_without_direct_paths() -> World {
    let mut world = World::new(7);
    world.cloud.listed = 2;
    world.cloud.revive(Victim::Nms, world.now, world.now);
    world.no_direct = true;
    // The NMS believes in devices that are gone without a word.
    world.unnoticed = 30 * SECOND;
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    measured(&mut world, "a", [5, 9]);
    measured(&mut world, "b", [5, 9]);
    world.run(SECOND);
    world
}

#[test]
fn a_relay_is_not_passed_over_because_the_peer_was_away() {
    let mut world = pair_without_direct_paths();
    world.cut_off.insert(Victim::Device("b"));
    assert!(world.resolves("a", "b").is_err(), "nobody waits any more when the first relay was tried");
    world.run(10 * SECOND);
    world.cut_off.clear();
    world.resolves("a", "b").unwrap();
    assert_eq!(relay_of(&world).as_deref(), Some("trs.lab"));
    assert!(world.talk("a", "b", SECOND));
}

#[test]
fn a_peer_that_comes_back_while_it_is_asked_for_is_met_at_the_nearest_relay() {
    // While the second relay is tried.
    for down in (22..34).step_by(2) {
        let mut world = two_relays(2);
        world.unnoticed = 30 * SECOND;
        measured(&mut world, "a", [5, 9]);
        measured(&mut world, "b", [5, 9]);
        world.run(SECOND);
        world.kill(Victim::Device("b"), down * SECOND / 10);
        let query = world.resolve("a", "b");
        assert!(world.answer(query).is_ok(), "{down}");
        assert_eq!(relay_of(&world).as_deref(), Some("trs.lab"), "{down}");
        assert!(world.talk("a", "b", SECOND), "{down}");
    }
}

/// A pair with warm connections to both relays, of which some use one alone and one has not reached the first
/// for long.
fn pinned_pair(seed: u64, pins: &[(&'static str, &'static str)], lacks: &'static str) -> World {
    let mut world = World::new(seed);
    world.cloud.listed = 2;
    world.cloud.revive(Victim::Nms, world.now, world.now);
    world.warm_relays = 2;
    world.pinned.extend(pins.iter().copied());
    world.without_trs.insert(lacks);
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.run(180 * SECOND);
    pause_between_dials(&mut world, lacks);
    world
}

/// Until a device that lacks the first relay has waited for a while to dial it again. A dial under way would not
/// notice that the relay is back, since nothing is sent twice here, and right after one that failed nobody is
/// let dial again.
fn pause_between_dials(world: &mut World, lacks: &'static str) {
    let waits = |world: &World| {
        matches!(world.state(lacks, &Service::Trs(nth_relay(0).name)), Some(ServiceState::Waiting { .. }))
    };
    // Not all waits are as long.
    for _ in 0..10 {
        assert!(world.run_while_not(10 * SECOND, waits));
        world.run(2 * SECOND);
        if waits(world) {
            return;
        }
    }
    panic!("{lacks} waits for 2 s at no time");
}

fn asked(world: &World) -> u64 {
    world.cloud.nms.as_ref().unwrap().counters().directions
}

/// Who waits to dial it again does so when it is asked for, or asks itself, though another relay is known.
#[test]
fn a_relay_that_is_back_is_used_at_once_where_the_asker_has_no_other() {
    for (seed, asker, other) in (1..20).flat_map(|seed| [(seed, "a", "b"), (seed, "b", "a")]) {
        let mut world = pinned_pair(seed, &[("a", "trs.lab")], "b");
        world.without_trs.clear();
        let began = world.now;
        assert_eq!(world.resolves(asker, other), Ok(()), "{asker} asks, {seed}");
        assert!(world.now - began < SECOND, "{asker} asks, {seed}: {:?}", world.now - began);
        assert!(world.talk(asker, other, SECOND), "{asker} asks, {seed}");
        assert_eq!(relay_of(&world).as_deref(), Some("trs.lab"), "{asker} asks, {seed}");
    }
}

/// One that is not back is waited for once.
#[test]
fn who_has_only_a_relay_that_the_asker_does_not_reach_is_asked_for_twice() {
    let mut world = pinned_pair(8, &[("a", "trs.lab")], "b");
    let (began, before) = (world.now, asked(&world));
    assert!(matches!(world.resolves("b", "a"), Err(ResolveError::NoRoute { .. })));
    assert!(world.now - began < 2 * SECOND, "{:?}", world.now - began);
    assert_eq!(asked(&world) - before, 2);
}

/// Nor does it matter who else asks at the same time, or how far the relay is.
#[test]
fn a_relay_that_is_back_is_used_by_all_who_ask_and_from_afar() {
    let mut world = pinned_pair(8, &[("a", "trs.lab"), ("c", "trs.lab")], "b");
    world.add("c", Some(Symmetric), None);
    world.run(20 * SECOND);
    pause_between_dials(&mut world, "b");
    world.delay = 110 * MS;
    world.without_trs.clear();
    let [of_a, of_c] = ["a", "c"].map(|name| world.resolve("b", name));
    world.run(3 * SECOND);
    assert_eq!(world.answer(of_a), Ok(virtual_address("a")));
    assert_eq!(world.answer(of_c), Ok(virtual_address("c")));
}

/// The one question that is left is not used up by another relay that connects meanwhile.
#[test]
fn a_relay_that_is_back_is_waited_for_though_another_one_connects() {
    for (seed, after) in (1..8).flat_map(|seed| [250, 300, 350, 400].map(|ms| (seed, ms * MS))) {
        let mut world = pinned_pair(seed, &[("a", "trs.lab")], "b");
        let (life, other) = (world.hosts["b"].life, Service::Trs(nth_relay(1).name));
        world.without_trs.clear();
        // The dial takes twice as long as the question, and longer than the other relay's.
        let usual = std::mem::replace(&mut world.delay, 450 * MS);
        let question = world.resolve("b", "a");
        world.delay = usual;
        world.run(after);
        world.with_node("b", life, |node, now| node.handle_disconnected(now, other, "it restarts".into()));
        world.run(3 * SECOND);
        assert_eq!(world.answer(question), Ok(virtual_address("a")), "{seed}, {after:?}");
    }
}

/// A relay that was away while a device looked at its network is dialled again all the same.
#[test]
fn a_near_relay_that_a_look_did_not_hear_stays_warm() {
    let mut world = two_relays(1);
    measured(&mut world, "a", [5, 9]);
    world.run(SECOND);
    assert_eq!(warm(&world, "a"), ["trs.lab"]);
    world.kill(Victim::Trs, 90 * SECOND);
    world.run(60 * SECOND);
    let (life, second) = (world.hosts["a"].life, nth_relay(1).addresses[0]);
    world.with_node("a", life, |node, now| node.handle_latencies(now, &[(second, 9 * MS)]));
    world.run(70 * SECOND);
    assert!(warm(&world, "a").contains(&"trs.lab".to_owned()), "{:?}", warm(&world, "a"));
}

/// Nor is the relay that a device must use passed over because it failed.
#[test]
fn a_pinned_relay_that_is_back_is_taken_at_the_first_try() {
    for (asker, other) in [("a", "b"), ("b", "a")] {
        let mut world = pinned_pair(8, &[("a", "trs.lab")], "a");
        world.without_trs.clear();
        let before = asked(&world);
        assert_eq!(world.resolves(asker, other), Ok(()), "{asker} asks");
        assert_eq!(asked(&world) - before, 1, "{asker} asks");
        assert!(world.talk(asker, other, SECOND), "{asker} asks");
        assert_eq!(relay_of(&world).as_deref(), Some("trs.lab"), "{asker} asks");
    }
}

#[test]
fn who_has_no_relay_in_common_is_told_at_once_though_one_of_them_fails() {
    for (own, others) in [("trs.lab", "trs2.lab"), ("trs2.lab", "trs.lab")] {
        let mut world = pinned_pair(8, &[("a", own), ("b", others)], "a");
        world.without_trs.clear();
        let (began, before) = (world.now, asked(&world));
        assert!(matches!(world.resolves("a", "b"), Err(ResolveError::NoRoute { .. })), "{own}");
        assert!(world.now - began < SECOND / 10, "{own}: {:?}", world.now - began);
        assert_eq!(asked(&world) - before, 1, "{own}");
    }
}

#[test]
fn a_relay_that_always_fails_does_not_have_the_other_one_tried_for_ever() {
    let mut world = two_relays(2);
    world.unnoticed = 60 * SECOND;
    world.cut(Victim::SecondTrs);
    world.run(20 * SECOND);
    world.cut_off.insert(Victim::Device("b"));
    let before = asked(&world);
    assert!(world.resolves("a", "b").is_err());
    assert_eq!(asked(&world) - before, 1);
}

fn wants_first(world: &World) -> bool {
    status(world, "a").services.iter().any(|one| one.service == Service::Trs("trs.lab".into()))
}

/// The relays to which each of A's registrations had round trips.
fn told(world: &World) -> Vec<Vec<&str>> {
    let registrations = world.registrations["a"].iter();
    registrations.map(|request| request.relay_latencies.iter().map(|to| to.name.as_str()).collect()).collect()
}

#[test]
fn the_round_trip_of_a_relay_that_failed_is_told_again_once_a_look_hears_the_relay() {
    let mut world = two_relays(1);
    measured(&mut world, "a", [9, 5]);
    measured(&mut world, "b", [5, 90]);
    world.run(SECOND);
    // B does not notice at once, so that the NMS sends the pair there. A dials it for this pair alone.
    world.unnoticed = 10 * SECOND;
    world.kill(Victim::Trs, 120 * SECOND);
    world.resolve("a", "b");
    assert!(world.run_while_not(SECOND, |world| told(world).last().unwrap() == &["trs2.lab"]));
    assert!(world.run_while_not(10 * SECOND, |world| !wants_first(world)));
    world.run(SECOND);
    assert_eq!(told(&world).last().unwrap(), &["trs2.lab"], "nobody knows whether it is back");
    measured(&mut world, "a", [9, 5]);
    world.run(SECOND);
    assert_eq!(told(&world).last().unwrap(), &["trs.lab", "trs2.lab"]);
}

/// As nobody stays connected to any, nobody but those who are sent there finds out.
#[test]
fn a_relay_that_is_dead_and_silent_costs_a_device_its_time_once() {
    let mut world = two_relays(0);
    world.add("c", Some(Symmetric), None);
    world.add("d", Some(Symmetric), None);
    world.settle();
    ["a", "b", "c", "d"].into_iter().for_each(|name| measured(&mut world, name, [5, 9]));
    world.run(SECOND);
    world.cut(Victim::Trs);
    let took = |world: &mut World, asker, other| {
        let began = world.now;
        assert_eq!(world.resolves(asker, other), Ok(()), "{asker} asks for {other}");
        world.now - began
    };
    assert!(took(&mut world, "a", "b") > SECOND, "nobody knew");
    // The next one asks before the dial has failed.
    world.run(SECOND / 5);
    let next = took(&mut world, "a", "c");
    assert!(next < SECOND, "{next:?}");
    let of_peer = took(&mut world, "b", "d");
    assert!(of_peer < SECOND, "{of_peer:?}: its part was overtaken");
    world.run(30 * SECOND);
    assert!(!wants_first(&world), "nobody has a use for it");
    // Who only took part knows it as well.
    let last = took(&mut world, "d", "b");
    assert!(last < SECOND, "{last:?}");
}

/// Where a network passes STUN no more, or has lost it.
#[test]
fn a_relay_that_a_look_does_not_hear_comes_last_but_not_one_that_is_connected() {
    let mut world = two_relays(1);
    measured(&mut world, "a", [5, 9]);
    world.run(SECOND);
    let life = world.hosts["a"].life;
    assert_eq!(told(&world).last().unwrap(), &["trs.lab", "trs2.lab"]);
    world.with_node("a", life, |node, now| node.handle_latencies(now, &[]));
    world.run(SECOND);
    assert_eq!(warm(&world, "a"), ["trs.lab"]);
    assert_eq!(told(&world).last().unwrap(), &["trs.lab"]);
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
}
