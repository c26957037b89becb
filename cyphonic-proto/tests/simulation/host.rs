//! A device's shell and its dataplane.

use crate::{
    cloud::{addresses, relay_at},
    net::Uplink,
    world::{Conn, Content, Data, Event, Flight, Packet, Victim, World, ZONE, identity, virtual_address},
};
use cyphonic_proto::{
    Channel, ConnectionId, Identity, Message, PeerConnectionId, SetupId, TunnelId,
    identity::sha256,
    node::{
        Action, CachedState, Node, NodeConfig, PathMtu, PeerVia, Service, Timing, TunnelActivity,
        TunnelControl, TunnelParameters,
    },
    relayed,
    tunnel::{ExportError, Exporter, Suite},
};
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// Every path carries it: QUIC's least datagram.
const SMALLEST: u16 = 1200;

pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) uplinks: Vec<Uplink>,
    pub(crate) node: Option<Node>,
    /// How often it was started.
    pub(crate) life: u32,
    pub(crate) cached: Option<CachedState>,
    pub(crate) tunnels: BTreeMap<TunnelId, Installed>,
    held: BTreeMap<Ipv6Addr, Vec<u64>>,
    /// What came for tunnels that are offered and not installed yet.
    early: BTreeMap<ConnectionId, Vec<(SocketAddr, Data)>>,
    /// Packets that could not be delivered and were answered.
    pub(crate) dropped: Vec<Ipv6Addr>,
    pub(crate) installs: u32,
}

/// A tunnel in the dataplane.
pub(crate) struct Installed {
    pub(crate) parameters: TunnelParameters,
    pub(crate) confirmed: bool,
    pub(crate) activity: TunnelActivity,
    pub(crate) mtu: PathMtu,
    waiting: Vec<u64>,
    sent: u64,
    newest: Option<u64>,
    /// Where the relay is, and what stands on the wire there.
    relay: Option<(SocketAddr, ConnectionId)>,
    /// Packets that were sent, of any kind.
    pub(crate) packets: u64,
}

impl Installed {
    /// As the ring: what came through the relay is answered through it.
    fn path_to(&self, to: SocketAddr) -> (SocketAddr, ConnectionId) {
        self.relay.filter(|(relay, _)| *relay == to).unwrap_or((to, self.parameters.remote_cid))
    }

    fn path(&self) -> (SocketAddr, ConnectionId) {
        (self.parameters.remote, self.parameters.wire_cid)
    }
}

/// One dial of a peer: the network knows what both ends said.
pub(crate) struct Dial {
    pub(crate) device: &'static str,
    life: u32,
    setup: SetupId,
    via: PeerVia,
    /// Who listens, in which of its lives, and how the dialler's packets come there.
    listener: Option<(&'static str, u32, PeerVia)>,
    offer: Option<Vec<u8>>,
    /// The offer has reached the dialler.
    offered: bool,
    request: Option<Vec<u8>>,
    /// The request has reached the listener.
    asked: bool,
    answer: Option<Vec<u8>>,
    pub(crate) claims: Option<Identity>,
    tries: u32,
}

impl Dial {
    pub(crate) fn setup(&self) -> SetupId {
        self.setup
    }

    pub(crate) fn via(&self) -> PeerVia {
        self.via.clone()
    }
}

/// Both ends' TLS exporter.
pub(crate) struct Shared(pub(crate) u64);

impl Exporter for Shared {
    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExportError> {
        Ok(sha256(&[&self.0.to_be_bytes(), label, context].concat()))
    }
}

impl Host {
    pub(crate) fn new(name: &'static str, uplinks: Vec<Uplink>) -> Self {
        Self {
            name,
            uplinks,
            node: None,
            life: 0,
            cached: None,
            tunnels: BTreeMap::new(),
            held: BTreeMap::new(),
            early: BTreeMap::new(),
            dropped: Vec::new(),
            installs: 0,
        }
    }

    pub(crate) fn die(&mut self) {
        self.node = None;
        self.life += 1;
        self.tunnels.clear();
        self.held.clear();
        self.early.clear();
    }

