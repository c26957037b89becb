//! The overlay's rules, from the operator to the devices.

use std::time::Duration;

use cyphonic_proto::access::{AccessRule, OverlayAccess, OverlayRule};

use crate::net::Gate::Open;
use crate::world::{Victim, World, ZONE, fqdn};

const SECOND: Duration = Duration::from_secs(1);

fn with_devices(seed: u64) -> World {
    let mut world = World::new(seed);
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    world
}

/// `from` may open that at this device.
pub(crate) fn rule(at: &str, from: &str, to: &str) -> OverlayRule {
    let rule = AccessRule { from: vec![from.parse().unwrap()], to: vec![to.parse().unwrap()] };
    OverlayRule { at: vec![at.parse().unwrap()], rule }
}

pub(crate) fn restrict(world: &mut World, rules: Option<&[OverlayRule]>) {
    world.cloud.restrict(world.now, rules.map(<[_]>::to_vec));
    world.drain_cloud();
}

/// What holds at a device, as it was told.
pub(crate) fn at<'a>(world: &'a World, device: &str) -> &'a OverlayAccess {
    &world.hosts[device].access
}

/// What should.
pub(crate) fn by(rules: &[OverlayRule], device: &str) -> OverlayAccess {
    OverlayAccess::at(&fqdn(device), ZONE, Some(rules))
}

#[test]
fn each_device_is_told_what_holds_there_and_whenever_it_becomes_something_else() {
    let mut world = with_devices(1);
    assert_eq!(at(&world, "a"), &OverlayAccess::Unrestricted, "the overlay has none");
    world.resolves("a", "b").unwrap();
    let rules = [rule("a", "b", "tcp/22"), rule("all", "all", "ping")];
    restrict(&mut world, Some(&rules));
    world.run(SECOND);
    for device in ["a", "b"] {
        assert_eq!(at(&world, device), &by(&rules, device));
    }
    assert!(world.talk("a", "b", SECOND), "the tunnel stands");
    world.add("c", Some(Open), None);
    world.settle();
    assert_eq!(at(&world, "c"), &by(&rules, "c"), "with its registration");
    restrict(&mut world, None);
    world.run(SECOND);
    assert!(["a", "b", "c"].iter().all(|device| at(&world, device) == &OverlayAccess::Unrestricted));
}

#[test]
fn what_a_device_was_told_holds_while_nobody_can_tell_it_otherwise() {
    let mut world = with_devices(2);
    let rules = [rule("a", "b", "tcp/22")];
    restrict(&mut world, Some(&rules));
    world.run(SECOND);
    world.kill(Victim::Nms, 60 * SECOND);
    world.run(5 * SECOND);
    assert_eq!(at(&world, "a"), &by(&rules, "a"));
    world.kill(Victim::Device("a"), SECOND);
    world.add("c", Some(Open), None);
    world.run(5 * SECOND);
    assert!(world.hosts["a"].node.is_some());
    assert_eq!(at(&world, "a"), &by(&rules, "a"), "it has kept it");
    assert_eq!(at(&world, "c"), &OverlayAccess::Unknown, "which nobody has told anything yet");
    let others = [rule("a", "b", "tcp/23")];
    world.cloud.restrict(world.now, Some(others.to_vec()));
    world.run(60 * SECOND);
    world.settle();
    for device in ["a", "b", "c"] {
        assert_eq!(at(&world, device), &by(&others, device), "another NMS counts anew");
    }
}

#[test]
fn what_was_told_before_and_arrives_after_does_not_hold() {
    for seed in 0..19 {
        let mut world = with_devices(seed);
        world.delay = Duration::from_millis(5);
        world.jitter = Duration::from_millis(50);
        let rules = |port: u16| [rule("a", "b", &format!("tcp/{port}"))];
        for port in 1..=20 {
            restrict(&mut world, Some(&rules(port)));
            world.run(Duration::from_millis(3));
        }
        world.run(SECOND);
        assert_eq!(at(&world, "a"), &by(&rules(20), "a"), "seed {seed}");
    }
}
