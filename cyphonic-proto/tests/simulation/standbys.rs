//! An NMS on another machine stands in while the overlay's own is away.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cyphonic_proto::node::{Routes, Service, ServiceState};

use crate::cloud::standby;
use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::world::{Victim, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// An overlay with a standby, of which these devices have heard.
fn world() -> World {
    let mut world = World::new(3);
    let (now, start) = (world.now, world.start);
    world.cloud.add_standby(now, start);
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.add("c", Some(Open), None);
    world.settle();
    world
}

impl World {
    /// Whether a device is registered, and whether at the standby.
    fn home(&self, name: &str) -> Option<bool> {
        let status = self.hosts[name].node.as_ref()?.status();
        let nms = status.services.into_iter().find(|one| one.service == Service::Nms)?;
        status.registered.then(|| standby().addresses.contains(&nms.remote.unwrap()))
    }

    fn all_at(&self, at_standby: bool) -> bool {
        ["a", "b", "c"].iter().all(|name| self.home(name) == Some(at_standby))
    }

    /// The cloud dies as a machine does, and the standby has noticed.
    fn lose_cloud(&mut self, down: Duration) {
        self.kill(Victim::Nms, down);
        self.kill(Victim::As, down);
        self.stand_in(true);
    }
}

#[test]
fn devices_meet_at_the_standby_while_the_cloud_is_away_and_go_back_afterwards() {
    let mut world = world();
    world.resolves("a", "b").unwrap();
    assert!(world.all_at(false) && world.talk("a", "b", SECOND));
    let tunnels = |world: &World| world.hosts["a"].tunnels.keys().copied().collect::<Vec<_>>();
    let before = tunnels(&world);
    let back = world.now + 10 * MINUTE;
    world.lose_cloud(10 * MINUTE);
    assert!(world.run_while_not(30 * SECOND, |world| world.all_at(true)));
    assert_eq!(tunnels(&world), before, "what stands does not depend on it");
    world.resolves("c", "a").unwrap();
    assert!(world.talk("c", "a", SECOND) && world.talk("a", "b", SECOND));

    world.run(back - world.now);
    assert!(world.all_at(true));
    world.stand_in(false);
    assert!(world.run_while_not(5 * SECOND, |world| world.all_at(false)));
    world.resolves("b", "c").unwrap();
    assert!(world.talk("b", "c", SECOND));
}

/// Set-ups of the two are numbered on: else the ends would keep the older tunnel.
#[test]
fn a_pair_that_meets_again_at_the_other_nms_keeps_the_new_tunnel() {
    let mut world = world();
    for at_standby in [false, true, false] {
        if at_standby {
            world.lose_cloud(5 * MINUTE);
        } else if world.cloud.stands_in {
            world.run(5 * MINUTE);
            world.stand_in(false);
        }
        assert!(world.run_while_not(40 * SECOND, |world| world.all_at(at_standby)));
        for name in ["a", "b"] {
            let life = world.hosts[name].life;
            let all: Vec<_> = world.hosts[name].tunnels.keys().copied().collect();
            for id in all {
                world.with_node(name, life, |node, now| node.handle_tunnel_closed(now, id));
            }
        }
        world.run(SECOND);
        world.resolves("a", "b").unwrap();
        assert!(world.talk("a", "b", SECOND), "{at_standby}");
    }
}

#[test]
fn a_standby_that_stands_by_is_no_place_to_stay_and_keeps_nobody_from_the_nms() {
    let mut world = world();
    world.kill(Victim::Nms, 90 * SECOND);
    for _ in 0..900 {
        world.run(SECOND / 10);
        let is_served = |name: &&str| world.home(name) == Some(true);
        assert!(!["a", "b", "c"].iter().any(is_served) || world.cloud.stands_in);
    }
    assert!(world.run_while_not(40 * SECOND, |world| world.all_at(false)));
}

#[test]
fn an_nms_that_only_restarts_is_not_left() {
    let mut world = world();
    world.stand_in(true);
    world.unnoticed = 3 * SECOND;
    world.kill(Victim::Nms, 2 * SECOND);
    world.run(10 * SECOND);
    assert!(world.all_at(false));
}

/// As where the standby and the cloud do not reach each other, and devices reach both.
#[test]
fn devices_go_back_though_the_standby_does_not_hear_that_the_cloud_is_back() {
    let mut world = world();
    world.lose_cloud(10 * SECOND);
    assert!(world.run_while_not(40 * SECOND, |world| world.all_at(true)));
    assert!(world.run_while_not(3 * MINUTE, |world| world.all_at(false)));
}

#[test]
fn devices_stay_at_the_standby_while_the_as_alone_is_back() {
    let mut world = world();
    world.kill(Victim::Nms, 3600 * SECOND);
    world.stand_in(true);
    assert!(world.run_while_not(40 * SECOND, |world| world.all_at(true)));
    let mut away = 0;
    for _ in 0..3500 {
        world.run(SECOND);
        away += usize::from(world.home("a").is_none());
    }
    // They look for it after one or two minutes, and then ever more rarely: six times in an hour.
    assert!((1..=70).contains(&away), "{away}");
}

#[test]
fn a_device_that_starts_while_the_cloud_is_away_knows_the_standby() {
    let mut world = world();
    world.lose_cloud(10 * MINUTE);
    world.kill(Victim::Device("a"), 20 * SECOND);
    assert!(world.run_while_not(60 * SECOND, |world| world.all_at(true)));
    world.resolves("a", "c").unwrap();
}

#[test]
fn of_two_that_can_be_reached_the_one_with_a_route_is_dialled() {
    struct ToStandby(SocketAddr);
    impl Routes for ToStandby {
        fn source_for(&self, remote: SocketAddr) -> Option<IpAddr> {
            standby().addresses.contains(&remote).then(|| self.0.ip())
        }
    }
    let mut world = world();
    world.stand_in(true);
    let (own, life) = (world.hosts["c"].uplinks[0].own, world.hosts["c"].life);
    world.with_node("c", life, |node, now| node.handle_addresses(now, &[own], &ToStandby(own)));
    assert!(world.run_while_not(5 * SECOND, |world| world.home("c") == Some(true)));
    assert_eq!(world.state("c", &Service::Nms), Some(ServiceState::Connected));
}

#[test]
fn revocations_and_rules_hold_at_the_standby_too() {
    let mut world = world();
    world.resolves("c", "a").unwrap();
    world.lose_cloud(10 * MINUTE);
    assert!(world.run_while_not(30 * SECOND, |world| world.all_at(true)));
    let now = world.now;
    world.cloud.revoke(now, "a");
    world.run(2 * SECOND);
    assert!(world.hosts["c"].tunnels.is_empty(), "its peers are told");
    world.run(MINUTE);
    assert_eq!(world.home("a"), None);
    assert!(world.resolves("b", "a").is_err());
}
