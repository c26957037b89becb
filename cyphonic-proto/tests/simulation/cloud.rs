//! The services' shells: AS (a plain responder), NMS and TRS around their machines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use cyphonic_proto::access::OverlayRule;
use cyphonic_proto::message::{LoginResponse, ObservationRequest, Refusal, RefusalCode, endpoint};
use cyphonic_proto::nms::{self, Nms, NmsConfig, NmsTiming};
use cyphonic_proto::node::{Node, Relay, Service};
use cyphonic_proto::standby::Standby;
use cyphonic_proto::stun::Transaction;
use cyphonic_proto::trs::{self, NodePath, Trs, TrsConfig, TrsKeys, TrsLimits, WallClock};
use cyphonic_proto::{Channel, ConnectionId, ExchangeId, Message};

use crate::world::{Conn, Event, NETWORK, Packet, Victim, World, ZONE, fqdn, identity, prefix};

pub(crate) struct Cloud {
    pub(crate) as_up: bool,
    pub(crate) nms: Option<Nms>,
    /// The NMS of an overlay that has a standby, and whether it stands in.
    pub(crate) standby: Option<Nms>,
    pub(crate) stands_in: bool,
    /// The NMS closes every connection, though it is there.
    pub(crate) refuses: bool,
    standbys: Vec<Standby>,
    /// From where on the NMS numbers its set-ups, from its next start on.
    pub(crate) numbers: u64,
    /// Both run always; the NMS names the second one only if `listed` says so.
    pub(crate) relays: [RelayHost; 2],
    /// How many relays the NMS names, from its next start on.
    pub(crate) listed: usize,
    devices: Vec<String>,
    /// What `cloud.yaml` says, in this NMS's life and the next.
    access: Option<Vec<OverlayRule>>,
    /// Whose request each exchange of a service is.
    asked: BTreeMap<ExchangeId, (Channel, ExchangeId)>,
    /// Each request of the NMS, as the node knows it.
    asking: BTreeMap<ExchangeId, (Channel, ExchangeId)>,
    /// By which numbers a TRS called nodes where it saw them.
    pub(crate) called: BTreeMap<Transaction, (Channel, SocketAddr)>,
    /// Those whose answers the NMS does not wait for any more, by its own numbers.
    pub(crate) cancelled: BTreeSet<ExchangeId>,
    lives: u64,
}

/// A TRS, and the map it has made.
#[derive(Default)]
pub(crate) struct RelayHost {
    pub(crate) trs: Option<Trs>,
    /// The map forwards on while the TRS's process is dead, as a kernel program does.
    pub(crate) pinned: bool,
    /// (virtual connection ID) -> (from, to, real connection ID).
    pub(crate) map: BTreeMap<ConnectionId, (SocketAddr, SocketAddr, ConnectionId)>,
}

/// The standby's exchanges have numbers of their own.
const STANDBY_EXCHANGES: u64 = 1 << 40;

const RELAYS: [&str; 2] = ["trs.lab", "trs2.lab"];
const RELAY_VICTIMS: [Victim; 2] = [Victim::Trs, Victim::SecondTrs];

pub(crate) fn addresses(service: &Service) -> [SocketAddr; 2] {
    let n = match service {
        Service::As | Service::Nms => 1,
        Service::Trs(name) => 2 + number(name),
    };
    nth_addresses(n)
}

fn nth_addresses(n: usize) -> [SocketAddr; 2] {
    [
        SocketAddr::from(([192, 0, 2, u8::try_from(n).unwrap()], 443)),
        format!("[2001:db8::{n}]:443").parse().unwrap(),
    ]
}

/// The standby of overlays that have one.
pub(crate) fn standby() -> Standby {
    Standby { name: "nms2.lab".into(), addresses: nth_addresses(9).to_vec() }
}

/// One that always stands by, as without a copy.
fn idle_standby() -> Standby {
    Standby { name: "nms1.lab".into(), addresses: nth_addresses(8).to_vec() }
}

/// What stands for a service at the end of a detour.
pub(crate) fn through(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, if is_standby(address) { 444 } else { 443 }).into()
}

/// Which of the relays has a name.
fn number(name: &str) -> usize {
    RELAYS.iter().position(|relay| *relay == name).unwrap_or_else(|| panic!("there is no relay {name}"))
}

