//! What `cyphonic netcheck` shows: the host's network, as the agent found it.

use std::fmt::Write;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::StatusReport;
use super::report::{ServiceKind, ServiceState};

/// The network that the device is in. Field names are an interface and only ever grow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetcheckReport {
    /// Whether a service answered over UDP.
    pub udp: bool,
    /// The prefix within which IPv4 is reached, where the device has IPv6 alone and its network a
    /// translator.
    pub nat64: Option<String>,
    /// Over IPv4.
    pub ipv4: FamilyReport,
    /// Over IPv6.
    pub ipv6: FamilyReport,
    /// Relays, the nearest first; those without a measurement last.
    pub relays: Vec<RelayReport>,
}

/// The network over one IP version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FamilyReport {
    /// The device's own addresses.
    pub addresses: Vec<SocketAddr>,
    /// The addresses that servers saw.
    pub observed: Vec<SocketAddr>,
    /// How the NAT maps (RFC 4787 §4.1).
    pub mapping: String,
    /// Whom NAT and firewall let in (RFC 4787 §5).
    pub filtering: String,
    /// Whether packets to its own outer address come back to the device.
    pub hairpin: Option<bool>,
    /// The longest time without a packet after which a mapping was seen to stand, in milliseconds.
    pub lifetime_ms: Option<u64>,
    /// Outer endpoints that the gateway granted.
    pub port_mapped: Vec<SocketAddr>,
}

/// A relay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayReport {
    /// Its name.
    pub name: String,
    /// The round trip to it, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// The report for people, each line ended.
pub fn render(report: &StatusReport) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render_to(&mut out, report);
    out
}

fn render_to(out: &mut String, report: &StatusReport) -> std::fmt::Result {
    let netcheck = &report.netcheck;
    let by_tcp = report.services.iter().find(|service| service.by_tcp).and_then(|service| service.remote);
    match by_tcp {
        Some(through) => writeln!(out, "UDP            blocked: through TCP {}", through.port())?,
        None if netcheck.udp => writeln!(out, "UDP            yes")?,
        None => writeln!(out, "UDP            no answer from any service")?,
    }
    let by_nat64 = netcheck.nat64.as_ref().map(|prefix| format!("by NAT64 {prefix}"));
    render_family(out, "IPv4", &netcheck.ipv4, by_nat64.as_deref())?;
    render_family(out, "IPv6", &netcheck.ipv6, None)?;
    writeln!(out, "relays         {}", if netcheck.relays.is_empty() { "none" } else { "nearest first" })?;
    for relay in &netcheck.relays {
        let rtt = relay.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms"));
        let ready = report.services.iter().any(|service| {
            service.kind == ServiceKind::Trs
                && service.name == relay.name
                && service.state == ServiceState::Ready
        });
        let connected = if ready { "  connected" } else { "" };
        writeln!(out, "  {:<28} {rtt}{connected}", relay.name)?;
    }
    Ok(())
}

fn render_family(
    out: &mut String,
    name: &str,
    family: &FamilyReport,
    instead: Option<&str>,
) -> std::fmt::Result {
    match instead {
        Some(instead) => writeln!(out, "{name}           {instead}")?,
        None if family.addresses.is_empty() && family.observed.is_empty() => {
            return writeln!(out, "{name}           no address");
        }
        None => writeln!(out, "{name}           {}", list(&family.addresses))?,
    }
    writeln!(out, "  seen as      {}", list(&family.observed))?;
    writeln!(out, "  mapping      {}", family.mapping)?;
    writeln!(out, "  filtering    {}", family.filtering)?;
    let hairpin = family.hairpin.map_or("-", |works| if works { "yes" } else { "no" });
    writeln!(out, "  hairpin      {hairpin}")?;
    let lifetime = family
        .lifetime_ms
        .map_or_else(|| "nothing proven yet".to_owned(), |ms| format!("at least {} s", ms / 1000));
    writeln!(out, "  lifetime     {lifetime}")?;
    writeln!(out, "  port mapping {}", list(&family.port_mapped))
}

fn list(addresses: &[SocketAddr]) -> String {
    match addresses {
        [] => "-".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_udp_is_blocked_is_said_with_the_way_round_it() {
        let service = crate::control::report::ServiceReport {
            kind: ServiceKind::Nms,
            name: "nms.svc.plant.internal".into(),
            remote: Some("192.0.2.1:443".parse().unwrap()),
            by_tcp: true,
            state: ServiceState::Ready,
            since_s: 1,
            last_error: None,
        };
        let report = StatusReport { services: vec![service], ..StatusReport::default() };
        assert!(render(&report).starts_with("UDP            blocked: through TCP 443\n"));
    }

    #[test]
    fn how_a_device_without_ipv4_reaches_it_is_said() {
        let mut report = StatusReport::default();
        report.netcheck.nat64 = Some("64:ff9b::/96".into());
        report.netcheck.ipv4.observed = vec!["203.0.113.7:41641".parse().unwrap()];
        let text = render(&report);
        for line in ["IPv4           by NAT64 64:ff9b::/96", "  seen as      203.0.113.7:41641"] {
            assert!(text.lines().any(|shown| shown == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn everything_known_is_shown_and_nothing_else_is_claimed() {
        let mut report = StatusReport::default();
        report.netcheck.udp = true;
        report.netcheck.ipv4 = FamilyReport {
            addresses: vec!["192.168.1.7:41641".parse().unwrap()],
            observed: vec!["203.0.113.7:41641".parse().unwrap()],
            mapping: "endpoint-independent".into(),
            filtering: "address-dependent".into(),
            hairpin: Some(false),
            lifetime_ms: Some(30_000),
            port_mapped: Vec::new(),
        };
        report.netcheck.relays = vec![
            RelayReport { name: "trs1.svc.plant.internal".into(), rtt_ms: Some(12.34) },
            RelayReport { name: "trs2.svc.plant.internal".into(), rtt_ms: None },
        ];
        let text = render(&report);
        for line in [
            "UDP            yes",
            "  seen as      203.0.113.7:41641",
            "  lifetime     at least 30 s",
            "  port mapping -",
            "IPv6           no address",
            "  trs1.svc.plant.internal      12.3 ms",
            "  trs2.svc.plant.internal      -",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line:?} is missing in\n{text}");
        }
    }
}
