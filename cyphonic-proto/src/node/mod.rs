//! A device's side of the protocol.
//!
//! A node logs in at the AS, registers at the NMS and keeps that connection, and keeps warm connections to
//! the nearest relays (`services`, `registration`). A question for a peer, or a packet to one, starts an
//! attempt (`peers`): a DirectionRequest, whose answer is a set-up (`setup`), which ends in a tunnel
//! (`tunnels`) that is watched from then on (`liveness`, `keepalive`) and moves to the best path between the
//! two ends (`paths`). Tunnels through a relay outlive the relay's restart (`relay_legs`). Another node's
//! attempt arrives as a RouteDirection of the NMS and becomes a set-up too.
//!
//! **Invariants.** A question is answered with an address only when a tunnel to the peer is installed. Keys
//! are derived, and a tunnel installed, only for a set-up that the NMS directed this node to, with the peer
//! whose certificate has the set-up's name and address. Each set-up yields at most one tunnel. Of two tunnels
//! with one peer both ends keep the one of the later set-up. All tables are bounded.

pub mod action;
pub mod cache;
pub mod config;
mod detour;
mod exchanges;
mod findings;
mod keep_open;
mod keepalive;
mod liveness;
mod moves;
mod mtu;
mod offers;
mod paths;
mod peer_exchange;
mod peers;
mod registration;
mod relay_legs;
mod services;
mod setup;
pub mod status;
mod tunnels;

pub use action::{
    Action, CloseCode, PeerVia, ResolveError, Service, Target, TunnelActivity, TunnelControl,
    TunnelParameters,
};
pub use cache::{CachedState, DamagedCache, Relay};
pub use config::{MAX_RELAYS, NodeConfig, Timing};
pub use moves::{Routes, Sleep};
pub use mtu::{PathMtu, first_inner};
pub use paths::{CandidateSet, PathStatus};
pub use status::{NodeStatus, PeerState, PeerStatus, ServiceState, ServiceStatus, TunnelStatus};

use crate::{
    address::Prefix,
    id::{ExchangeId, PeerConnectionId, QueryId, SetupId, TunnelId},
    identity::Identity,
    message::{Message, endpoint},
    timers::Timers,
    tunnel::Exporter,
};
use exchanges::Exchange;
use keep_open::KeptOpen;
use offers::Offer;
use paths::ProbeBudget;
use peers::Peer;
use rand::{SeedableRng, rngs::StdRng};
use registration::Registration;
use services::Slot;
use setup::Setup;
use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv6Addr, SocketAddr},
    time::Instant,
};
use tunnels::Tunnel;

/// The machine of a device.
pub struct Node {
    config: NodeConfig,
    own: Ipv6Addr,
    prefix: Prefix,
    rng: StdRng,
    stopped: bool,
    next_exchange: u64,
    next_tunnel: u64,
    next_context: u64,
    services: BTreeMap<Service, Slot>,
    registration: Registration,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    peers: BTreeMap<Ipv6Addr, Peer>,
    queries: BTreeMap<QueryId, Ipv6Addr>,
    setups: BTreeMap<SetupId, Setup>,
    /// Set-ups that ended here without a tunnel, the latest last.
    ended: VecDeque<SetupId>,
    offers: BTreeMap<PeerConnectionId, Offer>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    probes: ProbeBudget,
    /// What peers were told last of where this node may be reached.
    told: Vec<SocketAddr>,
    kept_open: KeptOpen,
    timers: Timers<Timer>,
    actions: VecDeque<Action>,
}

