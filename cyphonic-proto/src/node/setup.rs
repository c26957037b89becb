//! Set-ups: from a RouteDirection to the peers' handshake.
//!
//! The NMS directs both ends. For a relay both open a leg at the TRS first: the responder confirms with its leg's
//! connection ID, the initiator binds to it. Then one end dials and the other listens for a connection of this set-up.

use super::{
    Action, Node, PeerVia, Relay, ResolveError, Service, Timer, config,
    exchanges::Purpose,
    peers::{Attempt, Retry},
    registration::unexpected,
    relay_legs::OwnLeg,
};
use crate::{
    ConnectionId, address,
    id::{ExchangeId, SetupId},
    message::{
        BindingRequest, Message, Refusal, RefusalCode, RouteConfirmation, RouteDirection, RouteKind,
        TunnelRequest, bounded, endpoint, field,
    },
    name, version,
};
use rand::Rng;
use std::{
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

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
    pub(super) relay: Option<Relay>,
    /// The connection ID that the other end bound at the TRS.
    pub(super) peer_leg: Option<ConnectionId>,
    /// This end's leg at the TRS.
    pub(super) own_leg: Option<OwnLeg>,
    /// How this end wants to be reached in data packets.
    pub(super) cid: ConnectionId,
    pub(super) stage: Stage,
    /// The NMS waits for our RouteConfirmation.
    unconfirmed: Option<ExchangeId>,
}

/// How far a set-up has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The TRS is being connected to.
    Connecting,
    /// The TRS was asked for a leg.
    Binding(ExchangeId),
    /// The peer is being dialled.
    Dialling,
    /// The peer was not ready.
    Redialling,
    /// The peer is expected to dial.
    Listening,
}

/// How long after a peer that was not ready is dialled again.
const REDIAL: Duration = Duration::from_millis(100);

impl Setup {
    /// How the peers' connection travels.
    pub(super) fn via(&self) -> Option<PeerVia> {
        match (&self.relay, &self.own_leg) {
            (Some(relay), Some(leg)) => {
                Some(PeerVia::Relay { trs: relay.name.clone(), context: leg.context })
            }
            (Some(_), None) => None,
            (None, _) => Some(PeerVia::Direct(self.endpoints.clone())),
        }
    }

    /// Whether the peers' connection came as it should.
    pub(super) fn came_as_directed(&self, via: &PeerVia) -> bool {
        match via {
            PeerVia::Direct(_) => self.relay.is_none(),
            PeerVia::Relay { .. } => self.via().as_ref() == Some(via),
        }
    }
}

