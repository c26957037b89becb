//! An NMS on another machine stands in while the overlay's own is away.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cyphonic_proto::node::{Routes, Service, ServiceState};

use crate::access::{at, by, restrict, rule};
use crate::cloud::standby;
use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::world::{Conn, Event, Victim, World};

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

/// Set-ups of the two are numbered on: else the end that has the older tunnel yet would keep it.
#[test]
fn a_pair_that_meets_again_at_the_other_nms_keeps_the_new_tunnel() {
    for at_standby in [true, false] {
        let mut world = world();
        // Its numbers are far ahead of the standby's clock.
        world.cloud.numbers = 1 << 60;
        world.kill(Victim::Nms, SECOND / 2);
        world.run(40 * SECOND);
        assert!(world.all_at(false));
        world.resolves("a", "b").unwrap();
        if at_standby {
            world.cloud.count_on();
            world.lose_cloud(5 * MINUTE);
        }
        assert!(world.run_while_not(40 * SECOND, |world| world.all_at(at_standby)));
        // One end loses its tunnel, and the other has it for a while.
        let (life, old) =
            (world.hosts["a"].life, world.hosts["b"].tunnels.keys().copied().collect::<Vec<_>>());
        let lost: Vec<_> = world.hosts["a"].tunnels.keys().copied().collect();
        for id in lost {
            world.with_node("a", life, |node, now| node.handle_tunnel_closed(now, id));
        }
        world.resolves("a", "b").unwrap();
        world.run(15 * SECOND);
        let left: Vec<_> = world.hosts["b"].tunnels.keys().copied().collect();
        assert!(
            left.len() == 1 && !old.contains(&left[0]),
            "at the standby: {at_standby}; {old:?}, {left:?}"
        );
        assert!(world.talk("b", "a", SECOND));
    }
}

#[test]
fn a_standby_that_stands_by_keeps_nobody_from_the_nms() {
    let mut world = world();
    world.kill(Victim::Nms, 90 * SECOND);
    for _ in 0..900 {
        world.run(SECOND / 10);
        assert!(!world.all_at(true));
    }
    assert!(world.run_while_not(40 * SECOND, |world| world.all_at(false)));
}

/// It has no copy, or is the one that still hears of the NMS.
#[test]
fn a_standby_that_sends_everybody_away_is_passed_over() {
    let mut world = world();
    world.cloud.add_idle_standby();
    for name in ["a", "b", "c"] {
        world.hear_again(name);
    }
    world.run(SECOND);
    assert_eq!(world.hosts["a"].cached.as_ref().unwrap().standbys.len(), 2);
    world.lose_cloud(10 * MINUTE);
    assert!(world.run_while_not(60 * SECOND, |world| world.all_at(true)));
    world.resolves("a", "b").unwrap();
}

/// As one whose register cannot be read.
#[test]
fn an_nms_that_accepts_connections_and_registers_nobody_is_left() {
    let mut world = world();
    world.stand_in(true);
    world.cloud.refuses = true;
    let own: Vec<_> = world.conns.values().filter(|conn| conn.service == Service::Nms).cloned().collect();
    for conn in own {
        world.conns.remove(&conn.channel);
        world.schedule(Duration::ZERO, Event::Lost { conn, at_node: true, closed: true });
    }
    assert!(world.run_while_not(30 * SECOND, |world| world.all_at(true)));
}

#[test]
fn a_standby_that_is_listed_no_more_is_left_when_the_cloud_is_back() {
    let mut world = world();
    world.lose_cloud(30 * SECOND);
    assert!(world.run_while_not(30 * SECOND, |world| world.all_at(true)));
    world.cloud.list_standbys(Vec::new());
    for name in ["a", "b", "c"] {
        world.hear_again(name);
    }
    assert!(world.run_while_not(4 * MINUTE, |world| world.all_at(false)));
}

#[test]
fn without_any_route_neither_is_dialled() {
    for connected in [true, false] {
        let mut world = world();
        world.lose_cloud(60 * MINUTE);
        if connected {
            assert!(world.run_while_not(40 * SECOND, |world| world.all_at(true)));
        } else {
            world.run(1500 * SECOND / 1000);
        }
        world.unplug("a");
        // QUIC finds out that nothing comes any more.
        let of_a = |conn: &&Conn| conn.device == "a" && conn.service == Service::Nms;
        for conn in world.conns.values().filter(of_a).cloned().collect::<Vec<_>>() {
            world.conns.remove(&conn.channel);
            world.schedule(45 * SECOND, Event::Lost { conn, at_node: true, closed: false });
        }
        world.run(90 * SECOND);
        let before = world.connects;
        world.run(5 * MINUTE);
        // The others look for the AS.
        let others = 2 * 5 * 60 / 10;
        assert!(world.connects - before <= others, "{connected}: {}", world.connects - before);
        let status = world.hosts["a"].node.as_ref().unwrap().status();
        let nms = status.services.iter().find(|one| one.service == Service::Nms).unwrap();
        assert!(matches!(nms.state, ServiceState::Waiting { .. }), "{nms:?}");
    }
}

#[test]
fn where_no_udp_passes_the_standby_is_reached_by_tcp() {
    let mut world = world();
    world.udp_blocked.insert("a");
    world.hear_again("a");
    assert!(world.run_while_not(90 * SECOND, |world| world.all_at(false)));
    world.lose_cloud(10 * MINUTE);
    let by_tcp = |world: &World| {
        let status = world.hosts["a"].node.as_ref().unwrap().status();
        let nms = status.services.into_iter().find(|one| one.service == Service::Nms).unwrap();
        status.registered && nms.through.is_some_and(|through| standby().addresses.contains(&through))
    };
    assert!(world.run_while_not(90 * SECOND, by_tcp));
    assert!(
        world
            .run_while_not(60 * SECOND, |world| ["b", "c"].iter().all(|name| world.home(name) == Some(true)))
    );
    world.resolves("b", "a").unwrap();
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
    let (own, life) = (world.hosts["c"].uplinks[0].own, world.hosts["c"].life);
    world.with_node("c", life, |node, now| node.handle_addresses(now, &[own], &ToStandby(own)));
    world.run(5 * SECOND);
    assert_eq!(world.home("c"), Some(false), "the route may come back");
    world.lose_cloud(10 * MINUTE);
    let before = world.connects;
    assert!(world.run_while_not(10 * SECOND, |world| world.home("c") == Some(true)));
    // The others dial both.
    assert!(world.connects - before < 20, "{}", world.connects - before);
    assert_eq!(world.state("c", &Service::Nms), Some(ServiceState::Connected));
}

#[test]
fn revocations_and_rules_hold_at_the_standby_too() {
    let mut world = world();
    world.resolves("c", "a").unwrap();
    world.lose_cloud(10 * MINUTE);
    assert!(world.run_while_not(30 * SECOND, |world| world.all_at(true)));
    let (now, rules) = (world.now, [rule("c", "all", "ping")]);
    restrict(&mut world, Some(&rules));
    world.cloud.revoke(now, "a");
    world.run(2 * SECOND);
    assert_eq!(at(&world, "c"), &by(&rules, "c"));
    assert!(world.hosts["c"].tunnels.is_empty(), "its peers are told");
    world.run(MINUTE);
    assert_eq!(world.home("a"), None);
    assert!(world.resolves("b", "a").is_err());
}
