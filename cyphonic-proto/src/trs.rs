//! The Tunnel Relay Service: binds the legs of two nodes, and forwards between bound legs alone.
//!
//! A leg belongs to one node's authenticated connection and names the one device that may bind to it. Two
//! legs of one set-up whose owners name each other are bound, whichever comes first. From then on data
//! packets that carry a leg's virtual connection ID are forwarded to the leg's node, with the node's own
//! connection ID written over it, by whatever holds the map (userspace or XDP; [`Action::Insert`]);
//! handshakes travel as DATAGRAMs through [`Trs::handle_datagram`], and those that come before the pair is
//! bound wait for that (`held`).
//!
//! What a TRS knows of a leg it also gives to the leg's owner, sealed in a *ticket*; after a restart it gets
//! it back from there (`restore`, `ticket`).
//!
//! **Invariants.** A leg forwards only what its one bound peer sends, from the address of that peer's
//! validated path. Both entries of a pair are inserted together and removed together. A DATAGRAM leaves no
//! larger than it came. The relay never holds a key.

mod config;
mod held;
mod leg;
mod restore;
#[cfg(test)]
mod tests;
mod ticket;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

pub use config::{Action, TrsConfig, TrsCounters, TrsLimits};
use held::Held;
use leg::Leg;
use rand::SeedableRng;
use rand::rngs::StdRng;
use ticket::Holder;
pub use ticket::{MAX_TICKET, NodePath, RESET_TOKEN_LEN, TrsKeys, WallClock};

use crate::id::{Channel, ExchangeId};
use crate::identity::{Identity, KeyHash, Role};
use crate::message::{Message, ObservationResponse, Refusal, RefusalCode, endpoint};
use crate::timers::Timers;
use crate::{ConnectionId, close, relayed};

/// The machine of a TRS.
pub struct Trs {
    config: TrsConfig,
    rng: StdRng,
    nodes: BTreeMap<Channel, Node>,
    channels: BTreeMap<String, Channel>,
    legs: BTreeMap<ConnectionId, Leg>,
    /// Legs whose owner's connection is lost, by owner.
    orphans: BTreeMap<Owner, BTreeSet<ConnectionId>>,
    /// What the map still has from an earlier process.
    adopted: BTreeSet<ConnectionId>,
    adopted_until: Option<Instant>,
    timers: Timers<ConnectionId>,
    held: Held,
    actions: VecDeque<Action>,
    counters: TrsCounters,
}

/// Whose legs they are: a name, and the key of who had it then.
type Owner = (Holder, KeyHash);

/// A connected node.
struct Node {
    fqdn: String,
    holder: Holder,
    key: KeyHash,
    /// From when its certificate is valid, seconds since 1970.
    certified_since: i64,
    path: NodePath,
    /// Where its last packets came from, whether it is there or not.
    seen: SocketAddr,
    /// The node's legs by the context of their DATAGRAMs.
    contexts: BTreeMap<u64, ConnectionId>,
}

impl Trs {
    /// A TRS that starts now. `seed` must be unpredictable: connection IDs come from it.
    pub fn new(config: TrsConfig, seed: [u8; 32]) -> Self {
        Self {
            config,
            rng: StdRng::from_seed(seed),
            nodes: BTreeMap::new(),
            channels: BTreeMap::new(),
            legs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            adopted: BTreeSet::new(),
            adopted_until: None,
            timers: Timers::default(),
            held: Held::default(),
            actions: VecDeque::new(),
            counters: TrsCounters::default(),
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.adopted_until, self.held.next()].into_iter().flatten().min()
    }

    /// The legs that [`Self::handle_timeout`] would end for want of packets, with their other ends. Whoever
    /// forwards may know of some: tell of those before, by [`Self::handle_leg_activity`].
    pub fn idle(&self, now: Instant) -> Vec<ConnectionId> {
        let bound = |cid: &ConnectionId| Some([*cid, self.legs.get(cid)?.bound_to()?]);
        self.timers.expired(now).filter_map(bound).flatten().collect()
    }

