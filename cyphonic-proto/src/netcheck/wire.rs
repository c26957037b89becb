//! Findings in messages: bounded, and nothing taken on that has no meaning.

use std::time::Duration;

use super::{FamilyFindings, Filtering, Findings, IDLE_TIMES, Mapping};
use crate::address::Prefix;
use crate::message::{self, endpoint};
use crate::nat::Family;

/// Endpoints that a gateway granted: one of each protocol, and one to spare.
const MAX_PORT_MAPPED: usize = 4;

impl Findings {
    /// As a node tells the NMS; observations go by themselves.
    pub fn to_wire(&self) -> message::Findings {
        message::Findings { v4: Some(family_to_wire(&self.v4)), v6: Some(family_to_wire(&self.v6)) }
    }

    /// As a node told. Endpoints that it may not give out are left out.
    pub fn from_wire(findings: &message::Findings, overlay: Prefix) -> Self {
        let family = |family, told: &Option<message::FamilyFindings>| {
            told.as_ref().map(|told| family_from_wire(family, told, overlay)).unwrap_or_default()
        };
        Self {
            v4: family(Family::V4, &findings.v4),
            v6: family(Family::V6, &findings.v6),
            observations: Vec::new(),
        }
    }
}

fn family_to_wire(findings: &FamilyFindings) -> message::FamilyFindings {
    let lifetime = findings.lifetime.unwrap_or_default().as_millis();
    message::FamilyFindings {
        mapping: mapping_to_wire(findings.mapping).into(),
        filtering: filtering_to_wire(findings.filtering).into(),
        hairpin: findings.hairpin,
        lifetime_ms: u32::try_from(lifetime).unwrap_or(u32::MAX),
        port_mapped: findings
            .port_mapped
            .iter()
            .take(MAX_PORT_MAPPED)
            .copied()
            .map(endpoint::to_wire)
            .collect(),
        port_delta: findings.port_delta.unwrap_or_default(),
    }
}

fn family_from_wire(family: Family, told: &message::FamilyFindings, overlay: Prefix) -> FamilyFindings {
    let longest = IDLE_TIMES.last().copied().unwrap_or_default();
    let lifetime = Duration::from_millis(u64::from(told.lifetime_ms)).min(longest);
    let mut port_mapped = endpoint::peers_from_wire(&told.port_mapped, overlay);
    port_mapped.retain(|address| Family::of(address) == family);
    port_mapped.truncate(MAX_PORT_MAPPED);
    FamilyFindings {
        mapping: mapping_from_wire(told.mapping()),
        filtering: filtering_from_wire(told.filtering()),
        hairpin: told.hairpin,
        lifetime: (!lifetime.is_zero()).then_some(lifetime),
        port_delta: Some(told.port_delta)
            .filter(|delta| *delta != 0 && delta.unsigned_abs() <= u32::from(u16::MAX)),
        port_mapped,
    }
}

const fn mapping_to_wire(mapping: Mapping) -> message::Mapping {
    match mapping {
        Mapping::Unknown => message::Mapping::Unspecified,
        Mapping::NoNat => message::Mapping::NoNat,
        Mapping::EndpointIndependent => message::Mapping::EndpointIndependent,
        Mapping::NotPortDependent => message::Mapping::NotPortDependent,
        Mapping::AddressDependent => message::Mapping::AddressDependent,
        Mapping::AddressAndPortDependent => message::Mapping::AddressAndPortDependent,
    }
}

const fn mapping_from_wire(mapping: message::Mapping) -> Mapping {
    match mapping {
        message::Mapping::Unspecified => Mapping::Unknown,
        message::Mapping::NoNat => Mapping::NoNat,
        message::Mapping::EndpointIndependent => Mapping::EndpointIndependent,
        message::Mapping::NotPortDependent => Mapping::NotPortDependent,
        message::Mapping::AddressDependent => Mapping::AddressDependent,
        message::Mapping::AddressAndPortDependent => Mapping::AddressAndPortDependent,
    }
}

const fn filtering_to_wire(filtering: Filtering) -> message::Filtering {
    match filtering {
        Filtering::Unknown => message::Filtering::Unspecified,
        Filtering::EndpointIndependent => message::Filtering::EndpointIndependent,
        Filtering::NotPortDependent => message::Filtering::NotPortDependent,
        Filtering::AddressDependent => message::Filtering::AddressDependent,
        Filtering::AddressAndPortDependent => message::Filtering::AddressAndPortDependent,
    }
}

const fn filtering_from_wire(filtering: message::Filtering) -> Filtering {
    match filtering {
        message::Filtering::Unspecified => Filtering::Unknown,
        message::Filtering::EndpointIndependent => Filtering::EndpointIndependent,
        message::Filtering::NotPortDependent => Filtering::NotPortDependent,
        message::Filtering::AddressDependent => Filtering::AddressDependent,
        message::Filtering::AddressAndPortDependent => Filtering::AddressAndPortDependent,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overlay() -> Prefix {
        "fd00:1:2::/48".parse().unwrap()
    }

    #[test]
    fn findings_survive_the_wire() {
        let v4 = FamilyFindings {
            mapping: Mapping::AddressDependent,
            filtering: Filtering::NotPortDependent,
            hairpin: Some(false),
            lifetime: Some(Duration::from_secs(30)),
            port_delta: Some(-2),
            port_mapped: vec!["203.0.113.9:7000".parse().unwrap()],
        };
        let findings = Findings { v4, ..Findings::default() };
        assert_eq!(Findings::from_wire(&findings.to_wire(), overlay()), findings);
    }

    proptest! {
        #[test]
        fn what_a_node_tells_is_bounded(
            mapping: i32, filtering: i32, lifetime_ms: u32, port_delta: i32,
            endpoints in prop::collection::vec((any::<[u8; 4]>(), 0..70_000u32), 0..20),
        ) {
            let port_mapped = endpoints.iter().map(|(a, port)| message::Endpoint { address: a.to_vec(), port: *port });
            let told = message::FamilyFindings {
                mapping, filtering, hairpin: None, lifetime_ms, port_mapped: port_mapped.collect(), port_delta,
            };
            let both = message::Findings { v4: Some(told.clone()), v6: Some(told) };
            let findings = Findings::from_wire(&both, overlay());
            prop_assert!(findings.v4.port_mapped.len() <= MAX_PORT_MAPPED);
            prop_assert!(findings.v6.port_mapped.is_empty(), "IPv4 endpoints are none of IPv6");
            prop_assert!(findings.v4.lifetime <= IDLE_TIMES.last().copied());
            prop_assert!(findings.v4.port_mapped.iter().all(|a| endpoint::is_candidate(a.ip(), overlay())));
        }
    }
}