/// The relay by its number.
pub(crate) fn nth_relay(number: usize) -> Relay {
    let name = RELAYS[number].to_owned();
    Relay { addresses: addresses(&Service::Trs(name.clone())).to_vec(), name }
}

/// The first relay.
pub(crate) fn relay() -> Relay {
    nth_relay(0)
}

/// Whether the standby has an address.
fn is_standby(address: SocketAddr) -> bool {
    nth_addresses(9).contains(&address) || address == (Ipv4Addr::LOCALHOST, 444).into()
}

fn is_idle(address: SocketAddr) -> bool {
    nth_addresses(8).contains(&address)
}

/// The number of the relay that has an address.
pub(crate) fn relay_at(address: SocketAddr) -> Option<usize> {
    (0..RELAYS.len()).find(|number| nth_relay(*number).addresses.contains(&address))
}

impl Cloud {
    pub(crate) fn new(now: Instant) -> Self {
        let mut cloud = Self {
            as_up: true,
            nms: None,
            standby: None,
            stands_in: false,
            refuses: false,
            standbys: Vec::new(),
            numbers: 0,
            relays: Default::default(),
            listed: 1,
            devices: Vec::new(),
            access: None,
            asked: BTreeMap::new(),
            asking: BTreeMap::new(),
            called: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            lives: 0,
        };
        cloud.revive(Victim::Nms, now, now);
        cloud.revive(Victim::Trs, now, now);
        cloud.revive(Victim::SecondTrs, now, now);
        cloud
    }

    pub(crate) fn enrol(&mut self, name: &str) {
        self.devices.push(fqdn(name));
        for nms in self.both_mut() {
            nms.handle_enrolled(&fqdn(name));
        }
    }

    /// The AS revokes a device.
    pub(crate) fn revoke(&mut self, now: Instant, name: &str) {
        self.devices.retain(|device| *device != fqdn(name));
        for nms in self.both_mut() {
            nms.handle_revoked(now, &fqdn(name));
        }
    }

    /// The overlay has a standby from now on, of which nodes hear when they register.
    pub(crate) fn add_standby(&mut self, now: Instant, start: Instant) {
        self.revive(Victim::Standby, now, start);
        self.list_standbys(vec![standby()]);
    }

    /// Another one stands before it, which serves nobody.
    pub(crate) fn add_idle_standby(&mut self) {
        self.list_standbys(vec![idle_standby(), standby()]);
    }

    pub(crate) fn list_standbys(&mut self, standbys: Vec<Standby>) {
        self.both_mut().for_each(|nms| nms.handle_services(vec![relay()], standbys.clone()));
        self.standbys = standbys;
    }

    /// The standby hears how far the NMS has got.
    pub(crate) fn count_on(&mut self) {
        let next = self.nms.as_ref().map_or(0, Nms::next_setup);
        self.standby.iter_mut().for_each(|standby| {
            standby.handle_setups(next);
        });
    }

    fn poll_nms(&mut self) -> Option<(nms::Action, u64)> {
        let own = self.nms.as_mut().and_then(Nms::poll_action).map(|action| (action, 0));
        own.or_else(|| Some((self.standby.as_mut()?.poll_action()?, STANDBY_EXCHANGES)))
    }

    /// Other rules hold; an NMS that is down has them when it is back.
    pub(crate) fn restrict(&mut self, now: Instant, rules: Option<Vec<OverlayRule>>) {
        self.access.clone_from(&rules);
        for nms in self.both_mut() {
            nms.handle_access(now, rules.clone());
        }
    }

    /// The NMS and its standby, as far as they are up.
    fn both_mut(&mut self) -> impl Iterator<Item = &mut Nms> {
        self.nms.iter_mut().chain(&mut self.standby)
    }

    /// The one at an address.
    pub(crate) fn nms_at(&mut self, server: SocketAddr) -> Option<&mut Nms> {
        match server {
            idle if is_idle(idle) => None,
            standby if is_standby(standby) => self.standby.as_mut(),
            _ => self.nms.as_mut(),
        }
    }

