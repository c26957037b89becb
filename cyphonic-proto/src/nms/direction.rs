//! Set-ups: from a DirectionRequest to both ends' RouteDirections.

use super::{Action, Nms, nodes::not_connected};
use crate::{
    ConnectionId,
    id::{Channel, ExchangeId, SetupId},
    message::{
        DirectionRequest, Message, Refusal, RefusalCode, RouteConfirmation, RouteDirection, RouteKind,
        endpoint, field,
    },
    name::{self, NameError},
    route::{self, Route},
};
use rand::Rng;
use std::{
    net::Ipv6Addr,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// A set-up whose responder has not confirmed yet.
pub(super) struct Pending {
    pub(super) setup: SetupId,
    initiator: End,
    responder: End,
    route: Route,
    tunnel_key: Zeroizing<[u8; 32]>,
    /// The initiator's request.
    asked: ExchangeId,
    /// Our request to the responder.
    asking: ExchangeId,
    /// A request of the responder for the same pair, to be answered with the responder's own view.
    joined: Option<ExchangeId>,
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
    fn direction(&self, to_initiator: bool, bound: Option<ConnectionId>) -> RouteDirection {
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
            relay_connection_id: bound.map(|cid| cid.as_bytes().to_vec()).unwrap_or_default(),
            initiator: to_initiator,
            reason: self.route.reason.clone(),
        }
    }
}

impl Nms {
    /// Starts a set-up, or joins one. Unless refused, the request is answered when the responder has.
    pub(super) fn direct(
        &mut self,
        now: Instant,
        channel: Channel,
        exchange: ExchangeId,
        request: &DirectionRequest,
    ) -> Result<(), Refusal> {
        self.counters.directions += 1;
        self.charge(now, channel)?;
        let initiator = self.end(channel)?;
        let responder = self.find_responder(now, request)?;
        if responder.channel == channel {
            return Err(Refusal::new(RefusalCode::Malformed, "a device needs no tunnel to itself"));
        }
        if let Some(setup) = self.pairs.get(&pair(channel, responder.channel)).copied() {
            if self.join(setup, channel, exchange) {
                return Ok(());
            }
            self.end_setup(setup, || superseded().into());
        }
        self.check_room(channel, responder.channel)?;
        let route = self.select(&initiator, &responder, request)?;
        self.start(now, initiator, responder, route, exchange);
        Ok(())
    }

    /// The responder's answer.
    pub(super) fn responder_answered(&mut self, setup: SetupId, message: Message) {
        match message {
            Message::RouteConfirmation(confirmation) => match self.check_confirmation(setup, &confirmation) {
                Ok(bound) => self.complete(setup, bound),
                Err(bad) => self.responder_failed(setup, &format!("its RouteConfirmation is wrong: {bad}")),
            },
            Message::Refusal(refusal) => self.responder_failed(setup, &refusal.shown_reason()),
            other => self.responder_failed(setup, &format!("it answered with {}", other.name())),
        }
    }

    /// The responder refused, or answered nonsense.
    pub(super) fn responder_failed(&mut self, setup: SetupId, reason: &str) {
        let Some(pending) = self.pending.get(&setup) else { return };
        let reason = format!("{} did not agree: {reason}", pending.responder.fqdn);
        self.end_setup(setup, || Refusal::retry(RefusalCode::PeerRefused, &reason, ANEW).into());
    }

    /// The responder did not answer in time.
    pub(super) fn responder_timed_out(&mut self, setup: SetupId) {
        let Some(pending) = self.pending.get(&setup) else { return };
        self.counters.responder_timeouts += 1;
        let reason = format!("{} did not answer the NMS in time", pending.responder.fqdn);
        self.actions.push_back(Action::CancelRequest { exchange: pending.asking });
        self.end_setup(setup, || Refusal::new(RefusalCode::PeerRefused, &reason).into());
    }

    /// One of the two ends lost its connection.
    pub(super) fn participant_left(&mut self, setup: SetupId, channel: Channel, why: &str) {
        let Some(pending) = self.pending.get(&setup) else { return };
        if pending.initiator.channel == channel {
            // Nobody is left to answer, except a responder that joined: it may start anew.
            let asking = pending.asking;
            self.actions.push_back(Action::CancelRequest { exchange: asking });
        }
        let leaver =
            if pending.initiator.channel == channel { &pending.initiator } else { &pending.responder };
        let reason = format!("{}: {why}", leaver.fqdn);
        self.end_setup(setup, || Refusal::retry(RefusalCode::PeerOffline, &reason, ANEW).into());
    }

