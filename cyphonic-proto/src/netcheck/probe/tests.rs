//! Probes behind every kind of NAT, under virtual time.

use std::collections::BTreeMap;

use super::*;
use crate::stun::{Message, server};

const INNER: &str = "10.0.0.2:7000";
const OUTER: [u8; 4] = [203, 0, 113, 7];
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// What a NAT looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Nothing,
    Address,
    AddressAndPort,
}

/// What mappings and filters are told apart by.
type Key = Option<(std::net::IpAddr, u16)>;

impl By {
    fn key(self, to: SocketAddr) -> Key {
        match self {
            Self::Nothing => None,
            Self::Address => Some((to.ip(), 0)),
            Self::AddressAndPort => Some((to.ip(), to.port())),
        }
    }
}

/// A NAT, and the services on its other side.
struct World {
    maps_by: By,
    filters_by: By,
    translates: bool,
    hairpin: bool,
    lives: Duration,
    port_step: u16,
    /// Services and whether each has another port; the first may have another address.
    services: Vec<(SocketAddr, Option<u16>)>,
    alternate: Option<std::net::IpAddr>,
    loses: bool,
    silent: bool,
    next_port: u16,
    mappings: BTreeMap<(Socket, Key), (SocketAddr, Instant)>,
    sent_to: Vec<(SocketAddr, SocketAddr)>,
    sent: usize,
}

impl World {
    fn new(maps_by: By, filters_by: By) -> Self {
        Self {
            maps_by,
            filters_by,
            translates: true,
            hairpin: false,
            lives: Duration::from_secs(31),
            port_step: 1,
            services: vec![(at("192.0.2.1:443"), Some(3479)), (at("192.0.2.9:443"), Some(3479))],
            alternate: None,
            loses: false,
            silent: false,
            next_port: 40_000,
            mappings: BTreeMap::new(),
            sent_to: Vec::new(),
            sent: 0,
        }
    }

    /// The outer endpoint from which a socket sends.
    fn outer(&mut self, now: Instant, socket: Socket, to: SocketAddr) -> SocketAddr {
        let (lives, translates) = (self.lives, self.translates);
        self.mappings.retain(|_, (_, used)| now.duration_since(*used) < lives);
        let key = (socket, self.maps_by.key(to));
        let entry = self.mappings.entry(key).or_insert_with(|| {
            self.next_port += self.port_step;
            let port = if socket == Socket::Own && !translates { 7000 } else { self.next_port };
            let outer =
                if translates { SocketAddr::from((OUTER, port)) } else { at(&format!("10.0.0.2:{port}")) };
            (outer, now)
        });
        entry.1 = now;
        let outer = entry.0;
        self.sent_to.push((outer, to));
        outer
    }

    /// The socket that a packet from outside reaches.
    fn inward(&mut self, now: Instant, outer: SocketAddr, from: SocketAddr) -> Option<Socket> {
        let lives = self.lives;
        let passes = self.sent_to.iter().any(|(of, to)| {
            *of == outer && self.filters_by.key(*to).is_none_or(|key| self.filters_by.key(from) == Some(key))
        });
        let mapped = self
            .mappings
            .iter_mut()
            .find(|(_, (at, used))| *at == outer && now.duration_since(*used) < lives);
        let ((socket, _), (_, used)) = mapped.filter(|_| passes)?;
        *used = now;
        Some(*socket)
    }

