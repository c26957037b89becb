//! `cyphonic metrics`: the status report in the text form of Prometheus, for the node exporter's textfile
//! collector. Nothing listens for it, and no series is of one peer: a fleet's monitor would have the square
//! of its size of them.

use std::collections::BTreeMap;

use cyphonic_common::DropReason;
use cyphonic_transport::metrics::Text;

use super::report::{
    AmountReport, ByRoute, PeerReport, PeerState, RouteReport, ServiceKind, ServiceState, Severity,
    StatusReport,
};
use crate::config::Instance;

/// What there is to measure; without a report, that the device is not ready. Of one of several agents of a host,
/// each sample says which.
pub fn render(report: Option<&StatusReport>, instance: Option<&Instance>) -> String {
    let mut text = Text::new("cyphonic");
    if let Some(instance) = instance {
        text = text.labelled("agent", instance.to_string());
    }
    text.gauge(
        "ready",
        "Whether names can be resolved: registered, with the interface up, and the host's resolver asking this device.",
    );
    text.sample(&[], u8::from(report.is_some_and(StatusReport::is_ready)));
    if let Some(report) = report {
        render_report(&mut text, report);
    }
    text.into_string()
}

fn render_report(text: &mut Text, report: &StatusReport) {
    text.gauge("build_info", "The version of the daemon; always 1.");
    text.sample(&[("version", &report.version)], 1);
    text.gauge("uptime_seconds", "How long the daemon has run.");
    text.sample(&[], report.uptime_s);
    text.gauge("service_connected", "Whether a service that is needed now is connected.");
    for service in report.services.iter().filter(|service| service.state != ServiceState::Idle) {
        let name = match service.kind {
            ServiceKind::As => "as",
            ServiceKind::Nms => "nms",
            ServiceKind::Trs => &service.name,
        };
        text.sample(&[("service", name)], u8::from(service.state == ServiceState::Ready));
    }
    if report.certificate.not_after > 0 {
        text.gauge("certificate_not_after_seconds", "When the device's certificate ends, Unix time.");
        text.sample(&[], report.certificate.not_after);
    }
    let traffic = [("sent", &report.traffic.sent), ("received", &report.traffic.received)];
    text.counter("packets_total", "Packets carried by tunnels since the daemon started.");
    each_route(text, traffic, |amount| amount.packets);
    text.counter("bytes_total", "Their bytes, without what a tunnel adds.");
    each_route(text, traffic, |amount| amount.bytes);
    text.counter("drops_total", "Packets dropped since the daemon started.");
    // All there can be: who counts the increase of a series misses what it begins with.
    let mut drops: BTreeMap<_, _> = DropReason::ALL.iter().map(|reason| (reason.name(), 0)).collect();
    drops.extend(report.drops.iter().map(|(reason, packets)| (reason.as_str(), *packets)));
    for (reason, packets) in drops {
        text.sample(&[("reason", reason)], packets);
    }
    if let Some(machine) = &report.stands_for {
        text.gauge("carried", "Conversations with the machine for which this device stands, now.");
        text.sample(&[("protocol", "tcp")], machine.connections);
        text.sample(&[("protocol", "udp")], machine.flows);
        text.counter("carried_total", "The same since the daemon started.");
        text.sample(&[], machine.carried);
        text.counter("turned_away_total", "Conversations with it for which there was no room.");
        text.sample(&[], machine.turned_away);
    }
    text.gauge("health", "What is wrong now, by the ids of the status report; each is 1 while it is.");
    // Two of one id would be one series twice.
    let wrong: BTreeMap<_, _> =
        report.health.iter().map(|check| (check.id.as_str(), severity(check.severity))).collect();
    for (id, severity) in wrong {
        text.sample(&[("id", id), ("severity", severity)], 1);
    }
    text.gauge("peers", "Peers met since the daemon started, by their state now and how packets reach them.");
    // All there can be, so that a series does not end when its last peer changes.
    let mut peers: BTreeMap<_, u32> = ALL_STATES.into_iter().map(|pair| (pair, 0)).collect();
    for peer in &report.peers {
        *peers.entry((state(peer.state), route(peer))).or_default() += 1;
    }
    for ((state, route), count) in peers {
        text.sample(&[("state", state), ("route", route)], count);
    }
}

fn each_route(text: &mut Text, traffic: [(&str, &ByRoute); 2], of: fn(&AmountReport) -> u64) {
    for (direction, by_route) in traffic {
        for (route, amount) in [("direct", &by_route.direct), ("relay", &by_route.relay)] {
            text.sample(&[("direction", direction), ("route", route)], of(amount));
        }
    }
}

const ALL_STATES: [(&str, &str); 6] = [
    ("active", "direct"),
    ("active", "relay"),
    ("failed", "none"),
    ("idle", "none"),
    ("offline", "none"),
    ("setting_up", "none"),
];

