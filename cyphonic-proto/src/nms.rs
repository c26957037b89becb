//! The Node Management Service: knows every connected node's network, and steers two of them towards each
//! other.
//!
//! A node registers what it knows of its network on a connection that stays open. When one asks for another
//! (DirectionRequest), the NMS picks a route from both networks ([`crate::route`]) and sends RouteDirection
//! to both ends at the same moment: what it knows of the responder it need not ask. The responder's
//! RouteConfirmation ends the NMS's part; where it refuses or is lost, the initiator is told so
//! (RouteWithdrawal). The NMS is not needed again by a tunnel that stands, but for its end: all nodes are
//! told of a device that was revoked (RevocationNotice), and each of what others may open with it
//! (AccessNotice).
//!
//! **Invariants.** Who a node is comes from its certificate alone, never from a message. A device has one
//! connection: the newest. Set-ups are numbered upwards, so both ends agree which of two is newer. For one
//! pair at most one set-up is in progress: a request of the other end joins it. Every request is answered at
//! once, exactly once.

mod access;
mod config;
mod direction;
mod doubles;
mod nodes;
mod revocations;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use access::Access;
pub use config::{Action, NmsConfig, NmsCounters, NmsTiming};
use direction::Pending;
use nodes::{Left, Node};
use rand::SeedableRng;
use rand::rngs::StdRng;
pub use revocations::REVOCATIONS_REMEMBERED;
use revocations::Revocations;

use crate::id::{Channel, ExchangeId, SetupId};
use crate::identity::Identity;
use crate::message::{Message, Refusal, RefusalCode, endpoint};
use crate::node::Relay;
use crate::standby::Standby;
use crate::timers::Timers;
use crate::{address, close};

/// The machine of an NMS.
pub struct Nms {
    config: NmsConfig,
    rng: StdRng,
    started: Instant,
    /// Since when nodes come to it.
    serves_since: Instant,
    next_setup: u64,
    next_exchange: u64,
    nodes: BTreeMap<Channel, Node>,
    channels: BTreeMap<String, Channel>,
    left: Left,
    /// Whether the register is at hand.
    has_register: bool,
    /// Names of virtual addresses: all of the register where it is at hand, else of every node that
    /// connected.
    names: BTreeMap<Ipv6Addr, String>,
    pending: BTreeMap<SetupId, Pending>,
    exchanges: BTreeMap<ExchangeId, SetupId>,
    pairs: BTreeMap<(Channel, Channel), SetupId>,
    timers: Timers<SetupId>,
    revocations: Revocations,
    access: Access,
    actions: VecDeque<Action>,
    counters: NmsCounters,
}

impl Nms {
    /// An NMS that starts now. `seed` must be unpredictable: tunnel keys come from it.
    pub fn new(mut config: NmsConfig, seed: [u8; 32], now: Instant) -> Self {
        let devices = config.devices.take();
        let has_register = devices.is_some();
        let address = |fqdn: &str| address::virtual_address(config.prefix, config.network_id, fqdn);
        // There may be a million: all at once is dense and quick, and keeps each name once.
        let names = devices.into_iter().flatten().map(|fqdn| (address(&fqdn), fqdn)).collect();
        Self {
            rng: StdRng::from_seed(seed),
            started: now,
            serves_since: now,
            next_setup: config.first_setup,
            next_exchange: 0,
            nodes: BTreeMap::new(),
            channels: BTreeMap::new(),
            left: Left::default(),
            has_register,
            names,
            pending: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            pairs: BTreeMap::new(),
            timers: Timers::default(),
            revocations: Revocations::of_before(now, std::mem::take(&mut config.revoked)),
            access: Access::new(config.access.take()),
            actions: VecDeque::new(),
            counters: NmsCounters::default(),
            config,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.revocations.due()].into_iter().flatten().min()
    }

