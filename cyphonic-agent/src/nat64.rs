//! How IPv4 is reached where the host has IPv6 alone: the question and the clock of
//! [`cyphonic_proto::nat64`].
//!
//! The question is put to the host's resolver like any program's, so it goes to the network's own resolvers,
//! by way of this agent's where `/etc/resolv.conf` names that one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::Nat64Prefix;
use cyphonic_common::nat64::WELL_KNOWN_ADDRESSES;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::nat64::Discovery;
use tokio::task::JoinHandle;

/// The name that has the translator's prefix in its AAAA records (RFC 7050 §8.2). It is complete: no search
/// list is tried.
const NAME: &str = "ipv4only.arpa.";

/// A resolver that takes longer is taken for one that failed.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a start waits for the first answer, so that nothing is dialled in another way than it will be a
/// moment later.
const FIRST: Duration = Duration::from_millis(500);

/// Follows the translator of the host's network, and tells the port of it.
pub(crate) struct Translator {
    port: Arc<UdpPort>,
    overlay: Prefix,
    discovery: Discovery,
    question: Option<JoinHandle<Vec<Ipv6Addr>>>,
}

impl Translator {
    /// For the port of a node of this overlay. It is told what is found.
    pub(crate) fn new(port: Arc<UdpPort>, overlay: Prefix) -> Self {
        Self { port, overlay, discovery: Discovery::default(), question: None }
    }

    /// The host has these addresses now. Where it has IPv4 again, the port uses that from now on.
    pub(crate) fn network_changed(&mut self, addresses: &[IpAddr]) {
        let wanted = addresses.iter().any(IpAddr::is_ipv6) && !has_ipv4();
        // A question that is under way may have gone to another network's resolvers.
        self.forget_question();
        self.discovery.handle_network(Instant::now(), wanted);
        self.tell();
    }

    /// Waits a moment for the first answer, where there is something to ask.
    pub(crate) async fn settle(&mut self) {
        if self.discovery.poll_timeout().is_some()
            && tokio::time::timeout(FIRST, self.changed()).await.is_err()
        {
            tracing::debug!("starting without knowing whether this network translates to IPv4 (NAT64)");
        }
    }

    /// Returns when IPv4 is reached in another way than before. May be dropped and called again at any time.
    pub(crate) async fn changed(&mut self) {
        loop {
            if let Some(question) = &mut self.question {
                // One that panicked has no answer.
                let answers = question.await.unwrap_or_default();
                self.question = None;
                self.discovery.handle_answer(Instant::now(), &answers);
                if self.tell() {
                    return;
                }
            }
            match self.discovery.poll_timeout() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
            self.question = Some(tokio::spawn(ask()));
        }
    }

    /// True if that is news to the port.
    fn tell(&self) -> bool {
        // Datagrams into the overlay would be for this very port.
        let prefix = self.discovery.prefix().filter(|prefix| !self.overlay.contains(prefix.address()));
        if self.port.nat64() == prefix {
            return false;
        }
        match prefix {
            Some(prefix) => tracing::info!(%prefix, "this network reaches IPv4 by NAT64"),
            None => tracing::info!("IPv4 is not reached by NAT64 any more"),
        }
        self.port.set_nat64(prefix);
        true
    }

    fn forget_question(&mut self) {
        if let Some(question) = self.question.take() {
            question.abort();
        }
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.forget_question();
    }
}

/// The same addresses as sockets of this host can send to, for what is dialled before there is a node.
pub(crate) async fn outward(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if !addresses.iter().any(SocketAddr::is_ipv4) || has_ipv4() {
        return addresses;
    }
    match Nat64Prefix::from_well_known(ask().await) {
        Some(prefix) => addresses.into_iter().map(|address| prefix.outward(address)).collect(),
        None => addresses,
    }
}

/// Whether a route leads to IPv4 at large: the address is nobody's, so it is of no network that the host is
/// on.
fn has_ipv4() -> bool {
    let [somewhere, _] = WELL_KNOWN_ADDRESSES;
    UdpPort::native_source_for(SocketAddr::from((somewhere, 9))).is_ok()
}

/// The AAAA records; none where nobody answers.
async fn ask() -> Vec<Ipv6Addr> {
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((NAME, 0))).await {
        Ok(Ok(found)) => found
            .filter_map(|address| match address.ip() {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            })
            .collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "this network's resolvers know of no NAT64");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!("this network's resolvers do not answer");
            Vec::new()
        }
    }
}
