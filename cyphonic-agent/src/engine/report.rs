//! `cyphonic status`: the node's state, the ring's counters and the surroundings in one report.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyphonic_common::Nat64Prefix;
use cyphonic_dataplane::protect::Suite;
use cyphonic_dataplane::ring::{Amount, EncapRing, Traffic, TunnelStats};
use cyphonic_proto::access::OverlayAccess;
use cyphonic_proto::message::RouteKind;
use cyphonic_proto::netcheck::Findings;
use cyphonic_proto::node::{
    NodeStatus, PeerState as NodePeer, PeerStatus, Service, ServiceState as NodeService, ServiceStatus,
};

use super::access::{Access, Openings, Rules};
use super::guards::Unguarded;
use super::interface::Lost;
use super::renewal::Lifetime;
use super::run::Engine;
use super::{admission, time};
use crate::control::netcheck::NetcheckReport;
use crate::control::report::{
    AccessReport, AmountReport, ByRoute, CardReport, CertificateReport, CipherReport, ClassifierReport,
    HealthCheck, InterfaceReport, NatReport, PeerReport, PeerState, RingReport, RouteReport, ServiceKind,
    ServiceReport, ServiceState, Severity, StatusReport, TrafficReport,
};

/// What the programs in the kernel have counted.
pub trait Kernel: Send + Sync {
    /// Everything so far.
    fn figures(&self) -> KernelFigures;
}

/// One moment's figures of a [`Kernel`].
#[derive(Debug, Clone, Default)]
pub struct KernelFigures {
    /// Which programs, and why.
    pub report: ClassifierReport,
    /// Their drops by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Parts of the daemon that the engine does not drive, as they were set up.
pub struct Surroundings {
    /// The virtual interface.
    pub interface: InterfaceReport,
    /// What it has lost since, and why that does not come back.
    pub interface_lost: Lost,
    /// Which ring, and why.
    pub ring: RingReport,
    /// The network cards, which come and go.
    pub cards: Arc<Mutex<Vec<CardReport>>>,
    /// Where packets with the overlay's addresses are not kept out.
    pub unguarded: Unguarded,
    /// Set when the ring has stopped.
    pub ring_failure: Option<String>,
    /// The classifier, read when asked.
    pub kernel: Arc<dyn Kernel>,
}

impl Engine {
    pub(super) fn status(&self) -> StatusReport {
        let mut report = report(&Sources {
            node: self.node.status(),
            findings: self.node.findings(),
            latencies: self.node.relay_latencies(),
            ring: self.ring.as_ref(),
            surroundings: &self.surroundings,
            access: &self.access,
            access_failure: self.access_failure.as_deref(),
            setup_times: &self.queries.setup_times,
            started: self.started,
            udp_port: self.port.local_port(),
            nat64: self.port.nat64(),
            not_admitted: self.admission.not_admitted.as_deref(),
            certificate: self.admission.lifetime,
            certificate_health: self.admission.certificate_health(self.clock.now()),
        });
        report.health.extend(time::health(&self.clock));
        // As `mtu` has it: the host's interface follows the widest tunnel.
        report.interface.mtu = report.interface.mtu.max(self.tunnels.mtus.largest().into());
        report
    }
}

struct Sources<'a> {
    node: NodeStatus,
    findings: &'a Findings,
    latencies: &'a BTreeMap<String, Duration>,
    ring: &'a dyn EncapRing,
    surroundings: &'a Surroundings,
    access: &'a Access,
    access_failure: Option<&'a str>,
    setup_times: &'a HashMap<Ipv6Addr, Duration>,
    started: Instant,
    udp_port: u16,
    nat64: Option<Nat64Prefix>,
    not_admitted: Option<&'a str>,
    certificate: Lifetime,
    certificate_health: Option<HealthCheck>,
}