    /// Carries one packet; what comes of it reaches the probe after a round trip.
    fn carry(&mut self, now: Instant, transmit: &Transmit) -> Option<(Socket, SocketAddr, Vec<u8>)> {
        self.sent += 1;
        if self.silent || self.loses && self.sent.is_multiple_of(3) {
            return None;
        }
        let outer = self.outer(now, transmit.socket, transmit.to);
        if self.mappings.values().any(|(at, _)| *at == transmit.to) {
            let socket = self.inward(now, transmit.to, outer).filter(|_| self.hairpin);
            return socket.map(|socket| (socket, outer, transmit.payload.clone()));
        }
        let main = self.services.first()?.0.ip();
        let to_alternate = self.alternate == Some(transmit.to.ip());
        let (service, other_port) = *self.services.iter().find(|(at, other)| {
            (at.ip() == transmit.to.ip() || to_alternate)
                && (at.port() == transmit.to.port() || *other == Some(transmit.to.port()))
        })?;
        let other_address = match to_alternate {
            true => Some(main),
            false => self.alternate.filter(|_| service.ip() == main),
        };
        let other = if transmit.to.port() == service.port() { other_port } else { Some(service.port()) };
        let site = server::Site { arrived: transmit.to, other_address, other_port: other };
        let reply = server::reply(&transmit.payload, outer, &site).ok()?;
        let ip = site.other_address.filter(|_| reply.change_address).unwrap_or(transmit.to.ip());
        let port = site.other_port.filter(|_| reply.change_port).unwrap_or(transmit.to.port());
        let from = SocketAddr::new(ip, port);
        let socket = self.inward(now, reply.to, from)?;
        Some((socket, from, reply.message))
    }