    /// The pair's set-up in progress, if the other end started it, answers this request too. False where the same end
    /// asked twice: it gave up its first request, and the newer one counts.
    fn join(&mut self, setup: SetupId, channel: Channel, exchange: ExchangeId) -> bool {
        let Some(pending) = self.pending.get_mut(&setup) else { return false };
        if pending.initiator.channel == channel {
            return false;
        }
        self.counters.joined += 1;
        if let Some(earlier) = pending.joined.replace(exchange) {
            self.respond(earlier, superseded().into());
        }
        true
    }

    fn start(&mut self, now: Instant, initiator: End, responder: End, route: Route, asked: ExchangeId) {
        let setup = self.fresh_setup();
        let asking = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        let tunnel_key = Zeroizing::new(self.rng.random());
        let pending = Pending { setup, initiator, responder, route, tunnel_key, asked, asking, joined: None };
        for channel in [pending.initiator.channel, pending.responder.channel] {
            if let Some(node) = self.nodes.get_mut(&channel) {
                node.setups += 1;
            }
        }
        let message = Message::RouteDirection(pending.direction(false, None));
        self.actions.push_back(Action::Request {
            channel: pending.responder.channel,
            exchange: asking,
            message,
        });
        self.timers.set(setup, now + self.config.timing.responder);
        self.exchanges.insert(asking, setup);
        self.pairs.insert(pending.pair(), setup);
        self.pending.insert(setup, pending);
    }

    fn complete(&mut self, setup: SetupId, bound: Option<ConnectionId>) {
        let Some(pending) = self.take(setup) else { return };
        self.counters.routed += 1;
        self.respond(pending.asked, Message::RouteDirection(pending.direction(true, bound)));
        if let Some(joined) = pending.joined {
            self.respond(joined, Message::RouteDirection(pending.direction(false, None)));
        }
    }

    /// Ends a set-up that will not be: all who wait for it get the refusal.
    fn end_setup(&mut self, setup: SetupId, refusal: impl Fn() -> Message) {
        let Some(pending) = self.take(setup) else { return };
        self.counters.refused += 1;
        for exchange in [Some(pending.asked), pending.joined].into_iter().flatten() {
            self.respond(exchange, refusal());
        }
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

    fn check_confirmation(
        &self,
        setup: SetupId,
        confirmation: &RouteConfirmation,
    ) -> Result<Option<ConnectionId>, field::BadField> {
        if field::setup_id(&confirmation.setup_id)? != setup {
            return Err(field::BadField("setup_id"));
        }
        let relayed = self.pending.get(&setup).is_some_and(|pending| pending.route.relay.is_some());
        match relayed {
            true => {
                field::data_connection_id(&confirmation.relay_connection_id, "relay_connection_id").map(Some)
            }
            false => Ok(None),
        }
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
        if self.enrolled.as_ref().is_some_and(|enrolled| !enrolled.contains(fqdn)) {
            return Refusal::new(RefusalCode::NoSuchPeer, "no device of this name is enrolled");
        }
        let reason = format!("{fqdn} is not connected to the NMS");
        if now.saturating_duration_since(self.started) < self.config.timing.grace {
            return Refusal::retry(RefusalCode::PeerOffline, reason + ", which has just started", ANEW);
        }
        Refusal::new(RefusalCode::PeerOffline, reason)
    }

    fn check_room(&self, initiator: Channel, responder: Channel) -> Result<(), Refusal> {
        let timing = &self.config.timing;
        let busy =
            |channel| self.nodes.get(&channel).is_some_and(|node| node.setups >= timing.pending_per_node);
        let what = match () {
            () if self.pending.len() >= timing.pending => "the NMS has too many set-ups in progress",
            () if busy(initiator) => "this device has too many set-ups in progress",
            () if busy(responder) => "the peer has too many set-ups in progress",
            () => return Ok(()),
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
        self.next_setup += 1;
        SetupId(id)
    }
}

/// Most relays that a node may call failed.
const MAX_FAILED_RELAYS: usize = 8;

/// How long an end waits before it asks anew for a set-up that was overtaken by events.
const ANEW: Duration = Duration::from_millis(300);

fn pair(a: Channel, b: Channel) -> (Channel, Channel) {
    if a <= b { (a, b) } else { (b, a) }
}

fn superseded() -> Refusal {
    Refusal::retry(RefusalCode::TooMany, "a newer request of this device replaced it", ANEW)
}
