//! Connections to services that do not go well: closed as soon as they stand, slow to answer, or to be found
//! elsewhere.

use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::Channel;
use cyphonic_proto::node::{Service, ServiceState};

use crate::cloud::addresses;
use crate::moves::Families;
use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::relay_restarts::{relayed_pair, stream, tunnels};
use crate::world::{Event, Victim, World};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

impl World {
    fn channels(&self, name: &str, service: &Service) -> Vec<Channel> {
        let fits = |conn: &&crate::world::Conn| conn.device == name && conn.service == *service;
        self.conns.values().filter(fits).map(|conn| conn.channel).collect()
    }

    pub(crate) fn state(&self, name: &str, service: &Service) -> Option<ServiceState> {
        let status = self.hosts[name].node.as_ref().unwrap().status();
        status.services.into_iter().find(|one| one.service == *service).map(|one| one.state)
    }

    /// The device hears of its networks again, which are as they were.
    pub(crate) fn hear_again(&mut self, name: &'static str) {
        let host = &self.hosts[name];
        let own: Vec<SocketAddr> = host.uplinks.iter().map(|uplink| uplink.own).collect();
        let (life, routes) = (host.life, Families(host.uplinks.clone()));
        self.with_node(name, life, |node, now| node.handle_addresses(now, &own, &routes));
    }
}

/// As those of a device that was revoked, or whose key another machine has.
#[test]
fn services_that_close_every_connection_are_dialled_ever_more_rarely() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    let before = world.connects;
    for _ in 0..6000 {
        let answered: Vec<_> = world.conns.values().filter(|conn| conn.up).cloned().collect();
        for conn in answered {
            world.conns.remove(&conn.channel);
            world.schedule(Duration::ZERO, Event::Lost { conn, at_node: true, closed: true });
        }
        world.run(100 * MS);
    }
    // Ten minutes, four services, one of them twice: at first often, and then every half a minute.
    let dials = world.connects - before;
    assert!((40..=160).contains(&dials), "{dials}");
}

/// Or the AS would see all devices at the moment when the NMS is restarted.
#[test]
fn an_nms_that_is_away_for_a_moment_is_found_again_without_the_as() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    world.run(60 * SECOND);
    world.kill(Victim::Nms, 300 * MS);
    for _ in 0..500 {
        world.run(10 * MS);
        let at_as = world.state("a", &Service::As);
        assert!(at_as.is_none_or(|state| state == ServiceState::Unwanted), "{at_as:?}");
    }
    assert!(world.hosts["a"].node.as_ref().unwrap().status().registered);
}

#[test]
fn a_connection_that_stood_is_dialled_again_at_once_however_often_it_failed_before() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    for round in 0..12 {
        let [channel] = world.channels("a", &Service::Nms)[..] else { panic!("round {round}") };
        let conn = world.conns.remove(&channel).unwrap();
        world.schedule(Duration::ZERO, Event::Lost { conn, at_node: true, closed: true });
        let back = |world: &World| world.state("a", &Service::Nms) == Some(ServiceState::Connected);
        world.run(10 * MS);
        assert!(world.run_while_not(SECOND, back), "round {round}");
        world.run(40 * SECOND);
    }
}

/// Its connections end with the certificate that they were made with.
#[test]
fn a_device_with_a_new_certificate_connects_anew_and_no_packet_is_lost() {
    let mut world = relayed_pair();
    let before = tunnels(&world, "a");
    let services = [Service::Nms, Service::Trs("trs.lab".into())];
    let channels = services.each_ref().map(|service| world.channels("a", service));
    assert!(channels.iter().all(|channels| channels.len() == 1), "{channels:?}");
    let life = world.hosts["a"].life;
    world.with_node("a", life, |node, now| node.handle_renewed(now));
    assert!(
        channels.iter().zip(&services).all(|(old, service)| world.channels("a", service).contains(&old[0]))
    );
    for (from, to) in [("a", "b"), ("b", "a")] {
        assert_eq!(stream(&mut world, from, to, 2 * SECOND), [Duration::ZERO; 0], "{from} to {to}");
    }
    for (service, old) in services.iter().zip(&channels) {
        let new = world.channels("a", service);
        assert!(new.len() == 1 && new != *old, "{service}: {new:?} instead of {old:?}");
        assert_eq!(world.state("a", service), Some(ServiceState::Connected));
    }
    assert_eq!(tunnels(&world, "a"), before, "the same tunnels");
    assert!(world.hosts["a"].node.as_ref().unwrap().status().registered);
}

