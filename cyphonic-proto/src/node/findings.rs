//! What the node finds out about its network, by asking STUN servers from its own port and others
//! ([`crate::netcheck`]).
//!
//! Sockets are the shell's: [`Action::Netcheck`] asks it to look, and it reports what it finds bit by bit,
//! since some of it takes minutes. The NMS is told of each change that matters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;

use super::{Action, Node, Service, Timer};
use crate::backoff::Backoff;
use crate::message::endpoint;
use crate::nat::Family;
use crate::netcheck::{Findings, Mapping};

/// How often to look again in a network that seems unchanged: routers are replaced and restarted. Long enough
/// for every filter that a probe has opened to be closed again. By a quarter more or less: nodes that came
/// together do not look together for good.
const AGAIN: Duration = Duration::from_secs(20 * 60);

/// How soon to look again where a look did not tell how long mappings live; doubles up to [`AGAIN`]. Many
/// nodes behind one address that look at once are refused part of their answers.
const UNPROVEN_AGAIN: Duration = Duration::from_secs(2 * 60);

/// Changes of a round trip that are worth telling: beyond this, and beyond a quarter.
const WORTH_TELLING: Duration = Duration::from_millis(2);

/// Most endpoints of a gateway.
const MAX_GRANTED: usize = 4;

/// Most relays that a request calls failed.
pub(super) const MAX_FAILED: usize = 8;

/// What the node found out, as far as it got.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) findings: Findings,
    /// Round trips to relays.
    pub(super) latencies: BTreeMap<String, Duration>,
    /// Those of them that did not answer a dial or a look, until they are connected or a look hears them.
    unreached: BTreeSet<String>,
    /// Outer endpoints that the gateway granted.
    granted: Vec<SocketAddr>,
    /// What servers saw of the node when they told of `findings`: a later look may hear nobody.
    behind: Vec<SocketAddr>,
    /// The network was looked at since the node came to it.
    looked: bool,
    /// When the next look is due, if nothing is missing.
    next_look: Option<Instant>,
    /// Looks in a row that may have told too little.
    in_vain: Backoff,
}

impl Known {
    /// Forgets a network behind another outer address than the one that a service has just seen.
    pub(super) fn check(&mut self, observed: SocketAddr) {
        let behind = outer(&self.behind, Family::of(&observed));
        if !behind.is_empty() && !behind.contains(&observed.ip()) {
            // What the gateway grants the shell asks it anew.
            *self = Self { granted: std::mem::take(&mut self.granted), ..Self::default() };
        }
    }

    /// The node was away for long: what a gateway granted may have ended, which it is asked with the next look, as soon as
    /// the NMS knows the node again.
    pub(super) fn look_anew(&mut self) {
        self.looked = false;
    }

    /// A look begins with nothing, and may be answered in part or not at all: what an earlier one has proven
    /// of the same NAT still holds.
    fn remember(&mut self, findings: &mut Findings) {
        let seen: Vec<_> = findings.observations.iter().map(|(_, observed)| *observed).collect();
        for family in Family::ALL {
            let (behind, now_behind) = (outer(&self.behind, family), outer(&seen, family));
            let moved = !now_behind.is_empty() && !behind.iter().any(|ip| now_behind.contains(ip));
            let (before, found) = (self.findings.of(family), findings.of_mut(family));
            if !moved && found.mapping == Mapping::Unknown {
                found.mapping = before.mapping;
                found.port_delta = before.port_delta;
            }
            if !moved && [Mapping::Unknown, found.mapping].contains(&before.mapping) {
                found.lifetime = found.lifetime.max(before.lifetime);
            }
            if !now_behind.is_empty() {
                self.behind.retain(|known| Family::of(known) != family);
            }
        }
        self.behind.extend(seen);
    }
}

/// The addresses of one IP version.
fn outer(endpoints: &[SocketAddr], family: Family) -> Vec<IpAddr> {
    endpoints.iter().filter(|endpoint| Family::of(endpoint) == family).map(SocketAddr::ip).collect()
}

impl Node {
    /// What is known of the node's network.
    pub fn findings(&self) -> &Findings {
        &self.registration.network.findings
    }

    /// Round trips to relays, by name, as far as they were measured.
    pub fn relay_latencies(&self) -> &BTreeMap<String, Duration> {
        &self.registration.network.latencies
    }

    /// What was found out so far by the look that [`Action::Netcheck`] asked for.
    pub fn handle_findings(&mut self, now: Instant, mut findings: Findings) {
        for family in Family::ALL {
            let of_family = |address: &&SocketAddr| Family::of(address) == family;
            let granted = self.registration.network.granted.iter().filter(of_family).copied();
            findings.of_mut(family).port_mapped = granted.collect();
        }
        self.registration.network.remember(&mut findings);
        if self.stopped || self.registration.network.findings == findings {
            return;
        }
        // What was told before may be older than what a service has told since.
        let told = std::mem::take(&mut self.registration.network.findings.observations);
        for (server, observed) in findings.observations.iter().filter(|seen| !told.contains(seen)) {
            self.observe(now, *server, Some(*observed));
        }
        self.registration.network.findings = findings;
        self.look_in_time();
        self.hold_mappings(now);
        self.network_changed(now);
    }

    /// The gateway has the node's port open at these outer endpoints now, and at no others.
    pub fn handle_port_mappings(&mut self, now: Instant, granted: &[SocketAddr]) {
        let usable = granted.iter().copied().map(endpoint::canonical);
        let usable = usable.filter(|address| endpoint::is_candidate(address.ip(), self.prefix));
        self.registration.network.granted = usable.take(MAX_GRANTED).collect();
        self.handle_findings(now, self.findings().clone());
    }