    pub(crate) fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::As => self.as_up = false,
            Victim::Nms => {
                self.nms = None;
                // Its successor numbers its exchanges anew.
                self.cancelled.clear();
            }
            Victim::Standby => self.standby = None,
            Victim::Trs => self.relays[0].kill(),
            Victim::SecondTrs => self.relays[1].kill(),
            Victim::Device(_) => {}
        }
    }

    pub(crate) fn revive(&mut self, victim: Victim, now: Instant, start: Instant) {
        self.lives += 1;
        let seed = [u8::try_from(self.lives % 251).unwrap(); 32];
        match victim {
            Victim::As => self.as_up = true,
            Victim::Nms | Victim::Standby => {
                let config = NmsConfig {
                    network_id: NETWORK,
                    prefix: prefix(),
                    zone: ZONE.into(),
                    relays: (0..self.listed).map(nth_relay).collect(),
                    devices: Some(self.devices.clone()),
                    revoked: Vec::new(),
                    access: self.access.clone(),
                    standbys: self.standbys.clone(),
                    first_setup: u64::try_from((now - start).as_nanos()).unwrap(),
                    timing: NmsTiming::default(),
                };
                let config = match victim {
                    Victim::Nms => NmsConfig { first_setup: config.first_setup + self.numbers, ..config },
                    _ => config,
                };
                let nms = Some(Nms::new(config, seed, now));
                *if victim == Victim::Nms { &mut self.nms } else { &mut self.standby } = nms;
            }
            Victim::Trs => self.relays[0].revive(seed, now, start),
            Victim::SecondTrs => self.relays[1].revive(seed, now, start),
            Victim::Device(_) => {}
        }
    }

    pub(crate) fn is_up(&self, service: &Service, server: SocketAddr) -> bool {
        match service {
            Service::As => self.as_up,
            Service::Nms if is_idle(server) => true,
            Service::Nms if is_standby(server) => self.standby.is_some(),
            Service::Nms => self.nms.is_some(),
            Service::Trs(name) => self.relays[number(name)].trs.is_some(),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let nms = self.nms.iter().chain(&self.standby).filter_map(Nms::poll_timeout);
        let relays = self.running().filter_map(Trs::poll_timeout);
        nms.chain(relays).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.both_mut().for_each(|nms| nms.handle_timeout(now));
        self.running_mut().for_each(|trs| trs.handle_timeout(now));
    }

    /// The relays that are up.
    fn running(&self) -> impl Iterator<Item = &Trs> {
        self.relays.iter().filter_map(|relay| relay.trs.as_ref())
    }

    fn running_mut(&mut self) -> impl Iterator<Item = &mut Trs> {
        self.relays.iter_mut().filter_map(|relay| relay.trs.as_mut())
    }

    /// The relay's process at a service, if it is that of a relay that is up.
    pub(crate) fn trs_of(&mut self, service: &Service) -> Option<&mut Trs> {
        match service {
            Service::Trs(name) => self.relays[number(name)].trs.as_mut(),
            Service::As | Service::Nms => None,
        }
    }

    pub(crate) fn node_answered(&mut self, now: Instant, exchange: ExchangeId, message: Message) {
        let (nms, exchange) = match exchange.0.checked_sub(STANDBY_EXCHANGES) {
            Some(own) => (&mut self.standby, ExchangeId(own)),
            None => (&mut self.nms, exchange),
        };
        if let Some(nms) = nms {
            nms.handle_response(now, exchange, message);
        }
    }

    pub(crate) fn frame(&mut self, now: Instant, channel: Channel, service: &Service, bytes: &[u8]) {
        if let Some(trs) = self.trs_of(service) {
            trs.handle_datagram(now, channel, bytes);
        }
    }

    pub(crate) fn disconnected(&mut self, now: Instant, conn: &Conn, closed: bool) {
        match &conn.service {
            Service::As => {}
            Service::Nms => {
                let nms = self.nms_at(conn.server);
                nms.into_iter().for_each(|nms| nms.handle_disconnected(now, conn.channel));
            }
            Service::Trs(_) => self.trs_of(&conn.service).into_iter().for_each(|trs| match closed {
                true => trs.handle_disconnected(now, conn.channel),
                false => trs.handle_lost(now, conn.channel),
            }),
        }
    }
}

impl Victim {
    /// The process behind a service.
    pub(crate) fn of(conn: &Conn) -> Self {
        match &conn.service {
            Service::As => Self::As,
            Service::Nms if is_standby(conn.server) || is_idle(conn.server) => Self::Standby,
            Service::Nms => Self::Nms,
            Service::Trs(name) => RELAY_VICTIMS[number(name)],
        }
    }
}

