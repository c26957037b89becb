//! Enrolment tokens.
//!
//! One line of text that an operator carries to a new device: a secret that the AS accepts once, and the hash
//! of the root certificate, so that the device knows whom it talks to before it trusts anyone. The hash never
//! leaves the device; the AS stores only a hash of the secret.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use ring::digest;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What the text form of every token begins with.
pub const SCHEME: &str = "cyphonic-token-1.";
const PART: usize = 32;

/// What a new device needs in order to enrol.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct EnrolmentToken {
    secret: [u8; PART],
    root_sha256: [u8; PART],
}

/// What the AS stores instead of a secret, and looks a presented one up by. The secret is 256 random bits, so
/// a plain hash is enough, and a look-up by it leaks no useful timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not start as tokens do.
    #[error(
        "an enrolment token starts with {SCHEME:?}: copy the whole line that `cyphonic-cloud token create` printed"
    )]
    Scheme,
    /// What follows is not 64 bytes of base64url.
    #[error("the enrolment token is cut short or has stray characters: copy the whole line again")]
    Encoding,
}

impl EnrolmentToken {
    /// A token of a random secret and the SHA-256 of the root certificate's DER.
    pub const fn new(secret: [u8; 32], root_sha256: [u8; 32]) -> Self {
        Self { secret, root_sha256 }
    }

    /// Reads the text form; space around it is ignored.
    ///
    /// # Errors
    /// Says what is wrong, without repeating the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(SCHEME).ok_or(TokenError::Scheme)?;
        if encoded.len() != BASE64URL_NOPAD.encode_len(2 * PART) {
            return Err(TokenError::Encoding);
        }
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| TokenError::Encoding)?;
        let bytes = Zeroizing::new(bytes);
        let (secret, root) = bytes.split_at_checked(PART).ok_or(TokenError::Encoding)?;
        let part = |bytes: &[u8]| <[u8; PART]>::try_from(bytes).map_err(|_| TokenError::Encoding);
        Ok(Self { secret: part(secret)?, root_sha256: part(root)? })
    }

    /// The text form, to be shown once and kept nowhere.
    pub fn format(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new([self.secret, self.root_sha256].concat());
        let mut text = String::with_capacity(SCHEME.len() + BASE64URL_NOPAD.encode_len(bytes.len()));
        text.push_str(SCHEME);
        BASE64URL_NOPAD.encode_append(&bytes, &mut text);
        Zeroizing::new(text)
    }

    /// What the device shows to the AS.
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// What the AS's chain must end in: the SHA-256 of the root certificate's DER.
    pub const fn root_sha256(&self) -> &[u8; 32] {
        &self.root_sha256
    }

    /// What the AS stores instead of the secret.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(&self.secret)
    }
}

impl SecretHash {
    /// That of a secret.
    pub fn of(secret: &[u8; 32]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"cyphonic enrolment token v1");
        hash.update(secret);
        let mut out = [0; 32];
        out.copy_from_slice(hash.finish().as_ref());
        Self(out)
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentToken").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_survives_its_text_form(secret: [u8; 32], root: [u8; 32]) {
            let token = EnrolmentToken::new(secret, root);
            let text = token.format();
            prop_assert_eq!(EnrolmentToken::parse(&text), Ok(token.clone()));
            let padded = format!("  {}\n", text.as_str());
            prop_assert_eq!(EnrolmentToken::parse(&padded), Ok(token));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(cyphonic-token-1\\.)?\\PC{0,120}") {
            let _ = EnrolmentToken::parse(&text);
        }
    }

    /// Tokens that were handed out, and hashes that registers hold, are told by these for good.
    #[test]
    fn a_token_and_its_hash_are_what_they_always_were() {
        let token = EnrolmentToken::new([1; 32], [2; 32]);
        assert_eq!(
            *token.format(),
            "cyphonic-token-1.AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQECAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg"
        );
        let hash = data_encoding::HEXLOWER.encode(&token.secret_hash().0);
        assert_eq!(hash, "1f9fabb95c6408b798f9cef7fc42b6f791010b23a1f350db781e0e248b853646");
    }

    #[test]
    fn a_damaged_token_is_refused() {
        let text = EnrolmentToken::new([1; 32], [2; 32]).format();
        assert_eq!(EnrolmentToken::parse(text.trim_start_matches('c')), Err(TokenError::Scheme));
        assert_eq!(EnrolmentToken::parse(&text[..text.len() - 1]), Err(TokenError::Encoding));
        assert_eq!(EnrolmentToken::parse(&text.replace("AQ", "A!")), Err(TokenError::Encoding));
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = EnrolmentToken::new([0xab; 32], [2; 32]);
        assert_eq!(format!("{token:?}"), "EnrolmentToken { .. }");
        assert_ne!(token.secret_hash().0, *token.secret());
    }
}
