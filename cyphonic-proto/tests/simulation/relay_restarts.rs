//! A relay dies under traffic: the tunnels through it stay the same ones.

use std::time::Duration;

use cyphonic_proto::node::Service;
use cyphonic_proto::trs::{NodePath, TrsKeys};
use cyphonic_proto::{ConnectionId, QueryId, TunnelId};

use crate::cloud::{addresses, relay, trs_keys};
use crate::dataplane::Installed;
use crate::net::Gate::{PortRestricted, Symmetric};
use crate::world::{Event, Packet, Victim, World, identity};

const SECOND: Duration = Duration::from_secs(1);
pub(crate) const STEP: Duration = Duration::from_millis(20);
const CROSSING: Duration = Duration::from_millis(10);

pub(crate) fn relayed_pair() -> World {
    relayed_pair_of(3)
}

fn relayed_pair_of(seed: u64) -> World {
    let mut world = World::new(seed);
    // Nobody finds out by a lost connection before this.
    world.unnoticed = 14 * SECOND;
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.run(3 * SECOND);
    world
}

/// The tunnels of a device, with their connection IDs on the wire.
pub(crate) fn tunnels(world: &World, name: &str) -> Vec<(TunnelId, ConnectionId)> {
    let one = |tunnel: &Installed| (tunnel.parameters.id, tunnel.parameters.wire_cid);
    world.hosts[name].tunnels.values().map(one).collect()
}

/// One sends a packet every 20 ms for so long; when each was sent, since `start`, of those that got lost.
pub(crate) fn stream(
    world: &mut World,
    from: &'static str,
    to: &'static str,
    length: Duration,
) -> Vec<Duration> {
    let start = world.now;
    let mut sent = Vec::new();
    while world.now < start + length {
        sent.push((world.now - start, world.send_inner(from, to)));
        world.run(STEP);
    }
    world.run(SECOND);
    sent.retain(|(_, packet)| !world.delivered.contains(&(to, *packet)));
    sent.into_iter().map(|(at, _)| at).collect()
}

pub(crate) fn gap(lost: &[Duration]) -> Duration {
    match (lost.first(), lost.last()) {
        (Some(first), Some(last)) => *last - *first + STEP,
        _ => Duration::ZERO,
    }
}

/// After a relay is back: the end that has its leg first asks again after a quarter of a second at most, each
/// way takes 10 ms, a handshake three of them, and packets are [`STEP`] apart.
const BACK: Duration = Duration::from_millis(350);

#[test]
fn one_way_traffic_stops_for_the_restart_and_a_few_round_trips() {
    for (seed, from, to) in (1..20).flat_map(|seed| [(seed, "a", "b"), (seed, "b", "a")]) {
        let mut world = relayed_pair_of(seed);
        let before = [tunnels(&world, "a"), tunnels(&world, "b")];
        world.kill(Victim::Trs, SECOND);
        let lost = stream(&mut world, from, to, 6 * SECOND);
        let gap = gap(&lost);
        assert!(gap >= SECOND && gap <= SECOND + BACK, "{seed}, {from} to {to}: {gap:?}");
        assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
    }
}

#[test]
fn an_outage_shorter_than_a_nodes_patience_with_silence_is_outlived() {
    for seed in 1..20 {
        let mut world = relayed_pair_of(seed);
        let before = [tunnels(&world, "a"), tunnels(&world, "b")];
        world.kill(Victim::Trs, 5 * SECOND);
        let lost = stream(&mut world, "a", "b", 10 * SECOND);
        assert!(gap(&lost) <= 5 * SECOND + BACK, "{seed}: {:?}", gap(&lost));
        assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "{seed}: the same tunnels");
    }
}

#[test]
fn a_map_that_outlives_the_process_forwards_without_a_gap_and_is_claimed() {
    let mut world = relayed_pair();
    let before = [tunnels(&world, "a"), tunnels(&world, "b")];
    let map = world.cloud.relays[0].map.clone();
    world.cloud.relays[0].pinned = true;
    world.kill(Victim::Trs, SECOND);
    let lost = stream(&mut world, "a", "b", 30 * SECOND);
    assert_eq!(lost, Vec::<Duration>::new(), "not one packet");
    world.run(60 * SECOND);
    assert!(world.talk("a", "b", SECOND));
    assert_eq!([tunnels(&world, "a"), tunnels(&world, "b")], before, "the same tunnels");
    assert_eq!(world.cloud.relays[0].map, map, "the same legs, claimed before their grace ended");
    assert_eq!(world.cloud.relays[0].trs.as_ref().unwrap().counters().restored, 2);
}

