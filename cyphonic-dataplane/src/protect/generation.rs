//! One generation of a direction's keys: what a key update replaces (RFC 9001 §6.1), and what it does not.

use zeroize::{Zeroize, Zeroizing};

use super::aead::{HeaderKey, NONCE_LEN, PacketKey};
use super::hkdf::expand_label;
use super::{Secret, Suite};

/// The AEAD key and IV of one generation, with the secret that the next one comes from.
pub(super) struct Generation {
    suite: Suite,
    secret: Secret,
    pub(super) key: PacketKey,
    iv: [u8; NONCE_LEN],
}

impl Generation {
    /// "quic key" and "quic iv" (RFC 9001 §5.1).
    pub(super) fn new(suite: Suite, secret: &Secret) -> Self {
        let key = PacketKey::new(suite, &key_bytes(suite, secret, "quic key"));
        let iv = *expand_label::<NONCE_LEN>(&secret.0, "quic iv");
        Self { suite, secret: secret.clone(), key, iv }
    }

    /// The generation after this one, by "quic ku" (RFC 9001 §6.1).
    pub(super) fn next(&self) -> Self {
        let secret = Secret::new(*expand_label::<32>(&self.secret.0, "quic ku"));
        Self::new(self.suite, &secret)
    }

    /// Eight bytes that only the two peers can know, for the PATH_CHALLENGE that has this generation
    /// acknowledged.
    pub(super) fn challenge(&self) -> [u8; 8] {
        *expand_label::<8>(&self.secret.0, "cyphonic challenge")
    }

    /// RFC 9001 §5.3: the packet number, left-padded, exclusive-or the IV.
    #[inline]
    pub(super) fn nonce(&self, packet_number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(packet_number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.iv.zeroize();
    }
}

/// The header protection key that belongs to a direction's first secret, "quic hp" (RFC 9001 §5.4).
pub(super) fn header_key(suite: Suite, secret: &Secret) -> HeaderKey {
    HeaderKey::new(suite, &key_bytes(suite, secret, "quic hp"))
}

/// The output depends on its length, so each suite has its own.
pub(super) fn key_bytes(suite: Suite, secret: &Secret, label: &str) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    match suite {
        Suite::Aes128Gcm => key[..16].copy_from_slice(&*expand_label::<16>(&secret.0, label)),
        Suite::ChaCha20Poly1305 => key.copy_from_slice(&*expand_label::<32>(&secret.0, label)),
    }
    key
}
