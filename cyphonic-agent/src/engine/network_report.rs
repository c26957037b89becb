//! The part of `status` that `cyphonic netcheck` shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::nat::Family;
use cyphonic_proto::netcheck::{FamilyFindings, Findings};
use cyphonic_proto::node::NodeStatus;

use crate::control::netcheck::{FamilyReport, NetcheckReport, RelayReport};

pub(crate) fn netcheck(
    node: &NodeStatus,
    findings: &Findings,
    latencies: &BTreeMap<String, Duration>,
) -> NetcheckReport {
    NetcheckReport {
        udp: !findings.observations.is_empty(),
        nat64: None,
        ipv4: family(node, Family::V4, findings.of(Family::V4)),
        ipv6: family(node, Family::V6, findings.of(Family::V6)),
        relays: relays(node, latencies),
    }
}

fn family(node: &NodeStatus, family: Family, findings: &FamilyFindings) -> FamilyReport {
    let of_family = |addresses: &mut dyn Iterator<Item = SocketAddr>| {
        let mut found: Vec<_> = addresses.filter(|address| Family::of(address) == family).collect();
        found.sort();
        found.dedup();
        found
    };
    FamilyReport {
        addresses: of_family(&mut node.addresses.iter().copied()),
        observed: of_family(&mut node.observations.iter().map(|(_, observed)| *observed)),
        mapping: findings.mapping.to_string(),
        filtering: findings.filtering.to_string(),
        hairpin: findings.hairpin,
        lifetime_ms: findings
            .lifetime
            .map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)),
        port_mapped: findings.port_mapped.clone(),
    }
}

fn relays(node: &NodeStatus, latencies: &BTreeMap<String, Duration>) -> Vec<RelayReport> {
    let mut relays: Vec<_> = node.relays.iter().map(|name| (latencies.get(name).copied(), name)).collect();
    relays.sort_by_key(|(took, _)| took.unwrap_or(Duration::MAX));
    let report = |(took, name): (Option<Duration>, &String)| RelayReport {
        name: name.clone(),
        rtt_ms: took.map(|took| took.as_secs_f64() * 1_000.0),
    };
    relays.into_iter().map(report).collect()
}