    pub(crate) fn early_packets(&self) -> usize {
        self.early.values().map(Vec::len).sum()
    }

    fn newest(&self, peer: Ipv6Addr) -> Option<TunnelId> {
        self.tunnels.iter().rev().find(|(_, tunnel)| tunnel.parameters.peer == peer).map(|(id, _)| *id)
    }
}

impl World {
    pub(crate) fn boot(&mut self, name: &'static str) {
        let life = self.hosts[name].life;
        let mut seed = [0; 32];
        rand::Rng::fill(&mut self.rng, &mut seed);
        let host = self.hosts.get_mut(name).unwrap();
        let config = NodeConfig {
            identity: identity(name),
            zone: ZONE.into(),
            addresses: host.uplinks.iter().map(|uplink| uplink.own).collect(),
            as_addresses: addresses(&Service::As).to_vec(),
            as_name: "as.lab".into(),
            cached: host.cached.clone(),
            pinned_relay: None,
            suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
            inner_mtu: 1420,
            software_version: "test".into(),
            timing: Timing { warm_relays: self.warm_relays, ..Timing::default() },
        };
        host.node = Some(Node::new(config, seed, self.now));
        self.schedule(Duration::from_secs(1), Event::Stats { device: name, life });
        self.drain(name);
    }

    /// Something for a device, if it still lives that life.
    pub(crate) fn with_node(
        &mut self,
        device: &'static str,
        life: u32,
        act: impl FnOnce(&mut Node, Instant),
    ) {
        let now = self.now;
        let host = self.hosts.get_mut(device).unwrap();
        if host.life != life {
            return;
        }
        if let Some(node) = &mut host.node {
            act(node, now);
            self.drain(device);
        }
    }

    pub(crate) fn drain(&mut self, name: &'static str) {
        while let Some(action) = self.hosts.get_mut(name).unwrap().node.as_mut().and_then(Node::poll_action) {
            self.carry_out(name, action);
        }
    }