impl RelayHost {
    fn kill(&mut self) {
        self.trs = None;
        if !self.pinned {
            self.map.clear();
        }
    }

    fn revive(&mut self, seed: [u8; 32], now: Instant, start: Instant) {
        self.revive_with(trs_keys(), seed, now, start);
    }

    pub(crate) fn revive_with(&mut self, keys: TrsKeys, seed: [u8; 32], now: Instant, start: Instant) {
        let clock = WallClock::new(start, 1_800_000_000);
        let limits = TrsLimits::default();
        let mut trs = Trs::new(TrsConfig { network_id: NETWORK, keys, clock, limits }, seed);
        trs.handle_adopted(now, self.map.keys().copied());
        self.trs = Some(trs);
    }
}

impl World {
    /// A handshake with a service is complete.
    pub(crate) fn connected(&mut self, channel: Channel) {
        let Some(conn) = self.conns.get_mut(&channel) else { return };
        conn.up = true;
        let conn = conn.clone();
        if !self.cloud.is_up(&conn.service, conn.server) || !self.reaches(channel) {
            self.conns.remove(&channel);
            return;
        }
        let (now, identity) = (self.now, identity(conn.device));
        match &conn.service {
            Service::As => {}
            Service::Nms => {
                if let Some(nms) = self.cloud.nms_at(conn.server) {
                    nms.handle_connected(now, channel, identity, conn.observed, conn.server);
                }
            }
            Service::Trs(_) => {
                let path = NodePath { remote: conn.observed, local: Some(conn.server.ip()) };
                let trs = self.cloud.trs_of(&conn.service).unwrap();
                trs.handle_connected(now, channel, identity, path);
            }
        }
        self.drain_cloud();
        // The slower of two dials is given up.
        let slower = |other: &Conn| !other.up && other.device == conn.device && other.service == conn.service;
        self.conns.retain(|_, other| !slower(other));
        let (service, server) = (conn.service.clone(), conn.server);
        self.at_node(channel, |node, now| match conn.detour {
            None => node.handle_connected(now, service, server),
            Some(local) => {
                let through = conn.dialled;
                node.handle_detour_connected(now, service, local, through);
            }
        });
        let serves = match Victim::of(&conn) {
            Victim::Standby => self.cloud.stands_in && !is_idle(conn.server),
            Victim::Nms => !self.cloud.refuses,
            _ => true,
        };
        if !serves {
            self.send_away(channel);
        }
    }

    pub(crate) fn lost(&mut self, conn: &Conn, at_node: bool, closed: bool) {
        if at_node {
            // Unless the node gave it up by itself, or has a newer one.
            let replaced = self.conns.values().any(|other| {
                other.device == conn.device && other.service == conn.service && other.life == conn.life
            });
            if !replaced {
                let service = conn.service.clone();
                self.with_node(conn.device, conn.life, |node, now| {
                    node.handle_disconnected(now, service, "connection lost".into());
                });
            }
        } else {
            self.cloud.disconnected(self.now, conn, closed);
            self.drain_cloud();
        }
    }

    pub(crate) fn reach_service(&mut self, channel: Channel, exchange: ExchangeId, bytes: &[u8]) {
        if !self.reaches(channel) {
            return;
        }
        let Some(conn) = self.conns.get(&channel).cloned() else { return };
        let message = Self::unpack(bytes);
        let (now, here) = (self.now, ExchangeId(self.fresh()));
        self.cloud.asked.insert(here, (channel, exchange));
        match &conn.service {
            Service::As => {
                let message = log_in(&conn, &message);
                self.respond(here, &message);
            }
            Service::Nms => {
                let Some(nms) = self.cloud.nms_at(conn.server) else { return };
                if let Message::RegistrationRequest(request) = &message {
                    self.registrations.entry(conn.device).or_default().push(request.clone());
                }
                nms.handle_request(now, channel, here, message);
            }
            Service::Trs(_) => {
                if let Message::ObservationRequest(ObservationRequest { proof }) = &message
                    && let Ok(number) = Transaction::try_from(proof.as_slice())
                    && let Some((_, observed)) = self.cloud.called.remove(&number)
                {
                    self.proved(channel, observed);
                }
                let Some(trs) = self.cloud.trs_of(&conn.service) else { return };
                trs.handle_request(now, channel, here, message);
            }
        }
        self.drain_cloud();
    }

