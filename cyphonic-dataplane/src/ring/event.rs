//! What a ring is told to send, and what it tells its owner.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cyphonic_common::frame::CandidateFlags;

#[cfg(doc)]
use super::{EncapRing, PathMtu};
use super::{Path, TunnelId};

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
    /// PATH_CHALLENGE padded to a datagram of `size` bytes of UDP payload: whether the path carries that (RFC
    /// 8899). Answered by [`RingEvent::PathResponse`], or at once by [`RingEvent::TooBig`] where this
    /// host's own interface is too small for it.
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
    /// The newest authenticated packet came from an address that is not the path's, and was not to try a
    /// path: the peer sends on another path now (RFC 9000 §9.3). At most every 250 ms for each address.
    PeerMoved {
        /// The tunnel.
        tunnel: TunnelId,
        /// Where it came from.
        from: SocketAddr,
    },
    /// An authenticated PATH_CHALLENGE came from an address that is not the path's, and was answered there.
    /// At most every 250 ms for each address.
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
        /// The tunnel. Where it was no probe, it sends no larger datagrams than [`PathMtu::BASE_DATAGRAM`]
        /// until [`EncapRing::set_mtu`].
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
