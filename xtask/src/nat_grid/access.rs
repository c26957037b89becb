//! What two devices' networks allow, by their NATs' kinds alone: who can meet without a relay by punching
//! holes.
//!
//! A device is reached through one or more routers, each of which maps and filters (RFC 4787); what counts is
//! the strictest of each. In a family that both have, with UDP, two devices can meet (RFC 5128 §3.3 and
//! §3.4):
//!
//! | Mapping of one | Mapping of the other | Can meet |
//! |---|---|---|
//! | endpoint-independent | endpoint-independent | always: each knows the other's external endpoint |
//! | endpoint-independent | dependent | if the first one's filtering does not depend on ports, since nobody knows the other's next port before its packet arrives |
//! | dependent | dependent | no (ports can be guessed where they are counted, but that is luck) |
//!
//! No NAT is an endpoint-independent mapping; a firewall that admits answers filters by address and port, but
//! for IPv4 through a NAT on the same router, whose filtering is its own.
//! Those behind the same NAT meet by its external endpoints only where it hairpins, and on the same network
//! always. Behind a translator from IPv6 a device has IPv4 with the translator's kind.

use cyphonic_lab::Topology;
use cyphonic_lab::nat::table::Dependence;
use cyphonic_lab::topology::{Inbound, Nat, NatKind, Router};

/// How a device is mapped and filtered in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    mapping: Dependence,
    filtering: Dependence,
}

/// What lies between a device and the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    v4: Option<Side>,
    v6: Option<Side>,
    networks: Vec<String>,
    /// The routers that translate, by name, and whether they hairpin.
    nats: Vec<(String, bool)>,
}

/// Where nothing is in the way.
const OPEN: Side =
    Side { mapping: Dependence::EndpointIndependent, filtering: Dependence::EndpointIndependent };

impl Access {
    /// That of a host.
    pub(super) fn of(topology: &Topology, host: &str) -> Self {
        let interfaces = topology.interfaces(host);
        let mut access = Self {
            v4: interfaces.iter().any(|interface| interface.ipv4.is_some()).then_some(OPEN),
            v6: interfaces.iter().any(|interface| interface.ipv6.is_some()).then_some(OPEN),
            networks: interfaces.iter().map(|interface| interface.network.clone()).collect(),
            nats: Vec::new(),
        };
        let mut next = topology.hosts.get(host).and_then(|host| host.gateway.clone());
        // A chain of gateways that returns to itself leads nowhere.
        for _ in 0..topology.routers.len() {
            let Some((name, router)) = next.and_then(|name| topology.routers.get_key_value(&name)) else {
                break;
            };
            access.pass(name, router);
            next = router.gateway.clone();
        }
        access
    }

    fn pass(&mut self, name: &str, router: &Router) {
        let translates = router.nat.as_ref().and_then(|nat| Some((nat, side(nat)?)));
        if let Some((nat, side)) = translates {
            if nat.nat64.is_some() && self.v4.is_none() && self.v6.is_some() {
                self.v4 = Some(OPEN);
            }
            self.v4 = self.v4.map(|v4| v4.behind(side));
            self.nats.push((name.to_owned(), nat.hairpin));
        }
        if let Some(firewall) = &router.firewall {
            if firewall.inbound == Inbound::Stateful {
                let admits_answers = Side { filtering: Dependence::AddressAndPortDependent, ..OPEN };
                // What the router's own NAT lets in is no more asked: the lab's rules for it come first.
                if translates.is_none() {
                    self.v4 = self.v4.map(|v4| v4.behind(admits_answers));
                }
                self.v6 = self.v6.map(|v6| v6.behind(admits_answers));
            }
            // Names are asked by UDP, but nobody is met by them.
            if firewall.outbound.is_some() {
                (self.v4, self.v6) = (None, None);
            }
        }
    }

    /// Whether two devices can meet without a relay.
    pub(super) fn can_meet(&self, other: &Self) -> bool {
        if self.networks.iter().any(|network| other.networks.contains(network)) {
            return true;
        }
        let shared = self.nats.iter().find(|(name, _)| other.nats.iter().any(|(known, _)| known == name));
        let v4 = shared.is_none_or(|(_, hairpin)| *hairpin) && meet(self.v4, other.v4);
        v4 || meet(self.v6, other.v6)
    }
}

impl Side {
    /// The stricter of both, each by itself.
    fn behind(self, router: Self) -> Self {
        Self {
            mapping: stricter(self.mapping, router.mapping),
            filtering: stricter(self.filtering, router.filtering),
        }
    }
}

fn meet(one: Option<Side>, other: Option<Side>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let independent = |side: Side| side.mapping == Dependence::EndpointIndependent;
    let admits_any_port = |side: Side| side.filtering != Dependence::AddressAndPortDependent;
    match (independent(one), independent(other)) {
        (true, true) => true,
        (true, false) => admits_any_port(one),
        (false, true) => admits_any_port(other),
        (false, false) => false,
    }
}

fn stricter(one: Dependence, other: Dependence) -> Dependence {
    let rank = |dependence| match dependence {
        Dependence::EndpointIndependent => 0,
        Dependence::AddressDependent => 1,
        Dependence::AddressAndPortDependent => 2,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// What a NAT does in the terms of RFC 4787; `None` where it translates nothing.
fn side(nat: &Nat) -> Option<Side> {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let filtering = match nat.kind {
        None => {
            return Some(Side { mapping: nat.mapping?, filtering: nat.filtering? });
        }
        Some(NatKind::None) => return None,
        Some(NatKind::FullCone | NatKind::OneToOne) => EndpointIndependent,
        Some(NatKind::AddressRestricted) => AddressDependent,
        Some(NatKind::PortRestricted | NatKind::Symmetric) => AddressAndPortDependent,
    };
    let mapping =
        if nat.kind == Some(NatKind::Symmetric) { AddressAndPortDependent } else { EndpointIndependent };
    Some(Side { mapping, filtering })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can_meet(one: &str, other: &str) -> bool {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../vagrant/topology.yaml");
        let grid = Topology::load(file.as_ref()).unwrap().scene("nat-grid").unwrap();
        let (one, other) = (Access::of(&grid, one), Access::of(&grid, other));
        assert_eq!(one.can_meet(&other), other.can_meet(&one));
        one.can_meet(&other)
    }

    #[test]
    fn who_can_meet_follows_from_mapping_and_filtering() {
        for (one, other, expected) in [
            ("open", "symmetric", true),
            ("open", "walled", true),
            ("port", "port", true),
            ("port", "short", true),
            ("port", "symmetric", false),
            ("walled", "counted", false),
            ("restricted", "symmetric", true),
            ("cone", "address", true),
            ("symmetric", "counted", false),
            ("address", "symmetric", false),
        ] {
            assert_eq!(can_meet(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn families_shared_nats_and_blocked_networks_count() {
        for (one, other, expected) in [
            ("six", "dual", true),
            ("six", "port", false),
            ("six", "six4", true),
            ("six4", "port", true),
            ("six4", "symmetric", true),
            ("six4", "counted", true),
            ("six4", "address", true),
            ("lodge1", "lodge2", true),
            ("home1", "home2", true),
            ("home1", "symmetric", false),
            ("blocked", "open", false),
            ("blocked", "six", false),
        ] {
            assert_eq!(can_meet(one, other), expected, "{one} {other}");
        }
    }
}
