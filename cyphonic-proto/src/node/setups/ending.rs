//! How set-ups end: in time or not, with a tunnel or without.

use std::time::{Duration, Instant};

use super::{Request, Setup, Stage};
use crate::id::SetupId;
use crate::message::{Refusal, RefusalCode, RouteKind, bounded};
use crate::node::moves::ANSWERED;
use crate::node::peers::Retry;
use crate::node::services::Slot;
use crate::node::{Action, Node, ResolveError, Service, ServiceState, Timer, config};

impl Node {
    pub(in crate::node) fn setup_due(&mut self, now: Instant, setup: SetupId) {
        let during = self.explain_setup(setup);
        self.setup_failed(now, setup, ResolveError::TimedOut { during }, Retry::Later);
    }

    /// What a set-up waits for, for an error.
    pub(in crate::node) fn explain_setup(&self, setup: SetupId) -> String {
        let Some(setup) = self.setups.get(&setup) else { return "setting the tunnel up".into() };
        let kind = setup.kind.name();
        match (&setup.stage, &setup.relay) {
            (Stage::Connecting, Some(own)) => self.explain(&Service::Trs(own.relay.name.clone())),
            (Stage::Connecting, None) => "connecting to the relay".into(),
            (Stage::Dialling, _) if setup.is_bound() => format!("dialling the peer ({kind})"),
            (Stage::Listening, _) if setup.is_bound() => format!("waiting for the peer to dial ({kind})"),
            (Stage::Dialling | Stage::Listening | Stage::Agreed(..), _) => "binding at the relay".into(),
        }
    }

    /// A dial failed, before it brought an offer.
    pub fn handle_dial_failed(&mut self, now: Instant, setup: SetupId, reason: String) {
        let Some(entry) = self.setups.get_mut(&setup).filter(|setup| setup.is_dialling()) else {
            return;
        };
        let reason = bounded(&format!("the peer could not be dialled ({}): {reason}", entry.kind.name()));
        self.setup_failed(now, setup, ResolveError::NoRoute { reason }, Retry::Later);
    }

    /// Ends a set-up without a tunnel; the attempt behind it goes on with the next route.
    pub(in crate::node) fn setup_failed(
        &mut self,
        now: Instant,
        setup: SetupId,
        error: ResolveError,
        retry: Retry,
    ) {
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
    pub(super) fn note_unanswered_dial(&mut self, now: Instant, setup: &Setup) {
        let Some(relay) = setup.relay_name() else { return };
        if setup.relay.as_ref().is_some_and(|own| own.binding.is_some()) {
            // Its connection may have gone unnoticed, and a set-up ends before the request runs out of time.
            self.doubt_service(now, &Service::Trs(relay.into()));
        }
        let silent = |slot: &Slot| slot.state == ServiceState::Connecting && slot.since + ANSWERED <= now;
        if self.services.get(&Service::Trs(relay.into())).is_some_and(silent) {
            self.relay_unreached(now, relay);
        }
    }

    /// Takes a set-up out of all tables, with a word to everybody who waits for it.
    pub(in crate::node) fn drop_setup(&mut self, setup: SetupId, why: &str) -> Option<Setup> {
        let setup = self.setups.remove(&setup)?;
        self.timers.clear(&Timer::Setup(setup.id));
        if self.ended.len() >= config::MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(setup.id);
        if let Some(exchange) = setup.relay.as_ref().and_then(|own| own.binding) {
            self.cancel(exchange);
        }
        if setup.dial && matches!(setup.stage, Stage::Dialling | Stage::Agreed(..)) {
            self.act(Action::CancelDial { setup: setup.id });
        }
        let refusal = || Refusal::retry(RefusalCode::PeerRefused, why, Duration::from_millis(300));
        match setup.stage {
            Stage::Agreed(_, Some(connection)) => self.refuse_peer(connection, refusal()),
            Stage::Agreed(_, None) if !setup.dial => {
                self.act(Action::ForgetTunnel { local_cid: setup.cid });
            }
            Stage::Agreed(_, None) | Stage::Connecting | Stage::Dialling | Stage::Listening => {}
        }
        if let Request::Open(exchange) = setup.request {
            self.act(Action::Respond { exchange, message: refusal().into() });
        }
        Some(setup)
    }

    /// Takes a set-up that both ends agreed on out of all tables.
    pub(in crate::node) fn take_setup(&mut self, setup: SetupId) -> Option<Setup> {
        self.confirm(setup);
        let setup = self.setups.remove(&setup)?;
        self.timers.clear(&Timer::Setup(setup.id));
        Some(setup)
    }

    /// Set-ups through a relay whose connection is lost.
    pub(in crate::node) fn fail_setups_via(&mut self, now: Instant, trs: &str, why: &str) {
        let concerned = |setup: &&Setup| setup.is_begun_via(trs);
        for setup in self.setups.values().filter(concerned).map(|setup| setup.id).collect::<Vec<_>>() {
            let why = why.to_owned();
            self.setup_failed(now, setup, ResolveError::NotConnected { why }, Retry::Later);
        }
    }
}