impl Node {
    /// The NMS orders this node, as the responder, into a set-up.
    pub(super) fn directed(
        &mut self,
        now: Instant,
        service: &Service,
        exchange: ExchangeId,
        message: Message,
    ) {
        let accepted = match message {
            Message::RouteDirection(direction) if *service == Service::Nms => {
                self.respond_to(now, exchange, direction)
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
        if !direction.initiator {
            // The same, but our part has ended since.
            let error = ResolveError::NoRoute { reason: "the peer's own set-up failed".into() };
            self.attempt_failed(now, address, error, Retry::Later);
            return;
        }
        match self.setup_of(direction).and_then(|setup| {
            if setup.peer == address {
                Ok(setup)
            } else {
                Err(field::BadField("peer_virtual_address").into())
            }
        }) {
            Ok(setup) => self.initiate(now, setup),
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
        let leg = match answer {
            Ok(Message::BindingResponse(response)) => {
                OwnLeg::from_wire(&response).map_err(|bad| format!("BindingResponse: {bad}"))
            }
            other => Err(unexpected("TRS", other)),
        };
        match leg {
            Ok(leg) => self.bound(setup, leg),
            Err(reason) => {
                let reason = format!("no leg at the relay: {reason}");
                self.setup_failed(now, setup, ResolveError::PeerRefused { reason }, Retry::Later);
            }
        }
    }

    pub(super) fn setup_due(&mut self, now: Instant, setup: SetupId) {
        let Some(kind) = self.setups.get(&setup).map(|setup| setup.kind) else { return };
        let during = match self.setups.get(&setup).map(|setup| setup.stage) {
            Some(Stage::Dialling | Stage::Redialling) => format!("dialling the peer ({})", kind.name()),
            Some(Stage::Listening) => format!("waiting for the peer to dial ({})", kind.name()),
            _ => "binding at the relay".into(),
        };
        self.setup_failed(now, setup, ResolveError::TimedOut { during }, Retry::Later);
    }

    /// Dials once more.
    pub(super) fn redial(&mut self, setup: SetupId) {
        if self.setups.get(&setup).is_some_and(|setup| setup.stage == Stage::Redialling) {
            self.dial(setup);
        }
    }

    pub(super) fn redial_later(&mut self, now: Instant, setup: SetupId) {
        if let Some(entry) = self.setups.get_mut(&setup) {
            entry.stage = Stage::Redialling;
            self.timers.set(Timer::Redial(setup), now + REDIAL);
        }
    }

    pub(super) fn dial_failed(&mut self, now: Instant, setup: SetupId, reason: &str) {
        let Some(entry) = self.setups.get_mut(&setup).filter(|setup| setup.stage == Stage::Dialling) else {
            return;
        };
        // It ended by itself: there is nothing to cancel.
        entry.stage = Stage::Redialling;
        let reason = bounded(&format!("the peer could not be dialled ({}): {reason}", entry.kind.name()));
        self.setup_failed(now, setup, ResolveError::NoRoute { reason }, Retry::Later);
    }

    /// Ends a set-up without a tunnel; the attempt behind it goes on with the next route.
    pub(super) fn setup_failed(&mut self, now: Instant, setup: SetupId, error: ResolveError, retry: Retry) {
        let Some(setup) = self.drop_setup(setup, &error.to_string()) else { return };
        if setup.initiator {
            self.route_failed(now, setup.peer, setup.kind);
        }
        let ours =
            self.peers.get(&setup.peer).is_some_and(|peer| peer.attempt == Some(Attempt::Setup(setup.id)));
        if ours {
            let other_route = setup.initiator && setup.kind != RouteKind::Relay;
            let retry = if other_route { Retry::AtOnce } else { retry };
            self.attempt_failed(now, setup.peer, error, retry);
        }
        self.warm_relays(now);
    }

    /// Takes a set-up out of all tables, with a word to everybody who waits for it.
    pub(super) fn drop_setup(&mut self, setup: SetupId, why: &str) -> Option<Setup> {
        let mut setup = self.setups.remove(&setup)?;
        self.timers.clear(&Timer::Setup(setup.id));
        self.timers.clear(&Timer::Redial(setup.id));
        match setup.stage {
            Stage::Binding(exchange) => self.cancel(exchange),
            Stage::Dialling => self.act(Action::CancelDial { setup: setup.id }),
            Stage::Connecting | Stage::Redialling | Stage::Listening => {}
        }
        if let Some(exchange) = setup.unconfirmed.take() {
            let refusal = Refusal::retry(RefusalCode::PeerRefused, why, Duration::from_millis(300));
            self.act(Action::Respond { exchange, message: refusal.into() });
        }
        Some(setup)
    }

    /// Set-ups through a relay whose connection is lost.
    pub(super) fn fail_setups_via(&mut self, now: Instant, trs: &str, why: &str) {
        let concerned = |setup: &&Setup| setup.uses(trs) && setup.stage != Stage::Connecting;
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
        let mut setup = self.setup_of(direction)?;
        if setup.initiator || self.stopped {
            return Err(field::BadField("initiator").into());
        }
        let room = self.note_peer(now, setup.peer, Some(setup.fqdn.clone()));
        room.map_err(|error| Refusal::retry(RefusalCode::TooMany, error, Duration::from_secs(1)))?;
        setup.unconfirmed = Some(exchange);
        let (id, peer) = (setup.id, setup.peer);
        self.timers.set(Timer::Setup(id), now + self.config.timing.setup);
        self.setups.insert(id, setup);
        self.attach(peer, id);
        self.advance(now, id);
        Ok(())
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
        if let Some(relay) = setup.relay.clone() {
            self.want_relay(now, &relay);
            self.hurry(now, &Service::Trs(relay.name.clone()));
            if self.is_connected(&Service::Trs(relay.name)) {
                self.bind(now, id);
            }
            return;
        }
        let remotes = setup.endpoints.clone();
        self.act(Action::Punch { remotes });
        self.confirm(id);
        self.meet(id);
    }

    fn bind(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get(&id) else { return };
        let Some(service) = setup.relay.as_ref().map(|relay| Service::Trs(relay.name.clone())) else {
            return;
        };
        let request = BindingRequest {
            setup_id: id.to_vec(),
            peer_fqdn: setup.fqdn.clone(),
            data_connection_id: bytes(setup.cid),
            peer_connection_id: setup.peer_leg.map(bytes).unwrap_or_default(),
        };
        let exchange =
            self.request(now, service, Purpose::Binding { setup: id }, Message::BindingRequest(request));
        if let Some(setup) = self.setups.get_mut(&id) {
            setup.stage = Stage::Binding(exchange);
        }
    }

    fn bound(&mut self, id: SetupId, leg: OwnLeg) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        setup.own_leg = Some(leg);
        self.confirm(id);
        self.meet(id);
    }

    /// Tells the NMS that this end, the responder, is ready.
    fn confirm(&mut self, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        let Some(exchange) = setup.unconfirmed.take() else { return };
        let relay_connection_id = setup.own_leg.as_ref().map(|leg| bytes(leg.cid)).unwrap_or_default();
        let confirmation = RouteConfirmation { setup_id: id.to_vec(), relay_connection_id };
        self.act(Action::Respond { exchange, message: Message::RouteConfirmation(confirmation) });
    }

    fn meet(&mut self, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        if setup.dial {
            self.dial(id);
        } else {
            setup.stage = Stage::Listening;
        }
    }

    fn dial(&mut self, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        let Some(via) = setup.via() else { return };
        setup.stage = Stage::Dialling;
        let request = TunnelRequest {
            setup_id: id.to_vec(),
            protocol_version: version::CURRENT,
            data_connection_id: bytes(setup.cid),
            relay_connection_id: setup.own_leg.as_ref().map(|leg| bytes(leg.cid)).unwrap_or_default(),
            inner_mtu: u32::from(self.config.inner_mtu),
            suites: self.config.suites.iter().map(|suite| suite.number()).collect(),
        };
        let (peer_fqdn, peer_address) = (setup.fqdn.clone(), setup.peer);
        let request = Message::TunnelRequest(request);
        self.act(Action::DialPeer { setup: id, peer_fqdn, peer_address, via, request });
    }

    /// Checks a RouteDirection. Who the peer is follows from its name alone, so the NMS cannot give one device's name
    /// another's address.
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
            relay: route.relay,
            peer_leg: route.peer_leg,
            own_leg: None,
            cid: self.fresh_cid(),
            stage: Stage::Connecting,
            unconfirmed: None,
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
            let relay =
                direction.relay.as_ref().and_then(Relay::from_wire).ok_or(field::BadField("relay"))?;
            let peer_leg = match direction.initiator {
                true => {
                    Some(field::data_connection_id(&direction.relay_connection_id, "relay_connection_id")?)
                }
                false => None,
            };
            return Ok(RouteFields { endpoints, relay: Some(relay), peer_leg });
        }
        if direction.dial && endpoints.is_empty() {
            return Err(field::BadField("peer_endpoints").into());
        }
        Ok(RouteFields { endpoints, relay: None, peer_leg: None })
    }

    fn fresh_cid(&mut self) -> ConnectionId {
        loop {
            let cid = ConnectionId::from_random_data(self.rng.random());
            let used = self.tunnels.values().any(|tunnel| tunnel.local_cid == cid)
                || self.setups.values().any(|setup| setup.cid == cid);
            if !used {
                return cid;
            }
        }
    }
}

impl Setup {
    pub(super) fn uses(&self, trs: &str) -> bool {
        self.relay.as_ref().is_some_and(|relay| relay.name == trs)
    }
}

struct RouteFields {
    endpoints: Vec<SocketAddr>,
    relay: Option<Relay>,
    peer_leg: Option<ConnectionId>,
}

fn bytes(cid: ConnectionId) -> Vec<u8> {
    cid.as_bytes().to_vec()
}
