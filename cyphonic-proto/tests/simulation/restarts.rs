//! Whoever restarts, and whenever: afterwards everything works.

use std::time::Duration;

use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::world::{Victim, World};

const SECOND: Duration = Duration::from_secs(1);

/// Two devices started and one asking for the other, with nobody killed: how many events that takes.
fn walk(world: &mut World, gates: [crate::net::Gate; 2]) {
    world.add("a", Some(gates[0]), None);
    world.add("b", Some(gates[1]), None);
    world.run(SECOND);
    world.resolve("a", "b");
    world.run(4 * SECOND);
}

/// Kills the victim after every single step of the walk.
fn restart_at_every_step(victim: Victim, gates: [crate::net::Gate; 2]) {
    let mut world = World::new(1);
    walk(&mut world, gates);
    let steps = world.steps;
    assert!(steps > 40, "the walk is too short to be one");
    for step in 1..=steps {
        let mut world = World::new(1);
        world.kill_at = Some((step, victim));
        walk(&mut world, gates);
        world.run(3 * SECOND);
        world.settle();
        world
            .resolves("a", "b")
            .unwrap_or_else(|error| panic!("{victim:?} at step {step} of {steps}: {error}"));
        assert!(world.talk("a", "b", 15 * SECOND), "{victim:?} at step {step} of {steps}: no packets pass");
    }
}

#[test]
fn the_initiator_may_restart_at_any_step() {
    restart_at_every_step(Victim::Device("a"), [Symmetric, PortRestricted]);
    restart_at_every_step(Victim::Device("a"), [Open, Open]);
}

#[test]
fn the_responder_may_restart_at_any_step() {
    restart_at_every_step(Victim::Device("b"), [Symmetric, PortRestricted]);
    restart_at_every_step(Victim::Device("b"), [Open, Symmetric]);
}

#[test]
fn the_nms_may_restart_at_any_step() {
    restart_at_every_step(Victim::Nms, [Symmetric, PortRestricted]);
    restart_at_every_step(Victim::Nms, [PortRestricted, PortRestricted]);
}

#[test]
fn the_trs_may_restart_at_any_step() {
    restart_at_every_step(Victim::Trs, [Symmetric, PortRestricted]);
}

#[test]
fn the_as_may_restart_at_any_step() {
    restart_at_every_step(Victim::As, [Symmetric, PortRestricted]);
}

#[test]
fn a_tunnel_that_nobody_uses_outlives_the_nms_that_could_make_another() {
    for gates in [[Open, Open], [Symmetric, PortRestricted]] {
        let mut world = World::new(1);
        world.add("a", Some(gates[0]), None);
        world.add("b", Some(gates[1]), None);
        world.settle();
        world.resolves("a", "b").unwrap();
        assert!(world.talk("a", "b", SECOND));
        world.cut(Victim::Nms);
        world.run(20 * 60 * SECOND);
        let packet = world.send_inner("a", "b");
        world.run(SECOND);
        assert!(world.delivered.contains(&("b", packet)), "{gates:?}");
        // It could have been unused for longer than it may be, when the NMS is back.
        world.run(10 * 60 * SECOND);
        world.cut_off.clear();
        world.run(120 * SECOND);
        assert!(["a", "b"].iter().all(|device| world.hosts[device].tunnels.len() == 1), "{gates:?}");
        world.run(6 * 60 * SECOND);
        assert!(["a", "b"].iter().all(|device| world.hosts[device].tunnels.is_empty()), "{gates:?}");
    }
}