/// What the node waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A service's connection, or the next attempt at one.
    Service(Service),
    /// A service's dial over TCP, or the next over UDP beside it.
    Detour(Service),
    /// The answer to a request.
    Exchange(ExchangeId),
    /// To tell the NMS of changes, several at once.
    Register,
    /// To look at the network again.
    Netcheck,
    /// A question's last moment.
    Query(QueryId),
    /// The last moment of packets held for a peer.
    Held(Ipv6Addr),
    /// The end of interest in a tunnel that broke while in use.
    Wanted(Ipv6Addr),
    /// The next attempt at a peer.
    Attempt(Ipv6Addr),
    /// To tell of an address no more that is no device's.
    Nobody(Ipv6Addr),
    /// A set-up's last moment.
    Setup(SetupId),
    /// The last moment of an offer.
    Offer(PeerConnectionId),
    /// Whatever is next for a tunnel.
    Tunnel(TunnelId),
    /// The next probes of a tunnel's path.
    Mtu(TunnelId),
    /// To tell peers where this node may be reached, after changes, several at once.
    Candidates,
    /// To hold the NAT mappings of connections to services.
    Mappings,
    /// To look after the tunnels that are kept open.
    KeptOpen,
}

impl Node {
    /// A node that starts now. `seed` must be unpredictable: connection IDs come from it. A certificate that
    /// is not a device's gives a node that never gets anywhere, and says so.
    pub fn new(config: NodeConfig, seed: [u8; 32], now: Instant) -> Self {
        let own = config.identity.virtual_address.unwrap_or(Ipv6Addr::UNSPECIFIED);
        let registration = Registration::new(&config);
        let mut node = Self {
            own,
            prefix: Prefix::of(own),
            rng: StdRng::from_seed(seed),
            stopped: false,
            next_exchange: 0,
            next_tunnel: 1,
            next_context: crate::relayed::MIN_CONTEXT,
            services: BTreeMap::new(),
            registration,
            exchanges: BTreeMap::new(),
            peers: BTreeMap::new(),
            queries: BTreeMap::new(),
            setups: BTreeMap::new(),
            ended: VecDeque::new(),
            offers: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            probes: ProbeBudget::of_node(now),
            told: Vec::new(),
            kept_open: KeptOpen::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            config,
        };
        node.start(now);
        node
    }

