//! NATs and firewalls as nftables rulesets.
//!
//! Linux masquerading keeps the source port where it can, whatever the destination: endpoint-independent
//! mapping. Conntrack then admits only packets of the flow: address-and-port-dependent filtering. So plain
//! `masquerade` is the port-restricted NAT, `fully-random` makes it symmetric, and the cone kinds add a map
//! from the external port back to the endpoint inside.
//!
//! Whatever else arrives for the router itself is dropped in the input hook. Without that, a packet from a
//! peer that is punching towards us would leave a conntrack entry for the router's own address, the mapping
//! of our own packet to that peer would collide with it, and masquerading would choose another port.

use std::fmt::Write as _;
use std::time::Duration;

use super::divert::DEVICE;
use crate::topology::{Firewall, Inbound, Nat, NatKind, Router, Service};

/// Life of a cone mapping where the topology says nothing: RFC 4787 REQ-5's recommendation.
const CONE_TIMEOUT: Duration = Duration::from_secs(300);

/// The ruleset of a router, or none if it only forwards.
pub(crate) fn ruleset(router: &Router) -> Option<String> {
    let nat = router.nat.as_ref().filter(|nat| nat.kind != Some(NatKind::None));
    let filters = |firewall: &&Firewall| firewall.inbound == Inbound::Stateful || firewall.outbound.is_some();
    let firewall = router.firewall.as_ref().filter(filters);
    if nat.is_none() && firewall.is_none() {
        return None;
    }
    let mut rules = String::new();
    if let Some(nat) = nat {
        rules.push_str(&translation(nat));
    }
    rules.push_str(&filter(nat, firewall));
    Some(rules)
}

/// Kernel parameters that go with the NAT.
pub(crate) fn sysctls(router: &Router) -> Vec<String> {
    let Some(nat) = router.nat.as_ref().filter(|nat| nat.kind.is_some()) else { return Vec::new() };
    let seconds = |time: Duration| time.as_secs().max(1);
    let timeout =
        nat.udp_timeout.map(|time| format!("net.netfilter.nf_conntrack_udp_timeout={}", seconds(time)));
    let stream = nat
        .udp_timeout_stream
        .map(|time| format!("net.netfilter.nf_conntrack_udp_timeout_stream={}", seconds(time)));
    timeout.into_iter().chain(stream).collect()
}

fn translation(nat: &Nat) -> String {
    let outside = &nat.outside;
    let masquerade =
        if nat.kind == Some(NatKind::Symmetric) { "masquerade fully-random" } else { "masquerade" };
    let mut table = String::from("table ip nat {\n");
    if matches!(nat.kind, Some(NatKind::FullCone | NatKind::AddressRestricted)) {
        table.push_str(&cone(nat));
    }
    if let Some(inside) = nat.to {
        let _ = write!(
            table,
            "  chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    \
             iifname \"{outside}\" dnat to {inside}\n  }}\n"
        );
    }
    let _ = write!(
        table,
        "  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         oifname \"{outside}\" {masquerade}\n  }}\n}}\n"
    );
    table
}

/// Remembers which endpoint inside each external port stands for, and sends what arrives there to it.
fn cone(nat: &Nat) -> String {
    let outside = &nat.outside;
    let life = nat.udp_timeout_stream.or(nat.udp_timeout).unwrap_or(CONE_TIMEOUT).as_secs().max(1);
    let restricted = nat.kind == Some(NatKind::AddressRestricted);
    let admit = if restricted { "udp dport . ip saddr @contacted " } else { "" };
    let contacted = "  set contacted { typeof udp sport . ip daddr; size 65535; flags dynamic,timeout; }\n";
    let note = format!(
        "    oifname \"{outside}\" meta l4proto udp update @contacted {{ udp sport . ip daddr timeout {life}s }}\n"
    );
    let (contacted, note) = if restricted { (contacted, note.as_str()) } else { ("", "") };
    // The chain after source translation sees the external port in the packet and the endpoint inside in its
    // conntrack entry: as the origin of a flow begun inside, as the replier of one begun outside.
    format!(
        "  map endpoints {{ type inet_service : ipv4_addr . inet_service; size 65535; flags dynamic,timeout; }}\n\
         {contacted}  chain remember {{\n    type filter hook postrouting priority srcnat + 1; policy accept;\n    \
         oifname \"{outside}\" meta l4proto udp ct direction original update @endpoints {{ udp sport timeout {life}s : ct original ip saddr . ct original proto-src }}\n    \
         oifname \"{outside}\" meta l4proto udp ct direction reply update @endpoints {{ udp sport timeout {life}s : ct reply ip saddr . ct reply proto-src }}\n\
         {note}  }}\n  \
         chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    \
         iifname \"{outside}\" meta l4proto udp {admit}dnat to udp dport map @endpoints\n  }}\n"
    )
}

