//! Builds the engine's parts from configuration and identity, in an order in which nothing has to be undone by hand: the
//! interface, the programs on it and the ring's threads all go with the values that own them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_common::InterfaceConfig;
use cyphonic_dataplane::protect;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::Identity;
use cyphonic_proto::node::{CachedState, NodeConfig, Timing, first_inner};
use cyphonic_proto::tunnel::Suite;
use cyphonic_transport::{Clock, Credentials, ServerTls, Transport};
use futures_util::FutureExt;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::cards::Cards;
use super::datapath::{Ground, Wiring};
use super::interface::{self, Lost};
use super::mtu::PeerMtus;
use super::network::{self, Followed, with_port};
use super::{EngineHandle, EngineParts, Inbox, RenewalParts, Surroundings, zone};
use crate::complaints::Complaints;
use crate::config::{CloudAddress, Config, PortMapping, resolve_all};
use crate::control::report::InterfaceReport;
use crate::daemon::{DaemonError, EngineInputs, RunningEngine};
use crate::nat64::Translator;
use crate::netlink::{Netlink, NetworkWatch, Sizes, far_end};
use crate::state::{DeviceIdentity, StateDir};

/// Between look-ups of the cloud's names while they do not resolve, and once they do.
const CLOUD_UNKNOWN: Duration = Duration::from_secs(5);
const CLOUD_KNOWN: Duration = Duration::from_secs(300);

/// Cards are looked at this long after a change: nothing waits for them.
const CARDS_LATER: Duration = Duration::from_millis(100);

/// Starts everything that carries packets and talks to the cloud. It needs no cloud to start.
///
/// # Errors
/// Says which part could not start and why. Nothing stays behind then.
pub async fn start(inputs: EngineInputs) -> Result<RunningEngine, DaemonError> {
    let (netlink, interface) = (Arc::clone(&inputs.netlink), inputs.config.interface.clone());
    let started = assemble(inputs).await;
    if started.is_err() {
        remove_interface(&netlink, &interface).await;
    }
    started
}

async fn assemble(inputs: EngineInputs) -> Result<RunningEngine, DaemonError> {
    let EngineInputs { config, identity: device, state, netlink } = inputs;
    // While the kernel verifies eBPF programs.
    drop(tokio::task::spawn_blocking(cyphonic_transport::warm_up));
    let identity =
        Identity::from_der(device.leaf()).map_err(|error| failed("this device's certificate", error))?;
    let address =
        identity.virtual_address.ok_or_else(|| failed("this device's certificate", "it has no address"))?;
    let zone =
        zone::of_chain(device.chain()).map_err(|error| failed("this device's certificate chain", error))?;
    tracing::info!(name = identity.fqdn, %address, "this device");
    let prefix = Prefix::of(address);
    let credentials = credentials(&device, &identity);

    let overlay = InterfaceConfig::new(address.octets(), prefix.address().octets(), Prefix::LENGTH)
        .map_err(|error| failed("this device's address", error))?;
    let ground = Ground::lay(&config, &state, &netlink, overlay, prefix).await?;
    let port = ground.port()?;
    let clock = Clock::new(identity.validity().not_before);
    let server =
        ServerTls::peer(&credentials).map_err(|error| failed("TLS", error))?.with_clock(clock.clone());
    let transport = Transport::start(port.clone(), Some((server, credentials.network)))
        .map(Arc::new)
        .map_err(|error| failed("QUIC", error))?;

    let (most_inner, first) = (ground.most_inner, first_inner(ground.most_inner));
    let mut interface = netlink.configure(&config.interface, address, prefix, u32::from(first)).await?;
    let sizes = Sizes::new(config.interface.clone(), &interface, address, prefix, first);
    let mut sizes = sizes.receiving(ground.least_mtu());
    sizes.apply(&netlink, &PeerMtus::new()).await?;
    interface.mtu = u32::from(sizes.interface_mtu());
    let inbox = Inbox::new();
    let wiring =
        Wiring { sink: transport.mux(), own: address, prefix, events: inbox.events(), early: Arc::default() };
    let path = ground.build(&config.interface, &wiring)?;

    let udp_port = port.local_port();
    let mut ends = vec![interface.index];
    ends.extend(netlink.interface(&far_end(&config.interface)).await?.map(|far| far.index));
    let followed = Followed { overlay: prefix, interface: config.interface.clone(), ends, port: udp_port };
    let attachment = netlink.attachment(prefix, &config.interface).await?;
    let addresses = with_port(&attachment, udp_port);
    let mut translator = Translator::new(Arc::clone(&port), prefix);
    translator.network_changed(&attachment.addresses);
    translator.settle().await;
    let node = node_config(&config, &state, &identity, &zone, addresses, most_inner);
    let lost = Lost::default();
    let surroundings = Surroundings {
        interface: InterfaceReport { name: config.interface.clone(), mtu: interface.mtu, up: interface.up },
        interface_lost: lost.clone(),
        ring: path.ring_report,
        cards: path.cards.reports(),
        ring_failure: None,
        kernel: path.kernel,
    };
    let former = state.former();
    let renewal = RenewalParts { device, former, state: state.clone(), cloud: config.cloud.clone() };
    let (mtus, changes) = watch::channel(PeerMtus::new());
    let (failure, failed) = oneshot::channel();
    let parts = EngineParts {
        credentials,
        identity,
        node,
        port,
        transport,
        ring: path.ring,
        clock,
        renewal,
        surroundings,
        port_mapping: config.port_mapping == PortMapping::Auto,
        save: Box::new(move |cached| save(&state, cached)),
        mtus,
        failure,
    };
    let handle = super::spawn(inbox, parts);
    handle.keep_open(config.keep_open).await;
    let mut watchers = JoinSet::new();
    if let Some(log) = path.kernel_log.filter(|_| config.log_drops) {
        watchers.spawn(log.follow_log());
    }
    watchers.spawn(follow_cloud(handle.clone(), config.cloud));
    watchers.spawn(network::follow(
        handle.clone(),
        Arc::clone(&netlink),
        followed.clone(),
        attachment,
        translator,
    ));
    watchers.spawn(network::follow_sleep(handle.clone()));
    watchers.spawn(interface::follow(interface.index, sizes, Arc::clone(&netlink), changes, lost));
    let (end_cards, ended) = oneshot::channel();
    let cards = tokio::spawn(follow_cards(path.cards, Arc::clone(&netlink), followed, ended));
    let stopping = handle.clone();
    Ok(RunningEngine {
        resolver: Arc::new(handle.clone()),
        backend: Arc::new(handle),
        zone,
        prefix,
        interface: interface.index,
        failed: async { failed.await.unwrap_or_else(|_| "the engine ended unexpectedly".into()) }.boxed(),
        stop: async move {
            watchers.shutdown().await;
            // Before the ring: network cards are left as they were found. Not aborted, since a driver may be waited for.
            drop(end_cards);
            if let Err(error) = cards.await {
                tracing::warn!(%error, "network cards may not be as they were found");
            }
            stopping.stop().await;
            remove_interface(&netlink, &config.interface).await;
        }
        .boxed(),
    })
}

