//! Devices that move between networks, lose all of them, or sleep; and what becomes of their connections and
//! tunnels.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cyphonic_common::frame::CandidateFlags;
use cyphonic_proto::node::{CandidateSet, Routes, Service, ServiceState, Sleep};
use cyphonic_proto::quic::IDLE_TIMEOUT;
use cyphonic_proto::stun::Transaction;
use cyphonic_proto::trs::NodePath;
use cyphonic_proto::{Channel, TunnelId};

use crate::net::Gate::{self, Firewall, Open, PortRestricted};
use crate::net::Uplink;
use crate::relay_restarts::{gap, relayed_pair, stream, tunnels as tunnels_with_wire};
use crate::world::{Event, Victim, World};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// From one device to another and back; through the relay it takes twice as long.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The tunnels of a device: what stands on the wire changes with the path.
fn tunnels(world: &World, name: &str) -> Vec<TunnelId> {
    tunnels_with_wire(world, name).into_iter().map(|(id, _)| id).collect()
}

/// A host whose every network leads everywhere in its family.
pub(crate) struct Families(pub(crate) Vec<Uplink>);

impl Routes for Families {
    fn source_for(&self, remote: SocketAddr) -> Option<IpAddr> {
        if remote.ip().is_loopback() {
            return Some(remote.ip());
        }
        let own = self.0.iter().map(|uplink| uplink.own.ip());
        own.into_iter().find(|own| own.is_ipv4() == remote.is_ipv4())
    }
}

impl World {
    /// A device has lost its networks and has these.
    pub(crate) fn attach(&mut self, name: &'static str, v4: Option<Gate>, v6: Option<Gate>) {
        let uplinks = self.new_uplinks(v4, v6);
        let host = self.hosts.get_mut(name).unwrap();
        host.uplinks = uplinks;
        let (life, routes) = (host.life, Families(host.uplinks.clone()));
        let own: Vec<_> = host.uplinks.iter().map(|uplink| uplink.own).collect();
        let stranded = self.conns.values().filter(|conn| conn.device == name && !self.reaches(conn.channel));
        for channel in stranded.map(|conn| conn.channel).collect::<Vec<_>>() {
            self.schedule(IDLE_TIMEOUT, Event::Idle(channel));
        }
        self.with_node(name, life, |node, now| node.handle_addresses(now, &own, &routes));
    }

    /// A device's cables are out: it has no addresses worth telling, and routes that lead nowhere.
    pub(crate) fn unplug(&mut self, name: &'static str) {
        let host = self.hosts.get_mut(name).unwrap();
        let (life, routes) = (host.life, Families(std::mem::take(&mut host.uplinks)));
        self.with_node(name, life, |node, now| node.handle_addresses(now, &[], &routes));
    }

    /// And in again.
    fn plug_in(&mut self, name: &'static str, uplinks: Vec<Uplink>) {
        let own: Vec<_> = uplinks.iter().map(|uplink| uplink.own).collect();
        let host = self.hosts.get_mut(name).unwrap();
        host.uplinks.clone_from(&uplinks);
        let life = host.life;
        self.with_node(name, life, |node, now| node.handle_addresses(now, &own, &Families(uplinks)));
    }

    /// A device sends on all its connections, from wherever it is.
    pub(crate) fn migrate(&mut self, name: &'static str) {
        let own = self.conns.values().filter(|conn| conn.device == name && conn.up && conn.detour.is_none());
        for channel in own.map(|conn| conn.channel).collect::<Vec<_>>() {
            let Some(conn) = self.conns.get_mut(&channel) else { continue };
            let uplinks = &mut self.hosts.get_mut(name).unwrap().uplinks;
            let server = conn.server;
            let uplink = uplinks.iter_mut().find(|uplink| uplink.own.is_ipv4() == server.is_ipv4());
            let Some(observed) = uplink.map(|uplink| uplink.outbound(self.now, server)) else { continue };
            if conn.observed != observed {
                conn.observed = observed;
                self.schedule(self.delay, Event::Seen { channel, observed });
            }
        }
    }

