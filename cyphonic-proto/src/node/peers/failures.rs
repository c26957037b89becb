//! What failed on the way to a peer, and is not tried again for a while.

use std::net::Ipv6Addr;
use std::time::Instant;

use super::Peer;
use crate::message::RouteKind;
use crate::node::{Node, Service};

/// Routes and relays that did not join this node and one peer.
#[derive(Default)]
pub(in crate::node) struct Failures {
    /// Until when they are not proposed again.
    routes: Vec<(RouteKind, Instant)>,
    /// The same, while another is left.
    relays: Vec<(String, Instant)>,
}

impl Failures {
    /// A route without a relay failed; it is left out until then.
    fn route(&mut self, kind: RouteKind, until: Instant) {
        self.routes.retain(|(other, _)| *other != kind);
        self.routes.push((kind, until));
    }

    /// A relay failed; it is left out until then.
    fn relay(&mut self, name: &str, now: Instant, until: Instant) {
        self.relays.retain(|(other, until)| other != name && *until > now);
        self.relays.push((name.into(), until));
    }

    /// Routes whose time is up may be tried again.
    pub(super) fn expire_routes(&mut self, now: Instant) {
        self.routes.retain(|(_, until)| *until > now);
    }

    /// Those that failed, whether their time is up or not.
    pub(in crate::node) fn routes(&self) -> impl Iterator<Item = RouteKind> {
        self.routes.iter().map(|(kind, _)| *kind)
    }

    pub(super) fn has_routes(&self) -> bool {
        !self.routes.is_empty()
    }

    /// Whether the relay is left out now.
    fn has_relay(&self, name: &str, now: Instant) -> bool {
        self.relays.iter().any(|(relay, until)| relay == name && *until > now)
    }

    /// Whether any relay is left out now.
    fn has_relays(&self, now: Instant) -> bool {
        self.relays.iter().any(|(_, until)| *until > now)
    }

    /// All that failed is tried again.
    pub(super) fn forgive(&mut self) {
        *self = Self::default();
    }

    /// Relays that failed are tried again.
    pub(super) fn forgive_relays(&mut self) {
        self.relays.clear();
    }
}

impl Node {
    /// Another route is tried. The last relay is the last of them: where not even that helps, the peer may
    /// have been away, and all may work again.
    pub(in crate::node) fn route_failed(
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
                peer.failures.route(kind, until);
            }
        }
    }

    /// The peer takes no part in a set-up through a relay, which need not be the relay's fault: the peer may
    /// have been away. It knows itself what it does not reach as soon as its own dial has failed, and
    /// refuses that relay at once then.
    pub(in crate::node) fn relay_not_taken(&mut self, now: Instant, address: Ipv6Addr, relay: &str) {
        self.pass_over(now, address, relay, now + self.config.timing.connect);
    }

    fn pass_over(&mut self, now: Instant, address: Ipv6Addr, relay: &str, until: Instant) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.failures.relay(relay, now, until);
        if !self.failures_leave_another_relay(now, address) {
            self.peers.get_mut(&address).into_iter().for_each(|peer| peer.failures.forgive());
        }
    }

    /// Relays that did not join this node and the peer just now, or to which connections fail, as long as
    /// another one is left.
    pub(super) fn failed_relays(&self, now: Instant, address: Ipv6Addr) -> Vec<String> {
        let Some(peer) = self.peers.get(&address) else { return self.unreachable_relays() };
        let waits_for = |name: &str| {
            let tunnels = peer.tunnels.iter().filter_map(|id| self.tunnels.get(id));
            tunnels.filter(|tunnel| tunnel.is_leg_away()).any(|tunnel| tunnel.relay.as_deref() == Some(name))
        };
        let all = self.relays_that(|name| {
            peer.failures.has_relay(name, now)
                || waits_for(name)
                || self.is_failing(&Service::Trs(name.into()))
        });
        self.unless_all(all)
    }

    /// Whether relays failed for this very peer just now, and another one is left.
    pub(super) fn failures_leave_another_relay(&self, now: Instant, address: Ipv6Addr) -> bool {
        let failed = |peer: &Peer| peer.failures.has_relays(now);
        self.peers.get(&address).is_some_and(failed) && !self.failed_relays(now, address).is_empty()
    }

    pub(in crate::node) fn forgive_routes(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.failures.forgive());
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use std::time::Duration;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn routes(failures: &Failures) -> Vec<RouteKind> {
        failures.routes().collect()
    }

    #[test]
    fn a_route_is_known_once_and_until_routes_expire() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.route(RouteKind::Direct, now + S);
        failures.route(RouteKind::HolePunch, now + S * 2);
        failures.route(RouteKind::Direct, now + S * 3);
        assert_eq!(routes(&failures), [RouteKind::HolePunch, RouteKind::Direct]);
        failures.expire_routes(now + S);
        assert_eq!(routes(&failures).len(), 2, "the later failure counts");
        failures.expire_routes(now + S * 2);
        assert_eq!(routes(&failures), [RouteKind::Direct]);
        failures.expire_routes(now + S * 3);
        assert!(!failures.has_routes());
    }

    #[test]
    fn a_relay_is_left_out_until_its_time_is_up() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.relay("trs-a.lab", now, now + S);
        failures.relay("trs-b.lab", now, now + S * 2);
        assert!(failures.has_relay("trs-a.lab", now) && !failures.has_relay("trs-c.lab", now));
        assert!(!failures.has_relay("trs-a.lab", now + S) && failures.has_relays(now + S));
        failures.relay("trs-b.lab", now + S, now + S * 3);
        assert_eq!(failures.relays.len(), 1, "what is over makes room, and each is there once");
        assert!(failures.has_relay("trs-b.lab", now + S * 2) && !failures.has_relays(now + S * 3));
    }

    #[test]
    fn what_is_forgiven_is_forgotten() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.route(RouteKind::Direct, now + S);
        failures.relay("trs-a.lab", now, now + S);
        failures.forgive_relays();
        assert!(failures.has_routes() && !failures.has_relays(now));
        failures.relay("trs-a.lab", now, now + S);
        failures.forgive();
        assert!(!failures.has_routes() && !failures.has_relays(now));
    }
}
