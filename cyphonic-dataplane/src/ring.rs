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
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::cid::ConnectionId;
use cyphonic_common::frame::CandidateFlags;
use cyphonic_common::limits::{MIN_INNER_MTU, MIN_PROBE_DATAGRAM, TUNNEL_OVERHEAD};

use crate::protect::{Secret, Suite};

mod awake;
mod command;
mod counters;
mod device;
mod duty;
mod early;
mod ecn;
mod hold;
mod icmp;
mod offload;
mod permissions;
mod rx;
mod shared;
mod tempo;
mod tx;
mod wake;
mod workers;
mod xdp;

pub use awake::AwakeRequest;
pub use counters::RingCounters;
pub use duty::Division;
pub use early::EarlyPackets;
pub use offload::{Offload, OffloadRing};
pub use permissions::Permissions;
#[cfg(feature = "bench")]
pub(crate) use tempo::Tempo;
pub use workers::{Ring, RingConfig, Side};
pub use xdp::{Card, CardError, QueueError, Underlay, VethPair, Xdp, XdpQueue, XdpRing};

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

/// What a tunnel's path carries, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PathMtu {
    /// The largest UDP payload that is sent. Inner packets that need a larger one go in pieces.
    pub datagram: u16,
    /// The largest inner packet that applications are to send; larger ones are answered with Packet Too Big. At least 1,280.
    pub inner: u16,
}

impl PathMtu {
    /// What is sent on a path that nothing is known of: QUIC's smallest, without which there would be no tunnel (RFC 9000
    /// §14.1).
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
    const fn is_possible(self) -> bool {
        self.inner >= MIN_INNER_MTU as u16 && self.datagram >= Self::BASE_DATAGRAM
    }

    /// The largest inner packet that is sent whole.
    const fn whole(self) -> usize {
        let fits = (self.datagram as usize).saturating_sub(TUNNEL_OVERHEAD);
        if fits < self.inner as usize { fits } else { self.inner as usize }
    }
}

/// All a ring must know of a tunnel.
#[derive(Debug)]
pub struct TunnelInstall {
    /// The tunnel's name.
    pub id: TunnelId,
    /// Of a peer's tunnels that may send, the one with the highest does, whichever was installed last: both ends number them
    /// alike.
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
    /// False at the listening end: it receives, but sends nothing before the first authenticated packet.
    pub confirmed: bool,
}

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

/// A frame to send on a tunnel, outside the flow of inner packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// PING: shows the peer (and the NATs between) that the tunnel lives.
    Ping,
    /// PATH_CHALLENGE on the tunnel's current path; answered by [`RingEvent::PathResponse`].
    PathChallenge([u8; 8]),
    /// PATH_CHALLENGE on a path that is not in use yet, to validate it before moving to it (RFC 9000 §8.2).
    Probe {
        /// The path to try.
        path: Path,
        /// The data its response must echo.
        data: [u8; 8],
    },
    /// CANDIDATES on the current path: where this end may be reached.
    Candidates(CandidateSet),
    /// PATH_CHALLENGE padded to a datagram of `size` bytes of UDP payload: whether the path carries that (RFC 8899).
    /// Answered by [`RingEvent::PathResponse`], or at once by [`RingEvent::TooBig`] where this host's own interface is too
    /// small for it.
    MtuProbe {
        /// The path to try.
        path: Path,
        /// Bytes of UDP payload.
        size: u16,
        /// The data its response must echo.
        data: [u8; 8],
    },
    /// CONNECTION_CLOSE by the application: the peer learns at once that this tunnel is gone.
    Close {
        /// The application's error code, below 2^62.
        code: u64,
        /// Text for the peer's log; cut to what one packet carries.
        reason: String,
    },
}

/// Where one end of a tunnel may be reached, as it tells the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CandidateSet {
    /// Counts the sender's lists in this tunnel, upwards; a list replaces those before it.
    pub sequence: u64,
    /// The highest number of the other end's lists that has reached this one; 0 before the first.
    pub heard: u64,
    /// What the sender asks for.
    pub flags: CandidateFlags,
    /// The endpoints, best first; those beyond [`cyphonic_common::frame::MAX_CANDIDATES`] are not sent.
    pub endpoints: Vec<SocketAddr>,
}

/// What a tunnel has carried. Packets and bytes are inner ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelStats {
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Of the tunnel's packets, those larger than [`PathMtu::BASE_DATAGRAM`]: what a path could swallow that carries the
    /// small ones.
    pub tx_large: u64,
    /// Inner packets delivered to the virtual interface.
    pub rx_packets: u64,
    /// Bytes of inner packets delivered.
    pub rx_bytes: u64,
    /// When the last authenticated packet of any kind arrived.
    pub last_rx: Option<Instant>,
    /// When the last packet of any kind was sent on the current path.
    pub last_tx: Option<Instant>,
    /// When the first inner packet was sent after the last packet of any kind that arrived; `None` if none was.
    pub unanswered_since: Option<Instant>,
    /// Key updates seen, by either end.
    pub key_updates: u64,
    /// Whether the peer has shown that it has the tunnel: an authenticated packet of it has arrived.
    pub heard: bool,
    /// Where packets are sent now.
    pub path: Path,
}