#[test]
fn legs_that_were_left_and_are_claimed_by_nobody_go() {
    let mut world = relayed_pair();
    world.cloud.relays[0].pinned = true;
    world.kill(Victim::Trs, SECOND);
    world.kill(Victim::Device("a"), SECOND);
    world.kill(Victim::Device("b"), SECOND);
    world.run(90 * SECOND);
    assert_eq!(world.cloud.relays[0].map.len(), 0);
}

#[test]
fn a_device_cut_off_meanwhile_gets_nothing_back() {
    let mut world = relayed_pair();
    world.kill(Victim::Trs, SECOND);
    world.cut(Victim::Device("b"));
    let lost = stream(&mut world, "a", "b", 5 * SECOND);
    assert!(lost.len() > 200, "nothing passes");
    assert_eq!(world.cloud.relays[0].map.len(), 0, "one end alone restores no pair");
}

#[test]
fn forged_resets_are_ignored_and_repeated_ones_interrupt_nothing() {
    let mut world = relayed_pair();
    let from = addresses(&Service::Trs(relay().name))[0];
    let now = world.now;
    let to = world.hosts.get_mut("a").unwrap().uplinks[0].outbound(now, from);
    let before = tunnels(&world, "a");
    let real = trs_keys().reset_token(before[0].1);
    for token in [[0; 16], trs_keys().reset_token(ConnectionId::from_random_data([1; 8]))] {
        world.schedule(STEP, Event::Datagram { from, to, packet: Packet::Reset(token) });
    }
    let connections = world.conns.len();
    assert_eq!(stream(&mut world, "a", "b", SECOND), Vec::<Duration>::new());
    assert_eq!(world.conns.len(), connections);
    // Whoever saw a real one sends it again and again.
    let channels = |world: &World| world.conns.keys().copied().max();
    let newest = channels(&world);
    for n in 0..100 {
        world.schedule(STEP * 10 * n, Event::Datagram { from, to, packet: Packet::Reset(real) });
    }
    assert_eq!(stream(&mut world, "a", "b", 25 * SECOND), Vec::<Duration>::new(), "packets flow on");
    assert!(channels(&world) > newest, "it was believed");
    let restored = world.cloud.relays[0].trs.as_ref().unwrap().counters().restored;
    assert!((1..=6).contains(&restored), "but ever less often: {restored}");
    assert_eq!(tunnels(&world, "a"), before);
}

/// A pair with a tunnel, and a third device that has none; between one and it a set-up begins, with so much
/// time from each to the relay.
fn beside_a_set_up(asker: &'static str, asked: &'static str, crossing: Duration) -> (World, QueryId) {
    let mut world = relayed_pair();
    world.delay = crossing;
    world.add("c", Some(Symmetric), None);
    world.settle();
    let query = world.resolve(asker, asked);
    (world, query)
}

/// A real reset of A's tunnel, sent again so much later by somebody who saw it.
fn repeat_reset(world: &mut World, after: Duration) {
    let from = addresses(&Service::Trs(relay().name))[0];
    let now = world.now;
    let to = world.hosts.get_mut("a").unwrap().uplinks[0].outbound(now, from);
    let packet = Packet::Reset(trs_keys().reset_token(tunnels(world, "a")[0].1));
    world.schedule(after, Event::Datagram { from, to, packet });
}

#[test]
fn a_repeated_reset_does_not_interrupt_what_is_being_set_up_through_the_relay() {
    for (asker, asked) in [("a", "c"), ("c", "a")] {
        // Of the set-up, which takes 60 ms, and of the first round trips of the tunnel.
        for at in (0..100).step_by(4).map(Duration::from_millis) {
            let (mut world, query) = beside_a_set_up(asker, asked, CROSSING);
            let began = world.now;
            repeat_reset(&mut world, at);
            world.answer(query).unwrap();
            let took = world.now - began;
            let case = format!("{asker} to {asked}, {at:?}: {took:?}");
            // What is asked while the relay is connected to anew waits for that.
            assert!(took <= Duration::from_millis(80), "{case}");
            assert_eq!(stream(&mut world, asker, asked, SECOND / 4), Vec::<Duration>::new(), "{case}");
            assert!(world.talk("a", "b", SECOND), "{case}");
            assert_eq!((world.hosts["a"].installs, world.hosts["c"].installs), (2, 1), "{case}");
        }
    }
}

