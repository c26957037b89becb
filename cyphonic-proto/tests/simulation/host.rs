//! A device's shell and its dataplane.

use crate::{
    cloud::{addresses, relay},
    net::Uplink,
    world::{Conn, Content, Data, Event, Packet, Victim, World, ZONE, identity, virtual_address},
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
    device: &'static str,
    life: u32,
    setup: SetupId,
    via: PeerVia,
    request: Vec<u8>,
    /// Who listened, its answer, and where it was reached.
    answer: Option<(&'static str, Vec<u8>)>,
    pub(crate) claims: Option<Identity>,
    done: bool,
    tries: u32,
}

impl Dial {
    pub(crate) fn setup(&self) -> SetupId {
        self.setup
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
            dropped: Vec::new(),
            installs: 0,
        }
    }

    pub(crate) fn die(&mut self) {
        self.node = None;
        self.life += 1;
        self.tunnels.clear();
        self.held.clear();
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
            timing: Timing::default(),
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
            Action::DialPeer { setup, peer_fqdn, peer_address, via, request } => {
                assert_eq!(peer_address, virtual_address(peer_fqdn.strip_suffix(".lab").unwrap()));
                self.dial(name, setup, via, &request);
            }
            Action::CancelDial { setup } => {
                self.dials.retain(|_, dial| dial.device != name || dial.setup != setup)
            }
            Action::RespondPeer { connection, message } => {
                let bytes = self.pack(&message);
                self.dials.get_mut(&connection.0).unwrap().answer = Some((name, bytes));
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
        let delay = self.reliable_delay() * 3;
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
        if addresses(&Service::Trs(relay().name)).contains(&to) {
            return self.relay_data(from, packet);
        }
        if to.ip().is_loopback() {
            return self.arrive_by_detour(to, packet);
        }
        if self.no_direct && !addresses(&Service::Trs(relay().name)).contains(&from) {
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
            Packet::Request(dial) => {
                if self.listen(name, dial, PeerVia::Direct(vec![from])) {
                    self.send(name, from, Packet::Response(dial));
                }
            }
            Packet::Response(dial) => self.dial_answered(dial, PeerVia::Direct(vec![from])),
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
        match packet[0] {
            0 if self.listen(device, dial, via.clone()) => {
                let packet = [&[1], dial.to_be_bytes().as_slice()].concat();
                let bytes = relayed::encode(context, &packet).unwrap().to_vec();
                self.unreliable(&Event::FrameToTrs { channel, bytes });
            }
            0 => {}
            _ => self.dial_answered(dial, via),
        }
    }

    fn dial(&mut self, device: &'static str, setup: SetupId, via: PeerVia, request: &Message) {
        let (id, life, request) = (self.fresh(), self.hosts[device].life, self.pack(request));
        let dial =
            Dial { device, life, setup, via, request, answer: None, claims: None, done: false, tries: 0 };
        self.dials.insert(id, dial);
        self.transmit_dial(id);
    }

    /// Sends, or repeats, a dial's request.
    pub(crate) fn transmit_dial(&mut self, id: u64) {
        let Some(dial) = self.dials.get_mut(&id).filter(|dial| !dial.done) else { return };
        dial.tries += 1;
        let (device, via, wait) = (dial.device, dial.via.clone(), Duration::from_millis(100) * dial.tries);
        if self.hosts[device].life != dial.life || dial.tries > 8 {
            return;
        }
        match via {
            PeerVia::Direct(remotes) => {
                remotes.iter().for_each(|to| self.send(device, *to, Packet::Request(id)))
            }
            PeerVia::Relay { trs, context } => {
                if let Some(channel) = self.channel(device, &Service::Trs(trs)) {
                    let packet = [&[0], id.to_be_bytes().as_slice()].concat();
                    let bytes = relayed::encode(context, &packet).unwrap().to_vec();
                    self.unreliable(&Event::FrameToTrs { channel, bytes });
                }
            }
        }
        self.schedule(wait, Event::Retransmit { dial: id });
    }

    /// A dial's request reached a device; true once it has an answer.
    fn listen(&mut self, name: &'static str, id: u64, via: PeerVia) -> bool {
        let Some(dial) = self.dials.get(&id) else { return false };
        if let Some((listener, _)) = &dial.answer {
            return *listener == name;
        }
        let claims = dial.claims.clone().unwrap_or_else(|| identity(dial.device));
        let (message, life) = (Self::unpack(&dial.request), self.hosts[name].life);
        self.with_node(name, life, |node, now| {
            node.handle_peer_request(now, PeerConnectionId(id), via, &claims, message, &Shared(id));
        });
        self.dials.get(&id).is_some_and(|dial| dial.answer.is_some())
    }

    fn dial_answered(&mut self, id: u64, via: PeerVia) {
        let Some(dial) = self.dials.get_mut(&id).filter(|dial| !dial.done) else { return };
        let Some((listener, answer)) = dial.answer.clone() else { return };
        dial.done = true;
        let (device, life, setup) = (dial.device, dial.life, dial.setup);
        let (identity, message) = (identity(listener), Self::unpack(&answer));
        self.with_node(device, life, |node, now| {
            node.handle_peer_response(now, setup, via, &identity, message, &Shared(id));
        });
        self.dials.remove(&id);
    }

    fn install(&mut self, name: &'static str, parameters: TunnelParameters) {
        self.check_key(*parameters.send.as_bytes(), true);
        let host = self.hosts.get_mut(name).unwrap();
        assert_ne!(parameters.send, parameters.recv);
        assert!(parameters.local_cid.is_data() && parameters.remote_cid.is_data());
        assert!(host.tunnels.values().all(|tunnel| tunnel.parameters.local_cid != parameters.local_cid));
        let (id, peer, confirmed) = (parameters.id, parameters.peer, parameters.confirmed);
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
        let Some((id, tunnel)) = host.tunnels.iter_mut().find(|(_, tunnel)| opens(tunnel)) else { return };
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
