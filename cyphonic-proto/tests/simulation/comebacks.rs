//! What is found again: the best kind of path, after whatever had taken it away is over.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cyphonic_common::frame::CandidateFlags;
use cyphonic_proto::message::{RouteKind, endpoint};
use cyphonic_proto::nat::NatFinding;
use cyphonic_proto::node::CandidateSet;

use crate::nat::Dependence::{AddressAndPort, Independent};
use crate::nat::Ports::Sequence;
use crate::nat::{NatKind, nat};
use crate::net::Gate::{self, Open, PortRestricted};
use crate::net::Uplink;
use crate::paths::{pair, relay_first};
use crate::relay_restarts::stream;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Both send, five times a second, for so many seconds.
fn traffic(world: &mut World, seconds: u32) {
    for _ in 0..seconds * 5 {
        world.send_inner("a", "b");
        world.send_inner("b", "a");
        world.run(SECOND / 5);
    }
}

/// How many seconds pass, with traffic, until something holds.
fn seconds_until(world: &mut World, most: u32, holds: impl Fn(&World) -> bool) -> Option<u32> {
    (0..=most).find(|_| {
        let held = holds(world);
        if !held {
            traffic(world, 1);
        }
        held
    })
}

fn both_direct(world: &World) -> bool {
    world.is_direct("a") && world.is_direct("b")
}

/// A list with what services observe comes a moment after one without, and is told though the observations are
/// as before the event.
#[test]
fn an_event_after_which_all_is_as_before_leaves_peers_with_all_addresses() {
    let lifetime = 30 * SECOND;
    let gate = Some(Gate::Nat(NatKind { lifetime, ..nat(Independent, AddressAndPort, Sequence) }));
    let mut world = pair([gate, None], [gate, None]);
    world.resolves("a", "b").unwrap();
    traffic(&mut world, 3);
    assert!(both_direct(&world));
    world.no_direct = true;
    traffic(&mut world, 10);
    assert!(!world.is_direct("a") && !world.is_direct("b"));
    world.hear_again("a");
    // The NATs forget the addresses from which the ends were last heard.
    traffic(&mut world, 60);
    world.no_direct = false;
    let took = seconds_until(&mut world, 400, both_direct);
    assert!(took.is_some(), "{:?}", world.path("b"));
}

#[test]
fn lists_that_were_lost_for_longer_than_they_are_repeated_are_told_again() {
    for lost in [2, 5, 8, 30] {
        let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
        world.resolves("a", "b").unwrap();
        traffic(&mut world, 3);
        // Where it is now can be told through the relay alone.
        world.no_lists = true;
        world.attach("a", Some(PortRestricted), None);
        traffic(&mut world, lost);
        assert!(!both_direct(&world));
        world.no_lists = false;
        let took = seconds_until(&mut world, 60, both_direct);
        assert!(took.is_some_and(|took| took <= 8), "lists lost for {lost} s: direct after {took:?} s");
    }
}

#[test]
fn ipv6_is_taken_again_after_it_was_out_for_a_while() {
    let mut world = World::new(41);
    world.tamper = Some(relay_first);
    world.add("a", Some(Open), Some(Open));
    world.add("b", Some(Open), Some(Open));
    world.settle();
    world.resolves("a", "b").unwrap();
    stream(&mut world, "a", "b", 5 * SECOND);
    let by_ipv6 = |world: &World| ["a", "b"].iter().all(|name| world.path(name).remote.is_ipv6());
    assert!(by_ipv6(&world));
    let uplinks = &mut world.hosts.get_mut("b").unwrap().uplinks;
    let ipv6 = uplinks.iter().position(|uplink| uplink.own.is_ipv6()).unwrap();
    let lost = uplinks.remove(ipv6);
    traffic(&mut world, 3);
    assert!(both_direct(&world) && !by_ipv6(&world));
    world.hosts.get_mut("b").unwrap().uplinks.push(lost);
    let took = seconds_until(&mut world, 120, by_ipv6);
    assert!(took.is_some_and(|took| took <= 10), "back after {took:?} s");
}

