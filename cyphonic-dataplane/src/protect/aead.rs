//! The AEAD providers: the only files that name them.
//!
//! Which library is fastest differs by CPU: with AES-128-GCM, one is a third faster than the other where
//! there are wide vector instructions, and slower where there are none. So both are here, behind one key
//! type, and a short measurement decides when the first key is made ([`provider`]). Both compute the same,
//! byte for byte.

mod provider;

use ring::aead::quic;

use self::provider::Provider;
use super::{Suite, TAG_LEN};

/// Bytes of a nonce, and of the IV it is made from.
pub(super) const NONCE_LEN: usize = 12;

/// The provider refused: a packet does not verify, or is longer than the AEAD can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// One generation's AEAD key.
pub(super) struct PacketKey(Key);

enum Key {
    /// It holds its key schedule itself; the other one points to it.
    Ring(Box<ring::aead::LessSafeKey>),
    AwsLc(aws_lc_rs::aead::LessSafeKey),
}

impl PacketKey {
    /// Takes the first `suite.key_len()` bytes of `key`.
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self::by(Provider::fastest(suite), suite, key)
    }

    #[expect(clippy::expect_used, reason = "a key is refused only for its length, which the suite fixes")]
    fn by(provider: Provider, suite: Suite, key: &[u8; 32]) -> Self {
        let key = &key[..suite.key_len()];
        let fits = "the key has the algorithm's length";
        Self(match provider {
            Provider::Ring => {
                use ring::aead::{AES_128_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
                let algorithm = match suite {
                    Suite::Aes128Gcm => &AES_128_GCM,
                    Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
                };
                Key::Ring(Box::new(LessSafeKey::new(UnboundKey::new(algorithm, key).expect(fits))))
            }
            Provider::AwsLc => {
                use aws_lc_rs::aead::{AES_128_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
                let algorithm = match suite {
                    Suite::Aes128Gcm => &AES_128_GCM,
                    Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
                };
                Key::AwsLc(LessSafeKey::new(UnboundKey::new(algorithm, key).expect(fits)))
            }
        })
    }

    /// Encrypts in place and returns the tag.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        header: &[u8],
        plaintext: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        match &self.0 {
            Key::Ring(key) => {
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, ring::aead::Aad::from(header), plaintext);
                tag.map_err(|_| Refused)?.as_ref().try_into().map_err(|_| Refused)
            }
            Key::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                let aad = aws_lc_rs::aead::Aad::from(header);
                let tag = key.seal_in_place_separate_tag(nonce, aad, plaintext);
                tag.map_err(|_| Refused)?.as_ref().try_into().map_err(|_| Refused)
            }
        }
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
        match &self.0 {
            Key::Ring(key) => {
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, ring::aead::Aad::from(header), ciphertext).map_err(|_| Refused)
            }
            Key::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aws_lc_rs::aead::Aad::from(header), ciphertext).map_err(|_| Refused)
            }
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn providers_compute_the_same(
            key: [u8; 32], nonce: [u8; NONCE_LEN], header in proptest::collection::vec(any::<u8>(), 0..40),
            plaintext in proptest::collection::vec(any::<u8>(), 0..3000), chacha: bool, flipped: proptest::sample::Index,
        ) {
            let suite = if chacha { Suite::ChaCha20Poly1305 } else { Suite::Aes128Gcm };
            let keys = Provider::ALL.map(|provider| PacketKey::by(provider, suite, &key));
            let sealed = keys.each_ref().map(|key| {
                let mut packet = plaintext.clone();
                let tag = key.seal(nonce, &header, &mut packet).unwrap();
                packet.extend_from_slice(&tag);
                packet
            });
            prop_assert_eq!(&sealed[0], &sealed[1]);
            for key in &keys {
                let mut packet = sealed[0].clone();
                prop_assert_eq!(&*key.open(nonce, &header, &mut packet).unwrap(), &plaintext);
                let mut packet = sealed[0].clone();
                packet[flipped.index(sealed[0].len())] ^= 1;
                prop_assert_eq!(key.open(nonce, &header, &mut packet), Err(Refused));
            }
        }
    }
}
