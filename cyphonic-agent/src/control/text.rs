//! `cyphonic status` for people.
//!
//! One line per peer, in the form that users of other overlays know, then `# Health check:` lines.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::report::{
    AccessReport, PeerReport, PeerState, RouteReport, ServiceReport, ServiceState, Severity, StandsForReport,
    StatusReport,
};

/// The whole report, each line ended.
pub fn render(report: &StatusReport) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render_to(&mut out, report);
    out
}

fn render_to(out: &mut String, report: &StatusReport) -> std::fmt::Result {
    // Without an identity there is nothing but the reason.
    if report.virtual_address.is_some() {
        render_parts(out, report)?;
    }
    for check in &report.health {
        let severity = match check.severity {
            Severity::Warning => "",
            Severity::Error => "ERROR: ",
        };
        writeln!(out, "# Health check: {severity}{}", check.message)?;
    }
    Ok(())
}

fn render_parts(out: &mut String, report: &StatusReport) -> std::fmt::Result {
    let address = report.virtual_address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    writeln!(
        out,
        "{address:<40} {:<32} this device; up {}",
        or_dash(&report.fqdn),
        duration(report.uptime_s)
    )?;
    for peer in &report.peers {
        writeln!(out, "{}", peer_line(peer))?;
    }
    writeln!(out)?;
    for service in &report.services {
        writeln!(out, "{}", service_line(service))?;
    }
    let interface = &report.interface;
    let up = if interface.up { "up" } else { "down" };
    writeln!(
        out,
        "interface   {} {up}, MTU {}, UDP port {}",
        or_dash(&interface.name),
        interface.mtu,
        report.udp_port
    )?;
    writeln!(out, "ring        {}", with_why(&report.ring.kind, &report.ring.why))?;
    if report.ring.workers > 0 {
        let workers = report.ring.workers.to_string();
        writeln!(out, "workers     {}", with_why(&workers, &report.ring.workers_why))?;
    }
    if !report.ring.awake.is_empty() {
        writeln!(out, "processors  {}", report.ring.awake)?;
    }
    for card in &report.ring.cards {
        let driver = card.driver.as_deref().unwrap_or("unknown driver");
        writeln!(out, "card        {} ({driver}): {}", card.name, with_why(&card.receives_by, &card.why))?;
    }
    if let Ok(end @ 1..) = u64::try_from(report.certificate.not_after) {
        let end = UNIX_EPOCH + Duration::from_secs(end);
        writeln!(out, "certificate until {}", humantime::format_rfc3339_seconds(end))?;
    }
    writeln!(out, "cipher      {}", with_why(&report.cipher.kind, &report.cipher.why))?;
    writeln!(out, "classifier  {}", with_why(&report.classifier.kind, &report.classifier.why))?;
    writeln!(out, "NAT         {}", or_dash(&report.nat.finding))?;
    if let Some(prefix) = &report.netcheck.nat64 {
        writeln!(out, "IPv4        by NAT64 {prefix}")?;
    }
    if let Some(machine) = &report.stands_for {
        writeln!(out, "stands for  {}", machine_line(machine))?;
    }
    let listen = report.dns.listen.map_or_else(|| "-".to_owned(), |listen| listen.to_string());
    let resolver = with_why(&report.dns.resolver, &report.dns.why);
    writeln!(out, "DNS         {} at {listen}, host's resolver: {resolver}", or_dash(&report.zone))?;
    if let Some(access) = &report.access {
        writeln!(out, "access      {}", access_line(access))?;
    }
    if !report.drops.is_empty() {
        let drops: Vec<_> = report.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        writeln!(out, "drops       {}", drops.join(", "))?;
    }
    Ok(())
}

/// `192.168.1.20, tcp/502: 3 connections, 7 since the start`.
fn machine_line(machine: &StandsForReport) -> String {
    let StandsForReport { address, services, connections, flows, carried, turned_away } = machine;
    let address = address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    let turned_away = match turned_away {
        0 => String::new(),
        count => format!(", {count} turned away"),
    };
    format!(
        "{address}, {}: {connections} TCP connections and {flows} of UDP, {carried} since the start{turned_away}",
        services.join(", ")
    )
}

fn access_line(access: &AccessReport) -> String {
    let AccessReport { rules: own, overlay_rules: overlay, overlay_told } = *access;
    if !overlay_told {
        return "peers may open nothing here until the NMS has told the overlay's rules".to_owned();
    }
    let count = |whose: &str, rules: usize| match rules {
        1 => format!("one rule {whose}"),
        rules => format!("{rules} rules {whose}"),
    };
    let own = own.map(|rules| count("of this device", rules));
    let overlay = overlay.map(|rules| count("of the overlay", rules));
    let both: Vec<_> = own.into_iter().chain(overlay).collect();
    if both.is_empty() {
        return "peers may open what this device has of the machine's".to_owned();
    }
    format!("peers may open what is allowed by {}", both.join(" and by "))
}