    fn carry_out(&mut self, name: &'static str, action: Action) {
        match action {
            Action::Connect { service, .. } | Action::LeaveDetour { service, .. } => self.open(name, service),
            Action::ConnectByDetour { service, .. } => self.open_detour(name, service),
            // No NAT here is probed: what the NMS needs to know, a scenario tells the node itself.
            Action::Netcheck { .. } => {}
            Action::Disconnect { service } => self.close_at_node(name, &service),
            Action::Request { exchange, service, message } => {
                let Some(channel) = self.channel(name, &service) else { return };
                let (bytes, delay) = (self.pack(&message), self.reliable_delay());
                self.schedule(delay, Event::ToService { channel, exchange, bytes });
            }
            Action::Respond { exchange, message } => self.node_responds(exchange, &message),
            Action::DialPeer { setup, peer_fqdn, peer_address, via } => {
                assert_eq!(peer_address, virtual_address(peer_fqdn.strip_suffix(".lab").unwrap()));
                self.dial(name, setup, via);
            }
            Action::AskPeer { setup, request } => self.ask_peer(name, setup, &request),
            Action::CancelDial { setup } => self.cancel_dial(name, setup),
            Action::OfferPeer { connection, offer } => {
                let bytes = self.pack(&offer);
                self.dials.get_mut(&connection.0).unwrap().offer = Some(bytes);
            }
            Action::ClosePeer { connection } => {
                // The dialler's own time is up too, or soon will be.
                if let Some(dial) = self.dials.get_mut(&connection.0) {
                    dial.offer = None;
                }
            }
            Action::RespondPeer { connection, message } => {
                let bytes = self.pack(&message);
                if let Some(dial) = self.dials.get_mut(&connection.0) {
                    assert!(dial.answer.replace(bytes).is_none(), "one request, two answers");
                    self.transmit_to_dialler(Flight::Response, connection.0);
                }
            }
            Action::ExpectTunnel { local_cid } => {
                self.hosts.get_mut(name).unwrap().early.insert(local_cid, Vec::new());
            }
            Action::ForgetTunnel { local_cid } => {
                self.hosts.get_mut(name).unwrap().early.remove(&local_cid);
            }
            Action::Punch { remotes } => remotes.iter().for_each(|to| self.send(name, *to, Packet::Punch)),
            Action::InstallTunnel(parameters) => self.install(name, *parameters),
            Action::RemoveTunnel { id, close } => {
                if close.is_some() {
                    self.emit(name, id, Content::Close);
                }
                let removed = self.hosts.get_mut(name).unwrap().tunnels.remove(&id);
                assert!(removed.is_some(), "a tunnel is removed once");
            }
            Action::SetPath { id, remote, wire_cid } => {
                let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
                (tunnel.parameters.remote, tunnel.parameters.wire_cid) = (remote, wire_cid);
                if wire_cid != tunnel.parameters.remote_cid {
                    tunnel.relay = Some((remote, wire_cid));
                }
                tunnel.mtu.datagram = SMALLEST;
            }
            Action::SetMtu { id, mtu } => {
                assert!(mtu.datagram >= 1200 && mtu.inner >= 1280);
                self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap().mtu = mtu;
            }
            Action::ProbeMtu { id, remote, wire_cid, size, data } => {
                let tunnel = &self.hosts[name].tunnels[&id].parameters;
                assert_eq!((tunnel.remote, tunnel.wire_cid), (remote, wire_cid), "the path in use is probed");
                self.probes += 1;
                self.emit(name, id, Content::Probe(data, size));
            }
            Action::SendControl { id, control } => {
                assert!(self.hosts[name].tunnels.contains_key(&id));
                let path = self.hosts[name].tunnels[&id].path();
                match control {
                    TunnelControl::Ping => self.emit(name, id, Content::Ping),
                    TunnelControl::PathChallenge(data) => {
                        self.emit_on(name, id, path, Content::Challenge(data))
                    }
                    TunnelControl::Probe { remote, wire_cid, data } => {
                        let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
                        if wire_cid != tunnel.parameters.remote_cid {
                            tunnel.relay = Some((remote, wire_cid));
                        }
                        self.emit_on(name, id, (remote, wire_cid), Content::Challenge(data));
                    }
                    TunnelControl::Candidates(set) => self.emit(name, id, Content::Candidates(set)),
                }
            }
            Action::Answer { query, result } => {
                if let Ok(address) = result {
                    let ready =
                        self.hosts[name].newest(address).is_some() || address == virtual_address(name);
                    assert!(ready, "{name} got an address before a tunnel");
                }
                assert!(self.answers.insert(query, result).is_none(), "one question, two answers");
            }
            Action::DropHeld { dst, .. } => {
                let host = self.hosts.get_mut(name).unwrap();
                host.held.remove(&dst);
                host.dropped.push(dst);
            }
            Action::Save(state) => {
                let state = CachedState::from_bytes(&state.to_bytes()).unwrap();
                self.hosts.get_mut(name).unwrap().cached = Some(state);
            }
            Action::Migrate => self.migrate(name),
            // Whose resets are believed one sees from the tunnel's present path here.
            Action::ExpectReset { .. } | Action::CancelRequest { .. } | Action::StatusChanged => {}
        }
    }

    fn open(&mut self, name: &'static str, service: Service) {
        self.connects += 1;
        let life = self.hosts[name].life;
        let host = self.hosts.get_mut(name).unwrap();
        // IPv4 first, where the device has it.
        let uplink = host.uplinks.first_mut();
        let Some(uplink) = uplink else { return };
        let server = addresses(&service)[usize::from(uplink.own.is_ipv6())];
        let observed = uplink.outbound(self.now, server);
        // The handshake is complete here after one round trip; what is asked then is there as early as its last packet.
        let delay = self.reliable_delay() * 2;
        if !self.cloud.is_up(&service) {
            self.schedule(delay, Event::ConnectFailed { device: name, life, service });
            return;
        }
        // A dial gives up the one before it.
        let given_up = |conn: &Conn| !conn.up && conn.device == name && conn.service == service;
        self.conns.retain(|_, conn| !given_up(conn));
        let channel = Channel(self.fresh());
        let conn = Conn { channel, device: name, life, service, up: false, server, observed, detour: None };
        self.conns.insert(channel, conn);
        self.schedule(delay, Event::Connected(channel));
    }

