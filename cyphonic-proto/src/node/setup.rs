//! Set-ups: from a RouteDirection to the peers' handshake.
//!
//! The NMS directs both ends at the same moment. For a relay each opens a leg at the TRS, and the one that
//! dials sends its first handshake packets together with its BindingRequest: the TRS holds them until both
//! legs stand. The other listens for a connection of this set-up (`peer_exchange`), and confirms to the NMS
//! when it is ready.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;
use zeroize::Zeroizing;

use super::exchanges::Purpose;
use super::moves::ANSWERED;
use super::peer_exchange::Agreed;
use super::peers::{Attempt, Retry};
use super::registration::unexpected;
use super::relay_legs::OwnLeg;
use super::services::Slot;
use super::{Action, Node, PeerVia, Relay, ResolveError, Service, ServiceState, Timer, config};
use crate::id::{ExchangeId, PeerConnectionId, SetupId};
use crate::message::{
    BindingRequest, Message, Refusal, RefusalCode, RevocationConfirmation, RouteConfirmation, RouteDirection,
    RouteKind, RouteWithdrawal, bounded, endpoint, field,
};
use crate::{ConnectionId, address, name, relayed};

/// Endpoints of one address that are dialled in a set-up: a NAT that shows more has another for each
/// destination, and none for us.
const OF_ONE_HOST: usize = 2;

/// A set-up in progress.
pub(super) struct Setup {
    pub(super) id: SetupId,
    pub(super) peer: Ipv6Addr,
    pub(super) fqdn: String,
    pub(super) kind: RouteKind,
    pub(super) reason: String,
    pub(super) initiator: bool,
    pub(super) dial: bool,
    pub(super) key: Zeroizing<[u8; 32]>,
    /// Where the peer may be reached without a relay, whatever the kind.
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) relay: Option<OwnRelay>,
    /// How this end wants to be reached in data packets.
    pub(super) cid: ConnectionId,
    pub(super) stage: Stage,
    /// What both ends agreed on, while this end's leg is not known yet; at the listening end with the
    /// connection that waits for the answer.
    pub(super) agreed: Option<(Agreed, Option<PeerConnectionId>)>,
    /// The NMS waits for our RouteConfirmation.
    unconfirmed: Option<ExchangeId>,
    /// It was sent there.
    confirmed: Option<ExchangeId>,
}

/// The relay of a set-up, and this end's part in it.
pub(super) struct OwnRelay {
    pub(super) relay: Relay,
    /// What prefixes the DATAGRAMs of this end's leg.
    context: u64,
    /// The request for the leg.
    binding: Option<ExchangeId>,
    /// The leg, once the TRS has told of it.
    pub(super) leg: Option<OwnLeg>,
}

/// How far a set-up has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The TRS is being connected to.
    Connecting,
    /// The peer is being dialled.
    Dialling,
    /// The peer is expected to dial.
    Listening,
    /// Both ends agreed; only this end's leg is missing.
    Agreed,
}

impl Setup {
    /// How the peers' connection travels.
    pub(super) fn via(&self) -> PeerVia {
        match &self.relay {
            Some(own) => PeerVia::Relay { trs: own.relay.name.clone(), context: own.context },
            None => PeerVia::Direct(self.dialled()),
        }
    }

    /// The endpoints that are dialled, or punched to. They are where the peer says that it is, perhaps at a
    /// host that has nothing to do with it: that one is sent few packets.
    fn dialled(&self) -> Vec<SocketAddr> {
        let mut few: Vec<SocketAddr> = Vec::new();
        for endpoint in &self.endpoints {
            if few.iter().filter(|other| other.ip() == endpoint.ip()).count() < OF_ONE_HOST {
                few.push(*endpoint);
            }
        }
        few
    }

    /// Whether the peers' connection came as it should.
    pub(super) fn came_as_directed(&self, via: &PeerVia) -> bool {
        match via {
            PeerVia::Direct(_) => self.relay.is_none(),
            PeerVia::Relay { .. } => self.via() == *via,
        }
    }

    pub(super) fn uses(&self, trs: &str) -> bool {
        self.relay_name() == Some(trs)
    }