fn filter(nat: Option<&Nat>, firewall: Option<&Firewall>) -> String {
    let (mut input, mut forward) = (String::new(), String::new());
    let own = nat.is_some_and(|nat| nat.mapping.is_some());
    if own {
        let _ = writeln!(forward, "    oifname \"{DEVICE}\" accept");
    }
    if let Some(Firewall { outside, outbound: Some(services), .. }) = firewall {
        let _ = writeln!(forward, "    oifname \"{outside}\" ct state established,related accept");
        for Service { protocol, port } in services {
            let _ = writeln!(forward, "    oifname \"{outside}\" {protocol} dport {port} accept");
        }
        let _ = writeln!(forward, "    oifname \"{outside}\" drop");
    }
    if own {
        let _ = writeln!(forward, "    iifname \"{DEVICE}\" accept");
    }
    if let Some(Nat { outside, .. }) = nat {
        let _ = write!(
            input,
            "    iifname \"{outside}\" ct state established,related accept\n    \
             iifname \"{outside}\" meta l4proto {{ icmp, icmpv6 }} accept\n    iifname \"{outside}\" drop\n"
        );
        let _ = write!(
            forward,
            "    iifname \"{outside}\" ct state established,related accept\n    \
             iifname \"{outside}\" ct status dnat accept\n    iifname \"{outside}\" meta nfproto ipv4 drop\n"
        );
    }
    if let Some(Firewall { outside, inbound: Inbound::Stateful, .. }) = firewall {
        let _ = write!(
            forward,
            "    iifname \"{outside}\" ct state established,related accept\n    iifname \"{outside}\" drop\n"
        );
    }
    format!(
        "table inet filter {{\n  chain input {{\n    type filter hook input priority filter; policy accept;\n{input}  }}\n  \
         chain forward {{\n    type filter hook forward priority filter; policy accept;\n{forward}  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(nat: &str) -> Router {
        serde_yaml::from_str(&format!("{{ interfaces: [], {nat} }}")).unwrap()
    }

    #[test]
    fn each_kind_has_its_own_ruleset() {
        let rules = |kind: &str| ruleset(&router(&format!("nat: {{ kind: {kind}, outside: wan }}")));
        assert_eq!(rules("none"), None);
        let port = rules("port-restricted").unwrap();
        assert!(port.contains("\"wan\" masquerade\n") && !port.contains("@endpoints"));
        assert!(rules("symmetric").unwrap().contains("masquerade fully-random"));
        let full = rules("full-cone").unwrap();
        assert!(full.contains("@endpoints") && !full.contains("@contacted"));
        assert!(rules("address-restricted").unwrap().contains("udp dport . ip saddr @contacted dnat"));
    }

    #[test]
    fn a_firewall_needs_no_nat() {
        let rules = ruleset(&router("firewall: { inbound: stateful, outside: wan }")).unwrap();
        assert!(!rules.contains("masquerade") && rules.contains("iifname \"wan\" drop"));
        assert_eq!(ruleset(&router("firewall: { inbound: allow, outside: wan }")), None);
    }

    #[test]
    fn mapping_time_outs_become_conntrack_parameters() {
        let router = router("nat: { kind: symmetric, outside: wan, udp_timeout: 2s }");
        assert_eq!(sysctls(&router), ["net.netfilter.nf_conntrack_udp_timeout=2"]);
    }
}
