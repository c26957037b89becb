//! Encapsulation rings: the one seam between packets and the crypto workers.
//!
//! A ring joins the virtual interface to the node's one UDP port. What applications send is read from the
//! interface, sealed for the tunnel of its destination and sent; what arrives for a data connection ID is
//! opened, checked and written to the interface. Everything else that arrives goes to a
//! [`SignallingSink`](crate::udp::SignallingSink). No packet of an established tunnel visits signalling code.
//!
//! Invariants:
//! * A worker owns its sealers or openers; control reaches it as commands, never through a lock per packet.
//! * The packets of one flow leave a ring in the order in which they entered it.
//! * Only an authenticated packet changes state, and only the newest one reports that a peer moved.
//! * Nothing is sent on a tunnel that is not [`confirmed`](TunnelInstall::confirmed) before an authenticated
//!   packet of its peer has arrived; what applications send until then is held, within limits.
//! * Whatever is dropped is counted by name ([`RingCounters`]).

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_common::cid::ConnectionId;

mod awake;
mod command;
mod counters;
mod device;
mod duty;
mod early;
mod ecn;
mod error;
mod event;
mod flows;
mod hold;
mod icmp;
mod offload;
mod pacing;
mod permissions;
mod rx;
mod shared;
mod tunnel;
mod tx;
mod wake;
mod workers;
mod xdp;

pub use awake::AwakeRequest;
pub use counters::{Amount, RingCounters, Traffic};
pub use duty::Division;
#[cfg(feature = "bench")]
pub(crate) use duty::READS_TOGETHER;
pub use early::EarlyPackets;
pub use error::RingError;
pub use event::{CandidateSet, Control, EventSink, RingEvent};
pub use offload::{Offload, OffloadRing};
#[cfg(feature = "bench")]
pub(crate) use pacing::Pacing;
pub use permissions::Permissions;
#[cfg(feature = "bench")]
pub(crate) use rx::MESSAGES;
pub use tunnel::{Path, PathMtu, TunnelId, TunnelInstall, TunnelStats};
#[cfg(feature = "bench")]
pub(crate) use tx::Batch;
pub use workers::{Ring, RingConfig, Side};
pub use xdp::{Card, CardError, QueueError, Underlay, VethPair, Xdp, XdpQueue, XdpRing};

/// What a ring is built from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RingKind {
    /// TUN with virtio-net headers on the virtual side, UDP segmentation and receive offload outside.
    Offload,
    /// AF_XDP on the far end of a veth pair on the virtual side, the UDP port outside.
    Xdp,
}

impl fmt::Display for RingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offload => f.write_str("offload"),
            Self::Xdp => f.write_str("xdp"),
        }
    }
}

/// Bounds of what is held while a tunnel is being set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldLimits {
    /// Packets for one destination (a super-packet counts as one).
    pub packets: usize,
    /// Bytes for one destination.
    pub bytes: usize,
    /// Bytes for all destinations.
    pub total_bytes: usize,
    /// Destinations at a time.
    pub destinations: usize,
    /// How long a packet is worth holding.
    pub age: Duration,
}

impl Default for HoldLimits {
    /// Enough for an application's first burst; 1 MiB in all, so that a port scan of the prefix costs little.
    fn default() -> Self {
        Self {
            packets: 64,
            bytes: 256 * 1024,
            total_bytes: 1024 * 1024,
            destinations: 256,
            age: Duration::from_secs(5),
        }
    }
}

/// A ring: tunnels are installed in it, packets flow through it.
///
/// Calls take effect in the order in which they are made, shortly after they return. Unknown tunnels are
/// ignored: the control plane may name one that is just being removed.
pub trait EncapRing: Send + Sync {
    /// What this ring is built from.
    fn kind(&self) -> RingKind;

    /// Adds a tunnel. Of a peer's tunnels that may send, the one with the highest
    /// [`precedence`](TunnelInstall::precedence) does; the others still receive until they are removed.
    /// Releases what is held for the peer.
    ///
    /// # Errors
    /// The tunnel was refused and nothing changed.
    fn install(&self, tunnel: TunnelInstall) -> Result<(), RingError>;

    /// A peer was told of this connection ID, whose tunnel is not installed yet: packets that come for it are
    /// held, within limits, and opened when it is ([`EarlyPackets`]).
    fn expect(&self, cid: ConnectionId);

    /// There will be no tunnel with this connection ID: what is held for it is dropped. Ignored once it is
    /// installed.
    fn forget(&self, cid: ConnectionId);

    /// Removes a tunnel and its keys. Another tunnel of the same peer sends if there is one.
    fn remove(&self, id: TunnelId);

    /// Sends on another path from now on: nothing larger than [`PathMtu::BASE_DATAGRAM`] until
    /// [`set_mtu`](Self::set_mtu) says what it carries.
    fn set_path(&self, id: TunnelId, path: Path);

    /// The tunnel's present path carries this. Ignored where it is less than IPv6 and QUIC need.
    fn set_mtu(&self, id: TunnelId, mtu: PathMtu);

    /// Sends a control frame. Ignored on a tunnel that is not confirmed yet: nothing may be sent there.
    fn send_control(&self, id: TunnelId, control: Control);

    /// Gives up on a destination: drops what is held for it, and tells the applications so
    /// (ICMPv6 Destination Unreachable) if `unreachable`.
    fn drop_held(&self, dst: Ipv6Addr, unreachable: bool);

    /// Starts a key update now, or as soon as the one in progress is acknowledged (RFC 9001 §6.1).
    fn force_key_update(&self, id: TunnelId);

    /// Enforces a port policy from now on, in place of the one before; at first everything may pass. Packets
    /// that are under way may still pass by the one before.
    ///
    /// # Errors
    /// The policy before is still enforced.
    fn set_permissions(&self, permissions: Arc<Permissions>) -> Result<(), RingError>;

    /// The tunnel's peer is of another class of the policy from now on.
    fn set_class(&self, id: TunnelId, class: u32);

    /// What a tunnel has carried; `None` if there is no such tunnel.
    fn tunnel_stats(&self, id: TunnelId) -> Option<TunnelStats>;

    /// What every tunnel has carried.
    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)>;

    /// Packets and drops of the whole ring, by name.
    fn counters(&self) -> RingCounters;
}