    pub(crate) fn reach_node(&mut self, channel: Channel, exchange: ExchangeId, bytes: &[u8]) {
        let here = ExchangeId(self.fresh());
        self.cloud.asking.insert(here, (channel, exchange));
        let message = Self::unpack(bytes);
        self.at_node(channel, |node, now| node.handle_request(now, Service::Nms, here, message));
    }

    /// A node answers a request of the NMS.
    pub(crate) fn node_responds(&mut self, here: ExchangeId, message: &Message) {
        let (channel, exchange) = self.cloud.asking.remove(&here).unwrap();
        let (bytes, delay) = (self.pack(message), self.reliable_delay());
        self.schedule(delay, Event::NodeAnswer { channel, exchange, here, bytes });
    }

    pub(crate) fn drain_cloud(&mut self) {
        while let Some((action, numbers)) = self.cloud.poll_nms() {
            let own = |exchange: ExchangeId| ExchangeId(exchange.0 + numbers);
            match action {
                nms::Action::Respond { exchange, message } => self.respond(exchange, &message),
                nms::Action::Request { channel, exchange, message } => {
                    let (bytes, delay) = (self.pack(&message), self.reliable_delay());
                    self.schedule(delay, Event::ToNode { channel, exchange: own(exchange), bytes });
                }
                nms::Action::CancelRequest { exchange } => {
                    self.cloud.cancelled.insert(own(exchange));
                }
                nms::Action::Close { channel, .. } => self.close(channel),
                nms::Action::Doubled { channel } => {
                    panic!("{} is one machine", self.conns[&channel].device)
                }
            }
        }
        for relay in 0..RELAYS.len() {
            self.drain_relay(relay);
        }
    }

    fn drain_relay(&mut self, relay: usize) {
        while let Some(action) = self.cloud.relays[relay].trs.as_mut().and_then(Trs::poll_action) {
            match action {
                trs::Action::Respond { exchange, message } => self.respond(exchange, &message),
                trs::Action::Insert { cid, from, to, real_cid } => {
                    assert_eq!(from.remote.is_ipv4(), from.local.unwrap().is_ipv4());
                    self.cloud.relays[relay].map.insert(cid, (from.remote, to.remote, real_cid));
                }
                trs::Action::Reset { cid, to } => self.reset(relay, cid, to.remote),
                trs::Action::Remove { cid } => {
                    self.cloud.relays[relay].map.remove(&cid).unwrap();
                }
                trs::Action::Forward { channel, datagram } => {
                    self.unreliable(&Event::FrameToNode { channel, bytes: datagram.to_vec() });
                }
                trs::Action::Close { channel, .. } => self.close(channel),
            }
        }
    }

    /// A data packet at the TRS: looked up, rewritten, sent on; or dropped.
    pub(crate) fn relay_data(&mut self, relay: usize, from: SocketAddr, packet: Packet) {
        let Packet::Data(mut data) = packet else { return };
        if self.cut_off.contains(&RELAY_VICTIMS[relay]) {
            return;
        }
        let (now, cid) = (self.now, ConnectionId::from_bytes(data.wire_cid));
        let Some((bound, to, real)) = self.cloud.relays[relay].map.get(&cid).copied() else {
            // A dead process answers nothing.
            if self.cloud.relays[relay].trs.is_some() {
                self.reset(relay, cid, from);
            }
            return;
        };
        if bound != from {
            return;
        }
        self.cloud.relays[relay].trs.iter_mut().for_each(|trs| trs.handle_leg_activity(now, cid, now));
        data.wire_cid = *real.as_bytes();
        let here = nth_relay(relay).addresses[usize::from(to.is_ipv6())];
        self.unreliable(&Event::Datagram { from: here, to, packet: Packet::Data(data) });
    }

    /// A stateless reset of the TRS.
    fn reset(&mut self, relay: usize, cid: ConnectionId, to: SocketAddr) {
        let from = nth_relay(relay).addresses[usize::from(to.is_ipv6())];
        let token = trs_keys().reset_token(cid);
        self.resets += 1;
        self.unreliable(&Event::Datagram { from, to, packet: Packet::Reset(token) });
    }