    /// Gives up responders that did not answer in time, and tells of revocations.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(setup) = self.timers.pop_expired(now) {
            self.responder_timed_out(setup);
        }
        if self.revocations.due().is_some_and(|at| at <= now) {
            self.tell_of_revocations(now);
        }
    }

    /// A node connected to our address `server`, its certificate verified; we see it as `observed`.
    pub fn handle_connected(
        &mut self,
        now: Instant,
        channel: Channel,
        identity: Identity,
        observed: SocketAddr,
        server: SocketAddr,
    ) {
        let seen = (endpoint::canonical(server), endpoint::canonical(observed));
        self.admit(now, channel, identity, seen);
    }

    /// A node's packets come from elsewhere. QUIC may not have validated that yet: whom peers are sent to proves
    /// to them who it is.
    pub fn handle_moved(&mut self, _now: Instant, channel: Channel, observed: SocketAddr) {
        if let Some(node) = self.nodes.get_mut(&channel) {
            node.seen.1 = endpoint::canonical(observed);
            self.responder_moved(channel);
        }
    }

    /// A node's connection ended.
    pub fn handle_disconnected(&mut self, now: Instant, channel: Channel) {
        if let Some(fqdn) = self.forget(now, channel, "the connection was lost") {
            self.channels.remove(&fqdn);
        }
    }

    /// A node asks; every request is answered.
    pub fn handle_request(&mut self, now: Instant, channel: Channel, exchange: ExchangeId, message: Message) {
        let answered = match message {
            Message::RegistrationRequest(request) => self.register(now, channel, &request),
            Message::DirectionRequest(request) => {
                self.direct(now, channel, &request).map(Message::RouteDirection)
            }
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("an NMS does not answer {}", other.name())))
            }
        };
        match answered {
            Ok(message) => self.respond(exchange, message),
            Err(refusal) => {
                self.counters.refused += 1;
                self.respond(exchange, refusal.into());
            }
        }
    }

    /// A node answers a request of ours.
    pub fn handle_response(&mut self, _now: Instant, exchange: ExchangeId, message: Message) {
        if let Some(setup) = self.exchanges.remove(&exchange) {
            self.responder_answered(setup, message);
        }
    }

    /// A node will not answer a request of ours.
    pub fn handle_exchange_failed(&mut self, _now: Instant, exchange: ExchangeId, reason: &str) {
        if let Some(setup) = self.exchanges.remove(&exchange) {
            self.responder_failed(setup, reason);
        }
    }

    /// The AS enrolled a device of this canonical name.
    pub fn handle_enrolled(&mut self, fqdn: &str) {
        self.names.insert(self.address_of(fqdn), fqdn.into());
        self.revocations.forgive(fqdn);
    }

    /// The AS revoked a device: it is forgotten, its connection closed, and its peers told.
    pub fn handle_revoked(&mut self, now: Instant, fqdn: &str) {
        self.names.remove(&self.address_of(fqdn));
        if let Some(channel) = self.channels.remove(fqdn) {
            self.forget(now, channel, "the device was revoked");
            let reason = "the device was revoked".into();
            self.actions.push_back(Action::Close { channel, code: close::NOT_ALLOWED, reason });
        }
        self.handle_replaced(now, fqdn);
    }

    /// The name is another device's now: peers of the one that had it are told.
    pub fn handle_replaced(&mut self, now: Instant, fqdn: &str) {
        self.revocations.note(now, fqdn);
    }

    /// A standby that begins to stand in: nodes are about to come.
    pub fn handle_stands_in(&mut self, now: Instant) {
        self.serves_since = now;
    }

    /// The overlay's relays and standbys are others, as a standby hears: who registers from now on is told so.
    pub fn handle_services(&mut self, relays: Vec<Relay>, standbys: Vec<Standby>) {
        self.config.relays = relays;
        self.config.standbys = standbys;
    }

    /// The number of the next set-up.
    pub fn next_setup(&self) -> u64 {
        self.next_setup
    }

    /// Another NMS of the overlay has given set-ups all numbers below this one. Returns whether that is news.
    pub fn handle_setups(&mut self, next: u64) -> bool {
        let is_news = next > self.next_setup;
        self.next_setup = self.next_setup.max(next);
        is_news
    }

    /// What happened so far.
    pub fn counters(&self) -> NmsCounters {
        self.counters
    }

    /// How many nodes are connected, and how many set-ups are in progress.
    pub fn sizes(&self) -> (usize, usize) {
        (self.nodes.len(), self.pending.len())
    }

    /// The names of all registered nodes, for the operator.
    pub fn registered(&self) -> impl Iterator<Item = &str> {
        self.nodes.values().filter(|node| node.registration.is_some()).map(|node| node.fqdn.as_str())
    }

    /// Whether the register has a device of this name; none where the register is not at hand.
    fn is_enrolled(&self, fqdn: &str) -> Option<bool> {
        let has_name = || self.names.get(&self.address_of(fqdn)).is_some_and(|name| name == fqdn);
        self.has_register.then(has_name)
    }

    fn address_of(&self, fqdn: &str) -> Ipv6Addr {
        address::virtual_address(self.config.prefix, self.config.network_id, fqdn)
    }

    fn respond(&mut self, exchange: ExchangeId, message: Message) {
        self.actions.push_back(Action::Respond { exchange, message });
    }
}
