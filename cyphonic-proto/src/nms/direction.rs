//! Set-ups: from a DirectionRequest to both ends' RouteDirections.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rand::Rng;
use zeroize::Zeroizing;

use super::nodes::not_connected;
use super::{Action, Nms};
use crate::id::{Channel, ExchangeId, SetupId};
use crate::message::{
    DirectionRequest, Message, Refusal, RefusalCode, RouteDirection, RouteKind, RouteWithdrawal, endpoint,
    field,
};
use crate::name::{self, NameError};
use crate::route::{self, Route};

/// A set-up whose responder has not confirmed yet.
pub(super) struct Pending {
    pub(super) setup: SetupId,
    initiator: End,
    responder: End,
    route: Route,
    tunnel_key: Zeroizing<[u8; 32]>,
    /// Our request to the responder.
    asking: ExchangeId,
}

#[derive(Clone)]
struct End {
    channel: Channel,
    fqdn: String,
    address: Ipv6Addr,
}

impl Pending {
    pub(super) fn concerns(&self, channel: Channel) -> bool {
        self.initiator.channel == channel || self.responder.channel == channel
    }

    fn pair(&self) -> (Channel, Channel) {
        pair(self.initiator.channel, self.responder.channel)
    }

    fn initiator_dials(&self) -> bool {
        self.route.kind != RouteKind::ResponderInitiated
    }

    /// One end's order.
    fn direction(&self, to_initiator: bool) -> RouteDirection {
        let (peer, endpoints) = match to_initiator {
            true => (&self.responder, &self.route.responder_endpoints),
            false => (&self.initiator, &self.route.initiator_endpoints),
        };
        RouteDirection {
            setup_id: self.setup.to_vec(),
            kind: self.route.kind.into(),
            dial: to_initiator == self.initiator_dials(),
            peer_fqdn: peer.fqdn.clone(),
            peer_virtual_address: peer.address.octets().to_vec(),
            peer_endpoints: endpoint::list_to_wire(endpoints),
            tunnel_key: self.tunnel_key.to_vec(),
            relay: self.route.relay.as_ref().map(crate::node::Relay::to_wire),
            initiator: to_initiator,
            reason: self.route.reason.clone(),
        }
    }
}

impl Nms {
    /// Starts a set-up, or joins one, and returns the asker's order.
    pub(super) fn direct(
        &mut self,
        now: Instant,
        channel: Channel,
        request: &DirectionRequest,
    ) -> Result<RouteDirection, Refusal> {
        self.counters.directions += 1;
        self.charge(now, channel, |asked| &mut asked.directions)?;
        let initiator = self.end(channel)?;
        let responder = self.find_responder(now, request)?;
        if responder.channel == channel {
            return Err(Refusal::new(RefusalCode::Malformed, "a device needs no tunnel to itself"));
        }
        if let Some(pending) =
            self.pairs.get(&pair(channel, responder.channel)).and_then(|setup| self.pending.get(setup))
        {
            if pending.responder.channel == channel {
                // The other end was faster: this one's own view of the set-up, which it has or is about to
                // get.
                self.counters.joined += 1;
                return Ok(pending.direction(false));
            }
            // The same end asks again: its first attempt came to nothing, and the responder's part in it is
            // pointless.
            let (setup, asking) = (pending.setup, pending.asking);
            self.actions.push_back(Action::CancelRequest { exchange: asking });
            self.take(setup);
        }
        self.check_room(channel, responder.channel)?;
        let route = self.select(&initiator, &responder, request)?;
        Ok(self.start(now, initiator, responder, route))
    }

    /// A node is elsewhere: who was sent to where it was is told so, rather than find out by a dial's
    /// time-out. Both ends of a tunnel may move at once, and the first asks for the other where that is
    /// no more.
    pub(super) fn responder_moved(&mut self, channel: Channel) {
        let lost =
            |pending: &&Pending| pending.responder.channel == channel && !self.finds_responder(pending);
        let lost = self.pending.values().filter(lost).map(|pending| pending.setup);
        for setup in lost.collect::<Vec<_>>() {
            let Some(pending) = self.take(setup) else { continue };
            self.actions.push_back(Action::CancelRequest { exchange: pending.asking });
            let reason = format!("{} has moved since", pending.responder.fqdn);
            self.withdraw(&pending, Refusal::retry(RefusalCode::PeerRefused, reason, AT_ONCE));
        }
    }