    pub(crate) fn seen(&mut self, channel: Channel, observed: SocketAddr) {
        if !self.reaches(channel) {
            return;
        }
        let conn = self.conns[&channel].clone();
        match conn.service {
            Service::As => {}
            Service::Nms => {
                let nms = self.cloud.nms_at(conn.server);
                nms.into_iter().for_each(|nms| nms.handle_moved(self.now, channel, observed));
            }
            trs @ Service::Trs(_) => {
                self.cloud.trs_of(&trs).into_iter().for_each(|trs| trs.handle_seen(channel, observed));
                let mut number = [0; 12];
                number[..8].copy_from_slice(&self.fresh().to_be_bytes());
                self.cloud.called.insert(number, (channel, observed));
                let delay = self.reliable_delay();
                self.schedule(delay, Event::Call { channel, observed, number });
            }
        }
        self.drain_cloud();
    }

    /// A call goes where the TRS sees the device, and reaches it if it is there.
    pub(crate) fn call(&mut self, channel: Channel, observed: SocketAddr, number: Transaction) {
        let Some(conn) = self.conns.get(&channel).filter(|_| self.reaches(channel)).cloned() else { return };
        let host = &self.hosts[conn.device];
        if host.uplinks.iter().any(|uplink| uplink.inbound(self.now, conn.server, observed)) {
            self.with_node(conn.device, conn.life, |node, now| node.handle_called(now, conn.server, number));
        }
    }

    pub(crate) fn proved(&mut self, channel: Channel, observed: SocketAddr) {
        let Some(conn) = self.conns.get(&channel).filter(|conn| conn.observed == observed) else { return };
        let conn = conn.clone();
        if self.reaches(channel) {
            let path = NodePath { remote: observed, local: Some(conn.server.ip()) };
            let now = self.now;
            self.cloud.trs_of(&conn.service).into_iter().for_each(|trs| trs.handle_moved(now, channel, path));
            self.drain_cloud();
        }
    }

    pub(crate) fn idle(&mut self, channel: Channel) {
        if self.reaches(channel) {
            return;
        }
        if let Some(conn) = self.conns.remove(&channel) {
            let lost = |at_node| Event::Lost { conn: conn.clone(), at_node, closed: false };
            self.schedule(Duration::ZERO, lost(true));
            self.schedule(Duration::ZERO, lost(false));
        }
    }

    fn all_connected(&self, name: &str) -> bool {
        let status = self.hosts[name].node.as_ref().unwrap().status();
        let wanted = status.services.iter().filter(|service| service.state != ServiceState::Unwanted);
        status.registered && wanted.clone().count() >= 2 && {
            let mut wanted = wanted;
            wanted.all(|service| service.state == ServiceState::Connected)
        }
    }

    /// Moves a device half a second into a stream between the two; how long nothing arrived.
    fn gap_of_move(
        &mut self,
        name: &'static str,
        v4: Option<Gate>,
        v6: Option<Gate>,
        to_it: bool,
    ) -> Duration {
        let other = if name == "a" { "b" } else { "a" };
        let (from, to) = if to_it { (other, name) } else { (name, other) };
        let before = [tunnels(self, "a"), tunnels(self, "b")].map(|all| all.len());
        assert!(stream(self, from, to, SECOND / 2).is_empty(), "nothing is lost before");
        self.attach(name, v4, v6);
        let lost = stream(self, from, to, 3 * SECOND);
        assert_eq!([tunnels(self, "a"), tunnels(self, "b")].map(|all| all.len()), before);
        gap(&lost)
    }
}

fn open_pair() -> World {
    let mut world = World::new(11);
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world
}

