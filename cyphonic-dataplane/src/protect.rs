//! Packet protection: tunnel data packets as QUIC 1-RTT packets (RFC 9001 §5, §6).
//!
//! [`pair`] makes a [`Sealer`] and an [`Opener`] from the two direction secrets of a set-up. Each has one
//! owner, which uses it without locks. They share one small set of atomics, the key phase: when the opener
//! meets the peer's next keys, the sealer follows at its next packet (§6.2).
//!
//! ```text
//!   0        1            9                 13                                n
//!   +--------+------------+-----------------+---------------------------------+----------+
//!   | 01000K11 | DCID (8) | packet number   | frames (encrypted)              | tag (16) |
//!   +--------+------------+-----------------+---------------------------------+----------+
//!     5 bits protected      4 bytes protected
//! ```
//!
//! The whole header is associated data. A relay rewrites the connection ID, so the sender seals with the
//! receiver's *real* ID and then writes the relay's virtual one; the relay puts the real one back. Header
//! protection samples ciphertext only, so it does not care.
//!
//! **Invariants**
//! - A packet number is used once: one space for the tunnel's life, across all key updates.
//! - Nothing an unauthenticated packet says changes state, except the count of forgeries (§6.6).
//! - No second key update before the peer has shown that it received a packet of the first (§6.1): see
//!   [`Sealer`].
//! - Packet numbers always take four bytes: without acknowledgements the sender cannot know how few would do.

mod aead;
mod generation;
mod hkdf;
mod open;
mod phase;
mod seal;
mod suite;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "bench")]
pub(crate) use aead::HeaderKey;
pub use cyphonic_common::limits::{HEADER_LEN, TAG_LEN};
pub use open::{OpenError, Opened, Opener};
pub use seal::{SealError, Sealer};
pub use suite::Suite;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A direction's traffic secret: what a set-up's key schedule gives, and what every key comes from.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the secret over. The caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Makes both halves of a tunnel's protection. The peer calls it with `send` and `recv` exchanged.
pub fn pair(suite: Suite, send: &Secret, recv: &Secret) -> (Sealer, Opener) {
    let phase = Arc::new(phase::KeyPhase::default());
    (Sealer::new(suite, send, Arc::clone(&phase)), Opener::new(suite, recv, phase))
}
