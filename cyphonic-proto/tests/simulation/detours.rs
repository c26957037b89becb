//! Networks that pass no UDP, or not always.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cyphonic_proto::Channel;
use cyphonic_proto::message::RouteKind;
use cyphonic_proto::node::{Service, ServiceState};
use cyphonic_proto::quic::IDLE_TIMEOUT;

use crate::cloud::{addresses, relay, through};
use crate::net::Gate::{Open, PortRestricted};
use crate::relay_restarts::{gap, stream};
use crate::world::{Conn, Event, Packet, World};

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// A dial by TLS over TCP: a handshake of TCP, one of TLS and one of QUIC.
    pub(crate) fn open_detour(&mut self, name: &'static str, service: Service, dialled: SocketAddr) {
        self.connects += 1;
        let (life, delay) = (self.hosts[name].life, self.reliable_delay() * 6);
        if self.tcp_blocked.contains(name) || self.hosts[name].uplinks.is_empty() {
            return;
        }
        if !self.cloud.is_up(&service, dialled) {
            self.schedule(delay, Event::DetourFailed { device: name, life, service });
            return;
        }
        let channel = Channel(self.fresh());
        let port = |base: u64| u16::try_from(base + channel.0 % 9_000).unwrap();
        let here = |base| SocketAddr::from((Ipv4Addr::LOCALHOST, port(base)));
        let conn = Conn {
            channel,
            device: name,
            life,
            service,
            up: false,
            server: through(dialled),
            dialled,
            observed: here(50_000),
            detour: Some(here(40_000)),
        };
        self.conns.insert(channel, conn);
        self.schedule(delay, Event::Connected(channel));
    }

    /// Into the detour whose near end this is.
    pub(crate) fn send_by_detour(&mut self, name: &'static str, to: SocketAddr, packet: Packet) {
        let fits = |conn: &&Conn| conn.device == name && conn.detour == Some(to);
        let Some(conn) = self.conns.values().find(fits).cloned() else { return };
        if self.reaches(conn.channel) {
            let to = addresses(&conn.service)[0];
            self.unreliable(&Event::Datagram { from: conn.observed, to, packet });
        }
    }

    /// Out of the detour whose far end this is.
    pub(crate) fn arrive_by_detour(&mut self, to: SocketAddr, packet: Packet) {
        let fits = |conn: &&Conn| conn.detour.is_some() && conn.observed == to;
        let Some(conn) = self.conns.values().find(fits).cloned() else { return };
        if let (Some(local), true) = (conn.detour, self.reaches(conn.channel)) {
            self.take_in(conn.device, local, packet);
        }
    }

    /// The device's network passes no UDP from now on; what ran over it is lost, and nobody says so.
    fn block_udp(&mut self, name: &'static str) {
        self.udp_blocked.insert(name);
        self.let_die(name);
    }

    fn let_die(&mut self, name: &'static str) {
        let dead = self.conns.values().filter(|conn| conn.device == name && !self.reaches(conn.channel));
        for conn in dead.cloned().collect::<Vec<_>>() {
            self.conns.remove(&conn.channel);
            for at_node in [true, false] {
                self.schedule(IDLE_TIMEOUT, Event::Lost { conn: conn.clone(), at_node, closed: false });
            }
        }
    }

    /// How each service of a device is connected: by TCP, or over UDP; and whether the node thinks UDP
    /// blocked.
    fn ways(&self, name: &str) -> (Vec<bool>, bool) {
        let status = self.hosts[name].node.as_ref().unwrap().status();
        let connected = status.services.iter().filter(|service| service.state == ServiceState::Connected);
        (connected.map(|service| service.through.is_some()).collect(), status.udp_blocked)
    }

    fn first_route(&self, name: &str) -> Option<RouteKind> {
        self.hosts[name].node.as_ref().unwrap().status().peers.first().and_then(|peer| peer.route)
    }
}

