//! A device's side of the protocol.
//!
//! A node logs in at the AS, registers at the NMS and keeps that connection, and keeps warm connections to
//! the nearest relays (`services`, `registration`; `standbys`: which NMS). A question for a peer, or a packet to one, starts an
//! attempt (`peers`): a DirectionRequest, whose answer is a set-up (`setup`), which ends in a tunnel
//! (`tunnels`) that is watched from then on (`liveness`, `keepalive`) and moves to the best path between the
//! two ends (`paths`). Tunnels through a relay outlive the relay's restart (`relay_legs`). Another node's
//! attempt arrives as a RouteDirection of the NMS and becomes a set-up too.
//!
//! What the shell reports (`handle_*`) is taken in by the module that it concerns.
//!
//! **Invariants.** A question is answered with an address only when a tunnel to the peer is installed. Keys
//! are derived, and a tunnel installed, only for a set-up that the NMS directed this node to, with the peer
//! whose certificate has the set-up's name and address. Each set-up yields at most one tunnel. Of two tunnels
//! with one peer both ends keep the one of the later set-up. All tables are bounded.

mod access;
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
mod requests;
mod services;
mod setups;
mod standbys;
pub mod status;
mod tunnels;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

pub use action::{
    Action, CloseCode, PeerVia, ResolveError, Service, Target, TunnelActivity, TunnelControl,
    TunnelParameters,
};
pub use cache::{CachedState, DamagedCache, Relay};
pub use config::{MAX_RELAYS, NodeConfig, Timing};
use exchanges::Exchange;
use keep_open::KeptOpen;
pub use keep_open::MAX_KEPT_OPEN;
pub use moves::{Routes, Sleep};
pub use mtu::{PathMtu, first_inner};
use offers::Offer;
use paths::ProbeBudget;
pub use paths::{CandidateSet, PathStatus};
pub use peer_exchange::ProvedPeer;
use peers::Peer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use registration::Registration;
pub use services::STOOD;
use services::Slot;
use setups::Setup;
use standbys::Turn;
pub use status::{NodeStatus, PeerState, PeerStatus, ServiceState, ServiceStatus, TunnelStatus};
use tunnels::Tunnel;

use crate::address::Prefix;
use crate::id::{ExchangeId, PeerConnectionId, QueryId, SetupId, TunnelId};
use crate::timers::Timers;

/// The machine of a device.
pub struct Node {
    config: NodeConfig,
    own: Ipv6Addr,
    prefix: Prefix,
    /// Tells this run apart from another machine's with the same identity.
    run: u64,
    rng: StdRng,
    stopped: bool,
    next_exchange: u64,
    next_tunnel: u64,
    next_context: u64,
    services: BTreeMap<Service, Slot>,
    turn: Turn,
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
    /// To look whether the cloud is back.
    Return,
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
        let mut rng = StdRng::from_seed(seed);
        let mut node = Self {
            own,
            prefix: Prefix::of(own),
            run: rng.random_range(1..=u64::MAX),
            rng,
            stopped: false,
            next_exchange: 0,
            next_tunnel: 1,
            next_context: crate::relayed::MIN_CONTEXT,
            services: BTreeMap::new(),
            turn: Turn::default(),
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
                Timer::Return => self.return_due(now),
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

    /// The node stops: peers are told, questions answered. Nothing that happens afterwards has an effect.
    pub fn handle_shutdown(&mut self, now: Instant) {
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

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn changed(&mut self) {
        if !matches!(self.actions.back(), Some(Action::StatusChanged)) {
            self.actions.push_back(Action::StatusChanged);
        }
    }
}
