//! The host's own DNS servers, for names outside the overlay.
//!
//! Used only where the host's resolver cannot be told to send us one zone and others elsewhere
//! (`/etc/resolv.conf`).

use std::net::SocketAddr;

/// As many as glibc uses (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// The host's own DNS servers, in the host's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Uses at most the first three, as resolvers do, and never `own` (that would be a loop).
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>, own: SocketAddr) -> Self {
        Self { servers: servers.into_iter().filter(|server| *server != own).take(MAX_SERVERS).collect() }
    }

    /// The servers.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }
}
