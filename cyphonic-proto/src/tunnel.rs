//! What two nodes agree on for a tunnel's data packets: suite and keys.

mod schedule;

pub use schedule::{EXPORTER_LABEL, ExportError, Exported, Exporter, Secret, TunnelContext, TunnelSecrets};

/// AEAD of data packets; the numbers stand in TunnelOffer and TunnelRequest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// Where both CPUs have AES instructions.
    Aes128Gcm = 1,
    /// Everywhere else.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// The suite's number in messages.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The suite of a number, if this version knows it.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Aes128Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The first of the dialler's suites, in its order, that the listener has too.
    pub fn choose(dialler: &[Self], listener: &[u32]) -> Option<Self> {
        dialler.iter().copied().find(|suite| listener.iter().take(8).any(|n| *n == suite.number()))
    }
}