#[test]
fn a_direct_tunnel_and_the_services_follow_within_round_trips() {
    for mover in ["a", "b"] {
        for to_it in [true, false] {
            let mut world = open_pair();
            let before = [tunnels(&world, "a"), tunnels(&world, "b")];
            let connects = world.connects;
            let gap = world.gap_of_move(mover, Some(Open), None, to_it);
            assert!(gap <= 3 * ROUND_TRIP, "{mover}, {to_it}: {gap:?}");
            assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
            assert_eq!(world.connects, connects, "connections migrate");
            assert!(world.all_connected(mover));
        }
    }
}

fn dual_pair() -> World {
    let mut world = World::new(12);
    world.add("a", Some(Open), Some(Open));
    world.add("b", Some(Open), Some(Open));
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.run(4 * SECOND);
    world
}

#[test]
fn a_direct_tunnel_follows_to_the_family_that_is_left() {
    for (v4, v6) in [(Some(Open), None), (None, Some(Open))] {
        for mover in ["a", "b"] {
            for to_it in [true, false] {
                let mut world = dual_pair();
                let before = [tunnels(&world, "a").len(), tunnels(&world, "b").len()];
                let gap = world.gap_of_move(mover, v4, v6, to_it);
                assert!(gap <= 3 * ROUND_TRIP + 20 * MS, "{mover}, {to_it}: {gap:?}");
                assert_eq!([tunnels(&world, "a").len(), tunnels(&world, "b").len()], before);
            }
        }
    }
}

#[test]
fn a_list_that_was_long_under_way_does_not_stand_for_an_answer() {
    for (mover, other) in [("a", "b"), ("b", "a")] {
        let mut world = dual_pair();
        // The path in use was proved a moment ago, so that packets from elsewhere alone are no reason to
        // doubt it.
        world.attach(mover, None, Some(Open));
        world.run(SECOND / 2);
        let id = tunnels(&world, mover)[0];
        world.attach(mover, Some(Open), None);
        // As a router sends it that has kept it until the address was there again.
        let late = CandidateSet {
            sequence: 1,
            heard: 1,
            flags: CandidateFlags::default(),
            endpoints: vec!["192.0.2.77:7".parse().unwrap()],
        };
        world.with_node(mover, 0, |node, now| node.handle_candidates(now, id, &late));
        let gap = gap(&stream(&mut world, other, mover, 3 * SECOND));
        assert!(gap <= 3 * ROUND_TRIP + 20 * MS, "{mover}: {gap:?}");
    }
}

#[test]
fn two_that_move_at_once_find_each_other_through_the_nms() {
    for (v4, v6) in [(Some(Open), None), (None, Some(Open)), (Some(Open), Some(Open))] {
        for (from, to) in [("a", "b"), ("b", "a")] {
            let mut world = dual_pair();
            assert!(stream(&mut world, from, to, SECOND / 2).is_empty());
            world.attach("a", v4, v6);
            world.attach("b", v4, v6);
            let lost = stream(&mut world, from, to, 3 * SECOND);
            // The NMS is to be dialled anew where it was known by IPv4.
            let most = if v4.is_some() { 3 } else { 4 };
            assert!(gap(&lost) <= most * ROUND_TRIP, "{from} to {to}: {:?}", gap(&lost));
        }
    }
}

/// Both networks go at once, and others come one after the other: whoever is there first asks for one that is
/// nowhere yet.
#[test]
fn two_that_lose_their_networks_at_once_find_each_other_whoever_is_back_first() {
    for late in (0..80).step_by(2) {
        for (first, second) in [("a", "b"), ("b", "a")] {
            let mut world = open_pair();
            assert!(stream(&mut world, first, second, SECOND / 2).is_empty());
            world.attach("a", None, None);
            world.attach("b", None, None);
            world.run(15 * MS);
            world.attach(first, Some(Open), None);
            world.run(late * MS);
            world.attach(second, Some(Open), None);
            let lost = stream(&mut world, first, second, 3 * SECOND);
            assert!(gap(&lost) <= 12 * ROUND_TRIP, "{first} {late} ms before: {:?}", gap(&lost));
        }
    }
}