/// What a ring tells its owner, from its worker threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RingEvent {
    /// Packets for an address without a tunnel are held. At most once a second for each address.
    UnknownDestination {
        /// The address.
        dst: Ipv6Addr,
    },
    /// The peer answered a [`Control::PathChallenge`] or [`Control::Probe`].
    PathResponse {
        /// The tunnel.
        tunnel: TunnelId,
        /// The echoed data.
        data: [u8; 8],
    },
    /// The newest authenticated packet came from an address that is not the path's, and was not to try a path: the
    /// peer sends on another path now (RFC 9000 §9.3). At most every 250 ms for each address.
    PeerMoved {
        /// The tunnel.
        tunnel: TunnelId,
        /// Where it came from.
        from: SocketAddr,
    },
    /// An authenticated PATH_CHALLENGE came from an address that is not the path's, and was answered there. At most
    /// every 250 ms for each address.
    Probed {
        /// The tunnel.
        tunnel: TunnelId,
        /// Where it came from.
        from: SocketAddr,
    },
    /// The peer tells where it may be reached. At most ten a second.
    Candidates {
        /// The tunnel.
        tunnel: TunnelId,
        /// What the peer says. Not checked beyond its form.
        set: CandidateSet,
    },
    /// The peer closed the tunnel. It is not removed by that.
    PeerClosed {
        /// The tunnel.
        tunnel: TunnelId,
        /// The peer's error code.
        code: u64,
        /// The peer's words, cut to a bound, not to be trusted.
        reason: String,
    },
    /// The tunnel's keys reached their limit without an acknowledged update: set up a new one.
    KeysExhausted {
        /// The tunnel.
        tunnel: TunnelId,
    },
    /// This host's own interface does not take a datagram of that size.
    TooBig {
        /// The tunnel. Where it was no probe, it sends no larger datagrams than [`PathMtu::BASE_DATAGRAM`] until
        /// [`EncapRing::set_mtu`].
        tunnel: TunnelId,
        /// The data of the [`Control::MtuProbe`], if it was one.
        probe: Option<[u8; 8]>,
    },
    /// A worker stopped for good.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Where events go. Called from worker threads: it must not block.
pub type EventSink = Arc<dyn Fn(RingEvent) + Send + Sync>;

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

/// Why a ring refused.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The tunnel's name is in use.
    #[error("{0} is installed already: tunnel ids are never reused")]
    DuplicateTunnel(TunnelId),
    /// The local connection ID belongs to another tunnel.
    #[error("data connection ID {0:?} belongs to an installed tunnel already: choose another")]
    DuplicateConnectionId(ConnectionId),
    /// A connection ID of the signalling half was given.
    #[error("connection ID {0:?} is not a data connection ID: its first bit must be set")]
    NotData(ConnectionId),
    /// The peer's address cannot be one.
    #[error(
        "{0} cannot be a peer's virtual address here: it is this node's own or outside the overlay's prefix"
    )]
    BadPeer(Ipv6Addr),
    /// IPv6 cannot run over this MTU, or QUIC over this path.
    #[error(
        "an inner MTU of {} is below 1280, the least IPv6 allows (RFC 8200 section 5), or datagrams of {} bytes are below \
         1200, the least QUIC needs (RFC 9000 section 14)", .0.inner, .0.datagram
    )]
    MtuTooSmall(PathMtu),
    /// More tunnels than a node may have.
    #[error("{0} tunnels are installed, the most this ring takes: remove some first")]
    TooManyTunnels(usize),
    /// The ring has stopped.
    #[error("the ring has stopped: {0}")]
    Stopped(&'static str),
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A ring: tunnels are installed in it, packets flow through it.
///
/// Calls take effect in the order in which they are made, shortly after they return. Unknown tunnels are
/// ignored: the control plane may name one that is just being removed.
pub trait EncapRing: Send + Sync {
    /// What this ring is built from.
    fn kind(&self) -> RingKind;

    /// Adds a tunnel. The newest tunnel of a peer is the one that sends; older ones still receive until they
    /// are removed. Releases what is held for the peer.
    ///
    /// # Errors
    /// The tunnel was refused and nothing changed.
    fn install(&self, tunnel: TunnelInstall) -> Result<(), RingError>;

    /// A peer was told of this connection ID, whose tunnel is not installed yet: packets that come for it are held, within
    /// limits, and opened when it is ([`EarlyPackets`]).
    fn expect(&self, cid: ConnectionId);

    /// There will be no tunnel with this connection ID: what is held for it is dropped. Ignored once it is installed.
    fn forget(&self, cid: ConnectionId);

    /// Removes a tunnel and its keys. An older tunnel of the same peer sends again if there is one.
    fn remove(&self, id: TunnelId);

    /// Sends on another path from now on: nothing larger than [`PathMtu::BASE_DATAGRAM`] until [`set_mtu`](Self::set_mtu)
    /// says what it carries.
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

    /// Has the workers enforce a port policy from now on, in place of the one before; at first everything may pass. For
    /// where no program does it.
    fn set_permissions(&self, permissions: Arc<Permissions>);

    /// What a tunnel has carried; `None` if there is no such tunnel.
    fn tunnel_stats(&self, id: TunnelId) -> Option<TunnelStats>;

    /// What every tunnel has carried.
    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)>;

    /// Packets and drops of the whole ring, by name.
    fn counters(&self) -> RingCounters;
}
