//! Peers: who wants to reach them, and the attempts at it.
//!
//! However many ask for a peer, there is one attempt. It waits for the NMS, asks for a direction, carries out
//! the set-up, and begins again with the next route where that fails, as long as somebody waits.

use super::moves::ANSWERED;
use super::{
    Action, CloseCode, Node, ResolveError, Service, Target, Timer, config, exchanges::Purpose,
    paths::ProbeBudget, setup::Stage,
};
use crate::{
    address,
    backoff::Backoff,
    id::{ExchangeId, QueryId, SetupId, TunnelId},
    message::{DirectionRequest, Message, NAMES_A_NOTICE, Refusal, RefusalCode, RevocationNotice, RouteKind},
    name,
};
use std::{
    collections::BTreeSet,
    net::Ipv6Addr,
    time::{Duration, Instant},
};

/// Waits between attempts that failed through nobody's settled refusal.
const RETRY_LEAST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// In this time the NMS has heard that a relay is connected again.
const TOLD: Duration = Duration::from_millis(300);
/// How long an address that is no device's is told of, so that a mistyped name can be looked into.
const NOBODY_SHOWN: Duration = Duration::from_secs(10 * 60);
/// How long a broken tunnel that was in use is worth replacing without anybody asking.
pub(super) const WANTED: Duration = Duration::from_secs(20);

/// A device that this one has to do with.
pub(super) struct Peer {
    pub(super) fqdn: Option<String>,
    /// Newest set-up first.
    pub(super) tunnels: Vec<TunnelId>,
    /// Questions that wait.
    queries: Vec<QueryId>,
    /// Packets are held.
    held: bool,
    /// A tunnel broke or grew old while in use.
    pub(super) wanted: bool,
    pub(super) attempt: Option<Attempt>,
    backoff: Backoff,
    /// Routes that failed, and until when they are not proposed again.
    failed: Vec<(RouteKind, Instant)>,
    /// The same of relays, while another is left.
    failed_relays: Vec<(String, Instant)>,
    redial: Redial,
    /// The NMS knew of no such device when it was last asked.
    is_nobody: bool,
    /// How many packets it may have this node send to where it says that it is.
    pub(super) probes: ProbeBudget,
    pub(super) last_error: Option<ResolveError>,
    pub(super) since: Instant,
}

/// How far an attempt has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
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
enum Redial {
    No,
    /// For the present question.
    Begun,
    /// The question is put again, or was.
    Awaited,
}

/// Whether a failed attempt is worth another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    No,
    AtOnce,
    Later,
    After(Duration),
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            fqdn: None,
            tunnels: Vec::new(),
            queries: Vec::new(),
            held: false,
            wanted: false,
            attempt: None,
            backoff: Backoff::default(),
            failed: Vec::new(),
            failed_relays: Vec::new(),
            redial: Redial::No,
            is_nobody: false,
            probes: ProbeBudget::of_peer(now),
            last_error: None,
            since: now,
        }
    }

    fn is_wanted(&self) -> bool {
        !self.queries.is_empty() || self.held || self.wanted
    }

    pub(super) fn is_sought(&self) -> bool {
        self.is_wanted() || self.attempt.is_some()
    }

    /// The attempts for those who waited are over: the next ones' are the first again.
    fn begin_anew(&mut self) {
        self.backoff.reset();
        self.redial = Redial::No;
    }

    /// All that failed is tried again.
    fn forgive(&mut self) {
        self.failed.clear();
        self.failed_relays.clear();
    }

    pub(super) fn failed_routes(&self) -> Vec<RouteKind> {
        self.failed.iter().map(|(kind, _)| *kind).collect()
    }
}

impl Node {
    pub(super) fn resolve(&mut self, now: Instant, query: QueryId, target: Target) {
        let found = self.locate(target).and_then(|(address, fqdn)| {
            if address != self.own {
                self.check_room_for_query()?;
                self.note_peer(now, address, fqdn)?;
            }
            Ok(address)
        });
        match found {
            Ok(address) if address != self.own => self.wait_for(now, query, address),
            result => self.act(Action::Answer { query, result }),
        }
    }

