//! Why a ring refuses.

use std::net::Ipv6Addr;

use cyphonic_common::cid::ConnectionId;

use super::{PathMtu, TunnelId};
use crate::bpf::BpfError;

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
    /// The programs did not take a policy.
    #[error(transparent)]
    Policy(#[from] BpfError),
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
