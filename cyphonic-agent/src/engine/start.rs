//! Builds the engine's parts from configuration and identity, in an order in which nothing has to be undone by hand: the
//! interface, the programs on it and the ring's threads all go with the values that own them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_common::InterfaceConfig;
use cyphonic_common::limits::DEFAULT_INNER_MTU;
use cyphonic_dataplane::bpf::EgressClassifier;
use cyphonic_dataplane::protect;
use cyphonic_dataplane::ring::{HoldLimits, OffloadConfig, OffloadRing};
use cyphonic_dataplane::tun::TunDevice;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::Identity;
use cyphonic_proto::node::{CachedState, NodeConfig, Timing};
use cyphonic_proto::tunnel::Suite;
use cyphonic_transport::{Credentials, ServerTls, Transport};
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{EngineHandle, EngineParts, Inbox, RenewalParts, Surroundings, zone};
use crate::config::{CloudAddress, Config, RingChoice, resolve_all};
use crate::control::report::{ClassifierReport, InterfaceReport, RingReport};
use crate::daemon::{DaemonError, EngineInputs, RunningEngine};
use crate::netlink::{Netlink, NetworkWatch};
use crate::state::{DeviceIdentity, StateDir};

/// The virtual interface's MTU: what fits a path of 1,500 bytes, whatever the outer family.
#[expect(clippy::cast_possible_truncation, reason = "it is below 1,500")]
const INNER_MTU: u16 = DEFAULT_INNER_MTU as u16;

/// Between look-ups of the cloud's names while they do not resolve, and once they do.
const CLOUD_UNKNOWN: Duration = Duration::from_secs(5);
const CLOUD_KNOWN: Duration = Duration::from_secs(300);

/// Starts everything that carries packets and talks to the cloud. It needs no cloud to start.
///
/// # Errors
/// Says which part could not start and why. Nothing stays behind then.
pub async fn start(inputs: EngineInputs) -> Result<RunningEngine, DaemonError> {
    let EngineInputs { config, identity: device, state, netlink } = inputs;
    let identity =
        Identity::from_der(device.leaf()).map_err(|error| failed("this device's certificate", error))?;
    let address =
        identity.virtual_address.ok_or_else(|| failed("this device's certificate", "it has no address"))?;
    let zone =
        zone::of_chain(device.chain()).map_err(|error| failed("this device's certificate chain", error))?;
    let prefix = Prefix::of(address);
    let credentials = credentials(&device, &identity);

    let port = Arc::new(open_port(&config, &state)?);
    let server = ServerTls::peer(&credentials).map_err(|error| failed("TLS", error))?;
    let transport = Transport::start(port.clone(), Some((server, credentials.network)))
        .map(Arc::new)
        .map_err(|error| failed("QUIC", error))?;

    let tun =
        TunDevice::create(&config.interface, INNER_MTU).map_err(|error| failed("the interface", error))?;
    let interface = netlink.configure(&config.interface, address, prefix, u32::from(INNER_MTU)).await?;
    let overlay = InterfaceConfig::new(address.octets(), prefix.address().octets(), Prefix::LENGTH)
        .map_err(|error| failed("this device's address", error))?;
    let (classifier, classifier_drops) = classifier(&config.interface, overlay);
    let offloads = tun.offloads();

    let inbox = Inbox::new();
    let ring = OffloadRing::start(OffloadConfig {
        tun,
        port: port.clone(),
        sink: transport.mux(),
        own: address,
        prefix: (prefix.address(), Prefix::LENGTH),
        events: inbox.events(),
        hold: HoldLimits::default(),
    })
    .map_err(|error| failed("the encapsulation ring", error))?;

    let udp_port = port.local_port();
    let node = node_config(&config, &state, &netlink, &identity, &zone, udp_port).await?;
    let surroundings = Surroundings {
        interface: InterfaceReport { name: config.interface.clone(), mtu: interface.mtu, up: interface.up },
        ring: ring_report(config.ring, offloads.tcp, offloads.udp),
        ring_failure: None,
        classifier,
        classifier_drops,
    };
    let renewal = RenewalParts { device, state: state.clone(), cloud: config.cloud.clone() };
    let (failure, failed) = oneshot::channel();
    let parts = EngineParts {
        credentials,
        identity,
        node,
        port,
        transport,
        ring: Arc::new(ring),
        renewal,
        surroundings,
        save: Box::new(move |cached| save(&state, cached)),
        failure,
    };
    let handle = super::spawn(inbox, parts);
    let mut watchers = JoinSet::new();
    watchers.spawn(follow_cloud(handle.clone(), config.cloud));
    watchers.spawn(follow_addresses(handle.clone(), netlink, prefix, config.interface, udp_port));
    let stopping = handle.clone();
    Ok(RunningEngine {
        resolver: Arc::new(handle.clone()),
        backend: Arc::new(handle),
        zone,
        prefix,
        interface: interface.index,
        failed: async { failed.await.unwrap_or_else(|_| "the engine ended unexpectedly".into()) }.boxed(),
        stop: async move {
            drop(watchers);
            stopping.stop().await;
        }
        .boxed(),
    })
}

fn failed(what: &str, error: impl std::fmt::Display) -> DaemonError {
    DaemonError::Engine(format!("{what}: {error}"))
}

pub(super) fn credentials(device: &DeviceIdentity, identity: &Identity) -> Credentials {
    Credentials {
        chain: device.chain().to_vec(),
        key: device.key().clone_key(),
        root: device.root().clone(),
        network: identity.network_id,
    }
}

