//! How many times the network is crossed before an answer, with links of one delay and programs that take no
//! time.
//!
//! Every link (device to service, device to device) takes one *crossing*. A round trip of a direct pair is
//! two crossings, of a relayed pair four, from one device over the relay to the other and back.

use std::time::{Duration, Instant};

use cyphonic_proto::Message;
use cyphonic_proto::message::RouteKind;

use crate::net::Gate::{self, Open, PortRestricted, Symmetric};
use crate::world::{Victim, World};

const SECOND: Duration = Duration::from_secs(1);
const CROSSING: Duration = Duration::from_millis(10);
const DIRECT_ROUND_TRIP: u32 = 2;
const RELAYED_ROUND_TRIP: u32 = 4;

fn crossings(since: Instant, world: &World) -> u32 {
    let taken = world.now - since;
    let crossings = u32::try_from(taken.as_nanos().div_ceil(CROSSING.as_nanos())).unwrap();
    assert_eq!(taken, CROSSING * crossings, "nothing but the network takes time");
    crossings
}

fn world() -> World {
    let mut world = World::new(1);
    world.delay = CROSSING;
    world
}

fn pair(mut world: World, a: Gate, b: Gate) -> World {
    world.add("a", Some(a), None);
    world.add("b", Some(b), None);
    world.settle();
    world
}

/// Asks, and says how many crossings the answer took and by which route the pair is joined. The first packet
/// is sent with the answer, and arrives.
fn set_up(world: &mut World) -> (u32, RouteKind) {
    let before = world.now;
    world.resolves("a", "b").unwrap();
    let taken = crossings(before, world);
    let packet = world.send_inner("a", "b");
    world.run(SECOND);
    assert!(world.delivered.contains(&("b", packet)), "the first packet is lost");
    (taken, world.hosts["a"].node.as_ref().unwrap().status().peers[0].route.unwrap())
}

#[test]
fn a_direct_set_up_asks_the_nms_and_the_peer() {
    let mut world = pair(world(), Open, Open);
    let (taken, route) = set_up(&mut world);
    assert_eq!((taken, route), (2 + DIRECT_ROUND_TRIP, RouteKind::Direct));
    assert_eq!(taken, 2 * DIRECT_ROUND_TRIP);
}

#[test]
fn a_set_up_in_which_the_responder_dials_saves_the_way_back_to_the_initiator() {
    let mut world = pair(world(), Open, Symmetric);
    let (taken, route) = set_up(&mut world);
    // A-NMS-B, then B-A-B-A: the listening end knows the dialler one crossing later than the other way round.
    assert_eq!((taken, route), (2 + 3, RouteKind::ResponderInitiated));
}

#[test]
fn a_set_up_through_a_warm_relay_asks_the_nms_and_the_peer() {
    let mut world = pair(world(), Symmetric, PortRestricted);
    let (taken, route) = set_up(&mut world);
    assert_eq!((taken, route), (2 + RELAYED_ROUND_TRIP, RouteKind::Relay));
    assert!(taken <= 2 * RELAYED_ROUND_TRIP);
}

#[test]
fn a_relay_that_neither_has_used_costs_its_handshake_once() {
    let mut world = world();
    world.warm_relays = 0;
    let mut world = pair(world, Symmetric, PortRestricted);
    let before = world.connects;
    let (taken, route) = set_up(&mut world);
    assert_eq!(world.connects - before, 2, "both connect to it, at the same time");
    assert_eq!((taken, route), (2 + 2 + RELAYED_ROUND_TRIP, RouteKind::Relay));
    assert!(taken <= 3 * RELAYED_ROUND_TRIP);
}

#[test]
fn a_start_takes_four_round_trips_and_from_cached_state_two() {
    let mut world = world();
    let before = world.now;
    world.add("a", Some(Symmetric), None);
    let registered = |world: &World| world.hosts["a"].node.as_ref().unwrap().status().registered;
    assert!(world.run_while_not(SECOND, registered));
    // AS and NMS: a handshake and a request each.
    assert_eq!(crossings(before, &world), 4 * 2);
    world.run(SECOND);
    world.kill(Victim::Device("a"), SECOND);
    world.run(SECOND - CROSSING / 10);
    assert!(world.hosts["a"].node.is_none());
    assert!(world.run_while_not(SECOND, |world| world.hosts["a"].node.is_some()));
    let before = world.now;
    assert!(world.run_while_not(SECOND, registered));
    assert_eq!(crossings(before, &world), 2 * 2);
}

#[test]
fn what_overtakes_the_dialler_s_request_waits_for_the_listener_s_half() {
    let mut world = pair(world(), Open, Open);
    world.resolves("a", "b").unwrap();
    assert_eq!((world.hosts["a"].installs, world.hosts["b"].installs), (1, 0));
    // A's challenge is sent when its tunnel stands, just before its TunnelRequest.
    assert!(world.run_while_not(SECOND, |world| world.hosts["b"].early_packets() == 1));
    assert!(world.hosts["b"].tunnels.is_empty());
    world.run(CROSSING);
    let opened = world.hosts["b"].tunnels.values().all(|tunnel| tunnel.confirmed);
    assert!(opened && world.hosts["b"].installs == 1 && world.hosts["b"].early_packets() == 0);
}

#[test]
fn a_responder_that_refuses_ends_the_wait_of_the_initiator() {
    let mut world = pair(world(), Open, Open);
    world.tamper = Some(|message| {
        if let Message::RouteConfirmation(confirmation) = message {
            confirmation.setup_id.clear();
        }
    });
    world.no_direct = true;
    let before = world.cloud.nms.as_ref().unwrap().counters().directions;
    world.resolve("a", "b");
    let asked_again = |world: &World| world.cloud.nms.as_ref().unwrap().counters().directions == before + 2;
    assert!(
        world.run_while_not(SECOND / 2, asked_again),
        "not after the second that a direct route may take"
    );
}