    fn close_at_node(&mut self, name: &'static str, service: &Service) {
        while let Some(channel) = self.channel(name, service) {
            let heard = self.reaches(channel);
            if let Some(conn) = self.conns.remove(&channel).filter(|_| heard) {
                self.schedule(self.delay, Event::Lost { conn, at_node: false, closed: true });
            }
        }
    }

    fn channel(&self, name: &str, service: &Service) -> Option<Channel> {
        let life = self.hosts[name].life;
        let fits = |conn: &&Conn| conn.device == name && conn.life == life && conn.service == *service;
        self.conns.values().rev().find(fits).map(|conn| conn.channel)
    }

    /// Sends a datagram from the device's port.
    pub(crate) fn send(&mut self, name: &'static str, to: SocketAddr, packet: Packet) {
        if self.cut_off.contains(&Victim::Device(name)) {
            return;
        }
        let host = self.hosts.get_mut(name).unwrap();
        if to.ip().is_loopback() {
            return self.send_by_detour(name, to, packet);
        }
        let Some(uplink) = host.uplinks.iter_mut().find(|uplink| uplink.own.is_ipv4() == to.is_ipv4()) else {
            return;
        };
        let from = uplink.outbound(self.now, to);
        if !self.udp_blocked.contains(name) {
            self.unreliable(&Event::Datagram { from, to, packet });
        }
    }

    pub(crate) fn arrive(&mut self, from: SocketAddr, to: SocketAddr, packet: Packet) {
        if matches!(&packet, Packet::Data(data) if data.size > self.carries) {
            return;
        }
        if let Some(relay) = relay_at(to) {
            return self.relay_data(relay, from, packet);
        }
        if to.ip().is_loopback() {
            return self.arrive_by_detour(to, packet);
        }
        if self.no_direct && relay_at(from).is_none() {
            return;
        }
        let receiver = self
            .hosts
            .values()
            .find(|host| host.uplinks.iter().any(|uplink| uplink.inbound(self.now, from, to)));
        let Some(name) = receiver.map(|host| host.name) else { return };
        if self.cut_off.contains(&Victim::Device(name)) || self.udp_blocked.contains(name) {
            return;
        }
        self.take_in(name, from, packet);
    }

    pub(crate) fn take_in(&mut self, name: &'static str, from: SocketAddr, packet: Packet) {
        match packet {
            Packet::Punch => {}
            Packet::Peers(flight, dial) => self.flight(name, flight, dial, PeerVia::Direct(vec![from])),
            Packet::Data(data) => self.receive(name, from, &data),
            Packet::Reset(token) => self.receive_reset(name, from, token),
        }
    }

    /// A shell knows a reset by its token and by where it comes from.
    fn receive_reset(&mut self, name: &'static str, from: SocketAddr, token: [u8; 16]) {
        let host = &self.hosts[name];
        let meant = |tunnel: &&Installed| {
            let relay = tunnel.relay.map(|(relay, _)| relay);
            tunnel.parameters.relay_reset == Some(token) && relay == Some(from)
        };
        let Some(id) = host.tunnels.values().find(meant).map(|tunnel| tunnel.parameters.id) else { return };
        let life = host.life;
        self.with_node(name, life, |node, now| node.handle_relay_reset(now, id));
    }

    pub(crate) fn frame_to_node(&mut self, channel: Channel, bytes: &[u8]) {
        if !self.reaches(channel) {
            return;
        }
        let Some((device, service)) = self.conns.get(&channel).map(|c| (c.device, c.service.clone())) else {
            return;
        };
        let Service::Trs(trs) = service else { panic!("a frame on a connection to {service}") };
        let (context, packet) = relayed::decode(bytes).unwrap();
        let via = PeerVia::Relay { trs, context };
        let dial = u64::from_be_bytes(packet[1..9].try_into().unwrap());
        self.flight(device, Flight::from_byte(packet[0]), dial, via);
    }