/// `address name  active; direct 192.0.2.1:41641, RTT 8.1 ms, MTU 1442 on a path of 1500, tx N rx N`.
fn peer_line(peer: &PeerReport) -> String {
    let address = peer.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    let state = match peer.state {
        PeerState::Idle => "idle".to_owned(),
        PeerState::SettingUp => "setting up".to_owned(),
        PeerState::Active => match why_relayed(peer) {
            Some(why) => format!("active; {}, {why}", path(peer)),
            None => format!("active; {}", path(peer)),
        },
        PeerState::Offline => "offline".to_owned(),
        PeerState::Failed => match &peer.last_error {
            Some(error) => format!("failed: {error}"),
            None => "failed".to_owned(),
        },
    };
    let rtt = match (peer.state, peer.rtt_ms) {
        (PeerState::Active, _) if peer.unanswered > 0 => match peer.last_heard_s {
            Some(seconds) => format!(", no answer, last heard {seconds} s ago"),
            None => ", never heard".to_owned(),
        },
        (PeerState::Active, Some(rtt)) => format!(", RTT {rtt:.1} ms"),
        _ => String::new(),
    };
    let size = match (peer.state, peer.inner_mtu) {
        (PeerState::Active, 1..) => format!(", MTU {} on a path of {}", peer.inner_mtu, peer.path_mtu),
        _ => String::new(),
    };
    let traffic = if peer.tx_bytes + peer.rx_bytes > 0 {
        format!(", tx {} rx {}", peer.tx_bytes, peer.rx_bytes)
    } else {
        String::new()
    };
    format!("{address:<40} {:<32} {state}{rtt}{size}{traffic}", peer.name)
}

/// How packets go to a peer: `direct 192.0.2.1:41641`, or `relay trs1.svc.example.internal`.
pub fn path(peer: &PeerReport) -> String {
    match &peer.route {
        Some(RouteReport::Direct { .. }) => match peer.endpoint {
            Some(endpoint) => format!("direct {endpoint}"),
            None => "direct".to_owned(),
        },
        Some(RouteReport::Relay { trs, .. }) => format!("relay {}", or_dash(trs)),
        None => "no path".to_owned(),
    }
}

/// Why packets do not go to a peer directly: `because …`. None where they do, or where nobody said.
pub fn why_relayed(peer: &PeerReport) -> Option<&str> {
    match &peer.route {
        Some(RouteReport::Relay { why, .. }) if !why.is_empty() => {
            Some(why.strip_prefix("relayed ").unwrap_or(why))
        }
        _ => None,
    }
}

fn service_line(service: &ServiceReport) -> String {
    let kind = match service.kind {
        super::report::ServiceKind::As => "AS",
        super::report::ServiceKind::Nms => "NMS",
        super::report::ServiceKind::Trs => "TRS",
    };
    let state = match service.state {
        ServiceState::Idle => return format!("{kind:<11} {} not needed now", or_dash(&service.name)),
        ServiceState::Connecting => "connecting",
        ServiceState::Ready => "connected",
        ServiceState::BackingOff => "waiting to try again",
    };
    let mut line = format!("{kind:<11} {} {state} for {}", or_dash(&service.name), duration(service.since_s));
    if let Some(remote) = service.remote {
        let _ = write!(line, ", {remote}");
    }
    if service.by_tcp {
        line.push_str(" through TCP");
    }
    if let (Some(error), true) = (&service.last_error, service.state != ServiceState::Ready) {
        let _ = write!(line, ": {error}");
    }
    line
}

