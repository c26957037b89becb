//! The clock, the queue of events, and the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::{Identity, KeyHash, NetworkId, Role};
use cyphonic_proto::message::{RegistrationRequest, decode, encode};
use cyphonic_proto::node::{CandidateSet, ResolveError, Service, Target, Timing};
use cyphonic_proto::stun::Transaction;
use cyphonic_proto::{Channel, ExchangeId, Message, PeerConnectionId, QueryId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cloud::Cloud;
use crate::dials::Dial;
use crate::host::Host;
use crate::net::{Gate, Uplink};
use crate::sleep::Sleeper;

pub(crate) const ZONE: &str = "lab";
pub(crate) const NETWORK: NetworkId = NetworkId([9; 16]);

/// Whose process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Device(&'static str),
    As,
    Nms,
    Standby,
    Trs,
    SecondTrs,
}

/// What goes over the simulated network as a datagram.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Punch,
    /// A packet of a dial.
    Peers(Flight, u64),
    Data(Data),
    /// A TRS does not know a leg.
    Reset([u8; 16]),
}

/// The flights of the handshake between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flight {
    /// The dialler's first.
    Hello,
    /// The listener's, and its TunnelOffer.
    Offer,
    /// The dialler's certificate and TunnelRequest.
    Request,
    /// The listener's TunnelResponse.
    Response,
}

impl Flight {
    pub(crate) fn from_byte(byte: u8) -> Self {
        [Self::Hello, Self::Offer, Self::Request, Self::Response][usize::from(byte)]
    }
}

/// A tunnel's packet: whoever holds the key under the connection ID can open it.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) wire_cid: [u8; 8],
    pub(crate) real_cid: [u8; 8],
    pub(crate) key: [u8; 32],
    /// Bytes of UDP payload.
    pub(crate) size: u16,
    pub(crate) number: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Inner(u64),
    Ping,
    Challenge([u8; 8]),
    /// A challenge that is padded to this size.
    Probe([u8; 8], u16),
    Response([u8; 8]),
    Candidates(CandidateSet),
    Close,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Connected(Channel),
    DetourFailed {
        device: &'static str,
        life: u32,
        service: Service,
    },
    ConnectFailed {
        device: &'static str,
        life: u32,
        service: Service,
    },
    /// One end learns that a connection has ended.
    Lost {
        conn: Conn,
        at_node: bool,
        /// By the other end, and not by silence.
        closed: bool,
    },
    /// A node's request, and its answer on the way back.
    ToService {
        channel: Channel,
        exchange: ExchangeId,
        bytes: Vec<u8>,
    },
    Answer {
        channel: Channel,
        exchange: ExchangeId,
        bytes: Vec<u8>,
    },
    /// The NMS's request, and its answer on the way back.
    ToNode {
        channel: Channel,
        exchange: ExchangeId,
        bytes: Vec<u8>,
    },
    NodeAnswer {
        channel: Channel,
        exchange: ExchangeId,
        /// What the node calls it.
        here: ExchangeId,
        bytes: Vec<u8>,
    },
    /// The NMS did not wait for an answer.
    GivenUp {
        channel: Channel,
        exchange: ExchangeId,
    },
    ExchangeFailed {
        channel: Channel,
        exchange: ExchangeId,
    },
    /// A DATAGRAM frame between a node and the TRS.
    FrameToTrs {
        channel: Channel,
        bytes: Vec<u8>,
    },
    FrameToNode {
        channel: Channel,
        bytes: Vec<u8>,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        packet: Packet,
    },
    Retransmit {
        dial: u64,
    },
    /// The listener learns that a dial was given up.
    PeerLeft {
        device: &'static str,
        life: u32,
        dial: u64,
    },
    Stats {
        device: &'static str,
        life: u32,
    },
    Revive(Victim),
    /// A service sees a node at another address.
    Seen {
        channel: Channel,
        observed: SocketAddr,
    },
    /// A TRS calls a node where it sees it.
    Call {
        channel: Channel,
        observed: SocketAddr,
        number: Transaction,
    },
    /// The time-out of a connection whose node has no way to its service.
    Idle(Channel),
}