    fn dial(&mut self, device: &'static str, setup: SetupId, via: PeerVia) {
        let (id, life) = (self.fresh(), self.hosts[device].life);
        let dial = Dial {
            device,
            life,
            setup,
            via,
            listener: None,
            offer: None,
            offered: false,
            request: None,
            asked: false,
            answer: None,
            claims: None,
            tries: 0,
        };
        self.dials.insert(id, dial);
        self.transmit_dial(id);
    }

    fn dial_of(&self, device: &str, setup: SetupId) -> Option<u64> {
        let life = self.hosts[device].life;
        let fits = |dial: &Dial| dial.device == device && dial.life == life && dial.setup == setup;
        self.dials.iter().find(|(_, dial)| fits(dial)).map(|(id, _)| *id)
    }

    fn ask_peer(&mut self, device: &'static str, setup: SetupId, request: &Message) {
        let (id, bytes) = (self.dial_of(device, setup).unwrap(), self.pack(request));
        let dial = self.dials.get_mut(&id).unwrap();
        (dial.request, dial.tries) = (Some(bytes), 0);
        self.transmit_dial(id);
    }

    fn cancel_dial(&mut self, device: &'static str, setup: SetupId) {
        let Some(id) = self.dial_of(device, setup) else { return };
        self.end_dial(id);
    }

    fn end_dial(&mut self, id: u64) {
        let Some(Dial { listener: Some((device, life, _)), .. }) = self.dials.remove(&id) else { return };
        let delay = self.reliable_delay();
        self.schedule(delay, Event::PeerLeft { device, life, dial: id });
    }

    /// Sends, or repeats, what the dialler has to say.
    pub(crate) fn transmit_dial(&mut self, id: u64) {
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let flight = match (&dial.request, dial.offered) {
            (Some(_), _) => Flight::Request,
            (None, false) => Flight::Hello,
            // The node has not made up its mind.
            (None, true) => return,
        };
        dial.tries += 1;
        let (device, life, via, tries) = (dial.device, dial.life, dial.via.clone(), dial.tries);
        if self.hosts[device].life != life || tries > 8 {
            return self.end_dial(id);
        }
        self.transmit(device, &via, flight, id);
        self.schedule(Duration::from_millis(100) * tries, Event::Retransmit { dial: id });
    }

    fn transmit_to_dialler(&mut self, flight: Flight, id: u64) {
        if let Some((device, _, via)) = self.dials.get(&id).and_then(|dial| dial.listener.clone()) {
            self.transmit(device, &via, flight, id);
        }
    }

    fn transmit(&mut self, device: &'static str, via: &PeerVia, flight: Flight, id: u64) {
        match via {
            PeerVia::Direct(remotes) => {
                remotes.iter().for_each(|to| self.send(device, *to, Packet::Peers(flight, id)))
            }
            PeerVia::Relay { trs, context } => {
                if let Some(channel) = self.channel(device, &Service::Trs(trs.clone())) {
                    let packet = [&[flight as u8], id.to_be_bytes().as_slice()].concat();
                    let bytes = relayed::encode(*context, &packet).unwrap().to_vec();
                    self.unreliable(&Event::FrameToTrs { channel, bytes });
                }
            }
        }
    }

    /// A packet of a handshake between peers has arrived.
    fn flight(&mut self, name: &'static str, flight: Flight, id: u64, via: PeerVia) {
        match flight {
            Flight::Hello => self.hear_hello(name, id, via),
            Flight::Offer => self.hear_offer(name, id, via),
            Flight::Request => self.hear_request(name, id, via),
            Flight::Response => self.hear_response(name, id),
        }
    }

    fn hear_hello(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let life = self.hosts[name].life;
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let known = dial.listener.get_or_insert_with(|| (name, life, via.clone()));
        if known.0 != name || known.1 != life {
            return;
        }
        if dial.offer.is_none() {
            let connection = PeerConnectionId(id);
            self.with_node(name, life, |node, now| node.handle_peer_arrived(now, connection, via));
        }
        match self.dials.get_mut(&id) {
            Some(dial) if dial.offer.is_some() => self.transmit_to_dialler(Flight::Offer, id),
            Some(dial) => dial.listener = None,
            None => {}
        }
    }

