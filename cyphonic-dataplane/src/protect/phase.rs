//! What a tunnel's sealer and opener must agree on while keys are updated.
//!
//! Both sides count generations from 0; the key phase bit is a generation's lowest bit. The atomics publish
//! nothing but themselves, so relaxed ordering does: whoever acts on a packet in another thread got word of
//! it through a channel, which orders these stores too.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// No challenge is outstanding: the peer has received a packet of the sealer's current generation.
const ACKNOWLEDGED: u64 = 0;

/// Shared by the two halves of one tunnel's protection.
#[derive(Debug, Default)]
pub(super) struct KeyPhase {
    /// The newest generation that the peer has sent with. Written by the opener.
    receiving: AtomicU64,
    /// The challenge whose answer shows that the peer receives our current generation. Set by the sealer,
    /// cleared by the opener. One word, so that the answer to an older challenge can never clear a newer
    /// one.
    challenge: AtomicU64,
}

impl KeyPhase {
    #[inline]
    pub(super) fn receiving(&self) -> u64 {
        self.receiving.load(Relaxed)
    }

    pub(super) fn set_receiving(&self, generation: u64) {
        self.receiving.store(generation, Relaxed);
    }

    /// From now on only the answer to `challenge` acknowledges.
    pub(super) fn expect(&self, challenge: [u8; 8]) {
        self.challenge.store(word(challenge), Relaxed);
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.challenge.load(Relaxed) == ACKNOWLEDGED
    }

    /// Whether `answer` was the one expected.
    pub(super) fn acknowledge(&self, answer: [u8; 8]) -> bool {
        self.challenge.compare_exchange(word(answer), ACKNOWLEDGED, Relaxed, Relaxed).is_ok()
    }
}

/// Never [`ACKNOWLEDGED`].
fn word(challenge: [u8; 8]) -> u64 {
    u64::from_ne_bytes(challenge).max(1)
}