fn all_by_tcp(world: &World, name: &str) -> bool {
    let (ways, blocked) = world.ways(name);
    blocked && ways.len() == 2 && ways.iter().all(|by_tcp| *by_tcp)
}

fn all_by_udp(world: &World, name: &str) -> bool {
    let (ways, blocked) = world.ways(name);
    !blocked && ways.len() == 2 && !ways.iter().any(|by_tcp| *by_tcp)
}

/// A, whose network passes no UDP, and B have a tunnel.
fn with_tunnel_by_tcp(seed: u64) -> World {
    let mut world = World::new(seed);
    world.udp_blocked.insert("a");
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    assert!(world.run_while_not(6 * SECOND, |world| all_by_tcp(world, "a")), "{:?}", world.ways("a"));
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 5 * SECOND));
    world
}

#[test]
fn a_node_without_udp_reaches_its_peers_through_the_relay_by_tcp() {
    let mut world = with_tunnel_by_tcp(1);
    assert_eq!(world.first_route("a"), Some(RouteKind::Relay));
    assert!(all_by_udp(&world, "b"), "{:?}", world.ways("b"));
    // And it is found.
    world.add("c", Some(PortRestricted), None);
    world.settle();
    world.resolves("c", "a").unwrap();
    assert!(world.talk("c", "a", 5 * SECOND));
}

#[test]
fn two_nodes_without_udp_meet() {
    let mut world = World::new(2);
    world.udp_blocked.extend(["a", "b"]);
    world.add("a", Some(PortRestricted), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 5 * SECOND));
}

#[test]
fn where_udp_works_nobody_takes_the_detour() {
    let mut world = World::new(3);
    world.add("a", Some(Open), None);
    world.settle();
    world.run(120 * SECOND);
    assert!(all_by_udp(&world, "a"));
}

#[test]
fn the_next_start_does_not_wait_for_udp_again_and_a_free_network_is_noticed_at_once() {
    let mut world = World::new(4);
    world.udp_blocked.insert("a");
    world.add("a", Some(Open), None);
    world.settle();
    let restart = |world: &mut World| {
        world.hosts.get_mut("a").unwrap().die();
        world.conns.clear();
        world.boot("a");
        let begun = world.now;
        world.run_while_not(10 * SECOND, |world| world.hosts["a"].node.as_ref().unwrap().status().registered);
        world.now - begun
    };
    let blocked = restart(&mut world);
    assert!(blocked < SECOND, "{blocked:?}");
    world.udp_blocked.clear();
    let free = restart(&mut world);
    assert!(free < SECOND / 5, "{free:?}");
    assert!(world.run_while_not(SECOND, |world| all_by_udp(world, "a")), "{:?}", world.ways("a"));
}

#[test]
fn a_relayed_tunnel_moves_to_tcp_when_udp_is_blocked_and_back_when_it_is_not() {
    let mut world = World::new(5);
    world.no_direct = true;
    world.add("a", Some(PortRestricted), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 5 * SECOND));
    let installs = world.hosts["a"].installs;

    world.block_udp("a");
    let lost = gap(&stream(&mut world, "a", "b", 20 * SECOND));
    assert!(lost < 3 * SECOND, "blocked, and silent for {lost:?}");
    assert!(all_by_tcp(&world, "a"), "{:?}", world.ways("a"));
    assert_eq!(world.hosts["a"].installs, installs, "the tunnel went on");

    world.udp_blocked.clear();
    let lost = gap(&stream(&mut world, "b", "a", 80 * SECOND));
    assert!(all_by_udp(&world, "a"), "{:?}", world.ways("a"));
    assert!(lost < SECOND / 2, "free again, and silent for {lost:?}");
    assert_eq!(world.hosts["a"].installs, installs, "the tunnel went on");
}

