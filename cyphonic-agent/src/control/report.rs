//! The status report: what `cyphonic status --json` prints and what the engine fills in.
//!
//! Names and meanings are an interface. Fields are added, never renamed or reused; a reader ignores what it
//! does not know. [`StatusReport::schema`] changes only when that promise has to be broken.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::netcheck::NetcheckReport;

/// The version of this form.
pub const SCHEMA: u32 = 1;

/// Everything the daemon knows that a person or a script may want to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The software's version.
    pub version: String,
    /// This device's name.
    pub fqdn: String,
    /// Its address in the overlay, for life.
    pub virtual_address: Option<Ipv6Addr>,
    /// The overlay's prefix, as `fd12:3456:789a::/48`.
    pub prefix: Option<String>,
    /// The overlay's DNS zone.
    pub zone: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// How long signalling took from the first word to a service to being registered, milliseconds; `null`
    /// until then.
    #[serde(default)]
    pub start_up_ms: Option<f64>,
    /// AS, NMS and each TRS this node speaks to.
    pub services: Vec<ServiceReport>,
    /// The encapsulation ring in use.
    pub ring: RingReport,
    /// The AEAD that this node offers its peers first.
    pub cipher: CipherReport,
    /// The eBPF classifier on the interface.
    pub classifier: ClassifierReport,
    /// The virtual interface.
    pub interface: InterfaceReport,
    /// The one UDP port that carries everything.
    pub udp_port: u16,
    /// What is known of the NAT in front of this node.
    pub nat: NatReport,
    /// What was found out about the network.
    pub netcheck: NetcheckReport,
    /// The DNS server and the host's resolver.
    pub dns: DnsReport,
    /// The certificate's life.
    pub certificate: CertificateReport,
    /// Every peer met since the start.
    pub peers: Vec<PeerReport>,
    /// Who may open conversations with this device; `null`: everybody, everything.
    pub access: Option<AccessReport>,
    /// The machine without an agent for which this device stands; `null`: it is reached itself.
    #[serde(default)]
    pub stands_for: Option<StandsForReport>,
    /// What is wrong, in words; empty when nothing is.
    pub health: Vec<HealthCheck>,
    /// What tunnels have carried since the start, those included that are gone.
    pub traffic: TrafficReport,
    /// Packets dropped, by reason. Reasons that never happened may be absent.
    pub drops: BTreeMap<String, u64>,
}

impl Default for StatusReport {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            version: crate::VERSION.to_owned(),
            fqdn: String::new(),
            virtual_address: None,
            prefix: None,
            zone: String::new(),
            uptime_s: 0,
            start_up_ms: None,
            services: Vec::new(),
            ring: RingReport::default(),
            cipher: CipherReport::default(),
            classifier: ClassifierReport::default(),
            interface: InterfaceReport::default(),
            udp_port: 0,
            nat: NatReport::default(),
            netcheck: NetcheckReport::default(),
            dns: DnsReport::default(),
            certificate: CertificateReport::default(),
            peers: Vec::new(),
            access: None,
            stands_for: None,
            health: Vec::new(),
            traffic: TrafficReport::default(),
            drops: BTreeMap::new(),
        }
    }
}

impl StatusReport {
    /// True when a name can be resolved now, by the programs of this host: the node is registered at its NMS, the
    /// interface is up, DNS is served, and the host's resolver asks it (or is not to).
    ///
    /// An established tunnel needs no cloud, so a node that is not ready may still carry traffic.
    pub fn is_ready(&self) -> bool {
        self.is_registered() && self.why_no_names().is_none()
    }

    /// Why names do not resolve on this host, whatever the cloud says.
    pub fn why_no_names(&self) -> Option<&HealthCheck> {
        let keeps_names = |check: &&HealthCheck| {
            check.severity == Severity::Error && ["dns-not-served", "resolver"].contains(&check.id.as_str())
        };
        self.health.iter().find(keeps_names)
    }

    fn is_registered(&self) -> bool {
        let registered =
            self.services.iter().any(|s| s.kind == ServiceKind::Nms && s.state == ServiceState::Ready);
        registered && self.interface.up && self.virtual_address.is_some()
    }

