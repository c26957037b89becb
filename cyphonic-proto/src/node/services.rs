//! Connections to services: opened while wanted, reopened with growing waits.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;

use super::detour::Way;
use super::{Action, Node, Service, ServiceState, Timer};
use crate::backoff::Backoff;

/// A connection to a service.
pub(super) struct Slot {
    pub(super) state: ServiceState,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) name: String,
    pub(super) remote: Option<SocketAddr>,
    pub(super) since: Instant,
    pub(super) backoff: Backoff,
    /// How often the service was there again after a failure, since a connection last stood.
    returns: u32,
    /// Whether the host had a route to any of the addresses when it last said.
    pub(super) reachable: bool,
    /// From where it would have sent to each address when it last said; none before, or if the addresses are
    /// others since.
    pub(super) sources: Option<Vec<Option<IpAddr>>>,
    pub(super) last_error: Option<String>,
    /// Of resets, which anybody may repeat: ever fewer are believed, from this time on.
    resets: Backoff,
    believes_from: Option<Instant>,
    /// Dials begun anew because of resets.
    redials: u32,
    pub(super) way: Way,
}

impl Node {
    /// Wants a connection; opens it unless that is under way.
    pub(super) fn want(&mut self, now: Instant, service: Service, addresses: &[SocketAddr], name: &str) {
        if self.stopped || addresses.is_empty() {
            return;
        }
        let slot = self.services.entry(service.clone()).or_insert_with(|| Slot::new(now));
        slot.name = name.into();
        if slot.addresses != addresses {
            slot.addresses = addresses.to_vec();
            // Whether a route leads to these the dial finds out.
            (slot.reachable, slot.sources) = (true, None);
            if matches!(slot.state, ServiceState::Waiting { .. }) {
                slot.backoff.reset();
                return self.connect(now, service);
            }
        }
        match slot.state {
            ServiceState::Unwanted if slot.reachable => self.connect(now, service),
            ServiceState::Unwanted => self.wait(now, &service, "this host has no route to it"),
            ServiceState::Connecting | ServiceState::Connected | ServiceState::Waiting { .. } => {}
        }
    }

    /// Somebody waits for the service: a long wait after failures is cut short, though not so that a service
    /// that is down is asked all the time. Returns whether a dial began.
    pub(super) fn hurry(&mut self, now: Instant, service: &Service) -> bool {
        let least = self.config.timing.backoff_least * 2;
        let waiting = |slot: &Slot| {
            matches!(slot.state, ServiceState::Waiting { .. }) && slot.reachable && slot.since + least <= now
        };
        let dials = self.services.get(service).is_some_and(waiting);
        if dials {
            self.connect(now, service.clone());
        }
        dials
    }

    /// Wants it no more.
    pub(super) fn unwant(&mut self, now: Instant, service: &Service) {
        let failed = self.is_failing(service);
        let Some(slot) = self.services.get_mut(service) else { return };
        // While it waits, the shell may still have the connection that was to be replaced.
        let open = slot.state != ServiceState::Unwanted;
        slot.enter(now, ServiceState::Unwanted);
        self.timers.clear(&Timer::Service(service.clone()));
        if open {
            self.act(Action::Disconnect { service: service.clone() });
        }
        if matches!(service, Service::Trs(_)) {
            self.services.remove(service);
            if failed {
                // The NMS was told that it fails, and has no round trip to it.
                self.relay_reach_changed(now);
            }
        }
        self.changed();
    }

    pub(super) fn is_connected(&self, service: &Service) -> bool {
        self.services.get(service).is_some_and(|slot| slot.state == ServiceState::Connected)
    }

    pub(super) fn is_connecting(&self, service: &Service) -> bool {
        self.services.get(service).is_some_and(|slot| slot.state == ServiceState::Connecting)
    }