/// A QUIC connection between a node and a service; its number is the service's channel.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) channel: Channel,
    pub(crate) device: &'static str,
    pub(crate) life: u32,
    pub(crate) service: Service,
    /// Whether the handshake is complete.
    pub(crate) up: bool,
    pub(crate) server: SocketAddr,
    /// Where it was dialled, which is elsewhere over TCP.
    pub(crate) dialled: SocketAddr,
    pub(crate) observed: SocketAddr,
    /// Over TCP: what stands for the service at the node, and for the node at the service is `observed`.
    pub(crate) detour: Option<SocketAddr>,
}

/// Between two tries to get something through a connection whose node has no way to its service.
const REPEATED: Duration = Duration::from_millis(20);

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) rng: StdRng,
    pub(crate) hosts: BTreeMap<&'static str, Host>,
    pub(crate) cloud: Cloud,
    pub(crate) conns: BTreeMap<Channel, Conn>,
    pub(crate) dials: BTreeMap<u64, Dial>,
    pub(crate) answers: BTreeMap<QueryId, Result<Ipv6Addr, ResolveError>>,
    /// (device, inner packet) that arrived.
    pub(crate) delivered: BTreeSet<(&'static str, u64)>,
    queue: BTreeMap<(Instant, u64), Event>,
    networks: u8,
    next: u64,
    pub(crate) steps: u64,
    /// Kill this one after that many events.
    pub(crate) kill_at: Option<(u64, Victim)>,
    // Faults.
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) jitter: Duration,
    pub(crate) delay: Duration,
    /// Devices and services that nothing reaches.
    pub(crate) cut_off: BTreeSet<Victim>,
    /// Devices that the NMS does not reach, nor they it.
    pub(crate) without_nms: BTreeSet<&'static str>,
    /// Devices that do not reach the first relay, nor it them.
    pub(crate) without_trs: BTreeSet<&'static str>,
    /// The only relay that a device uses.
    pub(crate) pinned: BTreeMap<&'static str, &'static str>,
    /// Devices whose networks pass no UDP, and those whose networks pass no TCP either.
    pub(crate) udp_blocked: BTreeSet<&'static str>,
    pub(crate) tcp_blocked: BTreeSet<&'static str>,
    /// Datagrams between devices get lost.
    pub(crate) no_direct: bool,
    /// Lists of candidates get lost.
    pub(crate) no_lists: bool,
    /// Larger datagrams (bytes of UDP payload) get lost.
    pub(crate) carries: u16,
    /// Probes of paths' MTU that were sent.
    pub(crate) probes: u32,
    /// Datagrams that devices sent, by the host that they are for.
    pub(crate) sent_to: BTreeMap<IpAddr, u32>,
    /// Changes every message's bytes on its way.
    pub(crate) tamper: Option<fn(&mut Message)>,
    pub(crate) unknown_fields: bool,
    /// How long it takes until a connection is known to be lost.
    pub(crate) unnoticed: Duration,
    pub(crate) resets: u32,
    /// How many relays devices stay connected to, from their next start on.
    pub(crate) warm_relays: usize,
    /// Dials of services.
    pub(crate) connects: u32,
    /// When each device wanted to look at its network.
    pub(crate) looks: BTreeMap<&'static str, Vec<Instant>>,
    /// Registrations that the NMS got from each device.
    pub(crate) registrations: BTreeMap<&'static str, Vec<RegistrationRequest>>,
    keys: BTreeSet<[u8; 32]>,
    pub(crate) sleeper: Option<Sleeper>,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            rng: StdRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            cloud: Cloud::new(now),
            conns: BTreeMap::new(),
            dials: BTreeMap::new(),
            answers: BTreeMap::new(),
            delivered: BTreeSet::new(),
            queue: BTreeMap::new(),
            networks: 0,
            next: 1,
            steps: 0,
            kill_at: None,
            loss: 0.0,
            duplication: 0.0,
            jitter: Duration::ZERO,
            delay: Duration::from_millis(10),
            cut_off: BTreeSet::new(),
            without_nms: BTreeSet::new(),
            without_trs: BTreeSet::new(),
            pinned: BTreeMap::new(),
            udp_blocked: BTreeSet::new(),
            tcp_blocked: BTreeSet::new(),
            no_direct: false,
            no_lists: false,
            carries: u16::MAX,
            probes: 0,
            sent_to: BTreeMap::new(),
            tamper: None,
            unknown_fields: false,
            unnoticed: Duration::from_secs(1),
            resets: 0,
            warm_relays: Timing::default().warm_relays,
            connects: 0,
            looks: BTreeMap::new(),
            registrations: BTreeMap::new(),
            keys: BTreeSet::new(),
            sleeper: None,
        }
    }

    /// A device behind the given gates, started.
    pub(crate) fn add(&mut self, name: &'static str, v4: Option<Gate>, v6: Option<Gate>) {
        let uplinks = self.new_uplinks(v4, v6);
        self.hosts.insert(name, Host::new(name, uplinks));
        self.cloud.enrol(name);
        self.boot(name);
    }

    /// What a device has behind these gates, at addresses that nobody had before.
    pub(crate) fn new_uplinks(&mut self, v4: Option<Gate>, v6: Option<Gate>) -> Vec<Uplink> {
        self.networks += 1;
        let n = self.networks;
        let v4 = v4.map(|gate| {
            let own = match gate {
                Gate::Open | Gate::Firewall => [203, 0, 113, n],
                Gate::PortRestricted | Gate::Symmetric | Gate::Nat(_) => [10, 0, n, 2],
            };
            Uplink::new((own, 7000).into(), gate, [198, 51, 100, n].into())
        });
        let v6 = v6.map(|gate| {
            let own = Ipv6Addr::new(0x2001, 0xdb8, n.into(), 0, 0, 0, 0, 2);
            Uplink::new((own, 7000).into(), gate, own.into())
        });
        v4.into_iter().chain(v6).collect()
    }

    /// Puts a number on it.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        let key = (self.now + after, self.fresh());
        self.queue.insert(key, event);
    }

    /// One way's time, lengthened by what QUIC repeats.
    pub(crate) fn reliable_delay(&mut self) -> Duration {
        let mut delay = self.delay + self.jitter.mul_f64(self.rng.random());
        while self.rng.random_bool(self.loss) && delay < Duration::from_secs(2) {
            delay = delay * 2 + Duration::from_millis(30);
        }
        delay
    }

    /// Schedules what may get lost, arrive twice, or be overtaken.
    pub(crate) fn unreliable(&mut self, event: &Event) {
        let copies = 1 + u32::from(self.rng.random_bool(self.duplication));
        for _ in 0..copies {
            if !self.rng.random_bool(self.loss) {
                let delay = self.delay + self.jitter.mul_f64(self.rng.random());
                self.schedule(delay, event.clone());
            }
        }
    }

    pub(crate) fn pack(&self, message: &Message) -> Vec<u8> {
        let mut message = message.clone();
        if let Some(tamper) = self.tamper {
            tamper(&mut message);
        }
        let mut bytes = encode(&message);
        if self.unknown_fields {
            add_unknown_field(&mut bytes);
        }
        bytes
    }

    pub(crate) fn unpack(bytes: &[u8]) -> Message {
        decode(bytes).unwrap()
    }

    /// Runs until nothing is due before `until`.
    pub(crate) fn run(&mut self, length: Duration) {
        let until = self.now + length;
        self.run_until(until, |_| false);
    }

    /// Runs until `done`; false if that did not happen within `length`.
    pub(crate) fn run_while_not(&mut self, length: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + length;
        self.run_until(until, done)
    }

    fn run_until(&mut self, until: Instant, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timeout = self.next_timeout();
            let Some(at) = [event, timeout].into_iter().flatten().min().filter(|at| *at <= until) else {
                self.now = until;
                return done(self);
            };
            self.now = self.now.max(at);
            if timeout.is_some_and(|timeout| timeout <= self.now) {
                self.handle_timeouts();
            }
            if event.is_some_and(|event| event <= self.now) {
                let (_, event) = self.queue.pop_first().unwrap();
                if let Some(event) = self.keep_for_sleeper(event) {
                    self.handle(event);
                }
            }
            self.steps += 1;
            assert!(self.steps < 3_000_000, "the machines keep each other busy");
            if let Some((_, victim)) = self.kill_at.filter(|(step, _)| *step == self.steps) {
                self.kill(victim, Duration::from_millis(500));
            }
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let awake = self.hosts.values().filter(|host| !self.sleeps(host.name));
        let nodes = awake.filter_map(|host| host.node.as_ref()?.poll_timeout());
        nodes.chain(self.cloud.poll_timeout()).min()
    }

    fn handle_timeouts(&mut self) {
        let now = self.now;
        for name in self.hosts.keys().copied().filter(|name| !self.sleeps(name)).collect::<Vec<_>>() {
            if let Some(node) = self.hosts.get_mut(name).and_then(|host| host.node.as_mut()) {
                node.handle_timeout(now);
                self.drain(name);
            }
        }
        self.cloud.handle_timeout(now);
        self.drain_cloud();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(channel) => self.connected(channel),
            Event::ConnectFailed { device, life, service } => {
                self.with_node(device, life, |node, now| {
                    node.handle_connect_failed(now, service, "connection refused".into());
                });
            }
            Event::DetourFailed { device, life, service } => {
                self.with_node(device, life, |node, now| {
                    node.handle_detour_failed(now, service, "TCP: connection refused".into());
                });
            }
            Event::Lost { conn, at_node, closed } => self.lost(&conn, at_node, closed),
            Event::ToService { channel, exchange, bytes } => {
                if self.is_stranded(channel) {
                    let again = Event::ToService { channel, exchange, bytes };
                    return self.schedule(REPEATED, again);
                }
                self.reach_service(channel, exchange, &bytes);
            }
            Event::Answer { channel, exchange, bytes } => {
                let message = Self::unpack(&bytes);
                self.at_node(channel, |node, now| node.handle_response(now, exchange, message));
            }
            Event::ToNode { channel, exchange, bytes } => {
                if self.is_stranded(channel) {
                    let again = Event::ToNode { channel, exchange, bytes };
                    return self.schedule(REPEATED, again);
                }
                self.reach_node(channel, exchange, &bytes);
            }
            Event::GivenUp { channel, exchange } => {
                self.at_node(channel, |node, now| node.handle_request_given_up(now, exchange));
            }
            Event::NodeAnswer { channel, exchange, here, bytes } => {
                if self.conns.contains_key(&channel) && self.reaches(channel) {
                    if self.cloud.cancelled.remove(&exchange) {
                        self.schedule(self.delay, Event::GivenUp { channel, exchange: here });
                    }
                    self.cloud.node_answered(self.now, exchange, Self::unpack(&bytes));
                    self.drain_cloud();
                }
            }
            Event::ExchangeFailed { channel, exchange } => {
                self.at_node(channel, |node, now| {
                    node.handle_exchange_failed(now, exchange, "stream reset".into())
                });
            }
            Event::FrameToTrs { channel, bytes } => {
                let service = self.conns.get(&channel).map(|conn| conn.service.clone());
                if let Some(service) = service.filter(|_| self.reaches(channel)) {
                    self.cloud.frame(self.now, channel, &service, &bytes);
                    self.drain_cloud();
                }
            }
            Event::FrameToNode { channel, bytes } => self.frame_to_node(channel, &bytes),
            Event::Datagram { from, to, packet } => self.arrive(from, to, packet),
            Event::Retransmit { dial } => self.transmit_dial(dial),
            Event::PeerLeft { device, life, dial } => {
                let connection = PeerConnectionId(dial);
                self.with_node(device, life, |node, now| node.handle_peer_left(now, connection));
            }
            Event::Stats { device, life } => self.report_stats(device, life),
            Event::Revive(victim) => self.revive(victim),
            Event::Seen { channel, observed } => self.seen(channel, observed),
            Event::Call { channel, observed, number } => self.call(channel, observed, number),
            Event::Idle(channel) => self.idle(channel),
        }
    }

    /// Whether the connection's node has no way to its service at the moment: QUIC repeats what is lost for
    /// as long as it lasts.
    fn is_stranded(&self, channel: Channel) -> bool {
        let node = self.conns.get(&channel).map(|conn| conn.device);
        node.is_some_and(|name| self.hosts[name].uplinks.is_empty())
    }

    /// Kills a process without a word to anyone, and starts it again later.
    pub(crate) fn kill(&mut self, victim: Victim, down: Duration) {
        let concerned = |conn: &&Conn| match victim {
            Victim::Device(name) => conn.device == name,
            service => Victim::of(conn) == service,
        };
        for conn in self.conns.values().filter(concerned).cloned().collect::<Vec<_>>() {
            self.conns.remove(&conn.channel);
            let at_node = !matches!(victim, Victim::Device(_));
            self.schedule(self.unnoticed, Event::Lost { conn, at_node, closed: false });
        }
        match victim {
            Victim::Device(name) => self.hosts.get_mut(name).unwrap().die(),
            service => self.cloud.kill(service),
        }
        self.schedule(down, Event::Revive(victim));
    }

    fn revive(&mut self, victim: Victim) {
        match victim {
            Victim::Device(name) => self.boot(name),
            service => self.cloud.revive(service, self.now, self.start),
        }
    }

    /// Asks for a device as its DNS server would.
    pub(crate) fn resolve(&mut self, device: &'static str, target: &str) -> QueryId {
        self.ask(device, Target::Name(fqdn(target)))
    }

    pub(crate) fn ask(&mut self, device: &'static str, target: Target) -> QueryId {
        let query = QueryId(self.fresh());
        let life = self.hosts[device].life;
        self.with_node(device, life, |node, now| node.handle_resolve(now, query, target));
        query
    }

    /// The answer, for which up to 6 s are waited.
    pub(crate) fn answer(&mut self, query: QueryId) -> Result<Ipv6Addr, ResolveError> {
        assert!(
            self.run_while_not(Duration::from_secs(6), |world| world.answers.contains_key(&query)),
            "no answer"
        );
        self.answers[&query].clone()
    }

    pub(crate) fn resolves(
        &mut self,
        device: &'static str,
        target: &'static str,
    ) -> Result<(), ResolveError> {
        let query = self.resolve(device, target);
        let address = self.answer(query)?;
        assert_eq!(address, virtual_address(target));
        Ok(())
    }

    /// Runs until all devices that live are registered.
    pub(crate) fn settle(&mut self) {
        let registered = |world: &Self| {
            world.hosts.values().filter_map(|host| host.node.as_ref()).all(|node| node.status().registered)
        };
        assert!(self.run_while_not(Duration::from_secs(60), registered), "not all nodes registered");
        self.run(Duration::from_secs(1));
    }

    /// Whether packets get from one to the other and back, within `length`; asked for again and again as an
    /// application would.
    pub(crate) fn talk(&mut self, a: &'static str, b: &'static str, length: Duration) -> bool {
        let until = self.now + length;
        while self.now < until {
            let there = self.send_inner(a, b);
            let back = self.send_inner(b, a);
            self.run(Duration::from_millis(250));
            if self.delivered.contains(&(b, there)) && self.delivered.contains(&(a, back)) {
                return true;
            }
        }
        false
    }

    /// Secrets are never used twice, in whatever direction.
    pub(crate) fn check_key(&mut self, key: [u8; 32], own_direction: bool) {
        if own_direction {
            assert!(self.keys.insert(key), "two tunnels seal with one key");
        }
    }
}