fn report(sources: &Sources<'_>) -> StatusReport {
    let node = &sources.node;
    let now = Instant::now();
    let stats: HashMap<u64, TunnelStats> =
        sources.ring.all_stats().into_iter().map(|(id, stats)| (id.0, stats)).collect();
    let KernelFigures { report: classifier, mut drops } = sources.surroundings.kernel.figures();
    let counters = sources.ring.counters();
    let mut openings = sources.access.openings();
    for (reason, packets) in counters.drops().filter(|(_, packets)| *packets > 0) {
        *drops.entry(reason.name().to_owned()).or_default() += packets;
    }
    StatusReport {
        fqdn: node.fqdn.clone(),
        virtual_address: Some(node.virtual_address),
        prefix: Some(prefix_of(node.virtual_address)),
        zone: node.zone.clone(),
        uptime_s: now.duration_since(sources.started).as_secs(),
        start_up_ms: node.start_up.map(in_ms),
        services: node.services.iter().map(|service| service_report(service, node, now)).collect(),
        ring: ring_report(sources.surroundings),
        cipher: CipherReport { kind: Suite::preferred().to_string(), why: Suite::why_preferred().to_owned() },
        health: health(sources, &classifier),
        classifier,
        interface: interface_report(sources.surroundings),
        udp_port: sources.udp_port,
        nat: nat_report(node),
        netcheck: NetcheckReport {
            nat64: sources.nat64.map(|prefix| prefix.to_string()),
            ..super::network_report::netcheck(node, sources.findings, sources.latencies)
        },
        certificate: CertificateReport {
            not_before: sources.certificate.not_before,
            not_after: sources.certificate.not_after,
        },
        peers: node.peers.iter().map(|peer| peer_report(peer, &stats, sources, &mut openings, now)).collect(),
        access: access_report(sources.access),
        traffic: TrafficReport { sent: by_route(counters.sent), received: by_route(counters.received) },
        drops,
        ..StatusReport::default()
    }
}

fn access_report(access: &Access) -> Option<AccessReport> {
    let Rules { own, overlay, .. } = access.rules();
    access.restricts().then(|| AccessReport {
        rules: own.as_ref().map(Vec::len),
        overlay_rules: overlay.rules().map(<[_]>::len),
        overlay_told: *overlay != OverlayAccess::Unknown,
    })
}

/// What of the rules is not as somebody wrote it.
fn access_faults(sources: &Sources<'_>) -> Vec<String> {
    let not_taken = sources.access_failure.map(|why| {
        format!("the overlay's access rules have no room here, and what they would allow is denied: {why}")
    });
    let not_read = match &sources.access.rules().overlay {
        OverlayAccess::Rules { unread: unread @ 1.., .. } => Some(format!(
            "{unread} entries of the overlay's access rules are not understood here, and allow nothing: upgrade this device"
        )),
        _ => None,
    };
    [sources.access.refused(), not_taken, not_read].into_iter().flatten().collect()
}

fn ring_report(surroundings: &Surroundings) -> RingReport {
    let cards = surroundings.cards.lock().unwrap_or_else(PoisonError::into_inner).clone();
    RingReport { cards, ..surroundings.ring.clone() }
}

fn interface_report(surroundings: &Surroundings) -> InterfaceReport {
    let InterfaceReport { name, mtu, up } = surroundings.interface.clone();
    InterfaceReport { name, mtu, up: up && surroundings.interface_lost.why().is_none() }
}

fn by_route(traffic: Traffic) -> ByRoute {
    let amount = |Amount { packets, bytes }| AmountReport { packets, bytes };
    ByRoute { direct: amount(traffic.direct), relay: amount(traffic.relayed) }
}

fn prefix_of(address: Ipv6Addr) -> String {
    let [a, b, c, ..] = address.segments();
    format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
}