    /// Whether a service could not be reached when it was last tried. A dial of a host that is silent takes
    /// far longer than the wait before it.
    pub(super) fn is_failing(&self, service: &Service) -> bool {
        self.services.get(service).is_some_and(|slot| match slot.state {
            ServiceState::Waiting { .. } => true,
            ServiceState::Connecting => slot.last_error.is_some(),
            ServiceState::Unwanted | ServiceState::Connected => false,
        })
    }

    /// Whether a service is dialled for the first time, so that it is not known whether it can be reached.
    pub(super) fn is_undecided(&self, service: &Service) -> bool {
        let is_dialled = |slot: &Slot| slot.state == ServiceState::Connecting;
        self.services.get(service).is_some_and(is_dialled) && !self.is_failing(service)
    }

    pub(super) fn remote_of(&self, service: &Service) -> Option<SocketAddr> {
        self.services.get(service).and_then(|slot| slot.remote)
    }

    /// How a service stands, for an error.
    pub(super) fn explain(&self, service: &Service) -> String {
        let Some(slot) = self.services.get(service) else { return format!("{service} is not known yet") };
        let state = match slot.state {
            ServiceState::Unwanted => "is not connected",
            ServiceState::Connecting => "is being connected to",
            ServiceState::Connected => "is connected",
            ServiceState::Waiting { .. } => "cannot be reached",
        };
        if !slot.reachable {
            return format!("{service} {state}: this host has no route to it");
        }
        match &slot.last_error {
            Some(error) if slot.state != ServiceState::Connected => format!("{service} {state}: {error}"),
            _ => format!("{service} {state}"),
        }
    }

    pub(super) fn service_connected(&mut self, now: Instant, service: Service, remote: SocketAddr) {
        let wanted = self.services.get_mut(&service).filter(|slot| slot.state == ServiceState::Connecting);
        let Some(slot) = wanted else {
            // Given up in the meantime. An open connection is confirmed twice only by a shell in error.
            if !self.is_connected(&service) {
                self.act(Action::Disconnect { service });
            }
            return;
        };
        slot.enter(now, ServiceState::Connected);
        slot.redials = 0;
        slot.remote = Some(remote);
        self.timers.clear(&Timer::Service(service.clone()));
        self.changed();
        match service {
            Service::As => self.log_in(now),
            Service::Nms => self.register(now),
            Service::Trs(name) => self.trs_connected(now, &name),
        }
        self.hold_mappings(now);
    }

    /// A connection ended by itself.
    pub fn handle_disconnected(&mut self, now: Instant, service: Service, reason: String) {
        self.service_failed(now, &service, &reason);
    }

    /// The connection failed, or could not be opened; another attempt follows.
    pub(super) fn service_failed(&mut self, now: Instant, service: &Service, reason: &str) {
        let Some(slot) = self.services.get(service) else { return };
        match slot.state {
            ServiceState::Unwanted | ServiceState::Waiting { .. } => {}
            ServiceState::Connecting => {
                self.wait(now, service, reason);
                if let Service::Trs(name) = service {
                    self.relay_unreached(now, name);
                    self.leave_relays(now);
                }
            }
            ServiceState::Connected => {
                self.wait(now, service, reason);
                self.connection_lost(now, service, reason);
            }
        }
    }

    /// Closes a connection that does not serve, and tries again later.
    pub(super) fn service_broken(&mut self, now: Instant, service: &Service, reason: &str) {
        self.act(Action::Disconnect { service: service.clone() });
        self.service_failed(now, service, reason);
    }