/// Longer than tunnels are believed in: both ends have given theirs up, and the other has asked for new ones
/// in vain.
#[test]
fn after_a_long_time_without_a_network_a_pair_meets_at_once_whatever_was_tried_meanwhile() {
    for away in [11 * SECOND, 20 * SECOND, 40 * SECOND] {
        for (gone, other) in [("a", "b"), ("b", "a")] {
            let mut world = open_pair();
            world.attach(gone, None, None);
            let ways = [(gone, other), (other, gone)];
            // How long it takes until something that is sent from now on arrives, each way.
            let talk = |world: &mut World, length: Duration| {
                let (began, mut sent, mut first) = (world.now, Vec::new(), [None; 2]);
                for _ in 0..length.as_millis() / 10 {
                    sent.extend(
                        ways.iter()
                            .enumerate()
                            .map(|(way, (from, to))| (way, (*to, world.send_inner(from, to)))),
                    );
                    world.run(10 * MS);
                    for (way, packet) in &sent {
                        if first[*way].is_none() && world.delivered.contains(packet) {
                            first[*way] = Some(world.now - began);
                        }
                    }
                }
                first
            };
            assert_eq!(talk(&mut world, away), [None; 2]);
            world.attach(gone, Some(Open), None);
            let gaps = talk(&mut world, 3 * SECOND);
            for gap in gaps {
                assert!(gap.is_some_and(|gap| gap <= 15 * ROUND_TRIP), "{gone} after {away:?}: {gaps:?}");
            }
        }
    }
}

/// The first network lets nothing through, and the doubt of that move is about to end when the second move
/// comes.
#[test]
fn a_second_move_gets_its_full_time_though_the_doubt_of_the_first_still_runs() {
    let mut world = open_pair();
    let before = tunnels(&world, "a");
    world.cut_off.insert(Victim::Device("a"));
    world.attach("a", Some(Open), None);
    world.run(9 * SECOND - 10 * MS);
    world.cut_off.clear();
    world.attach("a", Some(Open), None);
    world.run(10 * ROUND_TRIP);
    assert!(tunnels(&world, "a").starts_with(&before), "the tunnel was given up a moment after the move");
    assert!(stream(&mut world, "a", "b", SECOND).is_empty());
}

/// The same while something is sent, of which the peer's silence would be told: whatever of it was found out
/// in the first network.
#[test]
fn a_second_move_gets_its_time_though_the_tunnel_s_silence_in_the_first_network_is_about_to_end_it() {
    for at in (5000..6500).step_by(50).map(|at| at * MS) {
        let mut world = open_pair();
        world.delay = 60 * MS;
        let before = tunnels(&world, "a");
        world.cut_off.insert(Victim::Device("a"));
        world.attach("a", Some(Open), None);
        send(&mut world, at);
        world.cut_off.clear();
        world.attach("a", Some(Open), None);
        send(&mut world, SECOND);
        assert!(tunnels(&world, "a").starts_with(&before), "{at:?}");
        assert!(stream(&mut world, "a", "b", SECOND).is_empty(), "{at:?}");
    }
}

/// A sends to B for so long.
fn send(world: &mut World, length: Duration) {
    let until = world.now + length;
    while world.now < until {
        world.send_inner("a", "b");
        world.run(20 * MS);
    }
}

#[test]
fn the_nms_knows_a_moved_node_a_round_trip_later() {
    let mut world = open_pair();
    world.attach("b", Some(Open), None);
    world.run(ROUND_TRIP);
    world.add("c", Some(Firewall), None);
    world.settle();
    world.resolves("c", "b").unwrap();
    assert!(world.talk("c", "b", SECOND), "it is found where it is now");
}

#[test]
fn a_relayed_tunnel_follows_in_one_family() {
    for mover in ["a", "b"] {
        for to_it in [true, false] {
            let mut world = relayed_pair();
            let before = [tunnels(&world, "a"), tunnels(&world, "b")];
            let connects = world.connects;
            let gap = world.gap_of_move(mover, Some(PortRestricted), None, to_it);
            assert!(gap <= 3 * ROUND_TRIP, "{mover}, {to_it}: {gap:?}");
            assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
            assert_eq!(world.connects, connects, "connections migrate");
        }
    }
}