    fn hear_offer(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let Some(dial) = self.dials.get_mut(&id).filter(|dial| dial.device == name && !dial.offered) else {
            return;
        };
        let (Some((listener, ..)), Some(offer)) = (&dial.listener, &dial.offer) else { return };
        let (identity, offer) = (identity(listener), offer.clone());
        dial.offered = true;
        let (life, setup, message) = (dial.life, dial.setup, Self::unpack(&offer));
        self.with_node(name, life, |node, now| {
            node.handle_peer_offer(now, setup, via, &identity, message, &Shared(id));
        });
    }

    fn hear_request(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let (Some((listener, life, _)), Some(request)) = (dial.listener.clone(), dial.request.clone()) else {
            return;
        };
        if listener != name {
            return;
        }
        if std::mem::replace(&mut dial.asked, true) {
            if dial.answer.is_some() {
                self.transmit_to_dialler(Flight::Response, id);
            }
            return;
        }
        let claims = dial.claims.clone().unwrap_or_else(|| identity(dial.device));
        let message = Self::unpack(&request);
        self.with_node(name, life, |node, now| {
            node.handle_peer_request(now, PeerConnectionId(id), via, &claims, message, &Shared(id));
        });
    }

    fn hear_response(&mut self, name: &'static str, id: u64) {
        let Some(dial) = self.dials.get(&id).filter(|dial| dial.device == name) else { return };
        let Some(answer) = dial.answer.clone() else { return };
        let (life, setup, message) = (dial.life, dial.setup, Self::unpack(&answer));
        self.with_node(name, life, |node, now| node.handle_peer_response(now, setup, message));
        self.end_dial(id);
    }

    fn install(&mut self, name: &'static str, parameters: TunnelParameters) {
        self.check_key(*parameters.send.as_bytes(), true);
        let host = self.hosts.get_mut(name).unwrap();
        assert_ne!(parameters.send, parameters.recv);
        assert!(parameters.local_cid.is_data() && parameters.remote_cid.is_data());
        assert!(host.tunnels.values().all(|tunnel| tunnel.parameters.local_cid != parameters.local_cid));
        let (id, peer, confirmed) = (parameters.id, parameters.peer, parameters.confirmed);
        let early = host.early.remove(&parameters.local_cid).unwrap_or_default();
        let waiting = host.held.remove(&peer).unwrap_or_default();
        host.installs += 1;
        let mtu = PathMtu { datagram: SMALLEST, inner: parameters.inner_mtu };
        let relayed = parameters.wire_cid != parameters.remote_cid;
        let relay = relayed.then_some((parameters.remote, parameters.wire_cid));
        let installed = Installed {
            parameters,
            confirmed,
            activity: TunnelActivity::default(),
            mtu,
            waiting,
            sent: 0,
            newest: None,
            relay,
            packets: 0,
        };
        assert!(host.tunnels.insert(id, installed).is_none());
        self.flush(name, id);
        for (from, data) in early {
            self.receive(name, from, &data);
        }
    }

    /// An application's packet.
    pub(crate) fn send_inner(&mut self, name: &'static str, to: &str) -> u64 {
        let (packet, dst) = (self.fresh(), virtual_address(to));
        let host = self.hosts.get_mut(name).unwrap();
        if host.node.is_none() {
            return packet;
        }
        if let Some(id) = host.newest(dst) {
            host.tunnels.get_mut(&id).unwrap().waiting.push(packet);
            self.flush(name, id);
        } else {
            let life = host.life;
            host.held.entry(dst).or_default().push(packet);
            self.with_node(name, life, |node, now| node.handle_unknown_destination(now, dst));
        }
        packet
    }

    /// Sends what waited, once the peer is known to have the tunnel.
    fn flush(&mut self, name: &'static str, id: TunnelId) {
        let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
        if tunnel.confirmed {
            for packet in std::mem::take(&mut tunnel.waiting) {
                self.emit(name, id, Content::Inner(packet));
            }
        }
    }

    fn emit(&mut self, name: &'static str, id: TunnelId, content: Content) {
        let path = self.hosts[name].tunnels[&id].path();
        self.emit_on(name, id, path, content);
    }

