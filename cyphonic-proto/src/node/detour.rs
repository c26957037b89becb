//! Where the network passes no UDP: services are reached by TLS over TCP, and by UDP again as soon as that
//! works.
//!
//! UDP always goes first. A dial that UDP does not answer soon gets a second one beside it, over TCP, and the
//! first of the two that stands is the connection. Where UDP was found blocked before, both start together,
//! which costs nothing where UDP works again: its handshake takes fewer round trips. A connection by TCP goes
//! on while UDP is tried beside it, and is replaced as soon as UDP answers; tunnels through a relay follow as
//! they do when the node moves ([`moves`](super::moves)).
//!
//! Nothing says of a network that it has begun to block UDP but silence. So a tunnel that takes packets and
//! brings none casts doubt on the connection to its relay, or to the NMS if it has none, a service that does
//! not answer casts it on itself, and one that was reached by TCP on all others: they are asked, and dialled
//! anew if they do not answer ([`moves`](super::moves)).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::services::Slot;
use super::{Action, Node, Service, ServiceState, Timer};
use crate::backoff::Backoff;
use crate::id::TunnelId;
use crate::message::{bounded, endpoint};

/// Waits between attempts to leave a detour; each takes one handshake.
const LEAVE_LEAST: Duration = Duration::from_secs(10);
const LEAVE_MOST: Duration = Duration::from_secs(60);
/// So long after a question a dial is because of its missing answer.
const DOUBTED: Duration = Duration::from_secs(2);
/// A service in doubt is asked no more often: later than it is judged by its silence, and no rarer than a
/// peer that only receives makes it look silent, since every question may be the first one that is in vain.
const DOUBT_AGAIN: Duration = Duration::from_secs(2);

/// How a service is dialled and connected.
#[derive(Default)]
pub(super) struct Way {
    /// Dials under way.
    udp: bool,
    tcp: bool,
    /// The TCP address that the connection which stands goes through.
    through: Option<SocketAddr>,
    /// Of attempts to leave the detour.
    attempts: Backoff,
    doubted: Option<Instant>,
}

impl Way {
    pub(super) fn through(&self) -> Option<SocketAddr> {
        self.through
    }

    /// Whether a dial over TCP is left, beside which the one over UDP has failed.
    pub(super) fn is_by_tcp_alone(&self) -> bool {
        self.tcp && !self.udp
    }

    /// No connection stands, and no dial is under way.
    pub(super) fn end(&mut self) {
        (self.udp, self.tcp, self.through) = (false, false, None);
    }
}

impl Node {
    /// A dial over UDP has begun; one over TCP follows, unless UDP answers.
    pub(super) fn plan_detour(&mut self, now: Instant, service: &Service) {
        let elsewhere = || self.services.values().any(|slot| slot.way.through.is_some());
        let blocked = self.registration.known.udp_blocked || elsewhere();
        let Some(ahead) = self.config.timing.detour else { return };
        let Some(slot) = self.services.get_mut(service) else { return };
        slot.way.end();
        slot.way.udp = true;
        // A connection that has just not answered had its time.
        let silent = slot.way.doubted.is_some_and(|asked| now < asked + DOUBTED);
        match blocked || silent {
            true => self.detour_due(now, service),
            false => self.timers.set(Timer::Detour(service.clone()), now + ahead),
        }
    }

    /// UDP did not answer in time, or it is time to try it again.
    pub(super) fn detour_due(&mut self, now: Instant, service: &Service) {
        let Some(slot) = self.services.get_mut(service) else { return };
        let (addresses, name) = (slot.addresses.clone(), slot.name.clone());
        match slot.state {
            ServiceState::Connecting if !slot.way.tcp => {
                slot.way.tcp = true;
                self.act(Action::ConnectByDetour { service: service.clone(), addresses, name });
            }
            ServiceState::Connected if slot.way.through.is_some() => {
                slot.way.udp = true;
                let wait = slot.way.attempts.next(LEAVE_LEAST, LEAVE_MOST, &mut self.rng);
                self.timers.set(Timer::Detour(service.clone()), now + wait);
                self.act(Action::LeaveDetour { service: service.clone(), addresses, name });
            }
            _ => {}
        }
    }

    /// A connection that [`Action::Connect`] or [`Action::LeaveDetour`] asked for is up, to this address:
    /// anew, or beside the detour, which it replaces.
    pub fn handle_connected(&mut self, now: Instant, service: Service, remote: SocketAddr) {
        let remote = endpoint::canonical(remote);
        let Some(slot) = self.services.get_mut(&service) else {
            return self.service_connected(now, service, remote);
        };
        let leaves = slot.state == ServiceState::Connected && slot.way.through.is_some() && slot.way.udp;
        self.timers.clear(&Timer::Detour(service.clone()));
        if leaves {
            slot.enter(now, ServiceState::Connecting);
            self.connection_lost(now, &service, "UDP works again");
        } else if slot.state == ServiceState::Connecting {
            slot.way.end();
        }
        self.service_connected(now, service, remote);
        self.note_blocked(now);
    }