/// A TUN device goes by itself; a veth pair does not.
async fn remove_interface(netlink: &Netlink, interface: &str) {
    if let Err(error) = netlink.remove_pair(interface).await {
        tracing::warn!(%error, "the virtual interface stays; the next start removes it");
    }
}

pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> DaemonError {
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

fn node_config(
    config: &Config,
    state: &StateDir,
    identity: &Identity,
    zone: &str,
    addresses: Vec<SocketAddr>,
    most_inner: u16,
) -> NodeConfig {
    NodeConfig {
        identity: identity.clone(),
        zone: zone.to_owned(),
        addresses,
        // Names may have to wait for a network: `follow_cloud` brings them.
        as_addresses: config.cloud.iter().filter_map(CloudAddress::literal).collect(),
        as_name: format!("as.svc.{zone}"),
        cached: cached(state),
        pinned_relay: config.relay.pinned(zone),
        suites: suites(),
        inner_mtu: most_inner,
        software_version: crate::VERSION.to_owned(),
        timing: Timing::default(),
    }
}

/// What the node remembered. All of it can be had again, so whatever is wrong with the file keeps no agent down.
fn cached(state: &StateDir) -> Option<CachedState> {
    let without = |error: &dyn std::fmt::Display| tracing::warn!(%error, "starting without cached state");
    let bytes = state.node().inspect_err(|error| without(error)).ok()??;
    CachedState::from_bytes(&bytes).inspect_err(|error| without(error)).ok()
}

/// AES where the CPU has instructions for it, ChaCha20 first where it has not.
fn suites() -> Vec<Suite> {
    match protect::Suite::preferred() {
        protect::Suite::Aes128Gcm => vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
        protect::Suite::ChaCha20Poly1305 => vec![Suite::ChaCha20Poly1305, Suite::Aes128Gcm],
    }
}

/// Looks the cloud's names up again and again: a device may boot before its network, and a cloud may move.
async fn follow_cloud(handle: EngineHandle, cloud: Vec<CloudAddress>) {
    if cloud.iter().all(CloudAddress::is_literal) {
        return;
    }
    let mut complaints = Complaints::default();
    loop {
        let addresses = resolve_all(&cloud, &mut complaints).await;
        let wait = if addresses.is_empty() { CLOUD_UNKNOWN } else { CLOUD_KNOWN };
        handle.set_cloud(addresses).await;
        tokio::time::sleep(wait).await;
    }
}

/// Tells the packet path of the network cards, now and whenever they change, until `ended`. Gives the cards back.
async fn follow_cards(
    mut cards: Cards,
    netlink: Arc<Netlink>,
    followed: Followed,
    mut ended: oneshot::Receiver<()>,
) {
    let mut watch = match NetworkWatch::start(followed.ends) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "changes of this host's network cards will not be noticed");
            None
        }
    };
    loop {
        match netlink.cards(followed.overlay, &followed.interface).await {
            Ok(present) => {
                let update = move || {
                    cards.update(&present);
                    cards
                };
                // It may wait for drivers.
                let Ok(updated) = tokio::task::spawn_blocking(update).await else { return };
                cards = updated;
            }
            Err(error) => tracing::warn!(%error, "this host's network cards cannot be listed"),
        }
        let changed = async {
            match &mut watch {
                Some(watch) => {
                    watch.changed().await;
                    // Whoever follows addresses is to be first.
                    tokio::time::sleep(CARDS_LATER).await;
                }
                // The cards live as long as this.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            _ = &mut ended => break,
        }
    }
    // It may wait for drivers, too.
    let _ = tokio::task::spawn_blocking(move || drop(cards)).await;
}

fn save(state: &StateDir, cached: &CachedState) {
    if let Err(error) = state.save_node(&cached.to_bytes()) {
        tracing::warn!(%error, "the node's state was not saved: the next start needs the AS");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_cache_that_cannot_be_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = dir.path().join("node.bin");
        assert!(cached(&state).is_none(), "there is none yet");
        for damage in [&vec![0xff; 100], &vec![0; 2 * 1024 * 1024]] {
            fs::write(&file, damage).unwrap();
            assert!(cached(&state).is_none(), "{} bytes", damage.len());
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(state.node().is_err() && cached(&state).is_none());
    }
}