#[test]
fn nor_does_it_where_the_relay_is_so_far_that_its_answer_takes_long_and_nobody_has_measured_how_long() {
    let crossing = Duration::from_millis(150);
    for (asker, asked) in [("a", "c"), ("c", "a")] {
        for at in (0..crossing.as_millis() * 8).step_by(50) {
            let (mut world, query) = beside_a_set_up(asker, asked, crossing);
            let began = world.now;
            repeat_reset(&mut world, Duration::from_millis(u64::try_from(at).unwrap()));
            world.answer(query).unwrap();
            let took = world.now - began;
            let case = format!("{asker} to {asked}, {at} ms: {took:?}");
            assert!(took <= crossing * 8, "{case}");
            assert_eq!(stream(&mut world, asker, asked, SECOND / 4), Vec::<Duration>::new(), "{case}");
            assert_eq!((world.hosts["a"].installs, world.hosts["c"].installs), (2, 1), "{case}");
        }
    }
}

#[test]
fn a_restart_while_something_is_set_up_through_the_relay_is_found_out_a_moment_later() {
    let (mut world, _) = beside_a_set_up("a", "c", CROSSING);
    for name in ["a", "b", "c"] {
        let (life, measured) = (world.hosts[name].life, [(relay().addresses[0], 2 * CROSSING)]);
        world.with_node(name, life, |node, now| node.handle_latencies(now, &measured));
    }
    let before = [tunnels(&world, "a"), tunnels(&world, "b")];
    world.run(2 * STEP);
    world.kill(Victim::Trs, SECOND / 10);
    let gap = gap(&stream(&mut world, "a", "b", 3 * SECOND));
    assert!(gap <= SECOND / 10 + Duration::from_millis(250 + 300) + 4 * CROSSING, "{gap:?}");
    assert!(["a", "b"].iter().zip(before).all(|(name, before)| tunnels(&world, name).starts_with(&before)));
}

impl World {
    /// The first relay forgets all legs, under connections that stand; with other keys it takes none of its
    /// old tickets.
    fn forget_legs(&mut self, keys: TrsKeys) {
        let relay = &mut self.cloud.relays[0];
        relay.map.clear();
        relay.revive_with(keys, [77; 32], self.now, self.start);
        let trs = relay.trs.as_mut().unwrap();
        for conn in self.conns.values().filter(|conn| Victim::of(conn) == Victim::Trs && conn.up) {
            let path = NodePath { remote: conn.observed, local: Some(conn.server.ip()) };
            trs.handle_connected(self.now, conn.channel, identity(conn.device), path);
        }
    }
}

/// A set-up beside a tunnel, when the relay has told of resets before and is believed only now and then.
fn beside_a_set_up_after_resets() -> World {
    let mut world = relayed_pair();
    world.add("c", Some(Symmetric), None);
    world.settle();
    for pause in [5, 9] {
        repeat_reset(&mut world, CROSSING);
        world.run(pause * SECOND);
    }
    world
}

#[test]
fn a_leg_that_a_relay_lost_without_a_restart_is_waited_for_beside_a_set_up_too() {
    let mut world = beside_a_set_up_after_resets();
    let before = [tunnels(&world, "a"), tunnels(&world, "b")];
    world.cut(Victim::Device("b"));
    world.forget_legs(trs_keys());
    let query = world.resolve("a", "c");
    world.run(2 * CROSSING);
    assert_eq!(stream(&mut world, "a", "b", 10 * SECOND).len(), 500, "nothing passes");
    assert!(world.answer(query).is_ok());
    world.cut_off.clear();
    assert!(world.talk("a", "b", 3 * SECOND));
    for (name, before) in ["a", "b"].iter().zip(before) {
        assert!(tunnels(&world, name).starts_with(&before), "{name}: another tunnel");
    }
}

#[test]
fn a_leg_that_a_relay_lost_for_good_is_replaced_at_once_beside_a_set_up_too() {
    let mut world = beside_a_set_up_after_resets();
    world.forget_legs(TrsKeys::derive(b"another private key"));
    world.resolve("a", "c");
    world.run(2 * CROSSING);
    let gap = gap(&stream(&mut world, "a", "b", 3 * SECOND));
    assert!(gap <= SECOND / 2, "{gap:?}");
}
