//! The end that the NMS asks to take part.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::{Request, Setup};
use crate::id::{ExchangeId, SetupId};
use crate::message::{Message, Refusal, RefusalCode, RouteConfirmation, RouteDirection, field};
use crate::node::peers::{Attempt, Retry};
use crate::node::{Action, Node, ResolveError, Service, Timer};

impl Node {
    pub(in crate::node) fn respond_to(
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
        setup.request = Request::Open(exchange);
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
        let waits = |setup: &Setup| !setup.initiator && !matches!(setup.request, Request::Open(_));
        let complete = self.tunnels.values().any(|tunnel| tunnel.setup == id && !tunnel.initiator);
        (complete || self.setups.get(&id).is_some_and(waits)).then_some(id)
    }

    fn confirm_known(&mut self, id: SetupId, exchange: ExchangeId) -> Result<(), Refusal> {
        match self.setups.get_mut(&id) {
            Some(setup) => {
                setup.request = Request::Open(exchange);
                if setup.is_bound() {
                    self.confirm(id);
                }
            }
            None => self.act(confirmation(exchange, id)),
        }
        Ok(())
    }

    /// This end's part, as the responder.
    pub(super) fn take_part(&mut self, now: Instant, setup: Setup) {
        let (id, peer) = (setup.id, setup.peer);
        self.drop_overtaken(now, id, peer);
        self.timers.set(Timer::Setup(id), now + self.config.timing.setup);
        self.setups.insert(id, setup);
        self.attach(peer, id);
        self.advance(now, id);
    }

    /// An initiator carries out one set-up at a time: what it began before this one is over (set-up ids
    /// grow). All of it may come at once to a node that slept.
    fn drop_overtaken(&mut self, now: Instant, id: SetupId, peer: Ipv6Addr) {
        let earlier =
            |setup: &&Setup| setup.peer == peer && !setup.initiator && setup.id < id && !setup.is_agreed();
        for other in self.setups.values().filter(earlier).map(|setup| setup.id).collect::<Vec<_>>() {
            if let Some(setup) = self.drop_setup(other, "the peer has begun anew") {
                self.note_unanswered_dial(now, &setup);
            }
            if let Some(peer) = self.peers.get_mut(&peer).filter(|peer| peer.carries_out(other)) {
                peer.attempt = Some(Attempt::Setup(id));
            }
        }
    }

    /// Tells the NMS that this end, the responder, is ready.
    pub(super) fn confirm(&mut self, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        if let Request::Open(exchange) = setup.request {
            setup.request = Request::Confirmed(exchange);
            self.act(confirmation(exchange, id));
        }
    }

    /// A service that had asked did not wait for the answer ([`Action::Respond`]).
    ///
    /// After a time without a network this node is asked to take part in all that others tried meanwhile, and
    /// to wait for dials that are over.
    pub fn handle_request_given_up(&mut self, now: Instant, exchange: ExchangeId) {
        let pointless = |setup: &&Setup| {
            matches!(setup.request, Request::Confirmed(confirmed) if confirmed == exchange)
                && !setup.is_agreed()
        };
        let Some(setup) = self.setups.values().find(pointless).map(|setup| setup.id) else { return };
        let reason = "it was given up before this device could take part".to_owned();
        self.setup_failed(now, setup, ResolveError::PeerRefused { reason }, Retry::AtOnce);
    }
}

pub(super) fn confirmation(exchange: ExchangeId, setup: SetupId) -> Action {
    let confirmation = RouteConfirmation { setup_id: setup.to_vec() };
    Action::Respond { exchange, message: Message::RouteConfirmation(confirmation) }
}