#[test]
fn a_relayed_tunnel_follows_to_the_other_family() {
    for mover in ["a", "b"] {
        for to_it in [true, false] {
            let mut world = relayed_pair();
            let before = [tunnels(&world, "a"), tunnels(&world, "b")];
            let gap = world.gap_of_move(mover, None, Some(Firewall), to_it);
            // A handshake, and the claim of the leg: measured from end to end, a round trip takes 40 ms here.
            assert!(gap <= 3 * 2 * ROUND_TRIP, "{mover}, {to_it}: {gap:?}");
            assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
            assert!(world.all_connected(mover));
            // And back again.
            let gap = world.gap_of_move(mover, Some(PortRestricted), None, to_it);
            assert!(gap <= 3 * 2 * ROUND_TRIP, "{mover}, {to_it}: {gap:?}");
            assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
        }
    }
}

#[test]
fn a_relayed_tunnel_is_asked_at_once_when_a_network_comes_back() {
    for away in [300 * MS, 1200 * MS, 3200 * MS] {
        let mut world = relayed_pair();
        let before = [tunnels(&world, "a"), tunnels(&world, "b")];
        assert!(world.talk("a", "b", SECOND));
        world.attach("a", None, None);
        assert!(!world.talk("a", "b", away), "there is no way");
        world.attach("a", Some(PortRestricted), None);
        let lost = stream(&mut world, "a", "b", 3 * SECOND);
        assert!(gap(&lost) <= 6 * 2 * ROUND_TRIP, "after {away:?}: {:?}", gap(&lost));
        assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
    }
}

/// Connections end after a while without a network, and legs with them: neither says anything of relay or
/// peer.
#[test]
fn a_relayed_tunnel_outlives_minutes_without_a_network() {
    let mut world = relayed_pair();
    let before = tunnels(&world, "a");
    world.attach("a", None, None);
    for minute in 1..=4 {
        world.run(60 * SECOND);
        assert_eq!(tunnels(&world, "a"), before, "after {minute} minutes");
    }
    world.attach("a", Some(PortRestricted), None);
    world.run(2 * SECOND);
    assert!(world.talk("a", "b", 3 * SECOND), "and they meet again");
}

/// Nobody is told dead by who hears nobody: the peer still has its end.
#[test]
fn a_direct_tunnel_is_taken_up_again_when_a_network_comes_back() {
    for away in [300 * MS, 900 * MS, 1700 * MS, 4500 * MS] {
        for (gone, other) in [("a", "b"), ("b", "a")] {
            let mut world = open_pair();
            let before = [tunnels(&world, "a"), tunnels(&world, "b")];
            assert!(stream(&mut world, gone, other, SECOND / 2).is_empty());
            world.attach(gone, None, None);
            assert!(!stream(&mut world, gone, other, away).is_empty(), "there is no way");
            world.attach(gone, Some(Open), None);
            let lost = stream(&mut world, gone, other, 3 * SECOND);
            assert!(gap(&lost) <= 3 * ROUND_TRIP, "{gone} after {away:?}: {:?}", gap(&lost));
            assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "{gone} after {away:?}");
        }
    }
}

#[test]
fn a_cable_that_is_pulled_out_and_plugged_in_costs_neither_tunnels_nor_connections() {
    for away in [300 * MS, 1700 * MS, 4500 * MS] {
        let mut world = open_pair();
        let before = ([tunnels(&world, "a"), tunnels(&world, "b")], world.connects);
        assert!(stream(&mut world, "a", "b", SECOND / 2).is_empty());
        // They arrive before, and are told of afterwards.
        for (from, to) in [("b", "a"), ("a", "b")] {
            world.send_inner(from, to);
            world.run(ROUND_TRIP);
        }
        let uplinks = world.hosts["a"].uplinks.clone();
        world.unplug("a");
        assert!(!stream(&mut world, "a", "b", away).is_empty(), "there is no way");
        world.plug_in("a", uplinks);
        let lost = stream(&mut world, "a", "b", 3 * SECOND);
        assert!(gap(&lost) <= 2 * ROUND_TRIP, "after {away:?}: {:?}", gap(&lost));
        let after = ([tunnels(&world, "a"), tunnels(&world, "b")], world.connects);
        assert_eq!(after, before, "after {away:?}");
    }
}