/// What was in vain in one network says nothing of the next.
#[test]
fn rounds_begin_often_again_after_each_move() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.no_direct = true;
    world.resolves("a", "b").unwrap();
    traffic(&mut world, 5);
    for _ in 0..6 {
        world.attach("a", Some(PortRestricted), None);
        traffic(&mut world, 6);
    }
    world.no_direct = false;
    let took = seconds_until(&mut world, 3500, both_direct);
    assert!(took.is_some_and(|took| took <= 100), "direct after {took:?} s");
}

/// A peer that sits at many addresses, and asks for them to be probed all the time, costs others nothing.
#[test]
fn a_peer_that_asks_for_probes_all_the_time_does_not_keep_others_from_a_direct_path() {
    let mut world = World::new(31);
    world.tamper = Some(relay_first);
    world.add("a", Some(PortRestricted), Some(Open));
    world.add("b", Some(PortRestricted), None);
    world.add("m", None, Some(Open));
    world.settle();
    let many: Vec<SocketAddr> =
        (1..=12).map(|n| format!("[2001:db8:99::{n}]:7000").parse().unwrap()).collect();
    let host = world.hosts.get_mut("m").unwrap();
    host.uplinks.extend(many.iter().map(|at| Uplink::new(*at, Open, at.ip())));
    world.resolves("m", "a").unwrap();
    assert!(world.talk("a", "m", SECOND));
    world.run(3 * SECOND);
    let id = *world.hosts["a"].tunnels.keys().next().unwrap();
    let mut sequence = 100;
    let mut flood = |world: &mut World, times: u32| {
        for _ in 0..times {
            sequence += 1;
            let flags = CandidateFlags::default();
            let set = CandidateSet { sequence, heard: 0, flags, endpoints: many.clone() };
            world.with_node("a", 0, |node, now| node.handle_candidates(now, id, &set));
            world.run(SECOND / 10);
        }
    };
    flood(&mut world, 300);
    world.resolve("a", "b");
    for _ in 0..60 {
        world.send_inner("a", "b");
        world.send_inner("b", "a");
        flood(&mut world, 5);
    }
    let status = world.hosts["a"].node.as_ref().unwrap().status();
    let peer = status.peers.iter().find(|peer| peer.fqdn.as_deref() == Some("b.lab")).unwrap();
    let direct = peer.tunnels.iter().any(|tunnel| tunnel.route != RouteKind::Relay);
    assert!(direct, "{:?}", peer.tunnels);
}

impl World {
    /// The NAT before a device has become another one, of which no network event tells.
    fn renumber(&mut self, name: &'static str, outer: IpAddr) {
        for uplink in &mut self.hosts.get_mut(name).unwrap().uplinks {
            *uplink = Uplink::new(uplink.own, uplink.gate, outer);
        }
        self.migrate(name);
    }

    fn nat_v4(&self, name: &str) -> NatFinding {
        self.hosts[name].node.as_ref().unwrap().status().nat_v4
    }
}

#[test]
fn a_nat_with_a_new_outer_address_is_not_taken_for_a_symmetric_one() {
    let mut world = World::new(51);
    world.add("a", Some(PortRestricted), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.run(60 * SECOND);
    assert_eq!(world.nat_v4("a"), NatFinding::EndpointIndependent);
    let outer: IpAddr = [198, 51, 100, 99].into();
    world.renumber("a", outer);
    world.run(SECOND);
    // What the AS saw at the login is no more held against it.
    assert_eq!(world.nat_v4("a"), NatFinding::EndpointIndependent);
    let told = world.registrations["a"].last().unwrap().observations.clone();
    let told: Vec<_> = told.iter().filter_map(|told| endpoint::from_wire(told.observed.as_ref()?)).collect();
    assert!(!told.is_empty() && told.iter().all(|seen| seen.ip() == outer), "{told:?}");
    world.resolves("b", "a").unwrap();
    traffic(&mut world, 1);
    assert!(seconds_until(&mut world, 10, both_direct).is_some(), "{:?}", world.path("b"));
}