    /// The relay has restarted, or so says a reset that anybody who saw it may repeat: it is dialled at once.
    /// The connection that stands is the shell's to keep until the new one does, and if nothing was wrong
    /// with it, nothing is lost but a handshake, as it is asked over the one that stands first while
    /// something is set up over it.
    pub(super) fn relay_restarted(&mut self, now: Instant, trs: &str) {
        let service = &Service::Trs(trs.into());
        let Some(slot) = self.services.get_mut(service) else { return };
        match slot.state {
            ServiceState::Unwanted => {}
            ServiceState::Connected => {
                if slot.believes_from.is_some_and(|from| now < from) {
                    return;
                }
                if slot.believes_from.is_none_or(|from| from + RESET_MOST <= now) {
                    slot.resets.reset();
                }
                slot.believes_from = Some(now + slot.resets.next(RESET_LEAST, RESET_MOST, &mut self.rng));
                if self.joins_via(trs) {
                    self.ask_relay(now, trs);
                } else {
                    self.replace_connection(now, service, "it has restarted");
                }
            }
            // What was sent before the service was there again is repeated only after a while.
            ServiceState::Connecting | ServiceState::Waiting { .. } => {
                if slot.since + REDIAL_LEAST * (1 << slot.redials.min(5)) <= now {
                    slot.redials = slot.redials.saturating_add(1);
                    self.connect(now, service.clone());
                }
            }
        }
    }

    pub(super) fn service_due(&mut self, now: Instant, service: &Service) {
        let Some(slot) = self.services.get_mut(service) else { return };
        match slot.state {
            // Without a route a dial cannot but fail; one that comes ends the wait.
            ServiceState::Waiting { .. } if !slot.reachable => {
                self.timers.set(Timer::Service(service.clone()), now + self.config.timing.backoff_most);
            }
            ServiceState::Waiting { .. } => self.connect(now, service.clone()),
            ServiceState::Connecting => {
                // UDP's, which says what was tried.
                let error = slot.last_error.take_if(|_| slot.way.is_by_tcp_alone());
                let reason =
                    error.unwrap_or_else(|| format!("no connection within {:?}", self.config.timing.connect));
                self.service_broken(now, service, &reason);
            }
            // Only a question sets a connection a time.
            ServiceState::Connected => self.replace_connection(now, service, "it did not answer"),
            ServiceState::Unwanted => {}
        }
    }

    /// The service did what it is there for: the dials that failed while it was away count no more. How often
    /// it is dialled depends on how long its connection stands ([`STOOD`]): one that is closed after each
    /// answer, as that of a device whose key another one has, is not to be dialled all the time.
    pub(super) fn service_proved(&mut self, service: &Service) {
        let Some(slot) = self.services.get_mut(service) else { return };
        if slot.last_error.take().is_some() {
            slot.returns = slot.returns.saturating_add(1);
            slot.backoff.forgive_but(slot.returns);
        }
        if *service == Service::As {
            // Its connection ends with the answer.
            slot.backoff.reset();
        }
    }

    /// The node's certificate was renewed: what is dialled from now on is dialled with the new one.
    ///
    /// A service ends a connection with the certificate that came with it.
    pub fn handle_renewed(&mut self, now: Instant) {
        for service in self.services.keys().cloned().collect::<Vec<_>>() {
            if self.is_connected(&service) {
                self.replace_connection(now, &service, "this device has a new certificate");
            }
        }
    }

    /// Dials a service that is connected, or seems to be: the connection is the shell's to keep until the new
    /// one stands.
    pub(super) fn replace_connection(&mut self, now: Instant, service: &Service, reason: &str) {
        // First of all: a request that fails on a connection would close it as one that does not serve.
        if let Some(slot) = self.services.get_mut(service) {
            slot.enter(now, ServiceState::Connecting);
        }
        self.connection_lost(now, service, reason);
        self.connect(now, service.clone());
    }

    pub(super) fn connect(&mut self, now: Instant, service: Service) {
        let Some(slot) = self.services.get_mut(&service) else { return };
        slot.enter(now, ServiceState::Connecting);
        let (addresses, name) = (slot.addresses.clone(), slot.name.clone());
        self.timers.set(Timer::Service(service.clone()), now + self.config.timing.connect);
        self.act(Action::Connect { service: service.clone(), addresses, name });
        self.plan_detour(now, &service);
        self.changed();
    }

