//! Login and registration: how the node gets known, and what it learns of its own network.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::exchanges::Purpose;
use super::findings::Known;
use super::tunnels::Tunnel;
use super::{Action, CachedState, Node, NodeConfig, Relay, Service, ServiceState, Timer, config};
use crate::message::{
    LoginRequest, LoginResponse, MAX_ASKED_FOR, Message, Observation, ObservationRequest, Refusal,
    RegistrationRequest, RegistrationResponse, RelayLatency, endpoint, field,
};
use crate::netcheck::Findings;
use crate::standby::Standby;
use crate::{name, nat, version};

/// How long changes are gathered before the NMS is told.
const GATHER: Duration = Duration::from_millis(50);

/// What the NMS is told of a node's network.
#[derive(Clone, PartialEq)]
struct News {
    addresses: Vec<SocketAddr>,
    /// (server, observed).
    observations: Vec<(SocketAddr, SocketAddr)>,
    findings: Findings,
    latencies: BTreeMap<String, Duration>,
}

/// What the node was told and found out.
pub(super) struct Registration {
    pub(super) logged_in: bool,
    pub(super) registered: bool,
    /// Since when, if so or before.
    pub(super) since: Option<Instant>,
    pub(super) addresses: Vec<SocketAddr>,
    /// (server, observed).
    pub(super) observations: Vec<(SocketAddr, SocketAddr)>,
    /// What the node found out itself.
    pub(super) network: Known,
    /// What is worth keeping for the next start.
    pub(super) known: CachedState,
    /// When the node first turned to a service.
    began: Option<Instant>,
    /// How long it took from there to the first registration.
    pub(super) start_up: Option<Duration>,
    /// The node is being told that it is elsewhere: its tunnels do not know yet.
    pub(super) moves: bool,
    /// What the NMS was told last, and what it is being told.
    told: Option<News>,
    under_way: bool,
    /// The number of the overlay's rules that this connection's NMS told last.
    pub(super) access_revision: u64,
}

impl Registration {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self {
            logged_in: false,
            registered: false,
            since: None,
            addresses: canonical(&config.addresses),
            observations: Vec::new(),
            network: Known::default(),
            known: config.cached.clone().unwrap_or_default(),
            began: None,
            start_up: None,
            moves: false,
            told: None,
            under_way: false,
            access_revision: 0,
        }
    }
}

impl Registration {
    /// Whether the NMS knows this node, or is about to before it reads anything else.
    pub(super) fn is_told(&self) -> bool {
        self.registered || self.under_way
    }
}

impl Node {
    /// The AS first; where the services were known before, the NMS at the same time.
    pub(super) fn start(&mut self, now: Instant) {
        self.registration.began = Some(now);
        self.want_login(now);
        self.want_nms(now);
        self.warm_relays(now);
    }

    /// Something speaks against the time that the AS has told: it is asked again, by a login.
    pub fn handle_time_doubted(&mut self, now: Instant) {
        if !self.stopped {
            self.want_login(now);
        }
    }

    pub(super) fn want_login(&mut self, now: Instant) {
        let (addresses, name) = (self.config.as_addresses.clone(), self.config.as_name.clone());
        self.want(now, Service::As, &addresses, &name);
    }

    /// Where the AS is, where that was found out only now or has changed: its name resolves anew.
    pub fn handle_as_addresses(&mut self, now: Instant, addresses: Vec<SocketAddr>) {
        if addresses.is_empty() || addresses == self.config.as_addresses {
            return;
        }
        self.config.as_addresses = addresses;
        let sought = self.services.get(&Service::As).is_some_and(|slot| slot.state != ServiceState::Unwanted);
        if sought || !self.registration.logged_in {
            self.want_login(now);
        }
    }

    pub(super) fn log_in(&mut self, now: Instant) {
        let software_version = self.config.software_version.clone();
        let request = LoginRequest { protocol_version: version::CURRENT, software_version };
        self.request(now, Service::As, Purpose::Login, Message::LoginRequest(request));
    }

    pub(super) fn login_answered(&mut self, now: Instant, answer: Result<Message, String>) {
        if !self.is_connected(&Service::As) {
            return;
        }
        let outcome = match answer {
            Ok(Message::LoginResponse(response)) => self.accept_login(now, &response),
            other => Err(unexpected("AS", other)),
        };
        match outcome {
            Ok(()) => {
                self.service_proved(&Service::As);
                self.unwant(now, &Service::As);
                if !self.turn_back(now) {
                    self.want_nms(now);
                }
            }
            Err(reason) => self.service_broken(now, &Service::As, &reason),
        }
    }