/// As of a service that is brought up in more than one go.
#[test]
fn a_service_that_restarts_soon_after_a_long_outage_is_dialled_again_soon() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    let registered = |world: &World| world.hosts["a"].node.as_ref().unwrap().status().registered;
    world.kill(Victim::Nms, 600 * SECOND);
    world.run(600 * SECOND);
    assert!(!registered(&world));
    assert!(world.run_while_not(40 * SECOND, registered));
    for round in 0..3 {
        world.run(2 * SECOND);
        let [channel] = world.channels("a", &Service::Nms)[..] else { panic!("round {round}") };
        let conn = world.conns.remove(&channel).unwrap();
        world.schedule(Duration::ZERO, Event::Lost { conn, at_node: true, closed: true });
        world.run(10 * MS);
        assert!(!registered(&world));
        assert!(world.run_while_not(3 * SECOND, registered), "round {round}");
    }
}

#[test]
fn a_service_that_answers_late_keeps_its_connection_until_the_other_dial_stands() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    let before = world.channels("a", &Service::Nms);
    assert_eq!(before.len(), 1);
    // Answers come after 1.2 s, and a second is waited for them.
    world.delay = 600 * MS;
    world.hear_again("a");
    world.run(1150 * MS);
    assert_eq!(world.state("a", &Service::Nms), Some(ServiceState::Connecting));
    assert_eq!(world.channels("a", &Service::Nms).len(), 2, "the one that stands, and the dial");
    assert!(world.channels("a", &Service::Nms).contains(&before[0]));
    world.run(5 * SECOND);
    assert_eq!(world.state("a", &Service::Nms), Some(ServiceState::Connected));
}

#[test]
fn a_dial_goes_on_while_the_same_networks_are_heard_of_all_the_time() {
    let mut world = World::new(3);
    world.delay = 400 * MS;
    world.add("a", Some(PortRestricted), None);
    for _ in 0..40 {
        world.hear_again("a");
        world.run(250 * MS);
    }
    assert!(world.hosts["a"].node.as_ref().unwrap().status().registered);
    assert!(world.connects < 20, "{}", world.connects);
}

#[test]
fn a_service_that_turns_up_where_a_route_leads_is_dialled_there() {
    let mut world = World::new(3);
    world.add("a", None, Some(Open));
    let [v4, v6] = addresses(&Service::As);
    let life = world.hosts["a"].life;
    world.cloud.kill(Victim::As);
    world.with_node("a", life, |node, now| node.handle_as_addresses(now, vec![v4]));
    world.run(10 * SECOND);
    world.hear_again("a");
    assert!(matches!(world.state("a", &Service::As), Some(ServiceState::Waiting { .. })));
    let connects = world.connects;
    world.run(60 * SECOND);
    assert_eq!(world.connects, connects, "no route leads there");
    world.with_node("a", life, |node, now| node.handle_as_addresses(now, vec![v6]));
    assert_eq!(
        (world.connects, world.state("a", &Service::As)),
        (connects + 1, Some(ServiceState::Connecting))
    );
}

/// The way of a connection to the relay has gone and nobody tells, as where a NAT forgot it: QUIC alone would
/// notice 45 s later.
#[test]
fn a_dead_connection_to_the_relay_shows_with_the_first_pair_that_is_to_meet_there() {
    for name in ["a", "b"] {
        let mut world = World::new(5);
        world.add("a", Some(Symmetric), None);
        world.add("b", Some(PortRestricted), None);
        world.settle();
        let channel = world.channel(name, &Service::Trs("trs.lab".into())).unwrap();
        let conn = world.conns.remove(&channel).unwrap();
        let lost = |at_node| Event::Lost { conn: conn.clone(), at_node, closed: false };
        world.schedule(10 * MS, lost(false));
        world.schedule(40 * SECOND, lost(true));
        assert!(world.talk("a", "b", 15 * SECOND), "dead at {name}");
    }
}

/// The AS may have told it while its own clock was wrong.
#[test]
fn a_node_that_has_reason_to_doubt_the_time_asks_the_as_again_and_stays_registered() {
    let mut world = World::new(7);
    world.add("a", None, Some(Open));
    world.settle();
    let life = world.hosts["a"].life;
    let connects = world.connects;
    assert_eq!(world.state("a", &Service::As), Some(ServiceState::Unwanted));
    world.with_node("a", life, |node, now| node.handle_time_doubted(now));
    assert_eq!(world.state("a", &Service::As), Some(ServiceState::Connecting));
    world.run(10 * SECOND);
    assert_eq!(
        (world.connects, world.state("a", &Service::As)),
        (connects + 1, Some(ServiceState::Unwanted))
    );
    assert!(world.hosts["a"].node.as_ref().unwrap().status().registered);
}
