//! The node moves: its host gets, loses or changes networks, in one address family or both, or sleeps.
//!
//! QUIC carries a connection from one address to another of the same family (RFC 9000 §9), but only the
//! service that a packet reaches can follow: so each connection sends at once, with a request whose answer
//! tells that the service has followed and what it sees now. A connection whose service is not reachable over
//! its family any more cannot migrate, as the service's address would change: the service is dialled over the
//! other family, next to the connection that stands, which the newer one replaces at the service.
//!
//! Without any route the node waits: nothing is dialled, no wait grows, and nothing that may serve again is
//! given up. The first route that comes is used at once.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::exchanges::Purpose;
use super::{Action, Node, Service, ServiceState, Timer};
use crate::address::Prefix;
use crate::message::endpoint::is_candidate;
use crate::message::{Message, ObservationRequest};
use crate::quic::IDLE_TIMEOUT;
use crate::stun::Transaction;

/// An answer that takes longer after a move does not come: the network does not let the connection through.
/// By then QUIC has repeated the request twice on a path of 250 ms.
pub(super) const ANSWERED: Duration = Duration::from_secs(1);

/// Calls of one TRS that are answered at a time: whoever can write its address on packets makes no more of
/// them.
const MOST_CALLS: usize = 4;

/// What the host's routing tables say.
pub trait Routes {
    /// The local address from which the host would send to `remote` now; none if no route leads there.
    fn source_for(&self, remote: SocketAddr) -> Option<IpAddr>;
}

/// A time in which the node could do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// How long it was.
    pub length: Duration,
    /// How far the clock of [`Node`]'s `now` went on meanwhile: it stands still while a host sleeps, and not
    /// while a process is stopped.
    pub counted: Duration,
}

/// The routes of a host that tells of no address: the kernel keeps those by interfaces without a carrier.
/// From addresses that nobody is ever told of (loopback, link-local) something may be reached all the same.
struct Untold<'a> {
    routes: &'a dyn Routes,
    overlay: Prefix,
}

impl Routes for Untold<'_> {
    fn source_for(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.routes.source_for(remote).filter(|own| !is_candidate(*own, self.overlay))
    }
}

impl Node {
    /// The host is attached to networks in another way than before: these are its own addresses now, and
    /// `routes` says what they reach. To be told of every change, however many come at once.
    pub fn handle_addresses(&mut self, now: Instant, addresses: &[SocketAddr], routes: &dyn Routes) {
        if self.stopped {
            return;
        }
        self.addresses_changed(addresses);
        self.registration.moves = true;
        let untold = Untold { routes, overlay: self.prefix };
        let routes = if addresses.is_empty() { &untold } else { routes };
        self.turn_where_routes_lead(routes);
        let services: Vec<_> = self.services.keys().cloned().collect();
        let same_way: Vec<_> =
            services.iter().filter(|service| self.note_reach(service, routes)).cloned().collect();
        self.act(Action::Migrate);
        for service in services {
            match self.services.get(&service) {
                Some(slot) if !slot.reachable => {}
                // On a host whose routes change all the time a dial would never come to its end.
                Some(slot) if slot.is_sought() && same_way.contains(&service) => {
                    self.hurry(now, &service);
                }
                Some(slot) if slot.remote.is_some_and(|remote| routes.source_for(remote).is_none()) => {
                    self.replace_connection(now, &service, "no route leads to its address any more");
                }
                Some(_) | None => self.hurry_after_move(now, &service),
            }
        }
        self.try_to_leave_detours(now);
        self.hold_mappings(now);
        let late = self.note_ways(now, routes);
        self.move_tunnels(now);
        self.registration.moves = false;
        self.expect_nobody(&late);
        self.changed();
    }

    /// The host slept, or this process was stopped: NATs, services and peers may have forgotten it.
    pub fn handle_resumed(&mut self, now: Instant, sleep: Sleep) {
        if self.stopped {
            return;
        }
        // Tunnels that were in use before are so now: a peer that has given its end up is asked for another
        // at once.
        for tunnel in self.tunnels.values_mut() {
            tunnel.last_use = (tunnel.last_use + sleep.counted).min(now);
        }
        self.act(Action::Migrate);
        self.registration.moves = true;
        for service in self.services.keys().cloned().collect::<Vec<_>>() {
            let connected = self.is_connected(&service);
            match self.services.get(&service) {
                Some(slot) if !slot.reachable => {}
                Some(_) if connected && sleep.length >= IDLE_TIMEOUT => {
                    self.replace_connection(now, &service, "this host slept for longer than it waits");
                }
                Some(_) | None => self.hurry_after_move(now, &service),
            }
        }
        if sleep.length >= IDLE_TIMEOUT {
            self.registration.network.look_anew();
        }
        self.hold_mappings(now);
        self.move_tunnels(now);
        self.registration.moves = false;
        if sleep.length >= self.config.timing.silence {
            let all: Vec<_> = self.tunnels.keys().copied().collect();
            self.expect_nobody(&all);
        }
        self.changed();
    }