#[test]
fn without_any_network_nothing_is_dialled_and_the_first_that_comes_is_used_at_once() {
    for away in [2 * SECOND, 20 * SECOND, 600 * SECOND] {
        let mut world = open_pair();
        world.attach("a", None, None);
        let connects = world.connects;
        world.run(away);
        assert_eq!(world.connects, connects, "after {away:?}");
        world.attach("a", Some(Open), None);
        let back = world.run_while_not(8 * ROUND_TRIP, |world| world.all_connected("a"));
        assert!(back, "after {away:?}");
        assert!(world.talk("a", "b", 5 * SECOND), "after {away:?}");
    }
}

#[test]
fn a_device_that_starts_without_a_network_connects_once_it_has_one() {
    let mut world = World::new(5);
    world.add("a", None, None);
    world.run(SECOND);
    world.attach("a", None, None);
    world.run(20 * SECOND);
    let connects = world.connects;
    world.run(120 * SECOND);
    assert_eq!(world.connects, connects, "nothing to dial over");
    world.attach("a", None, Some(Open));
    assert!(world.run_while_not(12 * ROUND_TRIP, |world| world.all_connected("a")));
}

#[test]
fn a_move_in_the_middle_of_a_dial_begins_another() {
    let mut world = World::new(5);
    world.add("a", Some(Open), None);
    world.run(ROUND_TRIP / 4);
    world.attach("a", None, Some(Open));
    assert!(world.run_while_not(12 * ROUND_TRIP, |world| world.all_connected("a")));
}

#[test]
fn networks_that_come_and_go_all_the_time_leave_a_node_that_works() {
    let mut world = relayed_pair();
    for n in 0..100 {
        match n % 4 {
            0 => world.attach("a", None, Some(Firewall)),
            1 => world.attach("a", None, None),
            2 => world.attach("a", Some(PortRestricted), Some(Firewall)),
            _ => world.attach("a", Some(PortRestricted), None),
        }
        world.run(7 * MS * (n % 13));
    }
    assert!(world.run_while_not(3 * SECOND, |world| world.all_connected("a")));
    assert!(world.talk("a", "b", 5 * SECOND));
}

#[test]
fn after_a_short_sleep_connections_are_used_and_after_a_long_one_replaced() {
    for (asleep, replaced) in [(10 * SECOND, false), (60 * SECOND, true)] {
        let mut world = relayed_pair();
        let (before, connects) = (tunnels(&world, "a"), world.connects);
        let life = world.hosts["a"].life;
        let sleep = Sleep { length: asleep, counted: Duration::ZERO };
        world.with_node("a", life, |node, now| node.handle_resumed(now, sleep));
        assert_eq!(world.connects > connects, replaced, "after {asleep:?}");
        assert_eq!(stream(&mut world, "b", "a", 3 * SECOND).len(), 0, "what stands carries on");
        assert!(world.all_connected("a"));
        assert!(tunnels(&world, "a").starts_with(&before), "and stays until another has its place");
    }
}

#[test]
fn a_service_that_does_not_follow_is_dialled_beside() {
    let mut world = open_pair();
    let channels: Vec<_> = world.conns.keys().copied().collect();
    let connects = world.connects;
    // The new network lets no packet of the connections that stand through.
    world.attach("a", Some(Open), None);
    for channel in channels {
        if world.conns[&channel].device == "a" {
            world.conns.remove(&channel);
        }
    }
    assert!(world.run_while_not(SECOND + 12 * ROUND_TRIP, |world| {
        world.connects >= connects + 2 && world.all_connected("a")
    }));
}