pub(crate) fn fqdn(name: &str) -> String {
    format!("{name}.{ZONE}")
}

pub(crate) fn prefix() -> Prefix {
    "fd12:3456:789a::/48".parse().unwrap()
}

pub(crate) fn virtual_address(name: &str) -> Ipv6Addr {
    cyphonic_proto::address::virtual_address(prefix(), NETWORK, &fqdn(name))
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity {
        network_id: NETWORK,
        role: Role::Device,
        fqdn: fqdn(name),
        virtual_address: Some(virtual_address(name)),
        spki_sha256: KeyHash::of(name.as_bytes()),
        serial: vec![1],
        not_before: 0,
        not_after: i64::MAX,
    }
}

/// Field 900 of the message itself and, where that is possible, of the body: a varint.
fn add_unknown_field(bytes: &mut Vec<u8>) {
    let (len, taken) = cyphonic_common::varint::decode(bytes).unwrap();
    let body = bytes.split_off(taken);
    assert_eq!(body.len(), usize::try_from(len).unwrap());
    let mut out = vec![0; 8];
    let taken = cyphonic_common::varint::encode(len + 3, &mut out).unwrap();
    out.truncate(taken);
    out.extend_from_slice(&body);
    out.extend_from_slice(&[0xa0, 0x38, 0x01]);
    *bytes = out;
}