    /// Runs a probe until it is done or `limit` has passed.
    fn probe(&mut self, limit: Duration) -> Probe {
        let start = epoch();
        let plan = Plan {
            family: Family::V4,
            servers: self.services.iter().map(|(at, _)| *at).chain([at("[2001:db8::1]:443")]).collect(),
            own: vec![at(INNER)],
        };
        let mut probe = Probe::new(plan, [7; 32], start);
        let mut now = start;
        let mut on_the_way: Vec<(Instant, Socket, SocketAddr, Vec<u8>)> = Vec::new();
        while now.duration_since(start) <= limit {
            while let Some(transmit) = probe.poll_transmit() {
                if let Some((socket, from, bytes)) = self.carry(now, &transmit) {
                    on_the_way.push((now + ROUND_TRIP, socket, from, bytes));
                }
            }
            on_the_way.sort_by_key(|(at, ..)| *at);
            let arrival = on_the_way.first().map(|(at, ..)| *at);
            let Some(next) = [arrival, probe.poll_timeout()].into_iter().flatten().min() else { break };
            now = now.max(next);
            if arrival == Some(next) {
                let (_, socket, from, bytes) = on_the_way.remove(0);
                probe.handle_datagram(now, socket, from, &bytes);
            } else {
                probe.handle_timeout(now);
            }
        }
        probe
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn epoch() -> Instant {
    Instant::now()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const FOREVER: Duration = Duration::from_secs(600);

#[test]
fn every_kind_of_nat_is_recognised_with_two_services() {
    let kinds = [
        (By::Nothing, By::Nothing, Mapping::EndpointIndependent, Filtering::EndpointIndependent),
        (By::Nothing, By::Address, Mapping::EndpointIndependent, Filtering::AddressDependent),
        (By::Nothing, By::AddressAndPort, Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
        (By::Address, By::Address, Mapping::AddressDependent, Filtering::AddressDependent),
        (
            By::AddressAndPort,
            By::AddressAndPort,
            Mapping::AddressAndPortDependent,
            Filtering::AddressAndPortDependent,
        ),
    ];
    for (maps_by, filters_by, mapping, filtering) in kinds {
        for loses in [false, true] {
            let mut world = World { loses, ..World::new(maps_by, filters_by) };
            let probe = world.probe(FOREVER);
            let findings = probe.findings();
            assert!(probe.is_done());
            assert_eq!(findings.mapping, mapping);
            // Loss may hide that a packet would have passed, never make one pass.
            assert!(loses || findings.filtering == filtering, "{:?} for {filtering:?}", findings.filtering);
            assert_eq!(findings.hairpin, Some(false));
        }
    }
}

#[test]
fn a_host_without_nat_is_open_or_filtered() {
    for (filters_by, open) in [(By::Nothing, true), (By::AddressAndPort, false)] {
        let mut world = World { translates: false, ..World::new(By::Nothing, filters_by) };
        let findings = world.probe(FOREVER).findings();
        assert_eq!((findings.mapping, findings.is_open()), (Mapping::NoNat, open), "{findings:?}");
        assert_eq!(findings.hairpin, None);
    }
}

#[test]
fn one_service_with_another_address_tells_the_own_ports_filter() {
    for (filters_by, filtering) in
        [(By::Nothing, Filtering::EndpointIndependent), (By::Address, Filtering::AddressDependent)]
    {
        let mut world = World::new(By::Nothing, filters_by);
        world.services.truncate(1);
        world.alternate = Some("192.0.2.2".parse().unwrap());
        let probe = world.probe(FOREVER);
        assert_eq!(probe.findings().filtering, filtering);
        let own_asked = world.sent_to.iter().filter(|(outer, _)| probe.observations()[0].1 == *outer);
        assert!(
            own_asked.clone().all(|(_, to)| *to != at("192.0.2.2:3479")),
            "the own port opened its filter itself"
        );
    }
}

#[test]
fn one_service_without_another_address_tells_less_and_says_so() {
    let mut world = World::new(By::Nothing, By::Nothing);
    world.services.truncate(1);
    let findings = world.probe(FOREVER).findings();
    assert_eq!(findings.mapping, Mapping::NotPortDependent);
    assert_eq!(findings.filtering, Filtering::NotPortDependent);
    world.services = vec![(at("192.0.2.1:443"), None)];
    let findings = world.probe(FOREVER).findings();
    assert_eq!((findings.mapping, findings.filtering), (Mapping::Unknown, Filtering::Unknown));
}

#[test]
fn the_lifetime_is_the_longest_that_was_proven_and_grows() {
    let mut world = World::new(By::AddressAndPort, By::AddressAndPort);
    assert_eq!(world.probe(Duration::from_secs(6)).findings().lifetime, Some(Duration::from_secs(4)));
    assert_eq!(world.probe(FOREVER).findings().lifetime, Some(Duration::from_secs(30)));
    let mut short = World { lives: Duration::from_millis(1_500), ..World::new(By::Nothing, By::Nothing) };
    assert_eq!(short.probe(FOREVER).findings().lifetime, None);
}

#[test]
fn a_hairpin_and_even_steps_are_seen() {
    let mut world = World { hairpin: true, port_step: 2, ..World::new(By::AddressAndPort, By::Nothing) };
    let findings = world.probe(FOREVER).findings();
    assert_eq!(findings.hairpin, Some(true));
    assert_eq!(findings.port_delta, Some(2));
}

#[test]
fn without_an_answer_nothing_is_known_and_the_probe_ends() {
    let mut world = World::new(By::Nothing, By::Nothing);
    world.silent = true;
    let probe = world.probe(FOREVER);
    assert!(probe.is_done() && probe.observations().is_empty());
    assert_eq!(probe.findings(), FamilyFindings::default());
    let silent = Plan { family: Family::V4, servers: Vec::new(), own: Vec::new() };
    let probe = Probe::new(silent, [0; 32], epoch());
    assert!(probe.is_done() && probe.findings() == FamilyFindings::default());
}

#[test]
fn answers_to_other_sockets_or_from_elsewhere_are_not_believed() {
    let start = epoch();
    let plan = Plan { family: Family::V4, servers: vec![at("192.0.2.1:443")], own: vec![at(INNER)] };
    let mut probe = Probe::new(plan, [3; 32], start);
    let asked = probe.poll_transmit().unwrap();
    let Ok(Message::Request(request)) = Message::decode(&asked.payload) else { panic!("no request") };
    let success =
        Success { transaction: request.transaction, mapped: at("203.0.113.7:9"), origin: None, other: None };
    let answer = Message::Success(success.clone()).encode();
    let forged = Message::Success(Success { transaction: [0; 12], ..success }).encode();
    probe.handle_datagram(start, Socket::Test, asked.to, &answer);
    probe.handle_datagram(start, Socket::Own, at("192.0.2.1:444"), &answer);
    probe.handle_datagram(start, Socket::Own, asked.to, &forged);
    assert!(probe.observations().is_empty());
    probe.handle_datagram(start + ROUND_TRIP, Socket::Own, asked.to, &answer);
    assert_eq!(probe.latencies(), [(asked.to, ROUND_TRIP)]);
}