    /// Whether an initiator that dials has been told an address that the responder still has.
    fn finds_responder(&self, pending: &Pending) -> bool {
        let told = &pending.route.responder_endpoints;
        if !pending.initiator_dials() || pending.route.relay.is_some() || told.is_empty() {
            return true;
        }
        let Some(node) = self.nodes.get(&pending.responder.channel) else { return false };
        let network = node.network(self.config.prefix);
        told.iter().any(|endpoint| network.is_at(endpoint))
    }

    /// The responder's answer.
    pub(super) fn responder_answered(&mut self, setup: SetupId, message: Message) {
        match message {
            Message::RouteConfirmation(confirmation) => match field::setup_id(&confirmation.setup_id) {
                Ok(confirmed) if confirmed == setup => {
                    self.take(setup);
                }
                Ok(_) => self.responder_failed(setup, "its RouteConfirmation is of another set-up"),
                Err(bad) => self.responder_failed(setup, &format!("its RouteConfirmation is wrong: {bad}")),
            },
            Message::Refusal(refusal) => self.responder_failed(setup, &refusal.shown_reason()),
            other => self.responder_failed(setup, &format!("it answered with {}", other.name())),
        }
    }

    /// The responder refused, or answered nonsense.
    pub(super) fn responder_failed(&mut self, setup: SetupId, reason: &str) {
        let Some(pending) = self.take(setup) else { return };
        let reason = format!("{} did not agree: {reason}", pending.responder.fqdn);
        self.withdraw(&pending, Refusal::retry(RefusalCode::PeerRefused, reason, ANEW));
    }

    /// The responder did not answer in time.
    pub(super) fn responder_timed_out(&mut self, setup: SetupId) {
        let Some(pending) = self.take(setup) else { return };
        self.counters.responder_timeouts += 1;
        self.actions.push_back(Action::CancelRequest { exchange: pending.asking });
        let reason = format!("{} did not answer the NMS in time", pending.responder.fqdn);
        self.withdraw(&pending, Refusal::new(RefusalCode::PeerRefused, reason));
    }

    /// One of the two ends lost its connection.
    pub(super) fn participant_left(&mut self, setup: SetupId, channel: Channel, why: &str) {
        let Some(pending) = self.take(setup) else { return };
        if pending.initiator.channel == channel {
            // The two ends may finish without us, and the responder would end its part if our request were
            // cancelled; nobody is left to be told if they do not.
            return;
        }
        let reason = format!("{}: {why}", pending.responder.fqdn);
        self.withdraw(&pending, Refusal::retry(RefusalCode::PeerOffline, reason, ANEW));
    }

    /// Tells the initiator that the responder will not take part.
    fn withdraw(&mut self, pending: &Pending, refusal: Refusal) {
        self.counters.withdrawn += 1;
        let exchange = self.fresh_exchange();
        let withdrawal = RouteWithdrawal { setup_id: pending.setup.to_vec(), refusal: Some(refusal) };
        self.actions.push_back(Action::Request {
            channel: pending.initiator.channel,
            exchange,
            message: Message::RouteWithdrawal(withdrawal),
        });
    }

    /// Orders the responder into a set-up and returns the initiator's order.
    fn start(&mut self, now: Instant, initiator: End, responder: End, route: Route) -> RouteDirection {
        let (setup, asking) = (self.fresh_setup(), self.fresh_exchange());
        let tunnel_key = Zeroizing::new(self.rng.random());
        let pending = Pending { setup, initiator, responder, route, tunnel_key, asking };
        for channel in [pending.initiator.channel, pending.responder.channel] {
            if let Some(node) = self.nodes.get_mut(&channel) {
                node.setups += 1;
            }
        }
        self.actions.push_back(Action::Request {
            channel: pending.responder.channel,
            exchange: asking,
            message: Message::RouteDirection(pending.direction(false)),
        });
        self.counters.routed += 1;
        self.timers.set(setup, now + self.config.timing.responder);
        self.exchanges.insert(asking, setup);
        self.pairs.insert(pending.pair(), setup);
        let order = pending.direction(true);
        self.pending.insert(setup, pending);
        order
    }

    pub(super) fn fresh_exchange(&mut self) -> ExchangeId {
        let exchange = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        exchange
    }

