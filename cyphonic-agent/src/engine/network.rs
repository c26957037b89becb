//! The host's attachment to networks, followed: what it has now, when it changes, and when the host has
//! slept.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::node::{Routes, Sleep};
use rustix::time::{ClockId, clock_gettime};

use super::EngineHandle;
use super::run::Engine;
use crate::nat64::Translator;
use crate::netlink::{Attachment, Netlink, NetlinkError, NetworkWatch, far_end};

/// How often to see whether the host slept: what it lost meanwhile is missed for so long at most.
const LOOK: Duration = Duration::from_millis(500);

/// A pause that no load explains. Shorter ones no NAT and no service takes for silence.
const ASLEEP: Duration = Duration::from_secs(5);

/// When the kernel did not list links and addresses it is asked again after this.
const AGAIN: Duration = Duration::from_millis(100);

/// Whose attachment it is.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    /// The overlay's prefix, whose addresses are not the host's own.
    pub(super) overlay: Prefix,
    /// The virtual interface, which is not one of the host's networks.
    pub(super) interface: String,
    /// The numbers of the virtual interface's ends.
    pub(super) ends: Vec<u32>,
    /// The node's port.
    pub(super) port: u16,
}

/// The host's networks, as they were when one looked last.
pub(super) struct Networks {
    pub(super) followed: Followed,
    known: Attachment,
    /// Knows whether IPv4 is reached in another way.
    translator: Translator,
}

impl Networks {
    /// Looks for the first time.
    pub(super) async fn look(
        netlink: &Netlink,
        interface: &str,
        index: u32,
        overlay: Prefix,
        port: &Arc<UdpPort>,
    ) -> Result<Self, NetlinkError> {
        let mut ends = vec![index];
        ends.extend(netlink.interface(&far_end(interface)).await?.map(|far| far.index));
        let followed = Followed { overlay, interface: interface.to_owned(), ends, port: port.local_port() };
        let known = netlink.attachment(overlay, interface).await?;
        let mut translator = Translator::new(Arc::clone(port), overlay);
        translator.network_changed(&known.addresses);
        translator.settle().await;
        Ok(Self { followed, known, translator })
    }

    /// The host's addresses, as the NMS is told of them.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        with_port(&self.known, self.followed.port)
    }
}

/// Tells the engine whenever the host is attached to networks in another way than before, or reaches IPv4 in
/// another way.
pub(super) async fn follow(handle: EngineHandle, netlink: Arc<Netlink>, networks: Networks) {
    let Networks { followed, mut known, mut translator } = networks;
    let mut watch = match NetworkWatch::start(followed.ends.clone(), followed.overlay) {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!(%error, "changes of this host's addresses will not be noticed"),
    };
    // What changed between the first look and the subscription.
    let mut routes = false;
    let mut listed = true;
    loop {
        match netlink.attachment(followed.overlay, &followed.interface).await {
            Ok(attachment) if routes || attachment != known => {
                tracing::debug!(?attachment, routes, "this host's networks changed");
                known = attachment;
                translator.network_changed(&known.addresses);
                handle.set_addresses(with_port(&known, followed.port)).await;
            }
            Ok(_) => {}
            Err(error) => {
                if std::mem::replace(&mut listed, false) {
                    tracing::warn!(%error, "this host's addresses cannot be listed: will try again");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        listed = true;
        let changed = watch.changed();
        tokio::pin!(changed);
        routes = loop {
            tokio::select! {
                change = &mut changed => break change.routes,
                () = translator.changed() => handle.set_addresses(with_port(&known, followed.port)).await,
            }
        };
    }
}

/// Tells the engine whenever the host slept, or this process was stopped.
///
/// The clock of timers stands still while a host sleeps, and goes on while only a process is stopped: the one
/// shows as a clock that counts sleep and is ahead of it (CLOCK_BOOTTIME), the other as a look that comes
/// late.
pub(super) async fn follow_sleep(handle: EngineHandle) {
    let mut last = (Instant::now(), boot_time());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = (Instant::now(), boot_time());
        let counted = now.0.saturating_duration_since(last.0);
        let passed = counted.max(now.1.saturating_sub(last.1));
        last = now;
        if let Some(length) = passed.checked_sub(LOOK).filter(|length| *length >= ASLEEP) {
            handle.resumed(Sleep { length, counted: counted.saturating_sub(LOOK) }).await;
        }
    }
}

impl Engine {
    pub(super) fn addresses_changed(&mut self, now: Instant, addresses: &[SocketAddr]) {
        tracing::debug!(?addresses, "this host is attached to networks in another way");
        self.node.handle_addresses(now, addresses, &HostRoutes(&self.port));
    }

    pub(super) fn resumed(&mut self, now: Instant, sleep: Sleep) {
        tracing::info!(asleep = ?sleep.length, "this host slept: connections are taken up again");
        self.node.handle_resumed(now, sleep);
    }
}

/// The kernel's routing tables, as the node's port is subject to them.
struct HostRoutes<'a>(&'a UdpPort);

impl Routes for HostRoutes<'_> {
    fn source_for(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.0.source_for(remote).ok()
    }
}

/// The addresses, as the NMS is told of them.
fn with_port(attachment: &Attachment, port: u16) -> Vec<SocketAddr> {
    attachment.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
}

/// Since the host started, including the time that it slept.
fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Both are never negative.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