    fn emit_on(
        &mut self,
        name: &'static str,
        id: TunnelId,
        (remote, wire_cid): (SocketAddr, ConnectionId),
        content: Content,
    ) {
        let now = self.now;
        let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
        if !tunnel.confirmed {
            return;
        }
        // Applications send the largest that goes whole.
        let size = match content {
            Content::Inner(_) => tunnel.mtu.datagram,
            Content::Probe(_, size) => size,
            Content::Ping
            | Content::Challenge(_)
            | Content::Response(_)
            | Content::Candidates(_)
            | Content::Close => SMALLEST,
        };
        tunnel.packets += 1;
        tunnel.sent += 1;
        let activity = &mut tunnel.activity;
        if matches!(content, Content::Inner(_)) {
            activity.tx_packets += 1;
            activity.tx_large += u64::from(size > SMALLEST);
            activity.unanswered_since = activity.unanswered_since.or(Some(now));
        }
        if remote == tunnel.parameters.remote {
            activity.last_tx = Some(now);
        }
        let p = &tunnel.parameters;
        let data = Data {
            wire_cid: *wire_cid.as_bytes(),
            real_cid: *p.remote_cid.as_bytes(),
            key: *p.send.as_bytes(),
            number: tunnel.sent,
            size,
            content,
        };
        self.send(name, remote, Packet::Data(data));
    }

    fn receive(&mut self, name: &'static str, from: SocketAddr, data: &Data) {
        let cid = ConnectionId::from_bytes(data.wire_cid);
        let (now, host) = (self.now, self.hosts.get_mut(name).unwrap());
        let life = host.life;
        let opens = |tunnel: &Installed| {
            tunnel.parameters.local_cid == cid
                && data.real_cid == data.wire_cid
                && *tunnel.parameters.recv.as_bytes() == data.key
        };
        let Some((id, tunnel)) = host.tunnels.iter_mut().find(|(_, tunnel)| opens(tunnel)) else {
            if let Some(early) = host.early.get_mut(&cid).filter(|early| early.len() < 16) {
                early.push((from, data.clone()));
            }
            return;
        };
        let id = *id;
        tunnel.confirmed = true;
        tunnel.activity.last_rx = Some(now);
        tunnel.activity.unanswered_since = None;
        let newest = tunnel.newest < Some(data.number);
        tunnel.newest = tunnel.newest.max(Some(data.number));
        let elsewhere = tunnel.parameters.remote != from;
        let probing =
            matches!(data.content, Content::Challenge(_) | Content::Probe(..) | Content::Response(_));
        match data.content.clone() {
            Content::Inner(packet) => {
                tunnel.activity.rx_packets += 1;
                self.delivered.insert((name, packet));
            }
            Content::Ping => {}
            Content::Challenge(challenge) | Content::Probe(challenge, _) => {
                let path = tunnel.path_to(from);
                self.emit_on(name, id, path, Content::Response(challenge));
                if elsewhere {
                    self.with_node(name, life, |node, now| node.handle_probed(now, id, from));
                }
            }
            Content::Response(data) => {
                self.with_node(name, life, |node, now| node.handle_path_response(now, id, data));
            }
            Content::Candidates(set) => {
                self.with_node(name, life, |node, now| node.handle_candidates(now, id, &set));
            }
            Content::Close => {
                self.with_node(name, life, |node, now| node.handle_tunnel_closed(now, id));
                return;
            }
        }
        if elsewhere && newest && !probing {
            self.with_node(name, life, |node, now| node.handle_peer_moved(now, id, from));
        }
        if self.hosts[name].tunnels.contains_key(&id) {
            self.flush(name, id);
        }
    }

    pub(crate) fn report_stats(&mut self, device: &'static str, life: u32) {
        if self.hosts[device].life != life {
            return;
        }
        let all: Vec<_> =
            self.hosts[device].tunnels.iter().map(|(id, tunnel)| (*id, tunnel.activity)).collect();
        for (id, activity) in all {
            self.with_node(device, life, |node, now| node.handle_tunnel_stats(now, id, activity));
        }
        self.schedule(Duration::from_millis(250), Event::Stats { device, life });
    }
}