fn service_report(status: &ServiceStatus, node: &NodeStatus, now: Instant) -> ServiceReport {
    let kind = match &status.service {
        Service::As => ServiceKind::As,
        Service::Nms => ServiceKind::Nms,
        Service::Trs(_) => ServiceKind::Trs,
    };
    let state = match status.state {
        NodeService::Unwanted => ServiceState::Idle,
        NodeService::Connecting => ServiceState::Connecting,
        NodeService::Connected if kind == ServiceKind::Nms && !node.registered => ServiceState::Connecting,
        NodeService::Connected => ServiceState::Ready,
        NodeService::Waiting { .. } => ServiceState::BackingOff,
    };
    ServiceReport {
        kind,
        name: status.name.clone(),
        remote: status.through.or(status.remote),
        by_tcp: status.through.is_some(),
        state,
        since_s: now.duration_since(status.since).as_secs(),
        last_error: status.last_error.clone(),
    }
}

fn nat_report(node: &NodeStatus) -> NatReport {
    NatReport {
        finding: format!("IPv4: {}; IPv6: {}", node.nat_v4, node.nat_v6),
        local: node.addresses.clone(),
        observed: node.observations.iter().map(|(_, observed)| *observed).collect(),
    }
}

fn peer_report(
    peer: &PeerStatus,
    stats: &HashMap<u64, TunnelStats>,
    sources: &Sources<'_>,
    openings: &mut Openings<'_>,
    now: Instant,
) -> PeerReport {
    let carried = || peer.tunnels.iter().filter_map(|tunnel| stats.get(&tunnel.id.0));
    let sum = |field: fn(&TunnelStats) -> u64| carried().map(field).sum();
    let tunnel = peer.tunnels.first();
    let path = tunnel.map(|tunnel| &tunnel.path);
    PeerReport {
        name: peer.fqdn.clone().unwrap_or_else(|| peer.address.to_string()),
        address: Some(peer.address),
        state: match peer.state {
            NodePeer::Connecting => PeerState::SettingUp,
            NodePeer::Connected => PeerState::Active,
            NodePeer::Idle => PeerState::Idle,
            NodePeer::Offline => PeerState::Offline,
            NodePeer::Failed => PeerState::Failed,
        },
        route: peer.route.map(|kind| route_report(kind, peer)),
        endpoint: peer.remote,
        rtt_ms: path.and_then(|path| path.rtt).map(in_ms),
        path_since_s: path.map(|path| now.duration_since(path.since).as_secs()),
        upgraded_after_ms: tunnel
            .and_then(|tunnel| Some(in_ms(tunnel.path.upgraded?.duration_since(tunnel.since)))),
        path_mtu: peer.tunnels.first().map_or(0, |tunnel| tunnel.path_mtu),
        inner_mtu: peer.tunnels.first().map_or(0, |tunnel| tunnel.inner_mtu),
        path_known: peer.tunnels.first().is_some_and(|tunnel| tunnel.path_known),
        last_heard_s: peer
            .tunnels
            .iter()
            .filter_map(|tunnel| tunnel.heard)
            .max()
            .map(|at| now.saturating_duration_since(at).as_secs()),
        unanswered: tunnel.map_or(0, |tunnel| tunnel.unanswered),
        since_s: now.duration_since(peer.since).as_secs(),
        tx_packets: sum(|s| s.tx_packets),
        tx_bytes: sum(|s| s.tx_bytes),
        rx_packets: sum(|s| s.rx_packets),
        rx_bytes: sum(|s| s.rx_bytes),
        last_setup_ms: sources
            .setup_times
            .get(&peer.address)
            .filter(|took| !took.is_zero())
            .map(|took| in_ms(*took)),
        last_error: peer.last_error.clone(),
        may_open: sources
            .access
            .restricts()
            .then(|| peer.fqdn.as_ref().map_or_else(Vec::new, |fqdn| openings.to(fqdn))),
    }
}

fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn route_report(kind: RouteKind, peer: &PeerStatus) -> RouteReport {
    match kind {
        RouteKind::Relay => {
            let path = peer.tunnels.first().map(|tunnel| tunnel.path.why.as_str()).unwrap_or_default();
            let why = [peer.reason.as_str(), path].into_iter().filter(|why| !why.is_empty());
            let why = why.collect::<Vec<_>>().join("; ");
            RouteReport::Relay { trs: peer.relay.clone().unwrap_or_default(), why }
        }
        RouteKind::Unspecified | RouteKind::Direct | RouteKind::ResponderInitiated | RouteKind::HolePunch => {
            RouteReport::Direct { how: kind.name().to_owned() }
        }
    }
}

/// What keeps the node from its NMS: the NMS's own failure, else that of the AS, which knows where it is. A
/// relay's is neither.
fn why_unregistered(services: &[ServiceStatus]) -> Option<&str> {
    [Service::Nms, Service::As]
        .iter()
        .find_map(|wanted| services.iter().find(|status| status.service == *wanted)?.last_error.as_deref())
}

fn health(sources: &Sources<'_>, classifier: &ClassifierReport) -> Vec<HealthCheck> {
    let node = &sources.node;
    let mut found = Vec::new();
    let mut add =
        |id: &str, severity, message: String| found.push(HealthCheck { id: id.into(), severity, message });
    if let Some(reason) = &sources.surroundings.ring_failure {
        add(
            "ring-stopped",
            Severity::Error,
            format!("the encapsulation ring has stopped: {reason}; restart the daemon"),
        );
    }
    if let Some(why) = sources.surroundings.interface_lost.why() {
        add(
            "interface-lost",
            Severity::Error,
            format!(
                "somebody took address or routes from the virtual interface: {why}; tried again all the time"
            ),
        );
    }
    for (interface, why) in sources.surroundings.unguarded.all() {
        add(
            "unguarded",
            Severity::Warning,
            format!(
                "whoever is on the link of {interface} can reach this device's virtual address past its tunnels and rules: {why}"
            ),
        );
    }
    for why in access_faults(sources) {
        add("access-incomplete", Severity::Error, why);
    }
    match sources.not_admitted {
        _ if node.registered => {}
        Some(reason) => {
            let HealthCheck { id, severity, message } = admission::health(reason);
            add(&id, severity, message);
        }
        None => {
            let why = why_unregistered(&node.services).unwrap_or("still connecting");
            add(
                "nms-unreachable",
                Severity::Error,
                format!("not registered: {why}; tunnels that stand go on"),
            );
        }
    }
    let nms = node.services.iter().find(|status| status.service == Service::Nms);
    if let Some(standby) = nms.filter(|_| node.registered && node.is_at_standby) {
        add(
            "nms-standby",
            Severity::Warning,
            format!(
                "{} stands in for the cloud's own NMS, which this device could not reach: tunnels work, certificates are renewed \
                 when the cloud is back",
                standby.name
            ),
        );
    }
    let by_tcp = node.services.iter().find_map(|service| service.through);
    if let Some(through) = by_tcp {
        let what = if node.udp_blocked { "UDP is blocked" } else { "UDP does not reach every service" };
        let port = through.port();
        add(
            "udp-blocked",
            Severity::Warning,
            format!(
                "{what}: through TCP {port}, and to peers through a relay; let UDP {port} out for direct tunnels"
            ),
        );
    }
    if classifier.kind == "none" {
        let why = &classifier.why;
        add("no-classifier", Severity::Warning, format!("no eBPF classifier on the interface: {why}"));
    }
    let trs_up = node
        .services
        .iter()
        .any(|s| matches!(s.service, Service::Trs(_)) && s.state == NodeService::Connected);
    if node.registered && !trs_up {
        add(
            "no-relay",
            Severity::Warning,
            "no TRS is connected: peers behind other NATs may be out of reach".into(),
        );
    }
    found.extend(sources.certificate_health.clone());
    found
}
