//! Attempts at a peer.
//!
//! There is one at a time. It waits for the NMS, asks for a direction, carries out the set-up, and begins
//! again with the next route where that fails, as long as somebody waits.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::Peer;
use crate::id::{ExchangeId, SetupId};
use crate::message::{DirectionRequest, Message, Refusal, RefusalCode, RouteKind};
use crate::node::exchanges::Purpose;
use crate::node::moves::ANSWERED;
use crate::node::{CloseCode, Node, ResolveError, Service, Timer};

/// Waits between attempts that failed through nobody's settled refusal.
const RETRY_LEAST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// In this time the NMS has heard that a relay is connected again.
const TOLD: Duration = Duration::from_millis(300);

/// How far an attempt has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Attempt {
    /// Until the node registers.
    Registration,
    /// Until [`Timer::Attempt`].
    Pause,
    /// Until the NMS answers.
    Direction(ExchangeId),
    /// Until the set-up yields a tunnel; either end may have asked for it.
    Setup(SetupId),
}

/// A relay that a question to the NMS leaves out, as it fails, may be back, and the only one that the peer
/// may use: it is dialled, and asked for once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Redial {
    No,
    /// For the present question.
    Begun,
    /// The question is put again, or was.
    Awaited,
}

/// Whether a failed attempt is worth another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Retry {
    No,
    AtOnce,
    Later,
    After(Duration),
}

