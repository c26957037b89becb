//! The AEAD provider: the only file that names it.
//!
//! Which library is fastest differs by CPU. To change it, give [`PacketKey`] and [`HeaderKey`] other insides; nothing
//! else knows.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey, quic};

use super::{Suite, TAG_LEN};

/// Bytes of a nonce, and of the IV it is made from.
pub(super) const NONCE_LEN: usize = 12;

/// The provider refused: a packet does not verify, or is longer than the AEAD can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// One generation's AEAD key.
pub(super) struct PacketKey(LessSafeKey);

impl PacketKey {
    /// Takes the first `suite.key_len()` bytes of `key`.
    #[expect(clippy::expect_used, reason = "a key is refused only for its length, which the suite fixes")]
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::Aes128Gcm => &aead::AES_128_GCM,
            Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &key[..suite.key_len()]);
        Self(LessSafeKey::new(key.expect("the key has the algorithm's length")))
    }

    /// Encrypts in place and returns the tag.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        header: &[u8],
        plaintext: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag =
            self.0.seal_in_place_separate_tag(nonce, Aad::from(header), plaintext).map_err(|_| Refused)?;
        tag.as_ref().try_into().map_err(|_| Refused)
    }

    /// Verifies and decrypts in place ciphertext with the tag behind it; the plaintext is at the front.
    /// On refusal the buffer's content is of no use.
    #[inline]
    pub(super) fn open<'a>(
        &self,
        nonce: [u8; NONCE_LEN],
        header: &[u8],
        ciphertext: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refused> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(header), ciphertext).map_err(|_| Refused)
    }
}

/// A direction's header protection key (RFC 9001 §5.4): the same for all generations.
pub(crate) struct HeaderKey(quic::HeaderProtectionKey);

impl HeaderKey {
    /// Takes the first `suite.key_len()` bytes of `key`.
    #[expect(clippy::expect_used, reason = "a key is refused only for its length, which the suite fixes")]
    pub(crate) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::Aes128Gcm => &quic::AES_128,
            Suite::ChaCha20Poly1305 => &quic::CHACHA20,
        };
        let key = quic::HeaderProtectionKey::new(algorithm, &key[..suite.key_len()]);
        Self(key.expect("the key has the algorithm's length"))
    }

    /// The mask for a header, from the ciphertext's sample.
    #[inline]
    #[expect(clippy::expect_used, reason = "a sample is refused only for its length, which its type fixes")]
    pub(crate) fn mask(&self, sample: &[u8; 16]) -> [u8; 5] {
        self.0.new_mask(sample).expect("the sample has 16 bytes")
    }
}
