//! Which library's AEAD is used, by measuring.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{NONCE_LEN, PacketKey};
use crate::protect::Suite;

/// A library with AEADs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    /// `ring`.
    Ring,
    /// `aws-lc-rs`.
    AwsLc,
}

/// Payload of the packets that are measured: full-sized ones are where a difference counts.
const PAYLOAD: usize = 1400;
/// Packets of one measurement; it takes well below a tenth of a millisecond.
const PACKETS: u32 = 64;
/// Measurements of each; the shortest counts, since others have been interrupted.
const ROUNDS: u32 = 5;

impl Provider {
    pub(super) const ALL: [Self; 2] = [Self::Ring, Self::AwsLc];

    /// The one that seals faster on this machine. Measured once in the life of the process.
    pub(super) fn fastest(suite: Suite) -> Self {
        static AES: OnceLock<Provider> = OnceLock::new();
        static CHACHA: OnceLock<Provider> = OnceLock::new();
        let chosen = match suite {
            Suite::Aes128Gcm => &AES,
            Suite::ChaCha20Poly1305 => &CHACHA,
        };
        *chosen.get_or_init(|| {
            let costs = Self::ALL.map(|provider| (provider.cost(suite), provider));
            tracing::debug!(?suite, ?costs, "measured AEAD providers");
            costs.into_iter().min_by_key(|(cost, _)| *cost).map_or(Self::Ring, |(_, provider)| provider)
        })
    }

    /// What sealing some packets takes.
    fn cost(self, suite: Suite) -> Duration {
        // The key protects nothing, so nonces may repeat.
        let key = PacketKey::by(self, suite, &[0; 32]);
        let mut payload = [0; PAYLOAD];
        let mut once = || {
            let start = Instant::now();
            for _ in 0..PACKETS {
                // Only an enormous packet would be refused.
                let _ = std::hint::black_box(key.seal([0; NONCE_LEN], &[], &mut payload));
            }
            start.elapsed()
        };
        (0..ROUNDS).map(|_| once()).min().unwrap_or_default()
    }
}
