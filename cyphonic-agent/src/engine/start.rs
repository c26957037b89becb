//! Builds the engine's parts from configuration and identity, in an order in which nothing has to be undone
//! by hand: the interface, the programs on it and the ring's threads all go with the values that own them.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cyphonic_dataplane::protect;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::node::{CachedState, NodeConfig, Timing};
use cyphonic_proto::tunnel::Suite;
use cyphonic_transport::{Clock, ServerTls, Transport};
use futures_util::FutureExt;
use tokio::sync::{oneshot, watch};

use super::access::{Access, Rules};
use super::datapath::{Ground, Wiring};
use super::followers::Followers;
use super::interface::{self, Lost};
use super::membership::Membership;
use super::mtu::PeerMtus;
use super::network::Networks;
use super::saving::Saver;
use super::{EngineParts, Inbox, RenewalParts, Surroundings};
use crate::config::{CloudAddress, Config, PortMapping};
use crate::control::report::InterfaceReport;
use crate::daemon::{DaemonError, EngineInputs, RunningEngine};
use crate::netlink::Netlink;
use crate::state::StateDir;

/// Starts everything that carries packets and talks to the cloud. It needs no cloud to start.
///
/// # Errors
/// Says which part could not start and why. Nothing stays behind then.
pub async fn start(inputs: EngineInputs) -> Result<RunningEngine, DaemonError> {
    let (netlink, state) = (Arc::clone(&inputs.netlink), inputs.state.clone());
    let address = inputs.identity.address();
    let started = assemble(inputs).await;
    if started.is_err() {
        remove_interface(&netlink, &state, address).await;
    }
    started
}

async fn assemble(inputs: EngineInputs) -> Result<RunningEngine, DaemonError> {
    let EngineInputs { config, identity: device, state, netlink } = inputs;
    // While the kernel verifies eBPF programs.
    drop(tokio::task::spawn_blocking(cyphonic_transport::warm_up));
    let member = Membership::of(&device)?;
    let (address, prefix) = (member.address, member.prefix);
    tracing::info!(name = member.identity.fqdn, %address, "this device");
    let ground = Ground::lay(&config, &state, &netlink, member.overlay()?, prefix).await?;
    let (port, most_inner) = (ground.port()?, ground.most_inner);
    let (clock, transport) = quic(&port, &member)?;
    // Before there is an address to guard.
    netlink.mark(&config.interface, state.id()).await?;
    let placement = member.placement(&config)?;
    let (interface, sizes) = interface::configure(&netlink, &config.interface, placement, &ground).await?;
    let inbox = Inbox::new();
    let wiring =
        Wiring { sink: transport.mux(), own: address, prefix, events: inbox.events(), early: Arc::default() };
    let path = ground.build(&config.interface, &wiring)?;
    let networks = Networks::look(&netlink, &config.interface, interface.index, prefix, &port).await?;
    let node = node_config(&config, &state, &member, networks.addresses(), most_inner);
    let overlay = node.cached.as_ref().map(|cached| cached.access.clone()).unwrap_or_default();
    // Ports come as they are held.
    let offered = config.stands_for.as_ref().map(|machine| machine.offered(|_| false));
    let access = Access::new(Rules { own: config.rules(), overlay, offered }, &member.zone, None);
    let given = path.ring.set_permissions(Arc::new(access.permissions().clone()));
    given.map_err(|error| failed("who may open what here (`access`)", error))?;
    let lost = Lost::default();
    let surroundings = Surroundings {
        interface: InterfaceReport { name: config.interface.clone(), mtu: interface.mtu, up: interface.up },
        interface_lost: lost.clone(),
        ring: path.ring_report,
        cards: path.cards.reports(),
        unguarded: path.guards.unguarded(),
        ring_failure: None,
        kernel: path.kernel,
    };
    let (former, owner) = (state.former(), state.clone());
    let renewal = RenewalParts { device, former, state: state.clone(), cloud: config.cloud.clone() };
    let (mtus, changes) = watch::channel(PeerMtus::new());
    let (failure, failed) = oneshot::channel();
    let saver = Saver::start(move |cached| save(&state, cached));
    let parts = EngineParts {
        credentials: member.credentials,
        identity: member.identity,
        node,
        port,
        transport,
        ring: path.ring,
        access,
        clock,
        renewal,
        surroundings,
        port_mapping: config.port_mapping == PortMapping::Auto,
        save: Box::new(move |cached| saver.save(cached)),
        mtus,
        failure,
    };
    let handle = super::spawn(inbox, parts);
    handle.keep_open(config.keep_open).await;
    let mut followers =
        Followers::start(&handle, &netlink, config.cloud, networks, (path.cards, path.guards));
    followers.add(interface::follow(interface.index, sizes, Arc::clone(&netlink), changes, lost));
    if let Some(log) = path.kernel_log.filter(|_| config.log_drops) {
        followers.add(log.follow_log());
    }
    let (stopping, offered_to) = (handle.clone(), handle.clone());
    Ok(RunningEngine {
        offering: Arc::new(move |services| {
            let handle = offered_to.clone();
            async move { handle.offer(services).await }.boxed()
        }),
        resolver: Arc::new(handle.clone()),
        backend: Arc::new(handle),
        zone: member.zone,
        prefix,
        interface: interface.index,
        failed: async { failed.await.unwrap_or_else(|_| "the engine ended unexpectedly".into()) }.boxed(),
        stop: async move {
            followers.stop().await;
            stopping.stop().await;
            remove_interface(&netlink, &owner, Some(address)).await;
        }
        .boxed(),
    })
}

/// QUIC over the node's port, and the clock by which certificates are judged.
fn quic(port: &Arc<UdpPort>, member: &Membership) -> Result<(Clock, Arc<Transport>), DaemonError> {
    let clock = Clock::new(member.identity.validity().not_before);
    let server = ServerTls::peer(&member.credentials).map_err(|error| failed("TLS", error))?;
    let server = server.with_clock(clock.clone());
    let transport = Transport::start(Arc::clone(port), Some((server, member.credentials.network)))
        .map_err(|error| failed("QUIC", error))?;
    Ok((clock, Arc::new(transport)))
}

/// A TUN device goes by itself; a veth pair does not, nor does a rule.
async fn remove_interface(netlink: &Netlink, state: &StateDir, address: Option<Ipv6Addr>) {
    if let Some(address) = address
        && let Err(error) = netlink.remove_rules(address).await
    {
        tracing::warn!(%error, "the rule for what this device answers stays, and leads nowhere");
    }
    if let Err(error) = netlink.remove_pairs_of(state.id()).await {
        tracing::warn!(%error, "the virtual interface stays; the next start removes it");
    }
}

pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> DaemonError {
    DaemonError::Engine(format!("{what}: {error}"))
}

fn node_config(
    config: &Config,
    state: &StateDir,
    member: &Membership,
    addresses: Vec<SocketAddr>,
    most_inner: u16,
) -> NodeConfig {
    let zone = &member.zone;
    NodeConfig {
        identity: member.identity.clone(),
        zone: zone.clone(),
        addresses,
        // Names may have to wait for a network: `followers` brings them.
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

/// What the node remembered. All of it can be had again, so whatever is wrong with the file keeps no agent
/// down.
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

/// Whether it is on disk.
fn save(state: &StateDir, cached: &CachedState) -> bool {
    let saved = state.save_node(&cached.to_bytes());
    if let Err(error) = &saved {
        tracing::warn!(
            %error,
            "what the cloud told this node, its access rules included, is not on disk: it is tried again; a start before that goes by what was told earlier"
        );
    }
    saved.is_ok()
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
