//! What a node sends so that NATs on its way keep their mappings, and no more.
//!
//! A mapping lives as long as it was proven to, and its holder sends after three quarters of that. As long as
//! nothing is proven, two seconds are assumed, the shortest that is met (RFC 4787 §4.3 asks for two minutes,
//! and many give less). A node without a NAT has nothing to hold, but perhaps a firewall, which is given the
//! usual time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::tunnels::Tunnel;
use super::{Action, Node, Service, ServiceState, Timer, Timing};
use crate::nat::{self, Family, NatFinding};
use crate::netcheck::UNPROVEN_LIFETIME;
use crate::quic;

impl Node {
    /// How long this end of a tunnel may be silent; `None` where it need not say anything.
    pub(super) fn tunnel_keepalive(&self, now: Instant, tunnel: &Tunnel) -> Option<Duration> {
        let Timing { relay_keepalive, idle, .. } = self.config.timing;
        if !tunnel.paths.is_relayed() {
            return self.mapping_interval(&tunnel.remote);
        }
        // The connection to the relay holds the mapping. But an end that only receives would not hear that
        // the relay has restarted: the answer to its own packets tells.
        // One that waits for the NMS to be back must keep its leg, which ends without packets.
        let interval = if tunnel.is_used(now) {
            Some(relay_keepalive)
        } else {
            (!self.registration.registered).then_some(idle)
        };
        interval.filter(|_| tunnel.leg.is_some())
    }

    /// Holds the mappings of the connections by which services reach this node: that of the NMS, and of
    /// relays that tunnels may use.
    pub(super) fn hold_mappings(&mut self, now: Instant) {
        let needed = |service: &Service| match service {
            Service::As => false,
            Service::Nms => true,
            Service::Trs(name) => self.uses_relay(name),
        };
        let connected = self
            .services
            .iter()
            .filter(|(service, slot)| slot.state == ServiceState::Connected && needed(service));
        // A detour has no mapping of UDP, and sees to its own connection.
        let by_udp = connected.filter(|(_, slot)| slot.way.through().is_none());
        let remotes: Vec<_> = by_udp.filter_map(|(_, slot)| slot.remote).collect();
        let held = |remote: &SocketAddr| {
            let nat = self.nat_of(Family::of(remote));
            let interval = self.mapping_interval(remote).filter(|_| is_translated(nat))?;
            (interval < quic::KEEP_ALIVE).then_some((*remote, interval))
        };
        let held: Vec<_> = remotes.iter().filter_map(held).collect();
        let Some(interval) = held.iter().map(|(_, interval)| *interval).min() else { return };
        self.act(Action::Punch { remotes: held.into_iter().map(|(remote, _)| remote).collect() });
        self.timers.set(Timer::Mappings, now + interval);
    }

    fn mapping_interval(&self, remote: &SocketAddr) -> Option<Duration> {
        let usual = self.config.timing.keepalive;
        let family = Family::of(remote);
        match self.nat_of(family) {
            nat if is_translated(nat) => {
                let lifetime = self.mapping_lifetime(family).unwrap_or(UNPROVEN_LIFETIME);
                Some(lifetime * 3 / 4)
            }
            NatFinding::NoAddress => None,
            // Nothing filters, so there is nothing to hold.
            _ if self.findings().of(family).is_open() => None,
            _ => Some(usual),
        }
    }

    /// How long a mapping is known to live without packets.
    fn mapping_lifetime(&self, family: Family) -> Option<Duration> {
        self.registration.network.findings.mapping_lifetime(family)
    }

    /// A NAT has this node's mappings, and nobody knows for how long.
    pub(super) fn holds_unproven(&self, family: Family) -> bool {
        let mut seen = self.registration.observations.iter().map(|(_, observed)| Family::of(observed));
        let translated = is_translated(self.nat_of(family)) && seen.any(|of| of == family);
        translated && self.mapping_lifetime(family).is_none()
    }

    fn nat_of(&self, family: Family) -> NatFinding {
        nat::find(family, &self.registration.addresses, &self.registration.observations)
    }
}

const fn is_translated(nat: NatFinding) -> bool {
    match nat {
        NatFinding::NoAddress | NatFinding::None => false,
        NatFinding::EndpointIndependent | NatFinding::AddressDependent | NatFinding::Unknown => true,
    }
}
