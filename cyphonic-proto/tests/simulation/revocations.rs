//! What the operator's revocation does to tunnels that stand.

use std::time::Duration;

use crate::net::Gate::{self, Open, PortRestricted, Symmetric};
use crate::world::{Victim, World};

const SECOND: Duration = Duration::from_secs(1);

/// A and B have a tunnel, C belongs to nobody's affair.
fn with_tunnel(a: Gate, b: Gate) -> World {
    let mut world = World::new(1);
    world.add("a", Some(a), None);
    world.add("b", Some(b), None);
    world.add("c", Some(Open), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    world.resolves("a", "c").unwrap();
    assert!(world.talk("a", "b", SECOND) && world.talk("a", "c", SECOND));
    world
}

/// B goes on sending, as a thief would have it do. Whether the last of its packets arrived.
fn b_sends(world: &mut World, times: u32, interval: Duration) -> bool {
    let mut arrived = false;
    for _ in 0..times {
        let packet = world.send_inner("b", "a");
        world.run(interval);
        arrived = world.delivered.contains(&("a", packet));
    }
    arrived
}

fn tunnels(world: &World, device: &str) -> usize {
    world.hosts[device].tunnels.len()
}

fn revoke_b(world: &mut World) {
    world.cloud.revoke(world.now, "b");
    world.drain_cloud();
}

#[test]
fn tunnels_of_a_revoked_device_end_within_seconds() {
    for (a, b) in [(Open, Open), (Symmetric, PortRestricted)] {
        let mut world = with_tunnel(a, b);
        assert!(b_sends(&mut world, 2, SECOND));
        revoke_b(&mut world);
        assert!(!b_sends(&mut world, 3, SECOND), "{a:?} {b:?}");
        assert_eq!(tunnels(&world, "a"), 1, "{a:?} {b:?}: with C");
        assert!(world.talk("a", "c", SECOND));
        assert!(world.resolves("a", "b").is_err());
        assert!(!b_sends(&mut world, 100, SECOND), "{a:?} {b:?}: it does not come back");
    }
}

#[test]
fn who_was_cut_off_hears_of_it_when_it_is_back() {
    let mut world = with_tunnel(Open, Open);
    world.cut(Victim::Nms);
    world.run(5 * SECOND);
    revoke_b(&mut world);
    assert!(b_sends(&mut world, 10, SECOND), "nobody could tell A");
    world.cut_off.clear();
    assert!(!b_sends(&mut world, 60, SECOND));
    assert_eq!(tunnels(&world, "a"), 1);
}

#[test]
fn where_nobody_tells_it_ends_when_a_successor_is_due() {
    let mut world = with_tunnel(Open, Open);
    world.kill(Victim::Nms, SECOND);
    world.cloud.revoke(world.now, "b");
    // The new NMS has never heard of B, and tells nothing.
    assert!(b_sends(&mut world, 20, 30 * SECOND));
    assert!(!b_sends(&mut world, 110, 30 * SECOND));
    assert_eq!(tunnels(&world, "a"), 0, "that with C was idle");
}

#[test]
fn a_device_that_is_taken_back_is_reached_again() {
    let mut world = with_tunnel(Open, Open);
    revoke_b(&mut world);
    world.run(5 * SECOND);
    assert_eq!(tunnels(&world, "a"), 1);
    world.cloud.enrol("b");
    world.kill(Victim::Device("b"), SECOND);
    world.run(5 * SECOND);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 2 * SECOND));
}