#[test]
fn a_peer_that_only_receives_is_no_reason_to_leave_a_relay() {
    let mut world = World::new(5);
    world.no_direct = true;
    world.add("a", Some(PortRestricted), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    let connected = |world: &World| {
        let status = world.hosts["a"].node.as_ref().unwrap().status();
        status.services.into_iter().map(|service| (service.service, service.since)).collect::<Vec<_>>()
    };
    assert!(world.talk("a", "b", 5 * SECOND));
    let before = connected(&world);
    assert_eq!(stream(&mut world, "a", "b", 60 * SECOND).len(), 0);
    assert_eq!(connected(&world), before, "its relay was asked, and nothing else was done");
    assert!(all_by_udp(&world, "a"), "{:?}", world.ways("a"));
}

#[test]
fn a_direct_tunnel_gives_way_to_the_relay_by_tcp() {
    let mut world = World::new(6);
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 5 * SECOND));
    world.block_udp("a");
    assert!(world.talk("a", "b", 30 * SECOND), "{:?}", world.ways("a"));
    assert_eq!(world.first_route("a"), Some(RouteKind::Relay));
}

#[test]
fn a_tunnel_by_tcp_outlives_a_network_that_is_gone_for_a_while() {
    let mut world = with_tunnel_by_tcp(8);
    world.attach("a", None, None);
    for _ in 0..15 {
        world.send_inner("a", "b");
        world.run(SECOND);
    }
    world.attach("a", Some(Open), None);
    assert!(world.talk("a", "b", 10 * SECOND), "{:?}", world.ways("a"));
    assert_eq!(["a", "b"].map(|name| world.hosts[name].installs), [1, 1], "it is the same");
}

#[test]
fn with_neither_udp_nor_tcp_the_node_tries_on_and_is_there_when_either_works() {
    let mut world = World::new(7);
    world.udp_blocked.insert("a");
    world.tcp_blocked.insert("a");
    world.add("a", Some(Open), None);
    world.run(120 * SECOND);
    assert_eq!(world.ways("a"), (vec![], false));
    world.tcp_blocked.clear();
    assert!(world.run_while_not(60 * SECOND, |world| all_by_tcp(world, "a")), "{:?}", world.ways("a"));
    world.tcp_blocked.insert("a");
    world.let_die("a");
    world.udp_blocked.clear();
    assert!(world.run_while_not(120 * SECOND, |world| all_by_udp(world, "a")), "{:?}", world.ways("a"));
}

#[test]
fn what_udp_failed_of_is_told_where_tcp_never_answers_too() {
    let mut world = World::new(7);
    world.udp_blocked.insert("a");
    world.tcp_blocked.insert("a");
    world.add("a", Some(Open), None);
    // Both are under way.
    world.run(2 * SECOND);
    let why = "no answer from 203.0.113.9:4433 within 5 s";
    world.with_node("a", 0, |node, now| node.handle_connect_failed(now, Service::As, why.into()));
    let given_up = |world: &World| {
        let status = world.hosts["a"].node.as_ref().unwrap().status();
        let service = status.services.into_iter().find(|service| service.service == Service::As).unwrap();
        matches!(service.state, ServiceState::Waiting { .. }).then_some(service.last_error)
    };
    assert!(world.run_while_not(10 * SECOND, |world| given_up(world).is_some()));
    assert_eq!(given_up(&world), Some(Some(why.to_owned())));
}

#[test]
fn the_relays_address_on_this_host_is_nobodys_candidate() {
    let mut world = World::new(8);
    world.udp_blocked.insert("a");
    world.add("a", Some(Open), None);
    world.settle();
    world.run(5 * SECOND);
    let status = world.hosts["a"].node.as_ref().unwrap().status();
    assert!(status.observations.is_empty(), "{:?}", status.observations);
    let trs = status.services.iter().find(|service| service.service == Service::Trs(relay().name)).unwrap();
    assert!(trs.remote.unwrap().ip().is_loopback() && !trs.through.unwrap().ip().is_loopback());
}