    fn wait(&mut self, now: Instant, service: &Service, reason: &str) {
        let tries_another = *service == Service::Nms && self.turn_on();
        let timing = &self.config.timing;
        let awaited = |name| {
            self.tunnels.values().any(|tunnel| tunnel.relay.as_ref() == Some(name) && tunnel.leg.is_some())
        };
        let most = match service {
            Service::Trs(name) if awaited(name) => timing.relay_backoff,
            Service::Trs(_) | Service::As | Service::Nms => timing.backoff_most,
        };
        let Some(slot) = self.services.get_mut(service) else { return };
        slot.forgive(now);
        let wait = match slot.reachable {
            // Who lost the same NMS at the same moment is not to be at the next one at the same moment.
            true if tries_another => timing.backoff_least.mul_f64(self.rng.random_range(1.0..=4.0)),
            true => slot.backoff.next(timing.backoff_least.min(most), most, &mut self.rng),
            false => most,
        };
        let until = now + wait;
        slot.enter(now, ServiceState::Waiting { until });
        slot.last_error = Some(crate::message::bounded(reason));
        let (failures, reachable) = (slot.backoff.failures(), slot.reachable);
        self.timers.set(Timer::Service(service.clone()), until);
        self.changed();
        if matches!(service, Service::Trs(_)) {
            self.relay_reach_changed(now);
        }
        // A dial of each of them is one failure.
        let tries = if self.registration.known.standbys.is_empty() { NMS_FAILURES_BEFORE_LOGIN } else { 1 };
        if *service == Service::Nms && !tries_another && reachable && failures % tries == 0 {
            // It may have moved: the AS knows.
            self.want_login(now);
        }
    }

    pub(super) fn connection_lost(&mut self, now: Instant, service: &Service, reason: &str) {
        let why = format!("the connection to {service} was lost: {reason}");
        self.fail_exchanges(now, service, &why);
        match service {
            Service::As => {}
            Service::Nms => self.registration_lost(),
            Service::Trs(name) => self.relay_lost(now, name, &why),
        }
    }
}

const NMS_FAILURES_BEFORE_LOGIN: u32 = 3;
/// After a connection to a service that stood for so long, failures before it count no more. Longer than a
/// service takes to close one that it does not want, as that of a device that it does not let in.
pub const STOOD: Duration = Duration::from_secs(30);
/// Between resets that are believed: at first well over the time that a reconnection takes, then doubling.
const RESET_LEAST: Duration = Duration::from_secs(4);
const RESET_MOST: Duration = Duration::from_secs(120);
/// A dial is given this long, doubling, before a reset begins another: QUIC repeats its first packet as late.
const REDIAL_LEAST: Duration = Duration::from_millis(250);

impl Slot {
    fn new(now: Instant) -> Self {
        Self {
            state: ServiceState::Unwanted,
            addresses: Vec::new(),
            name: String::new(),
            remote: None,
            since: now,
            backoff: Backoff::default(),
            returns: 0,
            reachable: true,
            sources: None,
            last_error: None,
            resets: Backoff::default(),
            believes_from: None,
            redials: 0,
            way: Way::default(),
        }
    }

    /// Whether it is being dialled, or will be.
    pub(super) fn is_sought(&self) -> bool {
        matches!(self.state, ServiceState::Connecting | ServiceState::Waiting { .. })
    }

    /// Failures before a connection that stood are forgotten.
    fn forgive(&mut self, now: Instant) {
        if self.state == ServiceState::Connected && self.since + STOOD <= now {
            self.backoff.reset();
            self.returns = 0;
        }
    }

    pub(super) fn enter(&mut self, now: Instant, state: ServiceState) {
        // The failure for which it waits is one after those.
        if !matches!(state, ServiceState::Waiting { .. }) {
            self.forgive(now);
        }
        self.state = state;
        self.since = now;
        if state != ServiceState::Connected {
            self.remote = None;
            self.way.end();
        }
    }
}
