//! The two AEADs, and the limits RFC 9001 §6.6 puts on their keys.

use std::fmt;

/// An AEAD with its header protection. The numbers are those of the set-up messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// AES-128-GCM: the faster one where the CPU has AES and carry-less multiplication instructions.
    Aes128Gcm = 1,
    /// ChaCha20-Poly1305: the faster one, and free of timing channels, where it has not (Raspberry Pi 4).
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// Both, for offers and tests.
    pub const ALL: [Self; 2] = [Self::Aes128Gcm, Self::ChaCha20Poly1305];

    /// The suite this CPU is best at.
    pub fn preferred() -> Self {
        if has_aes_instructions() { Self::Aes128Gcm } else { Self::ChaCha20Poly1305 }
    }

    /// Why [`Self::preferred`] is what it is, in words for a person.
    pub fn why_preferred() -> &'static str {
        if has_aes_instructions() {
            "this CPU has AES instructions"
        } else {
            "this CPU has no AES instructions"
        }
    }

    /// The suite with this number in a message, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }

    /// Packets that one key may seal (RFC 9001 §6.6). ChaCha20-Poly1305 has no limit below that of packet
    /// numbers.
    pub(super) const fn confidentiality_limit(self) -> u64 {
        match self {
            Self::Aes128Gcm => 1 << 23,
            Self::ChaCha20Poly1305 => 1 << 62,
        }
    }

    /// Forged packets that a tunnel may receive, over all its keys (RFC 9001 §6.6).
    pub(super) const fn integrity_limit(self) -> u64 {
        match self {
            Self::Aes128Gcm => 1 << 52,
            Self::ChaCha20Poly1305 => 1 << 36,
        }
    }

    pub(super) const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::ChaCha20Poly1305 => 32,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn has_aes_instructions() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn has_aes_instructions() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_found_by_its_number_and_by_no_other() {
        for number in 0..=u8::MAX {
            let expected = Suite::ALL.into_iter().find(|suite| *suite as u8 == number);
            assert_eq!(Suite::from_number(number), expected);
        }
        assert_eq!(Suite::from_number(1), Some(Suite::Aes128Gcm));
        assert_eq!(Suite::from_number(2), Some(Suite::ChaCha20Poly1305));
    }
}