    /// What is wrong, by its name.
    pub fn health_check(&self, id: &str) -> Option<&HealthCheck> {
        self.health.iter().find(|check| check.id == id)
    }

    /// The report of one peer, by its full name or by its first label.
    pub fn peer(&self, name: &str) -> Option<&PeerReport> {
        let name = name.trim_end_matches('.');
        self.peers
            .iter()
            .find(|peer| peer.name.eq_ignore_ascii_case(name))
            .or_else(|| self.peers.iter().find(|peer| first_label(&peer.name).eq_ignore_ascii_case(name)))
    }
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Which cloud service a [`ServiceReport`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// Authentication Service.
    As,
    /// Node Management Service.
    Nms,
    /// Tunnel Relay Service.
    Trs,
}

/// How far the connection to a service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not connected and not trying.
    #[default]
    Idle,
    /// Handshake, login or registration under way.
    Connecting,
    /// Connected and logged in or registered.
    Ready,
    /// Failed; the next attempt is waiting for its back-off.
    BackingOff,
}

/// One cloud service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Which service.
    pub kind: ServiceKind,
    /// Its name in its certificate.
    pub name: String,
    /// The address in use, when connected.
    pub remote: Option<SocketAddr>,
    /// Whether that is a TCP address, because the network passes no UDP.
    #[serde(default)]
    pub by_tcp: bool,
    /// How far the connection has come.
    pub state: ServiceState,
    /// Seconds in this state.
    pub since_s: u64,
    /// Why the last attempt or connection ended, if one did.
    pub last_error: Option<String>,
}

/// The encapsulation ring.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RingReport {
    /// `offload` or `xdp`.
    pub kind: String,
    /// Why this one: forced by the configuration, or what the probe found.
    pub why: String,
    /// How many workers carry packets; 0 where a daemon does not say.
    #[serde(default)]
    pub workers: usize,
    /// Why so many.
    #[serde(default)]
    pub workers_why: String,
    /// How long processors are kept awake after packets, or why they are not though it was asked for; empty
    /// where it was not.
    #[serde(default)]
    pub awake: String,
    /// The network cards that carry the node's packets, and how this ring receives from each.
    #[serde(default)]
    pub cards: Vec<CardReport>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CardReport {
    /// Its name.
    pub name: String,
    /// Its driver, where it says.
    pub driver: Option<String>,
    /// Whether the driver has native XDP; nothing where the kernel does not tell (before Linux 6.3).
    pub native_xdp: Option<bool>,
    /// Whether the driver can put packets into AF_XDP's memory without copying them.
    pub zero_copy: Option<bool>,
    /// How tunnels' packets are received: `port`, `af_xdp` or `af_xdp-zero-copy`.
    pub receives_by: String,
    /// Why this way.
    pub why: String,
}

/// An AEAD by choice. The tunnel's is the dialler's first that both ends have, and both have all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CipherReport {
    /// `AES-128-GCM` or `ChaCha20-Poly1305`.
    pub kind: String,
    /// What of this machine made the choice.
    pub why: String,
}

/// The eBPF classifier.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClassifierReport {
    /// `tcx`, `clsact` or `none`.
    pub kind: String,
    /// Why this one; for `none`, what stood in the way.
    pub why: String,
    /// Packets of applications to addresses without a tunnel, which woke the agent.
    #[serde(default)]
    pub unknown: u64,
    /// Packets of applications to addresses to which no tunnel could be had.
    #[serde(default)]
    pub dead: u64,
}

/// The virtual interface.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// `cyph0`.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What is known of the NAT in front of this node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NatReport {
    /// One line: `none`, `endpoint-independent mapping`, `symmetric`, `unknown`…
    pub finding: String,
    /// This node's own candidate addresses.
    pub local: Vec<SocketAddr>,
    /// What the services saw as its address.
    pub observed: Vec<SocketAddr>,
}

/// DNS: the server and the way the host's resolver was pointed at it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsReport {
    /// Where the server listens.
    pub listen: Option<SocketAddr>,
    /// `systemd-resolved`, `resolv-conf` or `none`.
    pub resolver: String,
    /// Why this one, or what failed.
    pub why: String,
    /// Queries received.
    pub queries: u64,
    /// Of those, answered SERVFAIL.
    pub failures: u64,
    /// Of those, outside the zone and relayed to the host's own servers.
    pub relayed: u64,
}

