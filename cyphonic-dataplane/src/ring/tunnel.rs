//! What a ring knows of a tunnel, and tells of it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use cyphonic_common::cid::ConnectionId;
use cyphonic_common::limits::{MIN_INNER_MTU, MIN_PROBE_DATAGRAM, TUNNEL_OVERHEAD};

use crate::protect::{Secret, Suite};

/// Names one tunnel of this node. Given by the control plane, never reused while the node runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TunnelId(pub u64);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel {}", self.0)
    }
}

/// Where a tunnel's packets are sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Path {
    /// The peer's address, or its relay's.
    pub remote: SocketAddr,
    /// The connection ID on the wire: the relay's virtual one, or the peer's real one when direct.
    pub wire_cid: ConnectionId,
}

impl Path {
    /// Whether it leads to a relay, for a tunnel whose peer has this connection ID.
    pub(super) fn is_relayed(&self, remote_cid: ConnectionId) -> bool {
        self.wire_cid != remote_cid
    }
}

/// What a tunnel's path carries, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PathMtu {
    /// The largest UDP payload that is sent. Inner packets that need a larger one go in pieces.
    pub datagram: u16,
    /// The largest inner packet that applications are to send; larger ones are answered with Packet Too Big.
    /// At least 1,280.
    pub inner: u16,
}

impl PathMtu {
    /// What is sent on a path that nothing is known of: QUIC's smallest, without which there would be no
    /// tunnel (RFC 9000 §14.1).
    pub const BASE_DATAGRAM: u16 = MIN_PROBE_DATAGRAM as u16;

    /// A path that carries inner packets of this size whole.
    #[must_use]
    pub const fn carrying(inner: u16) -> Self {
        Self { datagram: inner.saturating_add(TUNNEL_OVERHEAD as u16), inner }
    }

    /// A path that nothing is known of, while applications send packets of this size.
    #[must_use]
    pub const fn unknown(inner: u16) -> Self {
        Self { datagram: Self::BASE_DATAGRAM, inner }
    }

    /// IPv6 needs no less inside, QUIC no less outside.
    pub(super) const fn is_possible(self) -> bool {
        self.inner >= MIN_INNER_MTU as u16 && self.datagram >= Self::BASE_DATAGRAM
    }

    /// The largest inner packet that is sent whole.
    pub(super) const fn whole(self) -> usize {
        let fits = (self.datagram as usize).saturating_sub(TUNNEL_OVERHEAD);
        if fits < self.inner as usize { fits } else { self.inner as usize }
    }
}

/// All a ring must know of a tunnel.
#[derive(Debug)]
pub struct TunnelInstall {
    /// The tunnel's name.
    pub id: TunnelId,
    /// Of a peer's tunnels that may send, the one with the highest does, whichever was installed last: both
    /// ends number them alike.
    pub precedence: u128,
    /// The peer's virtual address: packets to it use this tunnel, and it is the only inner source accepted.
    pub peer: Ipv6Addr,
    /// The data connection ID by which the peer reaches this tunnel.
    pub local_cid: ConnectionId,
    /// The peer's real data connection ID, part of the associated data of every packet.
    pub remote_cid: ConnectionId,
    /// Where to send.
    pub path: Path,
    /// The AEAD both ends agreed on.
    pub suite: Suite,
    /// Secret of the direction this node sends in.
    pub send: Secret,
    /// Secret of the direction this node receives in.
    pub recv: Secret,
    /// What the path carries.
    pub mtu: PathMtu,
    /// The peer's class in the port policy.
    pub class: u32,
    /// False at the listening end: it receives, but sends nothing before the first authenticated packet.
    pub confirmed: bool,
}

/// What a tunnel has carried. Packets and bytes are inner ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelStats {
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Of the tunnel's packets, those larger than [`PathMtu::BASE_DATAGRAM`]: what a path could swallow that
    /// carries the small ones.
    pub tx_large: u64,
    /// Inner packets delivered to the virtual interface.
    pub rx_packets: u64,
    /// Bytes of inner packets delivered.
    pub rx_bytes: u64,
    /// When the last authenticated packet of any kind arrived.
    pub last_rx: Option<Instant>,
    /// When the last packet of any kind was sent on the current path.
    pub last_tx: Option<Instant>,
    /// When the first inner packet was sent after the last packet of any kind that arrived; `None` if none
    /// was.
    pub unanswered_since: Option<Instant>,
    /// Key updates seen, by either end.
    pub key_updates: u64,
    /// Whether the peer has shown that it has the tunnel: an authenticated packet of it has arrived.
    pub heard: bool,
    /// Where packets are sent now.
    pub path: Path,
}