    /// What to do next, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_expired(now) {
            match timer {
                Timer::Service(service) => self.service_due(now, &service),
                Timer::Detour(service) => self.detour_due(now, &service),
                Timer::Exchange(exchange) => self.exchange_due(now, exchange),
                Timer::Register => self.register(now),
                Timer::Netcheck => self.netcheck(now),
                Timer::Query(query) => self.query_due(now, query),
                Timer::Held(dst) => self.held_due(now, dst),
                Timer::Wanted(peer) => self.wanted_due(now, peer),
                Timer::Nobody(address) => self.nobody_due(now, address),
                Timer::Attempt(peer) => self.attempt_due(now, peer),
                Timer::Setup(setup) => self.setup_due(now, setup),
                Timer::Offer(connection) => self.offer_due(connection),
                Timer::Tunnel(tunnel) => self.watch(now, tunnel),
                Timer::Mtu(tunnel) => self.search_mtu(now, tunnel),
                Timer::Candidates => self.candidates_due(now),
                Timer::Mappings => self.hold_mappings(now),
                Timer::KeptOpen => self.keep_peers(now),
            }
        }
    }

    /// A connection that [`Action::Connect`] or [`Action::LeaveDetour`] asked for is up, to this address.
    pub fn handle_connected(&mut self, now: Instant, service: Service, remote: SocketAddr) {
        self.connected_by_udp(now, service, endpoint::canonical(remote));
    }

    /// A connection that they asked for could not be opened.
    pub fn handle_connect_failed(&mut self, now: Instant, service: Service, reason: String) {
        self.udp_failed(now, &service, &reason);
    }

    /// A connection that [`Action::ConnectByDetour`] asked for is up: to `local`, a UDP address that stands
    /// for the service, through TLS with `through`.
    pub fn handle_detour_connected(
        &mut self,
        now: Instant,
        service: Service,
        local: SocketAddr,
        through: SocketAddr,
    ) {
        let (local, through) = (endpoint::canonical(local), endpoint::canonical(through));
        self.connected_by_detour(now, service, local, through);
    }

    /// A connection that it asked for could not be opened.
    pub fn handle_detour_failed(&mut self, now: Instant, service: Service, reason: String) {
        self.detour_failed(now, &service, &reason);
    }

    /// A connection ended by itself.
    pub fn handle_disconnected(&mut self, now: Instant, service: Service, reason: String) {
        self.service_failed(now, &service, &reason);
    }

    /// The answer to a request of ours.
    pub fn handle_response(&mut self, now: Instant, exchange: ExchangeId, message: Message) {
        self.exchange_done(now, exchange, Ok(message));
    }

    /// A request of ours will have no answer.
    pub fn handle_exchange_failed(&mut self, now: Instant, exchange: ExchangeId, reason: String) {
        self.exchange_done(now, exchange, Err(reason));
    }

    /// A service that had asked did not wait for the answer ([`Action::Respond`]).
    pub fn handle_request_given_up(&mut self, now: Instant, exchange: ExchangeId) {
        self.given_up(now, exchange);
    }

    /// A service asks: only the NMS does, with a RouteDirection, a RouteWithdrawal or a RevocationNotice.
    /// Answered by [`Action::Respond`], perhaps later.
    pub fn handle_request(&mut self, now: Instant, service: Service, exchange: ExchangeId, message: Message) {
        self.directed(now, &service, exchange, message);
    }

    /// Somebody wants to reach a peer; answered by [`Action::Answer`] within [`Timing::resolve`].
    pub fn handle_resolve(&mut self, now: Instant, query: QueryId, target: Target) {
        self.resolve(now, query, target);
    }

    /// The dataplane holds packets for a peer without a tunnel.
    pub fn handle_unknown_destination(&mut self, now: Instant, dst: Ipv6Addr) {
        self.unknown_destination(now, dst);
    }

    /// The host is attached to networks in another way than before: these are its own addresses now, and
    /// `routes` says what they reach. To be told of every change, however many come at once.
    pub fn handle_addresses(&mut self, now: Instant, addresses: &[SocketAddr], routes: &dyn Routes) {
        self.moved(now, addresses, routes);
    }

    /// The host slept, or this process was stopped.
    pub fn handle_resumed(&mut self, now: Instant, sleep: Sleep) {
        self.resumed(now, sleep);
    }

    /// The node's certificate was renewed: what is dialled from now on is dialled with the new one.
    pub fn handle_renewed(&mut self, now: Instant) {
        self.renewed(now);
    }

    /// Where the AS is, where that was found out only now or has changed: its name resolves anew.
    pub fn handle_as_addresses(&mut self, now: Instant, addresses: Vec<SocketAddr>) {
        self.as_moved(now, addresses);
    }

    /// A peer opened a connection; who it is, is not known yet. `via` has the one address it comes from.
    /// Answered by [`Action::OfferPeer`] or [`Action::ClosePeer`].
    pub fn handle_peer_arrived(&mut self, now: Instant, connection: PeerConnectionId, via: PeerVia) {
        self.peer_arrived(now, connection, &via);
    }

    /// The first request on a connection that was offered a tunnel; its chain is verified to the network's
    /// root, and `via` has the one address it comes from. Answered by [`Action::RespondPeer`], perhaps
    /// later.
    pub fn handle_peer_request(
        &mut self,
        now: Instant,
        connection: PeerConnectionId,
        via: PeerVia,
        identity: &Identity,
        message: Message,
        exporter: &dyn Exporter,
    ) {
        self.peer_asked(now, connection, via, identity.clone(), message, exporter);
    }

    /// A connection that was offered a tunnel ended, or will bring no request.
    pub fn handle_peer_left(&mut self, _now: Instant, connection: PeerConnectionId) {
        self.peer_left(connection);
    }

    /// The peer that was dialled is at the other end, its chain verified to the network's root, and this is
    /// its TunnelOffer; `via` has the one address it was reached at.
    pub fn handle_peer_offer(
        &mut self,
        now: Instant,
        setup: SetupId,
        via: PeerVia,
        identity: &Identity,
        message: Message,
        exporter: &dyn Exporter,
    ) {
        self.peer_offered(now, setup, &via, identity, message, exporter);
    }

    /// The peer's answer to what [`Action::AskPeer`] sent. That none came need not be reported: whether the
    /// tunnel lives shows by itself.
    pub fn handle_peer_response(&mut self, now: Instant, setup: SetupId, message: Message) {
        self.peer_answered(now, setup, message);
    }

    /// A dial failed, before it brought an offer.
    pub fn handle_dial_failed(&mut self, now: Instant, setup: SetupId, reason: String) {
        self.dial_failed(now, setup, &reason);
    }

    /// Counters of a tunnel; to be told of every tunnel about once a second.
    pub fn handle_tunnel_stats(&mut self, now: Instant, id: TunnelId, activity: TunnelActivity) {
        self.activity(now, id, activity);
    }

    /// The peer answered a challenge or a probe.
    pub fn handle_path_response(&mut self, now: Instant, id: TunnelId, data: [u8; 8]) {
        self.path_answered(now, id, data);
    }

    /// The peer's challenge came from an address that is not the path's, and was answered there.
    pub fn handle_probed(&mut self, now: Instant, id: TunnelId, from: SocketAddr) {
        self.path_probed(now, id, from);
    }

    /// The peer tells where it may be reached.
    pub fn handle_candidates(&mut self, now: Instant, id: TunnelId, set: &CandidateSet) {
        self.candidates_told(now, id, set);
    }

    /// Peers, by full name or without the zone, whose tunnels are set up without anybody asking and stay
    /// while nobody uses them. A name that cannot be one is ignored.
    pub fn handle_keep_open(&mut self, now: Instant, names: &[String]) {
        self.keep_open(now, names);
    }

    /// The TRS said with a stateless reset that it has lost the leg that a tunnel sends to.
    pub fn handle_relay_reset(&mut self, now: Instant, id: TunnelId) {
        self.relay_reset(now, id);
    }

    /// This host's own interface does not take datagrams of a size: that of the [`Action::ProbeMtu`] with
    /// this data, or that of a tunnel's packets, which the dataplane then sends no larger than it sends
    /// on an unknown path.
    pub fn handle_too_big(&mut self, now: Instant, id: TunnelId, probe: Option<[u8; 8]>) {
        self.too_big(now, id, probe);
    }

    /// The peer closed a tunnel.
    pub fn handle_tunnel_closed(&mut self, now: Instant, id: TunnelId) {
        self.peer_closed(now, id);
    }

    /// A tunnel's keys are nearly used up: a fresh tunnel replaces it.
    pub fn handle_keys_exhausted(&mut self, now: Instant, id: TunnelId) {
        self.replace(now, id);
    }

    /// Authenticated packets of the peer, newer than all before and not only to try a path, come from another
    /// address.
    pub fn handle_peer_moved(&mut self, now: Instant, id: TunnelId, from: SocketAddr) {
        self.peer_moved(now, id, from);
    }

    /// The operator resets the tunnels of one peer, or all: they close, and what failed before is tried
    /// again.
    pub fn handle_reset(&mut self, now: Instant, target: Option<Target>) {
        self.reset(now, target);
    }

    /// The node stops: peers are told, questions answered. Nothing that happens afterwards has an effect.
    pub fn handle_shutdown(&mut self, now: Instant) {
        self.shut_down(now);
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn changed(&mut self) {
        if !matches!(self.actions.back(), Some(Action::StatusChanged)) {
            self.actions.push_back(Action::StatusChanged);
        }
    }

    fn shut_down(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        let why = ResolveError::Cancelled { why: "the agent is stopping".into() };
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.give_up(now, peer, why.clone());
        }
        for setup in self.setups.keys().copied().collect::<Vec<_>>() {
            self.drop_setup(setup, "the agent is stopping");
        }
        for connection in self.offers.keys().copied().collect::<Vec<_>>() {
            self.drop_offer(connection);
            self.act(Action::ClosePeer { connection });
        }
        for tunnel in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.remove_tunnel(now, tunnel, Some(CloseCode::Shutdown));
        }
        for service in self.services.keys().cloned().collect::<Vec<_>>() {
            self.unwant(now, &service);
        }
        self.stopped = true;
        self.timers = Timers::default();
        self.changed();
    }
}