    /// Whether something of it travels over the connection to a relay.
    pub(super) fn is_begun_via(&self, trs: &str) -> bool {
        self.uses(trs) && self.stage != Stage::Connecting
    }

    fn relay_name(&self) -> Option<&str> {
        self.relay.as_ref().map(|own| own.relay.name.as_str())
    }

    /// Whether this end has what it needs of a relay.
    pub(super) fn is_bound(&self) -> bool {
        self.relay.as_ref().is_none_or(|own| own.leg.is_some())
    }
}

impl Node {
    /// A service asks: only the NMS does, with a RouteDirection, a RouteWithdrawal or a RevocationNotice.
    /// Answered by [`Action::Respond`], perhaps later.
    pub fn handle_request(&mut self, now: Instant, service: Service, exchange: ExchangeId, message: Message) {
        let accepted = match message {
            Message::RouteDirection(direction) if service == Service::Nms => {
                self.respond_to(now, exchange, direction)
            }
            Message::RouteWithdrawal(withdrawal) if service == Service::Nms => {
                self.withdrawn(now, exchange, &withdrawal)
            }
            Message::RevocationNotice(notice) if service == Service::Nms => {
                self.act(Action::Respond {
                    exchange,
                    message: Message::RevocationConfirmation(RevocationConfirmation {}),
                });
                self.peers_revoked(now, &notice);
                Ok(())
            }
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("a node does not answer {}", other.name())))
            }
        };
        if let Err(refusal) = accepted {
            self.act(Action::Respond { exchange, message: refusal.into() });
        }
    }

    /// The NMS answered our DirectionRequest.
    pub(super) fn route_directed(&mut self, now: Instant, address: Ipv6Addr, direction: RouteDirection) {
        let joined = SetupId::from_slice(&direction.setup_id).filter(|setup| self.setups.contains_key(setup));
        if let Some(setup) = joined {
            // The peer was faster; ours is its responder's part, which is under way.
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.attempt = Some(Attempt::Setup(setup));
            }
            return;
        }
        match self.setup_of(direction).and_then(|setup| {
            if setup.peer == address {
                Ok(setup)
            } else {
                Err(field::BadField("peer_virtual_address").into())
            }
        }) {
            Ok(setup) if setup.initiator => self.initiate(now, setup),
            Ok(setup) => {
                // The peer was faster, and this answer faster than the NMS's request to take part.
                if let Some(peer) = self.peers.get_mut(&address) {
                    peer.attempt = Some(Attempt::Setup(setup.id));
                }
                self.take_part(now, setup);
            }
            Err(refusal) => {
                let what = format!("RouteDirection: {}", refusal.reason);
                self.attempt_failed(now, address, ResolveError::Protocol { what }, Retry::No);
            }
        }
    }

    /// The relay is connected: set-ups that waited for it go on.
    pub(super) fn bind_waiting(&mut self, now: Instant, trs: &str) {
        let waiting = |setup: &&Setup| setup.stage == Stage::Connecting && setup.uses(trs);
        for setup in self.setups.values().filter(waiting).map(|setup| setup.id).collect::<Vec<_>>() {
            self.bind(now, setup);
        }
    }

    pub(super) fn binding_answered(&mut self, now: Instant, setup: SetupId, answer: Result<Message, String>) {
        let Some(own) = self.setups.get_mut(&setup).and_then(|setup| setup.relay.as_mut()) else { return };
        own.binding = None;
        let leg = match answer {
            Ok(Message::BindingResponse(response)) => {
                OwnLeg::from_wire(&response, own.context).map_err(|bad| format!("BindingResponse: {bad}"))
            }
            other => Err(unexpected("TRS", other)),
        };
        match leg {
            Ok(leg) => self.bound(now, setup, leg),
            Err(reason) => {
                let reason = format!("no leg at the relay: {reason}");
                self.setup_failed(now, setup, ResolveError::PeerRefused { reason }, Retry::Later);
            }
        }
    }

    pub(super) fn setup_due(&mut self, now: Instant, setup: SetupId) {
        let Some(entry) = self.setups.get(&setup) else { return };
        let kind = entry.kind.name();
        let during = match entry.stage {
            _ if !entry.is_bound() => "binding at the relay".into(),
            Stage::Dialling => format!("dialling the peer ({kind})"),
            Stage::Listening => format!("waiting for the peer to dial ({kind})"),
            Stage::Connecting | Stage::Agreed => "binding at the relay".into(),
        };
        self.setup_failed(now, setup, ResolveError::TimedOut { during }, Retry::Later);
    }

    /// A dial failed, before it brought an offer.
    pub fn handle_dial_failed(&mut self, now: Instant, setup: SetupId, reason: String) {
        let Some(entry) = self.setups.get_mut(&setup).filter(|setup| setup.stage == Stage::Dialling) else {
            return;
        };
        let reason = bounded(&format!("the peer could not be dialled ({}): {reason}", entry.kind.name()));
        self.setup_failed(now, setup, ResolveError::NoRoute { reason }, Retry::Later);
    }

    /// Ends a set-up without a tunnel; the attempt behind it goes on with the next route.
    pub(super) fn setup_failed(&mut self, now: Instant, setup: SetupId, error: ResolveError, retry: Retry) {
        let Some(setup) = self.drop_setup(setup, &error.to_string()) else { return };
        if setup.initiator {
            self.route_failed(now, setup.peer, setup.kind, setup.relay_name());
        }
        let ours = self.peers.get(&setup.peer).is_some_and(|peer| peer.carries_out(setup.id));
        if ours {
            let other_route = setup.initiator && setup.kind != RouteKind::Relay;
            let retry = if other_route { Retry::AtOnce } else { retry };
            self.attempt_failed(now, setup.peer, error, retry);
        }
        self.note_unanswered_dial(now, &setup);
        self.warm_relays(now);
    }

    /// A set-up is over, and its relay did not answer: the next pair is not to wait for it as long, though
    /// the dial may bring a connection yet.
    fn note_unanswered_dial(&mut self, now: Instant, setup: &Setup) {
        let Some(relay) = setup.relay_name() else { return };
        let silent = |slot: &Slot| slot.state == ServiceState::Connecting && slot.since + ANSWERED <= now;
        if self.services.get(&Service::Trs(relay.into())).is_some_and(silent) {
            self.relay_unreached(now, relay);
        }
    }

    /// Takes a set-up out of all tables, with a word to everybody who waits for it.
    pub(super) fn drop_setup(&mut self, setup: SetupId, why: &str) -> Option<Setup> {
        let mut setup = self.setups.remove(&setup)?;
        self.timers.clear(&Timer::Setup(setup.id));
        if self.ended.len() >= config::MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(setup.id);
        if let Some(exchange) = setup.relay.as_mut().and_then(|own| own.binding.take()) {
            self.cancel(exchange);
        }
        if setup.dial && matches!(setup.stage, Stage::Dialling | Stage::Agreed) {
            self.act(Action::CancelDial { setup: setup.id });
        }
        let refusal = || Refusal::retry(RefusalCode::PeerRefused, why, Duration::from_millis(300));
        match setup.agreed.take() {
            Some((_, Some(connection))) => self.refuse_peer(connection, refusal()),
            Some((_, None)) if !setup.dial => self.act(Action::ForgetTunnel { local_cid: setup.cid }),
            Some((_, None)) | None => {}
        }
        if let Some(exchange) = setup.unconfirmed.take() {
            self.act(Action::Respond { exchange, message: refusal().into() });
        }
        Some(setup)
    }

    /// Takes a set-up that both ends agreed on out of all tables.
    pub(super) fn take_setup(&mut self, setup: SetupId) -> Option<Setup> {
        self.confirm(setup);
        let setup = self.setups.remove(&setup)?;
        self.timers.clear(&Timer::Setup(setup.id));
        Some(setup)
    }

    /// Set-ups through a relay whose connection is lost.
    pub(super) fn fail_setups_via(&mut self, now: Instant, trs: &str, why: &str) {
        let concerned = |setup: &&Setup| setup.is_begun_via(trs);
        for setup in self.setups.values().filter(concerned).map(|setup| setup.id).collect::<Vec<_>>() {
            let why = why.to_owned();
            self.setup_failed(now, setup, ResolveError::NotConnected { why }, Retry::Later);
        }
    }

    fn respond_to(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        direction: RouteDirection,
    ) -> Result<(), Refusal> {
        if let Some(known) = self.known(&direction) {
            return self.confirm_known(known, exchange);
        }
        let mut setup = self.setup_of(direction)?;
        if setup.initiator || self.stopped {
            return Err(field::BadField("initiator").into());
        }
        self.check_relay(now, &setup)?;
        let room = self.note_peer(now, setup.peer, Some(setup.fqdn.clone()));
        room.map_err(|error| Refusal::retry(RefusalCode::TooMany, error, Duration::from_secs(1)))?;
        setup.unconfirmed = Some(exchange);
        self.take_part(now, setup);
        Ok(())
    }

    /// Whether the relay is worth waiting for: not one that cannot be reached while there is another. It may
    /// be back, though.
    fn check_relay(&mut self, now: Instant, setup: &Setup) -> Result<(), Refusal> {
        let Some(relay) = setup.relay_name() else { return Ok(()) };
        if !self.unreachable_relays().iter().any(|name| name == relay) {
            return Ok(());
        }
        let service = Service::Trs(relay.into());
        let why = self.explain(&service);
        self.hurry(now, &service);
        Err(Refusal::retry(RefusalCode::PeerRefused, why, Duration::from_millis(300)))
    }

    /// A set-up in which this node is the responder already: the answer to its own request told of it.
    fn known(&self, direction: &RouteDirection) -> Option<SetupId> {
        let id = SetupId::from_slice(&direction.setup_id)?;
        let waits = |setup: &Setup| !setup.initiator && setup.unconfirmed.is_none();
        let complete = self.tunnels.values().any(|tunnel| tunnel.setup == id && !tunnel.initiator);
        (complete || self.setups.get(&id).is_some_and(waits)).then_some(id)
    }

    fn confirm_known(&mut self, id: SetupId, exchange: ExchangeId) -> Result<(), Refusal> {
        match self.setups.get_mut(&id) {
            Some(setup) => {
                setup.unconfirmed = Some(exchange);
                if setup.is_bound() {
                    self.confirm(id);
                }
            }
            None => self.act(confirmation(exchange, id)),
        }
        Ok(())
    }

    /// This end's part, as the responder.
    fn take_part(&mut self, now: Instant, setup: Setup) {
        let (id, peer) = (setup.id, setup.peer);
        self.drop_overtaken(id, peer);
        self.timers.set(Timer::Setup(id), now + self.config.timing.setup);
        self.setups.insert(id, setup);
        self.attach(peer, id);
        self.advance(now, id);
    }

    /// An initiator carries out one set-up at a time: what it began before this one is over (set-up ids
    /// grow). All of it may come at once to a node that slept.
    fn drop_overtaken(&mut self, id: SetupId, peer: Ipv6Addr) {
        let earlier = |setup: &&Setup| {
            setup.peer == peer && !setup.initiator && setup.id < id && setup.stage != Stage::Agreed
        };
        for other in self.setups.values().filter(earlier).map(|setup| setup.id).collect::<Vec<_>>() {
            self.drop_setup(other, "the peer has begun anew");
            if let Some(peer) = self.peers.get_mut(&peer).filter(|peer| peer.carries_out(other)) {
                peer.attempt = Some(Attempt::Setup(id));
            }
        }
    }

    /// The responder will not take part: the attempt goes on as if the NMS had refused.
    fn withdrawn(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        withdrawal: &RouteWithdrawal,
    ) -> Result<(), Refusal> {
        let id = field::setup_id(&withdrawal.setup_id)?;
        let refusal = withdrawal.refusal.as_ref().ok_or(field::BadField("refusal"))?;
        self.act(confirmation(exchange, id));
        let ours = |setup: &Setup| setup.initiator && setup.stage != Stage::Agreed;
        if self.setups.get(&id).is_some_and(ours) {
            self.setup_withdrawn(now, id, refusal);
        }
        Ok(())
    }

    fn setup_withdrawn(&mut self, now: Instant, id: SetupId, refusal: &Refusal) {
        let Some(setup) = self.drop_setup(id, "withdrawn") else { return };
        if let Some(relay) = setup.relay_name().filter(|_| refusal.code() != RefusalCode::PeerOffline) {
            self.relay_not_taken(now, setup.peer, relay);
        }
        let ours = self.peers.get(&setup.peer).is_some_and(|peer| peer.carries_out(id));
        if ours {
            self.direction_refused(now, setup.peer, refusal, Some(setup.kind));
        }
        self.note_unanswered_dial(now, &setup);
        self.warm_relays(now);
    }

    fn initiate(&mut self, now: Instant, setup: Setup) {
        let timing = &self.config.timing;
        let patience = if setup.relay.is_some() { timing.relay_attempt } else { timing.direct_attempt };
        let id = setup.id;
        if let Some(peer) = self.peers.get_mut(&setup.peer) {
            peer.fqdn = Some(setup.fqdn.clone());
            peer.attempt = Some(Attempt::Setup(id));
        }
        self.timers.set(Timer::Setup(id), now + patience);
        self.setups.insert(id, setup);
        self.advance(now, id);
    }

    /// The first step of a new set-up.
    fn advance(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get(&id) else { return };
        if let Some(relay) = setup.relay.as_ref().map(|own| own.relay.clone()) {
            self.want_relay(now, &relay);
            self.hurry(now, &Service::Trs(relay.name.clone()));
            if self.is_connected(&Service::Trs(relay.name)) {
                self.bind(now, id);
            }
            return;
        }
        let remotes = setup.dialled();
        self.act(Action::Punch { remotes });
        self.confirm(id);
        self.meet(now, id);
    }

    /// Asks for this end's leg, and goes on without waiting for it.
    fn bind(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get(&id) else { return };
        let Some(own) = &setup.relay else { return };
        let service = Service::Trs(own.relay.name.clone());
        let request = BindingRequest {
            setup_id: id.to_vec(),
            peer_fqdn: setup.fqdn.clone(),
            data_connection_id: bytes(setup.cid),
            context: own.context,
        };
        let exchange =
            self.request(now, service, Purpose::Binding { setup: id }, Message::BindingRequest(request));
        if let Some(own) = self.setups.get_mut(&id).and_then(|setup| setup.relay.as_mut()) {
            own.binding = Some(exchange);
        }
        self.meet(now, id);
    }

    fn bound(&mut self, now: Instant, id: SetupId, leg: OwnLeg) {
        let Some(own) = self.setups.get_mut(&id).and_then(|setup| setup.relay.as_mut()) else { return };
        own.leg = Some(leg);
        self.confirm(id);
        self.complete(now, id);
    }

    /// Tells the NMS that this end, the responder, is ready.
    fn confirm(&mut self, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        if let Some(exchange) = setup.unconfirmed.take() {
            setup.confirmed = Some(exchange);
            self.act(confirmation(exchange, id));
        }
    }

    /// A service that had asked did not wait for the answer ([`Action::Respond`]).
    ///
    /// After a time without a network this node is asked to take part in all that others tried meanwhile, and
    /// to wait for dials that are over.
    pub fn handle_request_given_up(&mut self, now: Instant, exchange: ExchangeId) {
        let pointless = |setup: &&Setup| setup.confirmed == Some(exchange) && setup.stage != Stage::Agreed;
        let Some(setup) = self.setups.values().find(pointless).map(|setup| setup.id) else { return };
        let reason = "it was given up before this device could take part".to_owned();
        self.setup_failed(now, setup, ResolveError::PeerRefused { reason }, Retry::AtOnce);
    }

    fn meet(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        if setup.dial {
            setup.stage = Stage::Dialling;
            let (peer_fqdn, peer_address, via) = (setup.fqdn.clone(), setup.peer, setup.via());
            self.act(Action::DialPeer { setup: id, peer_fqdn, peer_address, via });
        } else {
            setup.stage = Stage::Listening;
            self.hear_early(now, id);
        }
    }

    /// Checks a RouteDirection. Who the peer is follows from its name alone, so the NMS cannot give one
    /// device's name another's address.
    fn setup_of(&mut self, mut direction: RouteDirection) -> Result<Setup, Refusal> {
        let key = direction.take_tunnel_key().ok_or(field::BadField("tunnel_key"))?;
        let id = field::setup_id(&direction.setup_id)?;
        if self.setups.contains_key(&id) {
            return Err(Refusal::new(RefusalCode::Malformed, "this set-up is in progress already"));
        }
        if self.tunnels.values().any(|tunnel| tunnel.setup == id) {
            return Err(Refusal::new(RefusalCode::Malformed, "this set-up is complete already"));
        }
        if self.setups.len() >= config::MAX_SETUPS {
            let wait = Duration::from_secs(1);
            return Err(Refusal::retry(
                RefusalCode::TooMany,
                "too many set-ups in progress at this node",
                wait,
            ));
        }
        let fqdn = name::canonical_in_zone(&direction.peer_fqdn, &self.config.zone)
            .map_err(|_| field::BadField("peer_fqdn"))?;
        let peer = field::virtual_address(&direction.peer_virtual_address, "peer_virtual_address")?;
        let expected = address::virtual_address(self.prefix, self.config.identity.network_id, &fqdn);
        if peer != expected || peer == self.own {
            return Err(field::BadField("peer_virtual_address").into());
        }
        let route = self.route_of(&direction)?;
        Ok(Setup {
            id,
            peer,
            fqdn,
            kind: direction.kind(),
            reason: bounded(&direction.reason),
            initiator: direction.initiator,
            dial: direction.dial,
            key,
            endpoints: route.endpoints,
            relay: route.relay.map(|relay| OwnRelay {
                relay,
                context: self.fresh_context(),
                binding: None,
                leg: None,
            }),
            cid: self.fresh_cid(),
            stage: Stage::Connecting,
            agreed: None,
            unconfirmed: None,
            confirmed: None,
        })
    }

    fn route_of(&self, direction: &RouteDirection) -> Result<RouteFields, Refusal> {
        let initiator_dials = match direction.kind() {
            RouteKind::Direct | RouteKind::HolePunch | RouteKind::Relay => true,
            RouteKind::ResponderInitiated => false,
            RouteKind::Unspecified => return Err(field::BadField("kind").into()),
        };
        if direction.dial != (direction.initiator == initiator_dials) {
            return Err(field::BadField("dial").into());
        }
        let endpoints = endpoint::peers_from_wire(&direction.peer_endpoints, self.prefix);
        if direction.kind() == RouteKind::Relay {
            let relay = direction.relay.as_ref().and_then(Relay::from_wire);
            return Ok(RouteFields { endpoints, relay: Some(relay.ok_or(field::BadField("relay"))?) });
        }
        if direction.dial && endpoints.is_empty() {
            return Err(field::BadField("peer_endpoints").into());
        }
        Ok(RouteFields { endpoints, relay: None })
    }

    /// A number for a leg's DATAGRAMs that none of this node's legs has, at whatever relay.
    fn fresh_context(&mut self) -> u64 {
        loop {
            let context = self.next_context;
            self.next_context =
                if context == relayed::MAX_CONTEXT { relayed::MIN_CONTEXT } else { context + 1 };
            let setups = self.setups.values().filter_map(|setup| setup.relay.as_ref());
            let legs = self.tunnels.values().filter_map(|tunnel| tunnel.leg.as_ref());
            let mut used = setups.map(|own| own.context).chain(legs.map(|leg| leg.context));
            if !used.any(|used| used == context) {
                return context;
            }
        }
    }

    pub(super) fn fresh_cid(&mut self) -> ConnectionId {
        loop {
            let cid = ConnectionId::from_random_data(self.rng.random());
            let used = self.tunnels.values().any(|tunnel| tunnel.local_cid == cid)
                || self.setups.values().any(|setup| setup.cid == cid)
                || self.offers.values().any(|offer| offer.cid == cid);
            if !used {
                return cid;
            }
        }
    }
}

struct RouteFields {
    endpoints: Vec<SocketAddr>,
    relay: Option<Relay>,
}

fn confirmation(exchange: ExchangeId, setup: SetupId) -> Action {
    let confirmation = RouteConfirmation { setup_id: setup.to_vec() };
    Action::Respond { exchange, message: Message::RouteConfirmation(confirmation) }
}

fn bytes(cid: ConnectionId) -> Vec<u8> {
    cid.as_bytes().to_vec()
}