impl Node {
    /// Begins an attempt, unless one is under way.
    pub(super) fn pursue(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get(&address).filter(|peer| peer.is_wanted() && peer.attempt.is_none())
        else {
            return;
        };
        let had_tunnel = !peer.tunnels.is_empty();
        let incoming = self.setups.values().find(|setup| setup.peer == address && !setup.initiator);
        let attempt = match incoming {
            Some(setup) if !had_tunnel => Attempt::Setup(setup.id),
            _ if !self.registration.is_told() => Attempt::Registration,
            _ => Attempt::Direction(self.ask_direction(now, address)),
        };
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.attempt = Some(attempt);
            peer.since = now;
        }
        if attempt == Attempt::Registration {
            self.hurry(now, &Service::Nms);
        }
        self.changed();
    }

    fn ask_direction(&mut self, now: Instant, address: Ipv6Addr) -> ExchangeId {
        let failed_relays = self.failed_relays(now, address);
        let mut redials = false;
        for relay in &failed_relays {
            // It may be back.
            let service = Service::Trs(relay.clone());
            let dials = self.hurry(now, &service) || self.is_connecting(&service);
            redials |= dials && self.may_use(relay);
        }
        let mut request = DirectionRequest { failed_relays, ..Default::default() };
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.failures.expire_routes(now);
            if peer.redial != Redial::Awaited {
                peer.redial = if redials { Redial::Begun } else { Redial::No };
            }
            request.failed = peer.failures.routes().map(i32::from).collect();
            match &peer.fqdn {
                Some(fqdn) => request.fqdn = fqdn.clone(),
                None => request.virtual_address = address.octets().to_vec(),
            }
        }
        let message = Message::DirectionRequest(request);
        self.request(now, Service::Nms, Purpose::Direction { peer: address }, message)
    }

    pub(in crate::node) fn direction_answered(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        answer: Result<Message, String>,
    ) {
        match answer {
            Ok(Message::RouteDirection(direction)) => self.route_directed(now, address, direction),
            Ok(Message::Refusal(refusal)) => self.direction_refused(now, address, &refusal, None),
            Ok(other) => {
                let what = format!("the NMS answered with {}", other.name());
                self.attempt_failed(now, address, ResolveError::Protocol { what }, Retry::No);
            }
            Err(why) => self.attempt_failed(now, address, ResolveError::NotConnected { why }, Retry::Later),
        }
    }

    /// There will be no set-up, or no more of one by the route `begun`.
    pub(in crate::node) fn direction_refused(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        refusal: &Refusal,
        begun: Option<RouteKind>,
    ) {
        if refusal.code() == RefusalCode::NotAllowed && !self.registration.registered {
            // It was read before the registration after all, which is answered soon.
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.attempt = peer.is_wanted().then_some(Attempt::Registration);
            }
            return;
        }
        let known = self.peers.get(&address).is_some_and(|peer| peer.fqdn.is_some());
        if refusal.code() == RefusalCode::NoSuchPeer && known {
            // Asked for by its name: it was revoked, and this node did not hear of that.
            self.end_tunnels(now, address, CloseCode::Revoked);
        }
        let tells_of_it = [RefusalCode::PeerOffline, RefusalCode::NoRoute, RefusalCode::PeerRefused]
            .contains(&refusal.code());
        if tells_of_it && let Some(peer) = self.peers.get_mut(&address) {
            peer.is_nobody = false;
        }
        if refusal.code() == RefusalCode::PeerOffline {
            // So no relay can have joined it.
            self.peers.get_mut(&address).into_iter().for_each(|peer| peer.failures.forgive_relays());
        }
        let mut retry = refusal.retry_after().map_or(Retry::No, Retry::After);
        let another = self.failures_leave_another_relay(now, address);
        let no_route = refusal.code() == RefusalCode::NoRoute;
        let by_relay = begun == Some(RouteKind::Relay);
        if by_relay && another {
            retry = if retry == Retry::No { Retry::Later } else { retry };
        } else if no_route || by_relay {
            // None but those that failed, or after them not even a relay, of which the peer may have had
            // none.
            let Some(peer) = self.peers.get_mut(&address) else { return };
            if another || peer.failures.has_routes() {
                // They are tried again.
                peer.failures.forgive();
                retry = Retry::Later;
            } else if begun.is_none() && retry == Retry::No && peer.redial == Redial::Begun {
                peer.redial = Redial::Awaited;
                retry = Retry::After(if self.redialled() { TOLD } else { ANSWERED + TOLD });
            }
        }
        self.attempt_failed(now, address, ResolveError::of_refusal(refusal), retry);
    }

    /// Whether all relays that may be used are connected that were dialled again.
    fn redialled(&self) -> bool {
        let fails = |name: &str| self.may_use(name) && self.is_failing(&Service::Trs(name.into()));
        self.relays_that(fails).is_empty()
    }

    /// A relay is connected: who waits for one that may be back asks for it as soon as the NMS knows, if it is
    /// that one. The question is put only once.
    pub(in crate::node) fn redial_stands(&mut self, now: Instant) {
        if !self.redialled() {
            return;
        }
        let waits = |peer: &Peer| peer.redial == Redial::Awaited && peer.attempt == Some(Attempt::Pause);
        let peers: Vec<_> =
            self.peers.iter().filter(|(_, peer)| waits(peer)).map(|(address, _)| *address).collect();
        for address in peers {
            self.timers.set(Timer::Attempt(address), now + TOLD);
        }
    }

    /// Ends the present attempt; another follows if that may help and somebody waits.
    pub(in crate::node) fn attempt_failed(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        error: ResolveError,
        retry: Retry,
    ) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.attempt = None;
        peer.last_error = Some(error.clone());
        peer.since = now;
        let wait = match retry {
            Retry::No => return self.give_up(now, address, error),
            Retry::AtOnce => Duration::ZERO,
            Retry::Later => peer.backoff.next(RETRY_LEAST, RETRY_MOST, &mut self.rng),
            Retry::After(wait) => wait,
        };
        if !peer.is_wanted() {
            peer.begin_anew();
            self.changed();
        } else if wait.is_zero() {
            self.pursue(now, address);
        } else {
            peer.attempt = Some(Attempt::Pause);
            self.timers.set(Timer::Attempt(address), now + wait);
        }
    }

    pub(in crate::node) fn attempt_due(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.attempt == Some(Attempt::Pause) {
            peer.attempt = None;
            self.pursue(now, address);
        }
    }

    /// The node registers, or is registered: attempts that waited for it go on.
    pub(in crate::node) fn resume_attempts(&mut self, now: Instant) {
        let waiting = |peer: &Peer| matches!(peer.attempt, Some(Attempt::Registration | Attempt::Pause));
        let peers: Vec<_> =
            self.peers.iter().filter(|(_, peer)| waiting(peer)).map(|(address, _)| *address).collect();
        for address in peers {
            self.timers.clear(&Timer::Attempt(address));
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.attempt = None;
            }
            self.pursue(now, address);
        }
    }

    /// An incoming set-up of a peer that is wanted takes the place of the attempt's pause.
    pub(in crate::node) fn attach(&mut self, address: Ipv6Addr, setup: SetupId) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if matches!(peer.attempt, Some(Attempt::Pause | Attempt::Registration)) {
            peer.attempt = Some(Attempt::Setup(setup));
            self.timers.clear(&Timer::Attempt(address));
        }
    }

    /// Why somebody who has waited long enough has no tunnel.
    pub(super) fn why_not_yet(&self, address: Ipv6Addr) -> ResolveError {
        let peer = self.peers.get(&address);
        match peer.and_then(|peer| peer.attempt) {
            Some(Attempt::Registration) => ResolveError::NotConnected { why: self.explain(&Service::Nms) },
            Some(Attempt::Direction(_)) => {
                ResolveError::TimedOut { during: "asking the NMS for a route".into() }
            }
            Some(Attempt::Setup(setup)) => ResolveError::TimedOut { during: self.explain_setup(setup) },
            Some(Attempt::Pause) | None => {
                let last = peer.and_then(|peer| peer.last_error.clone());
                last.unwrap_or_else(|| ResolveError::TimedOut { during: "waiting to ask again".into() })
            }
        }
    }
}