    pub(super) fn unknown_destination(&mut self, now: Instant, dst: Ipv6Addr) {
        let known = self.locate(Target::Address(dst)).and_then(|_| self.note_peer(now, dst, None));
        if let Err(reason) = known {
            self.act(Action::DropHeld { dst, reason });
            return;
        }
        let Some(peer) = self.peers.get_mut(&dst) else { return };
        if !peer.tunnels.is_empty() {
            // The tunnel was installed in the meantime, and released what was held.
            return;
        }
        if !std::mem::replace(&mut peer.held, true) {
            self.timers.set(Timer::Held(dst), now + self.config.timing.resolve);
        }
        self.pursue(now, dst);
    }

    pub(super) fn query_due(&mut self, now: Instant, query: QueryId) {
        let Some(address) = self.queries.remove(&query) else { return };
        let error = self.why_not_yet(address);
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.queries.retain(|other| *other != query);
        }
        self.act(Action::Answer { query, result: Err(error.clone()) });
        self.interest_lost(now, address, error);
    }

    pub(super) fn held_due(&mut self, now: Instant, dst: Ipv6Addr) {
        let error = self.why_not_yet(dst);
        let Some(peer) = self.peers.get_mut(&dst) else { return };
        if std::mem::replace(&mut peer.held, false) {
            self.act(Action::DropHeld { dst, reason: error.clone() });
            self.interest_lost(now, dst, error);
        }
    }

    pub(super) fn wanted_due(&mut self, now: Instant, address: Ipv6Addr) {
        let error = self.why_not_yet(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if std::mem::replace(&mut peer.wanted, false) {
            self.interest_lost(now, address, error);
        }
    }

    pub(super) fn attempt_due(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.attempt == Some(Attempt::Pause) {
            peer.attempt = None;
            self.pursue(now, address);
        }
    }

    /// A tunnel in use broke, or should be replaced: another is set up without anybody asking.
    pub(super) fn want_anew(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.wanted = true;
        self.timers.set(Timer::Wanted(address), now + WANTED);
        self.pursue(now, address);
    }

    /// The node registers, or is registered: attempts that waited for it go on.
    pub(super) fn resume_attempts(&mut self, now: Instant) {
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

    pub(super) fn direction_answered(
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

    /// A relay is connected: who waits for one that may be back asks for it as soon as the NMS knows.
    pub(super) fn redial_stands(&mut self, now: Instant) {
        let waits = |peer: &Peer| peer.redial == Redial::Awaited && peer.attempt == Some(Attempt::Pause);
        let peers: Vec<_> =
            self.peers.iter().filter(|(_, peer)| waits(peer)).map(|(address, _)| *address).collect();
        for address in peers {
            self.timers.set(Timer::Attempt(address), now + TOLD);
        }
    }

    /// Ends the present attempt; another follows if that may help and somebody waits.
    pub(super) fn attempt_failed(
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

    /// All who wait for the peer get the error.
    pub(super) fn give_up(&mut self, now: Instant, address: Ipv6Addr, error: ResolveError) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(Attempt::Direction(exchange)) = peer.attempt.take() {
            self.cancel(exchange);
        }
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.since = now;
        peer.begin_anew();
        let held = self.take_interest(address);
        if held {
            self.act(Action::DropHeld { dst: address, reason: error.clone() });
        }
        if error == ResolveError::NoSuchPeer {
            self.peers.entry(address).and_modify(|peer| peer.is_nobody = true);
            self.timers.set(Timer::Nobody(address), now + NOBODY_SHOWN);
        }
        self.answer_all(address, &Err(error));
        self.changed();
    }

    /// An address turned out to be no device's a while ago: unless it is one's now, nothing is told of it any
    /// more.
    pub(super) fn nobody_due(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get(&address).filter(|peer| peer.is_nobody) else { return };
        let is_expected = self.setups.values().any(|setup| setup.peer == address);
        if is_expected || !self.is_idle(address, peer) {
            self.timers.set(Timer::Nobody(address), now + NOBODY_SHOWN);
            return;
        }
        self.peers.remove(&address);
        self.changed();
    }

    /// A tunnel stands: all who wait for the peer get its address. Held packets are released by the
    /// installation.
    pub(super) fn reached(&mut self, now: Instant, address: Ipv6Addr, setup: SetupId) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.since = now;
        peer.last_error = None;
        peer.is_nobody = false;
        peer.begin_anew();
        match peer.attempt {
            // The other end was faster: our own request is pointless.
            Some(Attempt::Direction(exchange)) => {
                peer.attempt = None;
                self.cancel(exchange);
            }
            // Our own set-up goes on: the other end has its part of it already.
            Some(Attempt::Setup(other)) if other != setup => {}
            _ => peer.attempt = None,
        }
        self.take_interest(address);
        self.answer_all(address, &Ok(address));
        self.changed();
    }

    /// Another route is tried. The last relay is the last of them: where not even that helps, the peer may
    /// have been away, and all may work again.
    pub(super) fn route_failed(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        kind: RouteKind,
        relay: Option<&str>,
    ) {
        let until = now + self.config.timing.failed_route;
        match relay {
            Some(relay) => self.pass_over(now, address, relay, until),
            None => {
                let Some(peer) = self.peers.get_mut(&address) else { return };
                peer.failed.retain(|(other, _)| *other != kind);
                peer.failed.push((kind, until));
            }
        }
    }

    /// The peer takes no part in a set-up through a relay, which need not be the relay's fault: the peer may
    /// have been away. It knows itself what it does not reach as soon as its own dial has failed, and
    /// refuses that relay at once then.
    pub(super) fn relay_not_taken(&mut self, now: Instant, address: Ipv6Addr, relay: &str) {
        self.pass_over(now, address, relay, now + self.config.timing.connect);
    }

    fn pass_over(&mut self, now: Instant, address: Ipv6Addr, relay: &str, until: Instant) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.failed_relays.retain(|(other, until)| other != relay && *until > now);
        peer.failed_relays.push((relay.into(), until));
        if !self.failures_leave_another_relay(now, address) {
            self.peers.get_mut(&address).into_iter().for_each(Peer::forgive);
        }
    }

    /// Relays that did not join this node and the peer just now, or to which connections fail, as long as
    /// another one is left.
    fn failed_relays(&self, now: Instant, address: Ipv6Addr) -> Vec<String> {
        let Some(peer) = self.peers.get(&address) else { return self.unreachable_relays() };
        let failed =
            |name: &str| peer.failed_relays.iter().any(|(relay, until)| relay == name && *until > now);
        let waits_for = |name: &str| {
            let tunnels = peer.tunnels.iter().filter_map(|id| self.tunnels.get(id));
            tunnels.filter(|tunnel| tunnel.is_leg_away()).any(|tunnel| tunnel.relay.as_deref() == Some(name))
        };
        let all = self.relays_that(|name| {
            failed(name) || waits_for(name) || self.is_failing(&Service::Trs(name.into()))
        });
        self.unless_all(all)
    }

    /// Whether relays failed for this very peer just now, and another one is left.
    fn failures_leave_another_relay(&self, now: Instant, address: Ipv6Addr) -> bool {
        let failed = |peer: &Peer| peer.failed_relays.iter().any(|(_, until)| *until > now);
        self.peers.get(&address).is_some_and(failed) && !self.failed_relays(now, address).is_empty()
    }

    pub(super) fn forgive_routes(&mut self) {
        self.peers.values_mut().for_each(Peer::forgive);
    }

    /// The peer's entry, made if need be.
    pub(super) fn note_peer(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        fqdn: Option<String>,
    ) -> Result<(), ResolveError> {
        if !self.peers.contains_key(&address) {
            self.make_room_for_peer()?;
        }
        let peer = self.peers.entry(address).or_insert_with(|| Peer::new(now));
        if fqdn.is_some() {
            peer.fqdn = fqdn;
        }
        Ok(())
    }

    /// An incoming set-up of a peer that is wanted takes the place of the attempt's pause.
    pub(super) fn attach(&mut self, address: Ipv6Addr, setup: SetupId) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if matches!(peer.attempt, Some(Attempt::Pause | Attempt::Registration)) {
            peer.attempt = Some(Attempt::Setup(setup));
            self.timers.clear(&Timer::Attempt(address));
        }
    }

    pub(super) fn reset(&mut self, now: Instant, target: Option<Target>) {
        let chosen: Vec<_> = match target {
            None => self.peers.keys().copied().collect(),
            Some(target) => self.locate(target).map(|(address, _)| vec![address]).unwrap_or_default(),
        };
        for address in chosen {
            let why = "the operator reset the tunnel";
            self.part_from(now, address, CloseCode::Reset, why, ResolveError::Cancelled { why: why.into() });
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.forgive();
                peer.last_error = None;
            }
        }
        self.changed();
    }

    /// Devices that had these names are members no longer.
    pub(super) fn peers_revoked(&mut self, now: Instant, notice: &RevocationNotice) {
        for name in notice.fqdn.iter().take(NAMES_A_NOTICE) {
            let Ok((address, _)) = self.locate(Target::Name(name.clone())) else { continue };
            let why = "the peer's device was revoked";
            self.part_from(now, address, CloseCode::Revoked, why, ResolveError::NoSuchPeer);
        }
    }

    /// Ends everything that is with a peer or on the way to it.
    fn part_from(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        code: CloseCode,
        why: &str,
        error: ResolveError,
    ) {
        self.give_up(now, address, error);
        let setups = self.setups.values().filter(|setup| setup.peer == address).map(|setup| setup.id);
        for setup in setups.collect::<Vec<_>>() {
            self.drop_setup(setup, why);
        }
        self.end_tunnels(now, address, code);
    }

    fn end_tunnels(&mut self, now: Instant, address: Ipv6Addr, code: CloseCode) {
        let tunnels = self.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == address).map(|(id, _)| *id);
        for tunnel in tunnels.collect::<Vec<_>>() {
            self.remove_tunnel(now, tunnel, Some(code));
        }
    }

    /// Begins an attempt, unless one is under way.
    fn pursue(&mut self, now: Instant, address: Ipv6Addr) {
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
            let relay_service = Service::Trs(relay.clone());
            let dials = self.hurry(now, &relay_service) || self.is_connecting(&relay_service);
            redials |= dials && self.may_use(relay);
        }
        let mut request = DirectionRequest { failed_relays, ..Default::default() };
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.failed.retain(|(_, until)| *until > now);
            if peer.redial != Redial::Awaited {
                peer.redial = if redials { Redial::Begun } else { Redial::No };
            }
            request.failed = peer.failed.iter().map(|(kind, _)| i32::from(*kind)).collect();
            match &peer.fqdn {
                Some(fqdn) => request.fqdn = fqdn.clone(),
                None => request.virtual_address = address.octets().to_vec(),
            }
        }
        let message = Message::DirectionRequest(request);
        self.request(now, Service::Nms, Purpose::Direction { peer: address }, message)
    }

    /// There will be no set-up, or no more of one by the route `begun`.
    pub(super) fn direction_refused(
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
        let reason = refusal.shown_reason();
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
            self.peers.get_mut(&address).into_iter().for_each(|peer| peer.failed_relays.clear());
        }
        let error = match refusal.code() {
            RefusalCode::NoSuchPeer => ResolveError::NoSuchPeer,
            RefusalCode::PeerOffline => ResolveError::Offline { reason },
            RefusalCode::NoRoute => ResolveError::NoRoute { reason },
            RefusalCode::NotAllowed
            | RefusalCode::Revoked
            | RefusalCode::Version
            | RefusalCode::BadToken
            | RefusalCode::KeyInUse => ResolveError::NotAllowed { reason },
            RefusalCode::TooMany => ResolveError::TooMany { what: reason },
            RefusalCode::Malformed => ResolveError::Protocol { what: reason },
            RefusalCode::PeerRefused | RefusalCode::Internal | RefusalCode::Unspecified => {
                ResolveError::PeerRefused { reason }
            }
        };
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
            if another || !peer.failed.is_empty() {
                // They are tried again.
                peer.forgive();
                retry = Retry::Later;
            } else if begun.is_none() && retry == Retry::No && peer.redial == Redial::Begun {
                peer.redial = Redial::Awaited;
                let stands = !self.failed_relays(now, address).iter().any(|relay| self.may_use(relay));
                retry = Retry::After(if stands { TOLD } else { ANSWERED + TOLD });
            }
        }
        self.attempt_failed(now, address, error, retry);
    }

    /// The last who waited is gone: what is not under way yet is not begun.
    fn interest_lost(&mut self, now: Instant, address: Ipv6Addr, error: ResolveError) {
        let Some(peer) = self.peers.get_mut(&address).filter(|peer| !peer.is_wanted()) else { return };
        peer.last_error.get_or_insert(error);
        if matches!(peer.attempt, Some(Attempt::Registration | Attempt::Pause)) {
            peer.attempt = None;
            peer.since = now;
            peer.begin_anew();
            self.timers.clear(&Timer::Attempt(address));
        }
        self.changed();
    }

    fn wait_for(&mut self, now: Instant, query: QueryId, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(tunnel) = peer.tunnels.first().copied() {
            self.act(Action::Answer { query, result: Ok(address) });
            self.doubt(now, tunnel);
            return;
        }
        peer.queries.push(query);
        self.queries.insert(query, address);
        self.timers.set(Timer::Query(query), now + self.config.timing.resolve);
        self.pursue(now, address);
    }

    fn answer_all(&mut self, address: Ipv6Addr, result: &Result<Ipv6Addr, ResolveError>) {
        let queries = self.peers.get_mut(&address).map(|peer| std::mem::take(&mut peer.queries));
        for query in queries.unwrap_or_default() {
            self.queries.remove(&query);
            self.timers.clear(&Timer::Query(query));
            self.act(Action::Answer { query, result: result.clone() });
        }
    }

    /// Nobody wants the peer any more; true where packets were held.
    fn take_interest(&mut self, address: Ipv6Addr) -> bool {
        self.timers.clear(&Timer::Held(address));
        self.timers.clear(&Timer::Wanted(address));
        self.timers.clear(&Timer::Attempt(address));
        let Some(peer) = self.peers.get_mut(&address) else { return false };
        peer.wanted = false;
        std::mem::replace(&mut peer.held, false)
    }

    pub(super) fn locate(&self, target: Target) -> Result<(Ipv6Addr, Option<String>), ResolveError> {
        match target {
            Target::Name(text) => {
                let fqdn =
                    name::canonical_in_zone(&text, &self.config.zone).map_err(|_| ResolveError::NotInZone)?;
                let address = address::virtual_address(self.prefix, self.config.identity.network_id, &fqdn);
                Ok((address, Some(fqdn)))
            }
            Target::Address(address) if self.prefix.contains(address) => Ok((address, None)),
            Target::Address(_) => Err(ResolveError::NotInZone),
        }
    }

    fn check_room_for_query(&self) -> Result<(), ResolveError> {
        match () {
            () if self.stopped => Err(ResolveError::Cancelled { why: "the agent is stopping".into() }),
            () if self.queries.len() >= config::MAX_QUERIES => {
                Err(ResolveError::TooMany { what: "questions are waiting already".into() })
            }
            () => Ok(()),
        }
    }

    fn make_room_for_peer(&mut self) -> Result<(), ResolveError> {
        if self.peers.len() < config::MAX_PEERS {
            return Ok(());
        }
        // A tunnel is to find its peer here when it is installed, though only the other end wants it.
        let expected: BTreeSet<_> = self.setups.values().map(|setup| setup.peer).collect();
        let may_go =
            |address: &Ipv6Addr, peer: &Peer| self.is_idle(*address, peer) && !expected.contains(address);
        let idle = self.peers.iter().filter(|(address, peer)| may_go(address, peer));
        let address = idle.min_by_key(|(_, peer)| peer.since).map(|(address, _)| *address);
        let address =
            address.ok_or_else(|| ResolveError::TooMany { what: "peers are in use already".into() })?;
        self.peers.remove(&address);
        self.timers.clear(&Timer::Nobody(address));
        Ok(())
    }

    fn is_idle(&self, address: Ipv6Addr, peer: &Peer) -> bool {
        peer.tunnels.is_empty() && !peer.is_sought() && !self.keeps_open(address)
    }

    /// Why somebody who has waited long enough has no tunnel.
    fn why_not_yet(&self, address: Ipv6Addr) -> ResolveError {
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

    fn explain_setup(&self, setup: SetupId) -> String {
        let Some(setup) = self.setups.get(&setup) else { return "setting the tunnel up".into() };
        let kind = setup.kind.name();
        match setup.stage {
            Stage::Connecting => match &setup.relay {
                Some(own) => self.explain(&Service::Trs(own.relay.name.clone())),
                None => "connecting to the relay".into(),
            },
            Stage::Agreed => "waiting for the relay's leg".into(),
            Stage::Dialling => format!("dialling the peer ({kind})"),
            Stage::Listening => format!("waiting for the peer to dial ({kind})"),
        }
    }
}