    /// Ends legs for which nothing came in time.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(cid) = self.timers.pop_expired(now) {
            self.leg_due(now, cid);
        }
        self.adopted_due(now);
        self.counters.dropped += self.held.expire(now);
    }

    /// It is `unix` seconds after 1970. To be told every few seconds: clocks are set, also while a TRS runs,
    /// and tickets are judged by one that has been set since they were sealed.
    pub fn handle_clock(&mut self, now: Instant, unix: u64) {
        self.config.clock = WallClock::new(now, unix);
    }

    /// A node connected by `path`, its certificate verified. A node has one connection: the newest. Legs of
    /// the older one wait for it to claim them.
    pub fn handle_connected(&mut self, now: Instant, channel: Channel, identity: Identity, path: NodePath) {
        if let Some((code, reason)) = self.unwelcome(&identity) {
            self.actions.push_back(Action::Close { channel, code, reason: reason.into() });
            return;
        }
        if let Some(old) = self.channels.get(&identity.fqdn).copied() {
            let successor = self.nodes.get(&old).is_some_and(|node| {
                node.key != identity.spki_sha256 && node.certified_since > identity.not_before
            });
            if successor {
                // Not every TRS hears of revocations: the certificate of who had the name before may be valid
                // for long.
                let reason = "another device has this name now".into();
                self.actions.push_back(Action::Close { channel, code: close::NOT_ALLOWED, reason });
                return;
            }
            self.orphan(now, old);
            let reason = "replaced by a newer connection of the same device".into();
            self.actions.push_back(Action::Close { channel: old, code: close::NOT_ALLOWED, reason });
        }
        self.channels.insert(identity.fqdn.clone(), channel);
        let node = Node {
            holder: Holder::of(&identity.fqdn),
            fqdn: identity.fqdn,
            key: identity.spki_sha256,
            certified_since: identity.not_before,
            path: path.canonical(),
            seen: path.canonical().remote,
            contexts: BTreeMap::new(),
        };
        self.nodes.insert(channel, node);
    }

    /// A node's packets come from another address. Until it has proved to be there, the node alone is told,
    /// as an observation.
    pub fn handle_seen(&mut self, channel: Channel, from: SocketAddr) {
        if let Some(node) = self.nodes.get_mut(&channel) {
            node.seen = endpoint::canonical(from);
        }
    }

    /// A node's connection moved to another path, at whose end the node has proved to be: its legs follow.
    pub fn handle_moved(&mut self, _now: Instant, channel: Channel, path: NodePath) {
        let path = path.canonical();
        let Some(node) = self.nodes.get_mut(&channel).filter(|node| node.path != path) else { return };
        (node.path, node.seen) = (path, path.remote);
        let legs: Vec<_> = node.contexts.values().copied().collect();
        for cid in legs {
            if let Some(leg) = self.legs.get_mut(&cid) {
                leg.path = path;
            }
            self.insert_pair(cid);
        }
    }

    /// A node closed its connection: its legs and their other ends go.
    pub fn handle_disconnected(&mut self, _now: Instant, channel: Channel) {
        self.forget(channel);
    }

    /// A node's connection broke. Its legs stay for [`TrsLimits::orphaned`], and forward meanwhile.
    pub fn handle_lost(&mut self, now: Instant, channel: Channel) {
        self.orphan(now, channel);
    }

    /// The AS revoked a device: its connection and legs go.
    pub fn handle_revoked(&mut self, _now: Instant, fqdn: &str) {
        if let Some(channel) = self.channels.get(fqdn).copied() {
            self.forget(channel);
            let reason = "the device was revoked".into();
            self.actions.push_back(Action::Close { channel, code: close::NOT_ALLOWED, reason });
        }
        let holder = Holder::of(fqdn);
        let [first, last] = [0, 0xff].map(|byte| (holder, KeyHash([byte; 32])));
        let of_name = self.orphans.range(first..=last).map(|(owner, _)| *owner);
        for owner in of_name.collect::<Vec<_>>() {
            self.drop_orphans(owner);
        }
    }

    /// A node asks; every request is answered.
    pub fn handle_request(&mut self, now: Instant, channel: Channel, exchange: ExchangeId, message: Message) {
        let answer = match message {
            Message::BindingRequest(request) => {
                self.bind(now, channel, &request).map(Message::BindingResponse)
            }
            Message::BindingRestore(request) => {
                self.restore(now, channel, &request).map(Message::BindingResponse)
            }
            Message::ObservationRequest(_) => self.observe(channel),
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("a TRS does not answer {}", other.name())))
            }
        };
        let message = answer.unwrap_or_else(|refusal| {
            self.counters.refused += 1;
            refusal.into()
        });
        self.actions.push_back(Action::Respond { exchange, message });
    }

    /// A DATAGRAM arrived on a node's connection: passed on where it belongs to a bound leg, held for a while
    /// where that may yet be.
    pub fn handle_datagram(&mut self, now: Instant, channel: Channel, datagram: &[u8]) {
        let Some((context, packet)) = relayed::decode(datagram) else {
            self.counters.dropped += 1;
            return;
        };
        if !self.nodes.contains_key(&channel) || !relayed::CONTEXTS.contains(&context) {
            self.counters.dropped += 1;
        } else if let Some(leg) = self.bound_leg(channel, context) {
            self.forward(now, leg, packet);
        } else if self.held.push(now, (channel, context), packet, &self.config.limits) {
            self.counters.held += 1;
        } else {
            self.counters.dropped += 1;
        }
    }

    /// Data packets that carry `cid` were last forwarded at `last_seen`. To be told every minute or so: a
    /// pair without any sign of life for [`TrsLimits::idle`] goes.
    pub fn handle_leg_activity(&mut self, _now: Instant, cid: ConnectionId, last_seen: Instant) {
        if let Some(leg) = self.legs.get_mut(&cid) {
            leg.last_seen = leg.last_seen.max(last_seen);
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> TrsCounters {
        self.counters
    }

    /// How many nodes are connected, and how many legs stand.
    pub fn sizes(&self) -> (usize, usize) {
        (self.nodes.len(), self.legs.len())
    }

    /// With which code and why a node is not let in.
    fn unwelcome(&self, identity: &Identity) -> Option<(u32, &'static str)> {
        if identity.role != Role::Device || identity.network_id != self.config.network_id {
            return Some((close::NOT_ALLOWED, "only devices of this network are relayed"));
        }
        let full =
            self.nodes.len() >= self.config.limits.nodes && !self.channels.contains_key(&identity.fqdn);
        full.then_some((close::UNAVAILABLE, "the relay has all the nodes it can take"))
    }

    fn observe(&self, channel: Channel) -> Result<Message, Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        let observed = Some(endpoint::to_wire(node.seen));
        Ok(Message::ObservationResponse(ObservationResponse { observed }))
    }

    /// The other end of the leg that has this context on its owner's connection.
    fn bound_leg(&self, channel: Channel, context: u64) -> Option<ConnectionId> {
        let from = self.nodes.get(&channel)?.contexts.get(&context)?;
        self.legs.get(from)?.bound_to()
    }

    /// Passes a packet on to the owner of a leg.
    fn forward(&mut self, now: Instant, to: ConnectionId, packet: &[u8]) {
        let action = self.legs.get_mut(&to).and_then(|leg| {
            // A packet that the other end will receive is a sign of life of that end's leg.
            leg.last_seen = leg.last_seen.max(now);
            Some(Action::Forward { channel: leg.channel?, datagram: relayed::encode(leg.context, packet)? })
        });
        match action {
            Some(action) => {
                self.counters.forwarded += 1;
                self.actions.push_back(action);
            }
            None => self.counters.dropped += 1,
        }
    }

    /// Passes on what came for a leg's other end before the two were bound.
    fn release(&mut self, now: Instant, cid: ConnectionId) {
        let Some(leg) = self.legs.get(&cid) else { return };
        let (Some(channel), Some(to)) = (leg.channel, leg.bound_to()) else { return };
        for packet in self.held.take((channel, leg.context)) {
            self.forward(now, to, &packet);
        }
    }

    /// Drops a connection's state, its device's legs included.
    fn forget(&mut self, channel: Channel) {
        let Some(node) = self.nodes.remove(&channel) else { return };
        self.held.forget(channel);
        self.channels.remove(&node.fqdn);
        for cid in node.contexts.values() {
            self.remove_pair(*cid);
        }
        self.drop_orphans((node.holder, node.key));
    }
}

fn not_connected() -> Refusal {
    Refusal::new(RefusalCode::NotAllowed, "the connection was replaced or closed")
}