    /// A connection that [`Action::ConnectByDetour`] asked for is up: to `local`, a UDP address that stands
    /// for the service, through TLS with `through`.
    pub fn handle_detour_connected(
        &mut self,
        now: Instant,
        service: Service,
        local: SocketAddr,
        through: SocketAddr,
    ) {
        let (local, through) = (endpoint::canonical(local), endpoint::canonical(through));
        let wanted = |slot: &&mut Slot| slot.state == ServiceState::Connecting && slot.way.tcp;
        let Some(slot) = self.services.get_mut(&service).filter(wanted) else {
            if !self.is_connected(&service) {
                self.act(Action::Disconnect { service });
            }
            return;
        };
        slot.way.end();
        slot.way.through = Some(through);
        slot.way.attempts.reset();
        let wait = slot.way.attempts.next(LEAVE_LEAST, LEAVE_MOST, &mut self.rng);
        self.timers.set(Timer::Detour(service.clone()), now + wait);
        // Before it is told of anything, so that what it is told is true.
        self.note_blocked_by(now, &service);
        self.service_connected(now, service.clone(), local);
        let others = self.services.iter().filter(|(other, slot)| **other != service && slot.is_by_udp());
        for other in others.map(|(other, _)| other.clone()).collect::<Vec<_>>() {
            self.doubt_service(now, &other);
        }
    }

    /// A connection that [`Action::Connect`] or [`Action::LeaveDetour`] asked for could not be opened: the
    /// dial over TCP may bring one yet, or has.
    pub fn handle_connect_failed(&mut self, now: Instant, service: Service, reason: String) {
        let Some(slot) = self.services.get_mut(&service) else { return };
        slot.way.udp = false;
        match slot.state {
            ServiceState::Connecting if slot.way.tcp => {
                slot.last_error = Some(bounded(&reason));
            }
            ServiceState::Connected if slot.way.through.is_some() => {}
            _ => self.service_failed(now, &service, &reason),
        }
    }

    /// A connection that [`Action::ConnectByDetour`] asked for could not be opened: the dial over UDP may
    /// bring one yet.
    pub fn handle_detour_failed(&mut self, now: Instant, service: Service, reason: String) {
        let Some(slot) = self.services.get_mut(&service) else { return };
        slot.way.tcp = false;
        if slot.state == ServiceState::Connecting && !slot.way.udp {
            // UDP's error is about the way that should be open.
            let reason = slot.last_error.take().unwrap_or(reason);
            self.service_failed(now, &service, &reason);
        }
    }

    /// The host's networks changed: UDP may pass now.
    pub(super) fn try_to_leave_detours(&mut self, now: Instant) {
        for (service, slot) in &mut self.services {
            if slot.way.through.is_some() {
                slot.way.attempts.reset();
                self.timers.set(Timer::Detour(service.clone()), now);
            }
        }
    }

    /// Nothing comes through a tunnel any more: is it the peer, or the way to everything?
    pub(super) fn doubt_way(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let service = tunnel.relay.clone().map_or(Service::Nms, Service::Trs);
        self.doubt_service(now, &service);
    }

    /// Asks a service that is connected; if it does not answer, it is dialled anew.
    pub(super) fn doubt_service(&mut self, now: Instant, service: &Service) {
        if self.config.timing.detour.is_none() {
            return;
        }
        let Some(slot) = self.services.get_mut(service) else { return };
        let asked = slot.way.doubted.is_some_and(|asked| now < asked + DOUBT_AGAIN);
        // Without a route the silence is explained.
        if slot.state == ServiceState::Connected && slot.reachable && !asked {
            slot.way.doubted = Some(now);
            self.nudge(now, service);
        }
    }

    /// A service stands by TCP.
    fn note_blocked_by(&mut self, now: Instant, service: &Service) {
        let by_udp = |(other, slot): (&Service, &Slot)| other != service && slot.is_by_udp();
        if !self.services.iter().any(by_udp) {
            self.set_blocked(now, true);
        }
    }

    /// UDP is blocked as long as services stand by TCP, and none over UDP.
    fn note_blocked(&mut self, now: Instant) {
        if self.services.values().any(Slot::is_by_udp) {
            self.set_blocked(now, false);
        } else if self.services.values().any(|slot| slot.way.through.is_some()) {
            self.set_blocked(now, true);
        }
    }

    fn set_blocked(&mut self, now: Instant, blocked: bool) {
        if self.registration.known.udp_blocked == blocked {
            return;
        }
        self.learn_blocked(now, blocked);
        if !blocked {
            self.try_to_leave_detours(now);
        }
    }
}

impl Slot {
    fn is_by_udp(&self) -> bool {
        self.state == ServiceState::Connected && self.way.through.is_none()
    }
}