    /// A service answers a node.
    fn respond(&mut self, exchange: ExchangeId, message: &Message) {
        let (channel, exchange) =
            self.cloud.asked.remove(&exchange).unwrap_or_else(|| panic!("two answers for one request"));
        let delay = self.reliable_delay();
        // Some exchanges fail for good where packets get lost.
        if self.loss > 0.0 && rand::Rng::random_bool(&mut self.rng, self.loss / 10.0) {
            self.schedule(delay, Event::ExchangeFailed { channel, exchange });
            return;
        }
        let bytes = self.pack(message);
        self.schedule(delay, Event::Answer { channel, exchange, bytes });
    }

    /// The standby stands in, or by.
    pub(crate) fn stand_in(&mut self, stands_in: bool) {
        self.cloud.stands_in = stands_in;
        if stands_in {
            let now = self.now;
            self.cloud.standby.as_mut().unwrap().handle_stands_in(now);
            return;
        }
        let there =
            self.conns.values().filter(|conn| conn.service == Service::Nms && is_standby(conn.server));
        for channel in there.map(|conn| conn.channel).collect::<Vec<_>>() {
            self.send_away(channel);
        }
    }

    /// A standby does not serve.
    fn send_away(&mut self, channel: Channel) {
        let now = self.now;
        self.cloud.both_mut().for_each(|nms| nms.handle_disconnected(now, channel));
        self.close(channel);
    }

    fn close(&mut self, channel: Channel) {
        if let Some(conn) = self.conns.remove(&channel) {
            self.schedule(self.delay, Event::Lost { conn, at_node: true, closed: true });
        }
    }

    /// Whether both ends of a connection are on the network.
    pub(crate) fn reaches(&self, channel: Channel) -> bool {
        self.conns.get(&channel).is_some_and(|conn| {
            let service = Victim::of(conn);
            let uplinks = &self.hosts[conn.device].uplinks;
            let routed = match conn.detour {
                None => {
                    let passes = !self.udp_blocked.contains(conn.device);
                    passes && uplinks.iter().any(|uplink| uplink.own.is_ipv4() == conn.server.is_ipv4())
                }
                Some(_) => !uplinks.is_empty() && !self.tcp_blocked.contains(conn.device),
            };
            let split = match service {
                Victim::Nms => self.without_nms.contains(conn.device),
                Victim::Trs => self.without_trs.contains(conn.device),
                _ => false,
            };
            let cut = [Victim::Device(conn.device), service].iter().any(|end| self.cut_off.contains(end));
            routed && !split && !cut
        })
    }

    /// Something for the node at the end of a connection, if that still stands.
    pub(crate) fn at_node(&mut self, channel: Channel, act: impl FnOnce(&mut Node, Instant)) {
        if !self.reaches(channel) {
            return;
        }
        let Some((device, life)) = self.conns.get(&channel).map(|conn| (conn.device, conn.life)) else {
            return;
        };
        self.with_node(device, life, act);
    }

    /// Cuts a device or service off; its connections die of silence.
    pub(crate) fn cut(&mut self, victim: Victim) {
        self.cut_off.insert(victim);
        let dead: Vec<_> = self.conns.values().filter(|conn| !self.reaches(conn.channel)).cloned().collect();
        for conn in dead {
            self.conns.remove(&conn.channel);
            let lost = |at_node| Event::Lost { conn: conn.clone(), at_node, closed: false };
            self.schedule(Duration::from_secs(3), lost(true));
            self.schedule(Duration::from_secs(3), lost(false));
        }
    }
}

/// Every process of the TRS has these.
pub(crate) fn trs_keys() -> TrsKeys {
    TrsKeys::derive(b"the TRS's private key")
}

fn log_in(conn: &Conn, request: &Message) -> Message {
    let Message::LoginRequest(request) = request else { panic!("the AS got {}", request.name()) };
    match cyphonic_proto::version::negotiate(request.protocol_version) {
        Err(mismatch) => Refusal::new(RefusalCode::Version, mismatch).into(),
        Ok(protocol_version) => Message::LoginResponse(LoginResponse {
            fqdn: fqdn(conn.device),
            nms: endpoint::list_to_wire(&addresses(&Service::Nms)),
            observed: Some(endpoint::to_wire(conn.observed)),
            protocol_version,
            nms_name: "nms.lab".into(),
            // Simulated networks have no wall clock.
            time: 0,
        }),
    }
}