    /// A service answered, so that it knows where the node is.
    pub(super) fn followed(&mut self, now: Instant, service: &Service) {
        if self.is_connected(service) {
            self.timers.clear(&Timer::Service(service.clone()));
        }
        if let Service::Trs(trs) = service {
            self.relay_followed(now, trs);
        }
    }

    /// A relay is connected, perhaps over the other address family than before: what goes through it goes
    /// there.
    pub(super) fn follow_relay(&mut self, now: Instant, trs: &str) {
        let Some(remote) = self.remote_of(&Service::Trs(trs.into())) else { return };
        for id in self.tunnels_via(trs) {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            let Some(leg) = tunnel.paths.relay_leg() else { continue };
            if !tunnel.paths.set_relay(Some((remote, leg))) {
                continue;
            }
            let current = tunnel.paths.is_relayed();
            if current {
                tunnel.remote = remote;
            }
            self.act(Action::ExpectReset { id, from: remote });
            if current {
                self.act(Action::SetPath { id, remote, wire_cid: leg });
            } else {
                // The dataplane learns by it how the peer's probes are answered there.
                self.probe(now, id, remote);
            }
        }
    }

    /// Returns whether the host would send to the service as before.
    fn note_reach(&mut self, service: &Service, routes: &dyn Routes) -> bool {
        let Some(slot) = self.services.get_mut(service) else { return false };
        let sources: Vec<_> = slot.addresses.iter().map(|address| routes.source_for(*address)).collect();
        slot.reachable = sources.iter().any(Option::is_some);
        let before = slot.sources.replace(sources);
        before == slot.sources
    }

    /// Uses a service's connection, or dials it, without further waiting.
    fn hurry_after_move(&mut self, now: Instant, service: &Service) {
        let Some(slot) = self.services.get_mut(service) else { return };
        match slot.state {
            ServiceState::Unwanted => {}
            ServiceState::Connected => self.nudge(now, service),
            // A handshake does not migrate (RFC 9000 §9): the one under way is given up.
            ServiceState::Connecting | ServiceState::Waiting { .. } => {
                slot.backoff.reset();
                self.connect(now, service.clone());
            }
        }
    }

    /// Asks something, so that the service follows; its silence means that the connection is of no use here.
    pub(super) fn nudge(&mut self, now: Instant, service: &Service) {
        self.nudge_for(now, service, ANSWERED);
    }

    /// Somebody at this address calls the node by a number. If that is a TRS, it sees the node elsewhere than
    /// before, perhaps because a NAT has changed, of which no network event tells: it gets the number back,
    /// which proves that the node receives there, and tells where that is.
    pub fn handle_called(&mut self, now: Instant, from: SocketAddr, number: Transaction) {
        let is_caller = |service: &&Service| {
            matches!(service, Service::Trs(_))
                && self.is_connected(service)
                && self.remote_of(service) == Some(from)
        };
        let Some(trs) = self.services.keys().find(is_caller).cloned() else { return };
        if self.observations_under_way(&trs) < MOST_CALLS {
            let message = Message::ObservationRequest(ObservationRequest { proof: number.to_vec() });
            self.request(now, trs, Purpose::Observe { server: from }, message);
        }
    }

    /// The same, with so much time for the answer.
    pub(super) fn nudge_for(&mut self, now: Instant, service: &Service, patience: Duration) {
        match service {
            // The login is under way, or the connection about to close.
            Service::As => return,
            Service::Nms => self.register_again(now),
            Service::Trs(_) => {
                let Some(server) = self.remote_of(service) else { return };
                let message = Message::ObservationRequest(ObservationRequest::default());
                self.request(now, service.clone(), Purpose::Observe { server }, message);
            }
        }
        self.timers.set(Timer::Service(service.clone()), now + patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct From(IpAddr);

    impl Routes for From {
        fn source_for(&self, _: SocketAddr) -> Option<IpAddr> {
            Some(self.0)
        }
    }

    #[test]
    fn where_no_address_is_told_of_only_those_lead_somewhere_that_never_are() {
        let overlay = "fd12:3456:789a::/48".parse().unwrap();
        for (own, leads) in [
            ("127.0.0.1", true),
            ("169.254.7.7", true),
            ("fe80::7", true),
            ("192.168.1.7", false),
            ("198.51.100.7", false),
            ("2001:db8::7", false),
        ] {
            let from = From(own.parse().unwrap());
            let untold = Untold { routes: &from, overlay };
            assert_eq!(untold.source_for(([192, 0, 2, 1], 443).into()).is_some(), leads, "{own}");
        }
    }
}