/// As in JSON.
fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Idle => "idle",
        PeerState::SettingUp => "setting_up",
        PeerState::Active => "active",
        PeerState::Offline => "offline",
        PeerState::Failed => "failed",
    }
}

fn route(peer: &PeerReport) -> &'static str {
    match peer.route {
        Some(RouteReport::Direct { .. }) => "direct",
        Some(RouteReport::Relay { .. }) => "relay",
        None => "none",
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::{CertificateReport, HealthCheck, ServiceReport, TrafficReport};

    /// A sample's name with its labels, and its value. Fails on what the form forbids.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        assert!(text.ends_with('\n'));
        let (mut described, mut samples) = (Vec::new(), BTreeMap::new());
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            if line.starts_with('#') {
                let (kind, name) = (words.nth(1).unwrap(), words.next().unwrap());
                let rest = words.next().unwrap();
                match kind {
                    "HELP" => {
                        assert!(!described.contains(&name), "{name} twice");
                        described.push(name);
                    }
                    "TYPE" => {
                        assert!(described.last() == Some(&name) && ["gauge", "counter"].contains(&rest))
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert_eq!(described.last(), Some(&name), "its family is not what was described last");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let labels = labels.strip_prefix('{').unwrap().strip_suffix("\"}").unwrap();
                assert!(labels.split("\",").all(|label| label.contains("=\"")), "{labels}");
            }
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
        }
        samples
    }

    #[test]
    fn a_report_is_measured_without_naming_a_peer() {
        let service = |kind, name: &str, state| ServiceReport {
            kind,
            name: name.into(),
            remote: None,
            by_tcp: false,
            state,
            since_s: 1,
            last_error: None,
        };
        let peer =
            |state, route| PeerReport { name: "press-7.lab".into(), state, route, ..PeerReport::default() };
        let relay = RouteReport::Relay { trs: "trs1".into(), why: String::new() };
        let health = |id: &str, severity| HealthCheck { id: id.into(), severity, message: String::new() };
        let mut report = StatusReport {
            virtual_address: Some("fd12::1".parse().unwrap()),
            services: vec![
                service(ServiceKind::As, "as.svc.lab", ServiceState::Idle),
                service(ServiceKind::Nms, "nms.svc.lab", ServiceState::Ready),
                service(ServiceKind::Trs, "odd\"\\name", ServiceState::BackingOff),
            ],
            certificate: CertificateReport { not_before: 1, not_after: 1_800_000_000 },
            peers: vec![
                peer(PeerState::Active, Some(RouteReport::Direct { how: "direct".into() })),
                peer(PeerState::Active, Some(relay.clone())),
                peer(PeerState::Active, Some(relay)),
                peer(PeerState::Offline, None),
            ],
            health: vec![health("no-relay", Severity::Warning), health("no-relay", Severity::Warning)],
            drops: [("replayed".to_owned(), 3)].into(),
            traffic: TrafficReport {
                sent: ByRoute { relay: AmountReport { packets: 2, bytes: 300 }, ..ByRoute::default() },
                ..TrafficReport::default()
            },
            ..StatusReport::default()
        };
        report.interface.up = true;
        let text = render(Some(&report), None);
        let samples = parse(&text);
        for (series, value) in [
            ("cyphonic_ready", 1.0),
            ("cyphonic_service_connected{service=\"nms\"}", 1.0),
            ("cyphonic_service_connected{service=\"odd\\\"\\\\name\"}", 0.0),
            ("cyphonic_certificate_not_after_seconds", 1_800_000_000.0),
            ("cyphonic_packets_total{direction=\"sent\",route=\"relay\"}", 2.0),
            ("cyphonic_bytes_total{direction=\"sent\",route=\"relay\"}", 300.0),
            ("cyphonic_bytes_total{direction=\"received\",route=\"direct\"}", 0.0),
            ("cyphonic_drops_total{reason=\"replayed\"}", 3.0),
            ("cyphonic_drops_total{reason=\"queue_full\"}", 0.0),
            ("cyphonic_health{id=\"no-relay\",severity=\"warning\"}", 1.0),
            ("cyphonic_peers{state=\"active\",route=\"direct\"}", 1.0),
            ("cyphonic_peers{state=\"active\",route=\"relay\"}", 2.0),
            ("cyphonic_peers{state=\"offline\",route=\"none\"}", 1.0),
            ("cyphonic_peers{state=\"failed\",route=\"none\"}", 0.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}\n{text}");
        }
        assert!(!text.contains("press-7") && !text.contains("service=\"as\""), "{text}");
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_not_ready() {
        assert_eq!(parse(&render(None, None)), [("cyphonic_ready".to_owned(), 0.0)].into());
        let waiting = parse(&render(Some(&StatusReport::default()), None));
        assert_eq!(waiting.get("cyphonic_ready"), Some(&0.0));
        assert!(!waiting.contains_key("cyphonic_certificate_not_after_seconds"));
    }
}