/// The configured port, else that of earlier starts, so that NAT mappings and firewall rules keep their meaning.
fn open_port(config: &Config, state: &StateDir) -> Result<UdpPort, DaemonError> {
    let remembered = (config.port == 0).then(|| state.port()).flatten();
    let port = match remembered.map(UdpPort::bind) {
        Some(Ok(port)) => port,
        Some(Err(error)) => {
            tracing::warn!(%error, "the UDP port of earlier starts is taken: using another");
            UdpPort::bind(0).map_err(|error| failed("the UDP port", error))?
        }
        None => UdpPort::bind(config.port).map_err(|error| failed("the UDP port", error))?,
    };
    state.save_port(port.local_port())?;
    Ok(port)
}

/// The tunnel works without it, so a kernel that cannot load it is reported and not fatal.
fn classifier(interface: &str, overlay: InterfaceConfig) -> (ClassifierReport, super::report::Drops) {
    match EgressClassifier::attach(interface, overlay) {
        Ok(classifier) => {
            let kind = classifier.attach_kind().to_string();
            let why = "the best this kernel offers".to_owned();
            let drops = move || {
                let counters =
                    classifier.counters().map(|c| c.drops().collect::<Vec<_>>()).unwrap_or_default();
                counters.into_iter().map(|(reason, n)| (reason.name().to_owned(), n.packets)).collect()
            };
            (ClassifierReport { kind, why }, Arc::new(drops))
        }
        Err(error) => {
            tracing::warn!(%error, "no eBPF classifier: the tunnel works without it, packets are checked later");
            (ClassifierReport { kind: "none".into(), why: error.to_string() }, Arc::new(BTreeMap::new))
        }
    }
}

fn ring_report(choice: RingChoice, tcp: bool, udp: bool) -> RingReport {
    let offloads = match (tcp, udp) {
        (true, true) => "TCP and UDP super-packets",
        (true, false) => "TCP super-packets (UDP ones need Linux 6.2)",
        (false, _) => "no super-packets: the kernel refuses them on this interface",
    };
    let chosen = match choice {
        RingChoice::Auto => "the ring of this version for every kernel",
        RingChoice::Offload => "forced by the configuration",
    };
    RingReport { kind: "offload".into(), why: format!("{chosen}; {offloads}") }
}

async fn node_config(
    config: &Config,
    state: &StateDir,
    netlink: &Netlink,
    identity: &Identity,
    zone: &str,
    port: u16,
) -> Result<NodeConfig, DaemonError> {
    let cached = state.node()?.and_then(|bytes| {
        CachedState::from_bytes(&bytes)
            .inspect_err(|error| tracing::warn!(%error, "starting without cached state"))
            .ok()
    });
    let prefix = identity.virtual_address.map(Prefix::of);
    let addresses = match prefix {
        Some(prefix) => addresses(netlink, prefix, &config.interface, port).await?,
        None => Vec::new(),
    };
    Ok(NodeConfig {
        identity: identity.clone(),
        zone: zone.to_owned(),
        addresses,
        // Names may have to wait for a network: `follow_cloud` brings them.
        as_addresses: config.cloud.iter().filter_map(CloudAddress::literal).collect(),
        as_name: format!("as.svc.{zone}"),
        cached,
        suites: suites(),
        inner_mtu: INNER_MTU,
        software_version: crate::VERSION.to_owned(),
        timing: Timing::default(),
    })
}

/// AES where the CPU has instructions for it, ChaCha20 first where it has not.
fn suites() -> Vec<Suite> {
    match protect::Suite::preferred() {
        protect::Suite::Aes128Gcm => vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
        protect::Suite::ChaCha20Poly1305 => vec![Suite::ChaCha20Poly1305, Suite::Aes128Gcm],
    }
}

async fn addresses(
    netlink: &Netlink,
    prefix: Prefix,
    own: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, DaemonError> {
    let candidates = netlink.candidates(prefix, own).await?;
    Ok(candidates.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Looks the cloud's names up again and again: a device may boot before its network, and a cloud may move.
async fn follow_cloud(handle: EngineHandle, cloud: Vec<CloudAddress>) {
    if cloud.iter().all(CloudAddress::is_literal) {
        return;
    }
    loop {
        let addresses = resolve_all(&cloud).await;
        let wait = if addresses.is_empty() { CLOUD_UNKNOWN } else { CLOUD_KNOWN };
        handle.set_cloud(addresses).await;
        tokio::time::sleep(wait).await;
    }
}

/// Tells the engine whenever the host's addresses change.
async fn follow_addresses(
    handle: EngineHandle,
    netlink: Arc<Netlink>,
    prefix: Prefix,
    own: String,
    port: u16,
) {
    let mut watch = match NetworkWatch::start() {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!(%error, "changes of this host's addresses will not be noticed"),
    };
    loop {
        watch.changed().await;
        match addresses(&netlink, prefix, &own, port).await {
            Ok(addresses) => handle.set_addresses(addresses).await,
            Err(error) => tracing::warn!(%error, "this host's addresses cannot be listed"),
        }
    }
}

fn save(state: &StateDir, cached: &CachedState) {
    if let Err(error) = state.save_node(&cached.to_bytes()) {
        tracing::warn!(%error, "the node's state was not saved: the next start needs the AS");
    }
}