fn with_why(kind: &str, why: &str) -> String {
    if why.is_empty() { or_dash(kind).to_owned() } else { format!("{} ({why})", or_dash(kind)) }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::{CertificateReport, HealthCheck, ServiceKind};

    #[test]
    fn whose_rules_there_are_is_told() {
        let told = |rules, overlay_rules, overlay_told| {
            access_line(&AccessReport { rules, overlay_rules, overlay_told })
        };
        let by = |whose: &str| format!("peers may open what is allowed by {whose}");
        assert_eq!(told(Some(1), None, true), by("one rule of this device"));
        assert_eq!(told(None, Some(2), true), by("2 rules of the overlay"));
        assert_eq!(told(Some(0), Some(1), true), by("0 rules of this device and by one rule of the overlay"));
        assert!(told(Some(3), Some(0), false).contains("nothing here until the NMS has told"));
    }

    #[test]
    fn a_report_reads_as_people_expect() {
        let peer = |name: &str, state, route| PeerReport {
            name: format!("{name}.cyphonic.internal"),
            address: Some("fd12::7".parse().unwrap()),
            state,
            route,
            endpoint: Some("192.0.2.1:41641".parse().unwrap()),
            tx_bytes: 10,
            rx_bytes: 20,
            ..PeerReport::default()
        };
        let service = |kind: ServiceKind, state| ServiceReport {
            kind,
            name: format!("{}.cyphonic.internal", format!("{kind:?}").to_lowercase()),
            remote: None,
            by_tcp: false,
            state,
            since_s: 61,
            last_error: Some("timed out".into()),
        };
        let why = "relayed because both are behind symmetric NATs".to_owned();
        let report = StatusReport {
            fqdn: "a.cyphonic.internal".into(),
            virtual_address: Some("fd12::1".parse().unwrap()),
            certificate: CertificateReport { not_before: 0, not_after: 1_800_000_000 },
            services: vec![
                service(ServiceKind::As, ServiceState::Idle),
                service(ServiceKind::Nms, ServiceState::BackingOff),
            ],
            peers: vec![
                PeerReport {
                    path_mtu: 1500,
                    inner_mtu: 1442,
                    rtt_ms: Some(8.13),
                    ..peer("b", PeerState::Active, Some(RouteReport::Direct { how: "direct".into() }))
                },
                peer("c", PeerState::Active, Some(RouteReport::Relay { trs: "tok".into(), why })),
                PeerReport { name: "d".into(), state: PeerState::Offline, ..PeerReport::default() },
            ],
            health: vec![HealthCheck {
                id: "nms-unreachable".into(),
                severity: Severity::Error,
                message: "the NMS cannot be reached".into(),
            }],
            ..StatusReport::default()
        };
        let text = render(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("fd12::1 ") && lines[0].contains("this device"), "{text}");
        assert!(
            lines[1].ends_with(
                "active; direct 192.0.2.1:41641, RTT 8.1 ms, MTU 1442 on a path of 1500, tx 10 rx 20"
            ),
            "{text}"
        );
        assert!(
            lines[2].ends_with("active; relay tok, because both are behind symmetric NATs, tx 10 rx 20"),
            "{text}"
        );
        assert!(lines[3].ends_with("offline"), "{text}");
        assert!(text.contains("certificate until 2027-01-15T08:00:00Z\n"), "{text}");
        assert!(text.contains("AS          as.cyphonic.internal not needed now\n"), "{text}");
        assert!(
            text.contains("NMS         nms.cyphonic.internal waiting to try again for 1 min: timed out"),
            "{text}"
        );
        assert_eq!(lines.last().unwrap(), &"# Health check: ERROR: the NMS cannot be reached");
        assert!(!report.is_ready());
    }

    #[test]
    fn how_long_nothing_has_come_from_a_peer_is_told_once_it_does_not_answer() {
        let line = |unanswered, last_heard_s| {
            let state = PeerState::Active;
            peer_line(&PeerReport {
                state,
                rtt_ms: Some(2.1),
                unanswered,
                last_heard_s,
                ..PeerReport::default()
            })
        };
        assert!(line(0, Some(70)).contains(", RTT 2.1 ms"), "an idle tunnel is silent");
        let silent = line(2, Some(12));
        assert!(silent.contains(", no answer, last heard 12 s ago") && !silent.contains("RTT"), "{silent}");
        assert!(line(2, None).contains(", never heard"));
    }

    #[test]
    fn a_device_whose_programs_resolve_no_names_is_not_ready() {
        let registered = ServiceReport {
            kind: ServiceKind::Nms,
            name: String::new(),
            remote: None,
            by_tcp: false,
            state: ServiceState::Ready,
            since_s: 1,
            last_error: None,
        };
        let mut report = StatusReport {
            virtual_address: Some("fd12::1".parse().unwrap()),
            services: vec![registered],
            ..StatusReport::default()
        };
        report.interface.up = true;
        assert!(report.is_ready());
        for (id, severity, ready) in [
            ("resolver", Severity::Warning, true),
            ("resolver", Severity::Error, false),
            ("dns-not-served", Severity::Error, false),
            ("nms-unreachable", Severity::Error, true),
        ] {
            report.health = vec![HealthCheck { id: id.into(), severity, message: String::new() }];
            assert_eq!(report.is_ready(), ready, "{id}");
        }
    }

    #[test]
    fn a_device_that_waits_to_be_enrolled_has_only_the_reason() {
        let message = "not enrolled yet: the cloud does not answer".to_owned();
        let check = HealthCheck { id: "not-enrolled".into(), severity: Severity::Error, message };
        let report = StatusReport { health: vec![check], ..StatusReport::default() };
        assert_eq!(render(&report), "# Health check: ERROR: not enrolled yet: the cloud does not answer\n");
    }
}