    /// Tells the NMS what has changed, once it is connected and idle.
    pub(super) fn register(&mut self, now: Instant) {
        // What the NMS sees it knows by itself.
        let server = self.remote_of(&Service::Nms);
        let latencies = self.told_latencies();
        let peers = self.peers_to_look_for();
        let registration = &mut self.registration;
        let mut news = News {
            addresses: registration.addresses.clone(),
            observations: registration.observations.clone(),
            // They are told as observations.
            findings: Findings { observations: Vec::new(), ..registration.network.findings.clone() },
            latencies,
        };
        news.observations.retain(|(other, _)| Some(*other) != server);
        if registration.under_way
            || registration.told.as_ref() == Some(&news)
            || !self.is_connected(&Service::Nms)
        {
            return;
        }
        let registration = &mut self.registration;
        let observations = news.observations.iter().map(|(server, observed)| Observation {
            server: Some(endpoint::to_wire(*server)),
            observed: Some(endpoint::to_wire(*observed)),
        });
        let request = RegistrationRequest {
            protocol_version: version::CURRENT,
            addresses: endpoint::list_to_wire(&registration.addresses),
            observations: observations.collect::<Vec<_>>(),
            udp_blocked: registration.known.udp_blocked,
            findings: Some(news.findings.to_wire()),
            relay_latencies: news.latencies.iter().map(latency_to_wire).collect(),
            pinned_relay: self.config.pinned_relay.clone().unwrap_or_default(),
            run: self.run,
            peers,
        };
        self.registration.told = Some(news);
        self.registration.under_way = true;
        self.request(now, Service::Nms, Purpose::Register, Message::RegistrationRequest(request));
        if !self.registration.registered {
            // The NMS reads a connection's requests one after another: what comes behind this one need not
            // wait for its answer.
            self.resume_attempts(now);
        }
    }

    pub(super) fn registration_answered(&mut self, now: Instant, answer: Result<Message, String>) {
        self.registration.under_way = false;
        if !self.is_connected(&Service::Nms) {
            return;
        }
        let outcome = match answer {
            Ok(Message::RegistrationResponse(response)) => self.accept_registration(now, &response),
            other => Err(unexpected("NMS", other)),
        };
        match outcome {
            Ok(()) => {
                self.followed(now, &Service::Nms);
                self.registered(now);
            }
            Err(reason) => self.service_broken(now, &Service::Nms, &reason),
        }
    }

    pub(super) fn registration_lost(&mut self) {
        let registration = &mut self.registration;
        registration.registered = false;
        registration.told = None;
        registration.under_way = false;
        // Another NMS, or a new run of the same, counts anew.
        registration.access_revision = 0;
        self.timers.clear(&Timer::Register);
    }

    /// What was seen of the node elsewhere says nothing of it here. With the same addresses it is most likely
    /// where it was, and services will tell ([`Node::observe`]): what takes minutes to find out is kept.
    pub(super) fn addresses_changed(&mut self, addresses: &[SocketAddr]) {
        let addresses = canonical(addresses);
        self.registration.observations.clear();
        if self.registration.addresses != addresses {
            self.registration.addresses = addresses;
            self.registration.network = Known::default();
        }
        // Elsewhere, what failed may work.
        self.forgive_routes();
    }