    /// Round trips to services that a look has measured, after it said what else it has found out. A relay
    /// that it did not hear comes last from then on, unless it is connected all the same, as over TCP.
    pub fn handle_latencies(&mut self, now: Instant, measured: &[(SocketAddr, Duration)]) {
        let mut told = false;
        for relay in self.registration.known.relays.clone() {
            let connected = self.is_connected(&Service::Trs(relay.name.clone()));
            let network = &mut self.registration.network;
            let is_its = |server: &SocketAddr| relay.addresses.contains(server);
            let of_relay = measured.iter().filter(|(server, _)| is_its(server));
            let took = of_relay.map(|(_, took)| *took).min();
            // What it answered only when it was asked again has no round trip.
            let heard = took.is_some() || network.findings.observations.iter().any(|(by, _)| is_its(by));
            if heard {
                told |= network.unreached.remove(&relay.name);
            } else if !connected && network.latencies.contains_key(&relay.name) {
                told |= network.unreached.insert(relay.name.clone());
            }
            let Some(took) = took else { continue };
            let known = network.latencies.get(&relay.name);
            if known.is_none_or(|known| matters(*known, took)) {
                network.latencies.insert(relay.name, took);
                told = true;
            }
        }
        let registration = &mut self.registration;
        let named = |name: &String| registration.known.relays.iter().any(|relay| relay.name == *name);
        registration.network.latencies.retain(|name, _| named(name));
        registration.network.unreached.retain(named);
        if told && !self.stopped {
            self.warm_relays(now);
            self.network_changed(now);
        }
    }

    /// The round trips that the NMS is told: a relay that cannot be reached, or did not answer when it was
    /// last dialled or looked for, is to come after the others.
    pub(super) fn told_latencies(&self) -> BTreeMap<String, Duration> {
        let network = &self.registration.network;
        let fails =
            |name: &str| network.unreached.contains(name) || self.is_failing(&Service::Trs(name.into()));
        let mut latencies = network.latencies.clone();
        for relay in self.unless_all(self.relays_that(fails)) {
            latencies.remove(&relay);
        }
        latencies
    }

    /// A dial of a relay failed, or did not stand in time. Nobody may dial it again who would find out that
    /// it is back.
    pub(super) fn relay_unreached(&mut self, now: Instant, name: &str) {
        let network = &mut self.registration.network;
        if network.latencies.contains_key(name) && network.unreached.insert(name.into()) {
            self.relay_reach_changed(now);
        }
    }

    /// It is connected.
    pub(super) fn relay_reached(&mut self, now: Instant, name: &str) {
        self.registration.network.unreached.remove(name);
        self.relay_reach_changed(now);
    }

    /// The NMS knows the node: time to look at the network, if that was not done since the node came here.
    pub(super) fn look_around(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.registration.network.looked, true) {
            self.netcheck(now);
        }
    }

    /// Relays to which connections fail, as long as another one is left: each is tried anew all the time.
    pub(super) fn unreachable_relays(&self) -> Vec<String> {
        self.unless_all(self.relays_that(|name| self.is_failing(&Service::Trs(name.into()))))
    }

    /// Relays for which that is so.
    pub(super) fn relays_that(&self, is_so: impl Fn(&str) -> bool) -> Vec<String> {
        let names = self.registration.known.relays.iter().map(|relay| &relay.name);
        names.filter(|name| is_so(name)).take(MAX_FAILED).cloned().collect()
    }

    /// None of the relays if there is no other that this node may use.
    pub(super) fn unless_all(&self, failed: Vec<String>) -> Vec<String> {
        let is_left = |name: &String| self.may_use(name) && !failed.contains(name);
        let another = self.registration.known.relays.iter().any(|relay| is_left(&relay.name));
        if another { failed } else { Vec::new() }
    }

    /// Whether this node's tunnels may go through a relay.
    pub(super) fn may_use(&self, relay: &str) -> bool {
        self.config.pinned_relay.as_ref().is_none_or(|pinned| pinned == relay)
    }

    /// Looks at the network, and again after a while.
    pub(super) fn netcheck(&mut self, now: Instant) {
        let known = &self.registration.known;
        let relays = known.relays.iter().flat_map(|relay| &relay.addresses);
        let mut servers = Vec::new();
        let (_, nms) = self.nms();
        for server in nms.iter().chain(&known.nms_addresses).chain(relays).chain(&self.config.as_addresses) {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
        let own = self.registration.addresses.clone();
        self.act(Action::Netcheck { servers, own });
        let network = &mut self.registration.network;
        network.next_look = Some(now + AGAIN.mul_f64(self.rng.random_range(0.75..=1.25)));
        // Until it has told what there is to tell.
        let wait = network.in_vain.next(UNPROVEN_AGAIN, AGAIN, &mut self.rng);
        self.timers.set(Timer::Netcheck, now + wait);
        self.look_in_time();
    }

    /// There is no hurry with the next look where nothing is missing.
    fn look_in_time(&mut self) {
        let unproven = Family::ALL.into_iter().any(|family| self.holds_unproven(family));
        let network = &mut self.registration.network;
        if let Some(next) = network.next_look.filter(|_| !unproven) {
            network.in_vain.reset();
            self.timers.set(Timer::Netcheck, next);
        }
    }
}

fn matters(known: Duration, measured: Duration) -> bool {
    let difference = known.abs_diff(measured);
    difference > WORTH_TELLING && difference > known / 4
}