/// The device's certificate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CertificateReport {
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
}

/// What is happening with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Known, no tunnel.
    #[default]
    Idle,
    /// A set-up is under way.
    SettingUp,
    /// A tunnel stands.
    Active,
    /// The last set-up found it not connected.
    Offline,
    /// The last set-up failed otherwise.
    Failed,
}

/// How packets reach a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RouteReport {
    /// Straight to the peer.
    Direct {
        /// How the direct path came about: `direct`, `responder-initiated`, `hole-punch`.
        how: String,
    },
    /// Through a relay.
    Relay {
        /// Its name.
        trs: String,
        /// Why not direct.
        why: String,
    },
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReport {
    /// Its full name.
    pub name: String,
    /// Its virtual address.
    pub address: Option<Ipv6Addr>,
    /// What is happening.
    pub state: PeerState,
    /// How packets reach it, when a tunnel stands.
    pub route: Option<RouteReport>,
    /// The UDP address packets are sent to.
    pub endpoint: Option<SocketAddr>,
    /// The round trip to it on the present path, as far as it was measured.
    pub rtt_ms: Option<f64>,
    /// Seconds since packets take the present path.
    pub path_since_s: Option<u64>,
    /// How long after its set-up the tunnel left its relay, where it did.
    pub upgraded_after_ms: Option<f64>,
    /// What the path to it carries: bytes of outer IP packet. 0 without a tunnel.
    pub path_mtu: u32,
    /// The largest inner packet that applications are to send to it. 0 without a tunnel.
    pub inner_mtu: u16,
    /// Whether the search for both is over.
    pub path_known: bool,
    /// Seconds since it was heard last. An idle tunnel is silent for minutes.
    pub last_heard_s: Option<u64>,
    /// How often it was asked whether it is there since then, and has not answered.
    pub unanswered: u32,
    /// Seconds in this state.
    pub since_s: u64,
    /// Packets sent to it.
    pub tx_packets: u64,
    /// Bytes sent to it (inner packets).
    pub tx_bytes: u64,
    /// Packets received from it.
    pub rx_packets: u64,
    /// Bytes received from it (inner packets).
    pub rx_bytes: u64,
    /// How long the last successful set-up took.
    pub last_setup_ms: Option<f64>,
    /// Why the last set-up failed, if it did.
    pub last_error: Option<String>,
    /// What it may open here, in the words of the settings; `null`: everything.
    pub may_open: Option<Vec<String>>,
}

/// The settings' rules of who may open conversations with this device. What is denied counts among
/// [`StatusReport::drops`] as `denied`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessReport {
    /// How many the device has itself; `null`: it restricts nothing.
    pub rules: Option<usize>,
    /// How many of the overlay's are for it; `null`: the overlay restricts nothing. What may be opened is what
    /// both allow.
    pub overlay_rules: Option<usize>,
    /// False until the NMS has told the overlay's: nobody may open anything then.
    pub overlay_told: bool,
}

/// A machine without an agent, and what is carried on to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StandsForReport {
    /// Where it is.
    pub address: Option<IpAddr>,
    /// Which of its services peers may open at most, in the words of the settings.
    pub services: Vec<String>,
    /// TCP connections that stand.
    pub connections: u64,
    /// Peers' UDP ports that were used within the last minutes.
    pub flows: u64,
    /// How many of both there have been since the start.
    pub carried: u64,
    /// How many more were turned away, since the peer or all together had as many as may be at a time.
    pub turned_away: u64,
}

/// What all tunnels have carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficReport {
    /// What was sent to peers.
    pub sent: ByRoute,
    /// What peers sent.
    pub received: ByRoute,
}

/// One direction's traffic, by the route that this device sent on at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ByRoute {
    /// Straight to the peer.
    pub direct: AmountReport,
    /// Through a relay.
    pub relay: AmountReport,
}

/// Inner packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AmountReport {
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How bad a [`HealthCheck`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Works, but not as well as it could.
    Warning,
    /// Something a user relies on does not work.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// A stable short name, for scripts: `nms-unreachable`.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it means and what to do, one line.
    pub message: String,
}
