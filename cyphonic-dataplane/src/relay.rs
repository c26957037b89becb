//! The relay's data path: from a connection ID to a leg, and onwards.
//!
//! A leg is one direction of a relayed tunnel. Its key is the *virtual* connection ID that the relay chose
//! and the sender writes; the entry says from where such packets may come, where they go, and which *real* ID
//! the receiver must find in them (the forwarded mode of the MASQUE QUIC-aware proxy draft). The relay holds
//! no key.
//!
//! [`RelayMap`] is the seam: [`UserspaceRelay`] forwards in a thread of this process, an XDP map can do it in
//! the kernel. The control plane (TRS) uses the map only and does not know which.
//!
//! **Invariants**
//! - Only what comes from the leg's bound source address is forwarded; bytes out never exceed bytes in.
//! - Long headers are never forwarded, nor is signalling: both go to the
//!   [`SignallingSink`](crate::udp::SignallingSink).
//! - A packet that arrives after [`RelayMap::insert`] returned finds its entry.

mod forward;
mod leg;
mod resets;
#[cfg(test)]
mod tests;
mod userspace;
pub mod xdp;

use std::net::SocketAddr;
use std::time::Instant;

use cyphonic_common::ConnectionId;
use cyphonic_common::relay::LegError;
pub use cyphonic_common::relay::{Leg, RelayRate};
pub use resets::{MAX_RESET_LEN, MIN_RESET_LEN, RESET_TOKEN_LEN, Reset, Resets};
pub use userspace::{RelayCounters, UserspaceRelay};

/// What a leg has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LegStats {
    /// Datagrams forwarded.
    pub packets: u64,
    /// Their bytes, without IP and UDP headers.
    pub bytes: u64,
    /// When the last one was.
    pub last_seen: Option<Instant>,
}

/// Why the map refused. It is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayMapError {
    /// The virtual connection ID is in use: the caller draws another.
    #[error("the connection ID {0} is bound already: draw another one")]
    AlreadyBound(ConnectionId),
    /// The map holds as many legs as it was made for.
    #[error("the relay is full: {capacity} legs are bound; raise the limit or remove idle legs")]
    Full {
        /// The most legs it holds.
        capacity: usize,
    },
    /// One of the two IDs has no data bit: its packets would go to signalling.
    #[error("{0} is not a data connection ID")]
    NotDataId(ConnectionId),
    /// An address that nothing can be sent to: unspecified, multicast or port 0.
    #[error("{0} is not an address that packets can be relayed to or from")]
    BadAddress(SocketAddr),
    /// The leg contradicts itself.
    #[error(transparent)]
    Contradiction(#[from] LegError),
    /// No leg has this virtual connection ID.
    #[error("no leg is bound to the connection ID {0}")]
    NotBound(ConnectionId),
}

/// The relay's map. Its methods are for the control plane, and may lock and allocate.
pub trait RelayMap: Send + Sync {
    /// Binds a virtual connection ID to a leg. Packets that arrive after it returned are forwarded.
    ///
    /// A leg that was [adopted](Self::adopted) under this ID is claimed by it, if it leads to the same real
    /// ID: it may have moved, and its counters go on.
    ///
    /// # Errors
    /// The ID is taken, the map is full, or an argument makes no sense. Nothing has changed.
    fn insert(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError>;

    /// Unbinds, and returns what the leg carried. Nothing, if it was not bound.
    fn remove(&self, cid: ConnectionId) -> Option<LegStats>;

    /// Puts another leg in a bound one's place: an end has moved, or may carry more or less. Counters go on.
    ///
    /// # Errors
    /// No such leg, or the new one makes no sense. Nothing has changed.
    fn replace(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError>;

    /// What a leg carried so far.
    fn stats(&self, cid: ConnectionId) -> Option<LegStats>;

    /// How many legs are bound.
    fn len(&self) -> usize;

    /// Whether none is bound.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Legs that go on forwarding though the process that bound them has died, and that nobody has claimed
    /// yet by [`insert`](Self::insert). Their IDs must not be given to others. A map that dies with its
    /// process has none.
    fn adopted(&self) -> Vec<(ConnectionId, Leg)> {
        Vec::new()
    }

    /// Removes all adopted legs that nobody has claimed. Returns how many.
    fn remove_adopted(&self) -> usize {
        0
    }
}
