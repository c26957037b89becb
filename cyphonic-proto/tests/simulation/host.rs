//! A device's shell: it carries out what the node asks for.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use cyphonic_proto::access::OverlayAccess;
use cyphonic_proto::node::{Action, CachedState, Node, NodeConfig, PeerVia, ResolveError, Service, Timing};
use cyphonic_proto::tunnel::Suite;
use cyphonic_proto::{Channel, ConnectionId, ExchangeId, Message, QueryId, TunnelId, relayed};

use crate::cloud::{addresses, relay_at};
use crate::dataplane::Installed;
use crate::net::Uplink;
use crate::world::{
    Conn, Content, Data, Event, Flight, Packet, Victim, World, ZONE, identity, virtual_address,
};

pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) uplinks: Vec<Uplink>,
    pub(crate) node: Option<Node>,
    /// How often it was started.
    pub(crate) life: u32,
    pub(crate) cached: Option<CachedState>,
    pub(crate) tunnels: BTreeMap<TunnelId, Installed>,
    pub(crate) held: BTreeMap<Ipv6Addr, Vec<u64>>,
    /// What came for tunnels that are offered and not installed yet.
    pub(crate) early: BTreeMap<ConnectionId, Vec<(SocketAddr, Data)>>,
    /// Packets that could not be delivered and were answered.
    pub(crate) dropped: Vec<Ipv6Addr>,
    pub(crate) installs: u32,
    /// What the overlay's rules let others open here.
    pub(crate) access: OverlayAccess,
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
            access: OverlayAccess::Unknown,
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

    /// As the ring: of a peer's tunnels that of the latest set-up, of those that may send if there is one.
    pub(crate) fn sending(&self, peer: Ipv6Addr) -> Option<TunnelId> {
        let all = self.tunnels.values().filter(|tunnel| tunnel.parameters.peer == peer);
        let latest = all.max_by_key(|tunnel| (tunnel.confirmed, tunnel.parameters.setup));
        latest.map(|tunnel| tunnel.parameters.id)
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
            pinned_relay: self.pinned.get(name).map(|&relay| relay.to_owned()),
            suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
            inner_mtu: 1420,
            software_version: "test".into(),
            timing: Timing { warm_relays: self.warm_relays, ..Timing::default() },
        };
        host.access = host.cached.as_ref().map(|cached| cached.access.clone()).unwrap_or_default();
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
            Action::Connect { service, addresses, .. } | Action::LeaveDetour { service, addresses, .. } => {
                self.open(name, service, &addresses);
            }
            Action::ConnectByDetour { service, addresses, .. } => {
                self.open_detour(name, service, addresses[0])
            }
            // No NAT here is probed: what the NMS needs to know, a scenario tells the node itself.
            Action::Netcheck { .. } => self.looks.entry(name).or_default().push(self.now),
            Action::Disconnect { service } => self.close_at_node(name, &service),
            Action::Request { exchange, service, message } => {
                self.request(name, exchange, &service, &message)
            }
            Action::Respond { exchange, message } => self.node_responds(exchange, &message),
            Action::DialPeer { setup, peer_fqdn, peer_address, via } => {
                assert_eq!(peer_address, virtual_address(peer_fqdn.strip_suffix(".lab").unwrap()));
                self.dial(name, setup, via);
            }
            Action::AskPeer { setup, request } => self.ask_peer(name, setup, &request),
            Action::CancelDial { setup } => self.cancel_dial(name, setup),
            Action::OfferPeer { connection, offer } => self.offer_peer(connection, &offer),
            Action::ClosePeer { connection } => self.close_peer(connection),
            Action::RespondPeer { connection, message } => self.respond_peer(connection, &message),
            Action::ExpectTunnel { local_cid } => {
                self.hosts.get_mut(name).unwrap().early.insert(local_cid, Vec::new());
            }
            Action::ForgetTunnel { local_cid } => {
                self.hosts.get_mut(name).unwrap().early.remove(&local_cid);
            }
            Action::Punch { remotes } => {
                assert!(remotes.iter().all(|to| !to.ip().is_loopback()), "a detour has no mapping to hold");
                remotes.iter().for_each(|to| self.send(name, *to, Packet::Punch));
            }
            Action::InstallTunnel(parameters) => self.install(name, *parameters),
            Action::RemoveTunnel { id, close } => self.remove_tunnel(name, id, close.is_some()),
            Action::SetPath { id, remote, wire_cid } => self.set_path(name, id, (remote, wire_cid)),
            Action::SetMtu { id, mtu } => self.set_mtu(name, id, mtu),
            Action::ProbeMtu { id, remote, wire_cid, size, data } => {
                assert_eq!(
                    self.hosts[name].tunnels[&id].path(),
                    (remote, wire_cid),
                    "the path in use is probed"
                );
                self.probes += 1;
                self.emit(name, id, Content::Probe(data, size));
            }
            Action::SendControl { id, control } => self.send_control(name, id, control),
            Action::Answer { query, result } => self.take_answer(name, query, result),
            Action::DropHeld { dst, .. } => {
                let host = self.hosts.get_mut(name).unwrap();
                host.held.remove(&dst);
                host.dropped.push(dst);
            }
            Action::Restrict(access) => self.hosts.get_mut(name).unwrap().access = access,
            Action::Save(state) => {
                let state = CachedState::from_bytes(&state.to_bytes()).unwrap();
                self.hosts.get_mut(name).unwrap().cached = Some(state);
            }
            Action::Migrate => self.migrate(name),
            // Whose resets are believed one sees from the tunnel's present path here.
            Action::ExpectReset { .. } | Action::CancelRequest { .. } | Action::StatusChanged => {}
        }
    }

    fn request(&mut self, name: &'static str, exchange: ExchangeId, service: &Service, message: &Message) {
        let Some(channel) = self.channel(name, service) else { return };
        let (bytes, delay) = (self.pack(message), self.reliable_delay());
        self.schedule(delay, Event::ToService { channel, exchange, bytes });
    }

    fn take_answer(&mut self, name: &'static str, query: QueryId, result: Result<Ipv6Addr, ResolveError>) {
        if let Ok(address) = result {
            let ready = self.hosts[name].sending(address).is_some() || address == virtual_address(name);
            assert!(ready, "{name} got an address before a tunnel");
        }
        assert!(self.answers.insert(query, result).is_none(), "one question, two answers");
    }

    fn open(&mut self, name: &'static str, service: Service, addresses: &[SocketAddr]) {
        self.connects += 1;
        let life = self.hosts[name].life;
        let host = self.hosts.get_mut(name).unwrap();
        // IPv4 first, where the device has it.
        let uplink = host.uplinks.first_mut();
        let Some(uplink) = uplink else { return };
        let of_family = |address: &&SocketAddr| address.is_ipv4() == uplink.own.is_ipv4();
        let Some(server) = addresses.iter().find(of_family).copied() else {
            self.schedule(self.delay, Event::ConnectFailed { device: name, life, service });
            return;
        };
        let observed = uplink.outbound(self.now, server);
        // The handshake is complete here after one round trip; what is asked then is there as early as its
        // last packet.
        let delay = self.reliable_delay() * 2;
        if !self.cloud.is_up(&service, server) {
            self.schedule(delay, Event::ConnectFailed { device: name, life, service });
            return;
        }
        // A dial gives up the one before it.
        let given_up = |conn: &Conn| !conn.up && conn.device == name && conn.service == service;
        self.conns.retain(|_, conn| !given_up(conn));
        let channel = Channel(self.fresh());
        let conn = Conn {
            channel,
            device: name,
            life,
            service,
            up: false,
            server,
            dialled: server,
            observed,
            detour: None,
        };
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

    pub(crate) fn channel(&self, name: &str, service: &Service) -> Option<Channel> {
        let life = self.hosts[name].life;
        let fits = |conn: &&Conn| conn.device == name && conn.life == life && conn.service == *service;
        self.conns.values().rev().find(fits).map(|conn| conn.channel)
    }

    /// Sends a datagram from the device's port.
    pub(crate) fn send(&mut self, name: &'static str, to: SocketAddr, packet: Packet) {
        if self.cut_off.contains(&Victim::Device(name)) {
            return;
        }
        *self.sent_to.entry(to.ip()).or_default() += 1;
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
        let is_list = |data: &Data| matches!(data.content, Content::Candidates(_));
        let is_lost = |data: &Data| data.size > self.carries || self.no_lists && is_list(data);
        if matches!(&packet, Packet::Data(data) if is_lost(data)) {
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
}