    fn take(&mut self, setup: SetupId) -> Option<Pending> {
        let pending = self.pending.remove(&setup)?;
        self.timers.clear(&setup);
        self.exchanges.remove(&pending.asking);
        self.pairs.remove(&pending.pair());
        for channel in [pending.initiator.channel, pending.responder.channel] {
            if let Some(node) = self.nodes.get_mut(&channel) {
                node.setups = node.setups.saturating_sub(1);
            }
        }
        Some(pending)
    }

    fn end(&self, channel: Channel) -> Result<End, Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        if node.registration.is_none() {
            return Err(Refusal::new(RefusalCode::NotAllowed, "register first"));
        }
        Ok(End { channel, fqdn: node.fqdn.clone(), address: node.address })
    }

    fn find_responder(&self, now: Instant, request: &DirectionRequest) -> Result<End, Refusal> {
        let fqdn = self.find_name(request)?;
        let connected = self.channels.get(&fqdn).and_then(|channel| self.end(*channel).ok());
        connected.ok_or_else(|| self.absent(now, &fqdn))
    }

    fn find_name(&self, request: &DirectionRequest) -> Result<String, Refusal> {
        if !request.fqdn.is_empty() {
            return name::canonical_in_zone(&request.fqdn, &self.config.zone).map_err(|error| match error {
                NameError::NotInZone => Refusal::new(RefusalCode::NoSuchPeer, error),
                _ => Refusal::new(RefusalCode::Malformed, error),
            });
        }
        let address = field::virtual_address(&request.virtual_address, "fqdn or virtual_address")?;
        let known = self.names.get(&address).cloned();
        known.ok_or_else(|| Refusal::new(RefusalCode::NoSuchPeer, "no device has this virtual address"))
    }

    /// Why a device that is not connected cannot be reached.
    fn absent(&self, now: Instant, fqdn: &str) -> Refusal {
        if self.is_enrolled(fqdn) == Some(false) {
            return Refusal::new(RefusalCode::NoSuchPeer, "no device of this name is enrolled");
        }
        let reason = format!("{fqdn} is not connected to the NMS");
        if now.saturating_duration_since(self.serves_since) < self.config.timing.grace {
            return Refusal::retry(RefusalCode::PeerOffline, reason + ", which has just started", ANEW);
        }
        Refusal::new(RefusalCode::PeerOffline, reason)
    }

    fn check_room(&self, initiator: Channel, responder: Channel) -> Result<(), Refusal> {
        let timing = &self.config.timing;
        let busy =
            |channel| self.nodes.get(&channel).is_some_and(|node| node.setups >= timing.pending_per_node);
        let what = if self.pending.len() >= timing.pending {
            "the NMS has too many set-ups in progress"
        } else if busy(initiator) {
            "this device has too many set-ups in progress"
        } else if busy(responder) {
            "the peer has too many set-ups in progress"
        } else {
            return Ok(());
        };
        Err(Refusal::retry(RefusalCode::TooMany, what, Duration::from_millis(500)))
    }

    fn select(&self, initiator: &End, responder: &End, request: &DirectionRequest) -> Result<Route, Refusal> {
        let network = |end: &End| self.nodes.get(&end.channel).map(|node| node.network(self.config.prefix));
        let (Some(a), Some(b)) = (network(initiator), network(responder)) else {
            return Err(not_connected());
        };
        let failed: Vec<_> =
            request.failed.iter().take(8).filter_map(|kind| RouteKind::try_from(*kind).ok()).collect();
        let failed_relays: Vec<_> = request.failed_relays.iter().take(MAX_FAILED_RELAYS).cloned().collect();
        let route = route::select_without(&a, &b, &failed, &self.config.relays, &failed_relays);
        route.map_err(|error| Refusal::new(RefusalCode::NoRoute, error))
    }

    /// Larger than every set-up before, and not to be guessed.
    fn fresh_setup(&mut self) -> SetupId {
        let mut id = [0; 16];
        let (number, random) = id.split_at_mut(8);
        number.copy_from_slice(&self.next_setup.to_be_bytes());
        self.rng.fill(random);
        self.next_setup = self.next_setup.saturating_add(1);
        SetupId(id)
    }
}

/// Most relays that a node may call failed.
const MAX_FAILED_RELAYS: usize = 8;

/// How long an end waits before it asks anew for a set-up that was overtaken by events.
const ANEW: Duration = Duration::from_millis(300);

/// The same where nothing needs to settle.
const AT_ONCE: Duration = Duration::from_millis(1);

fn pair(a: Channel, b: Channel) -> (Channel, Channel) {
    if a <= b { (a, b) } else { (b, a) }
}