    /// Those to whom a way is sought since an end has moved, the last that was used first: the other one may have
    /// moved, too. While this node moves, all to whom there are direct tunnels.
    fn peers_to_look_for(&self) -> Vec<Vec<u8>> {
        let moves = self.registration.moves;
        let is_sought = |tunnel: &&Tunnel| {
            tunnel.is_told() && !tunnel.paths.is_relayed() && (moves || tunnel.paths.is_moving())
        };
        let mut sought: Vec<_> = self.tunnels.values().filter(is_sought).collect();
        sought.sort_by_key(|tunnel| Reverse(tunnel.last_use));
        let mut peers: Vec<_> = Vec::new();
        for peer in sought.into_iter().map(|tunnel| tunnel.peer.octets().to_vec()) {
            if peers.len() < MAX_ASKED_FOR && !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        peers
    }

    /// Registers, though there may be no news but where from.
    pub(super) fn register_again(&mut self, now: Instant) {
        self.registration.told = None;
        self.register(now);
    }

    /// A relay can be reached again, or not any more: the NMS is told before long.
    pub(super) fn relay_reach_changed(&mut self, now: Instant) {
        self.timers.set(Timer::Register, now + GATHER);
    }

    pub(super) fn trs_connected(&mut self, now: Instant, name: &str) {
        self.relay_reached(now, name);
        let service = Service::Trs(name.into());
        if let Some(server) = self.remote_of(&service) {
            let message = Message::ObservationRequest(ObservationRequest::default());
            self.request(now, service, Purpose::Observe { server }, message);
        }
        self.follow_relay(now, name);
        self.restore_legs(now, name);
        self.bind_waiting(now, name);
        self.leave_relays(now);
        self.redial_stands(now);
    }

    pub(super) fn observation_answered(
        &mut self,
        now: Instant,
        server: SocketAddr,
        answer: Result<Message, String>,
    ) {
        // An old TRS refuses; nothing depends on its word.
        if let Ok(Message::ObservationResponse(response)) = answer {
            self.observe(now, server, response.observed.as_ref().and_then(endpoint::from_wire));
        }
    }

    /// Stays connected to the nearest relays, and to those in use.
    pub(super) fn warm_relays(&mut self, now: Instant) {
        for relay in self.nearest_relays() {
            self.want_relay(now, &relay);
            self.hurry(now, &Service::Trs(relay.name));
        }
        self.leave_relays(now);
    }

    /// Wants no more the relays that nobody uses and that are none of the nearest, unless it is not known yet
    /// whether they answer.
    pub(super) fn leave_relays(&mut self, now: Instant) {
        let relays = self.nearest_relays();
        let is_idle = |name: &String| {
            !relays.iter().any(|relay| relay.name == *name)
                && !self.uses_relay(name)
                && !self.is_undecided(&Service::Trs(name.clone()))
        };
        let wanted = self.services.keys().filter_map(|service| match service {
            Service::Trs(name) => Some(name.clone()),
            Service::As | Service::Nms => None,
        });
        for name in wanted.filter(is_idle).collect::<Vec<_>>() {
            self.unwant(now, &Service::Trs(name));
        }
    }

    /// As many relays as are kept warm, by measured round trips. Those that were not measured come later, in
    /// the NMS's order.
    fn nearest_relays(&self) -> Vec<Relay> {
        let latencies = &self.registration.network.latencies;
        let mut relays = self.registration.known.relays.clone();
        relays.sort_by_key(|relay| latencies.get(&relay.name).copied().unwrap_or(Duration::MAX));
        relays.truncate(self.config.timing.warm_relays);
        relays
    }

    pub(super) fn want_relay(&mut self, now: Instant, relay: &Relay) {
        self.want(now, Service::Trs(relay.name.clone()), &relay.addresses, &relay.name);
    }

    fn want_nms(&mut self, now: Instant) {
        let (name, addresses) = self.nms();
        self.want(now, Service::Nms, &addresses, &name);
    }

    fn registered(&mut self, now: Instant) {
        self.service_proved(&Service::Nms);
        let first = !std::mem::replace(&mut self.registration.registered, true);
        self.changed();
        if first {
            self.registration.since = Some(now);
            if let (None, Some(began)) = (self.registration.start_up, self.registration.began) {
                self.registration.start_up = Some(now.saturating_duration_since(began));
            }
            self.stays_for_now(now);
            self.resume_attempts(now);
            self.keep_peers(now);
            self.tunnels_may_idle(now);
        }
        self.warm_relays(now);
        self.look_around(now);
        // What changed while the request was under way.
        self.register(now);
    }

    fn accept_login(&mut self, now: Instant, response: &LoginResponse) -> Result<(), String> {
        version::negotiate(response.protocol_version).map_err(|mismatch| mismatch.to_string())?;
        if name::canonical(&response.fqdn).ok().as_ref() != Some(&self.config.identity.fqdn) {
            return Err(format!(
                "the AS knows this device by another name, {:?}",
                crate::message::bounded(&response.fqdn)
            ));
        }
        let nms_addresses = endpoint::services_from_wire(&response.nms);
        let nms_name =
            name::canonical(&response.nms_name).map_err(|error| format!("the NMS's name: {error}"))?;
        if nms_addresses.is_empty() {
            return Err("the AS named no address of the NMS".into());
        }
        if let Some(server) = self.remote_of(&Service::As) {
            self.observe(now, server, response.observed.as_ref().and_then(endpoint::from_wire));
        }
        self.registration.logged_in = true;
        self.learn(CachedState { nms_addresses, nms_name, ..self.registration.known.clone() });
        Ok(())
    }

    fn accept_registration(&mut self, now: Instant, response: &RegistrationResponse) -> Result<(), String> {
        version::negotiate(response.protocol_version).map_err(|mismatch| mismatch.to_string())?;
        let address = field::virtual_address(&response.virtual_address, "virtual_address");
        if address.map_err(|bad| bad.to_string())? != self.own {
            return Err("the NMS gave this device another virtual address than its certificate".into());
        }
        let zone = name::canonical(&response.zone).map_err(|error| format!("the zone: {error}"))?;
        if zone != self.config.zone {
            return Err(format!(
                "the NMS serves the zone {zone}, this device belongs to {}",
                self.config.zone
            ));
        }
        if let Some(server) = self.remote_of(&Service::Nms) {
            self.observe(now, server, response.observed.as_ref().and_then(endpoint::from_wire));
        }
        let relays = Relay::list_from_wire(&response.relays);
        let standbys = Standby::list_from_wire(&response.standbys);
        self.learn(CachedState { relays, standbys, ..self.registration.known.clone() });
        self.access_registered(response.access.as_ref());
        for told in response.peers.iter().take(MAX_ASKED_FOR) {
            if let Ok(peer) = field::virtual_address(&told.virtual_address, "virtual_address") {
                self.peer_found(now, peer, &endpoint::peers_from_wire(&told.endpoints, self.prefix));
            }
        }
        Ok(())
    }

    /// Notes what a server saw; the NMS gets to know.
    pub(super) fn observe(&mut self, now: Instant, server: SocketAddr, observed: Option<SocketAddr>) {
        let usable = observed.filter(|observed| endpoint::is_candidate(observed.ip(), self.prefix));
        let Some(observed) = usable else { return };
        let observations = &mut self.registration.observations;
        if observations.contains(&(server, observed)) {
            return;
        }
        let before = observations.iter().find(|(other, _)| *other == server).map(|(_, before)| *before);
        let outdated = |seen| before.is_some_and(|before| nat::is_outdated(before, observed, seen));
        observations.retain(|(other, seen)| *other != server && !outdated(*seen));
        observations.insert(0, (server, observed));
        observations.truncate(config::MAX_OBSERVATIONS);
        self.registration.network.check(observed);
        self.network_changed(now);
    }

    /// UDP was found blocked, or works again: the NMS gets to know, and the next start.
    pub(super) fn learn_blocked(&mut self, now: Instant, udp_blocked: bool) {
        self.learn(CachedState { udp_blocked, ..self.registration.known.clone() });
        self.registration.told = None;
        self.network_changed(now);
    }

    pub(super) fn network_changed(&mut self, now: Instant) {
        // Elsewhere, what failed may work.
        self.forgive_routes();
        self.timers.set(Timer::Register, now + GATHER);
        self.candidates_changed(now);
        self.changed();
    }

    pub(super) fn learn(&mut self, state: CachedState) {
        if state != self.registration.known {
            self.registration.known = state.clone();
            // Without the NMS it is of no use to the next start, and would not be read.
            if !state.nms_addresses.is_empty() {
                self.act(Action::Save(state));
            }
        }
    }
}

fn latency_to_wire((name, took): (&String, &Duration)) -> RelayLatency {
    RelayLatency { name: name.clone(), rtt_us: u32::try_from(took.as_micros()).unwrap_or(u32::MAX) }
}

fn canonical(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses.iter().copied().map(endpoint::canonical) {
        // In their order: where there are many, the best come first.
        if unique.len() < endpoint::MAX_ENDPOINTS && !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

/// The error in an answer that is not the one hoped for.
pub(super) fn unexpected(who: &str, answer: Result<Message, String>) -> String {
    match answer {
        Ok(Message::Refusal(refusal)) => refused(who, &refusal),
        Ok(other) => format!("the {who} answered with {}", other.name()),
        Err(reason) => reason,
    }
}

fn refused(who: &str, refusal: &Refusal) -> String {
    format!("the {who} refused: {}", refusal.shown_reason())
}
