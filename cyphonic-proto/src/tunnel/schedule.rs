//! The key schedule of a tunnel (docs/protocol.md).
//!
//! Input keying material is the TLS exporter (RFC 8446 §7.5) of the two nodes' own handshake; the salt is the
//! key that the NMS gave both ends for this set-up. So neither an NMS that lies nor a stolen CA key alone
//! opens the traffic.
//!
//! Exporter output is the same at both ends, so each direction has a label of its own; otherwise both ends
//! would seal with one key and the same packet numbers. The context holds set-up, suite and both public keys
//! by role: the exporter's secret does not cover the client's certificate (RFC 8446 §7.1 derives it before),
//! the context does.
//!
//! **Invariant.** `send` of one end is `recv` of the other, and the two directions never share a secret.

use std::fmt;

use ring::hkdf;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::Suite;
use crate::id::SetupId;
use crate::identity::KeyHash;

/// Label of the exporter (RFC 5705 §4: private labels need no prefix, but must not collide).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-cyphonic-tunnel-v1";
const FROM_DIALLER: &[u8] = b"cyphonic tunnel v1 dialler to listener";
const FROM_LISTENER: &[u8] = b"cyphonic tunnel v1 listener to dialler";

/// The exporter of an established TLS connection between two peers.
pub trait Exporter {
    /// Keying material for `label` and `context` (RFC 8446 §7.5).
    ///
    /// # Errors
    /// Where the connection has none, for example because its handshake is not complete.
    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExportError>;
}

/// The TLS connection gave no keying material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the TLS connection exports no keying material")]
pub struct ExportError;

/// A direction's secret: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The bytes, for the packet protection alone.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Secrets of the two directions, as one end sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSecrets {
    /// Protects what this end sends.
    pub send: Secret,
    /// Opens what this end receives.
    pub recv: Secret,
}

/// What binds the keys to one set-up between two keys in their roles.
#[derive(Clone, Copy, Debug)]
pub struct TunnelContext<'a> {
    /// The set-up: every one has fresh keys.
    pub setup: SetupId,
    /// SHA-256 of this end's public key.
    pub own_spki_sha256: &'a KeyHash,
    /// SHA-256 of the peer's public key, from its verified certificate.
    pub peer_spki_sha256: &'a KeyHash,
    /// Whether this end opened the connection between the peers.
    pub is_dialler: bool,
    /// What the data packets are protected with.
    pub suite: Suite,
}

/// What the peers' own handshake contributes: half of what it takes. Wiped when dropped, never shown.
pub struct Exported {
    context: Vec<u8>,
    is_dialler: bool,
    secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exported").finish_non_exhaustive()
    }
}

impl Exported {
    /// From the connection between the peers.
    ///
    /// # Errors
    /// Where the exporter fails.
    pub fn new(exporter: &dyn Exporter, context: &TunnelContext<'_>) -> Result<Self, ExportError> {
        let bound = context.encode();
        let secret = Zeroizing::new(exporter.export(EXPORTER_LABEL, &bound)?);
        Ok(Self { context: bound, is_dialler: context.is_dialler, secret })
    }

    /// Both directions' secrets, with the key that the NMS gave both ends for this set-up.
    ///
    /// # Errors
    /// Where the crypto library refuses.
    pub fn secrets(&self, tunnel_key: &[u8; 32]) -> Result<TunnelSecrets, ExportError> {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, tunnel_key).extract(self.secret.as_slice());
        let dialler = expand(&key, FROM_DIALLER, &self.context)?;
        let listener = expand(&key, FROM_LISTENER, &self.context)?;
        Ok(match self.is_dialler {
            true => TunnelSecrets { send: dialler, recv: listener },
            false => TunnelSecrets { send: listener, recv: dialler },
        })
    }
}

impl TunnelContext<'_> {
    /// All fields have fixed lengths, so the encoding is unambiguous.
    fn encode(&self) -> Vec<u8> {
        let (dialler, listener) = match self.is_dialler {
            true => (self.own_spki_sha256, self.peer_spki_sha256),
            false => (self.peer_spki_sha256, self.own_spki_sha256),
        };
        let suite = [self.suite as u8];
        [self.setup.0.as_slice(), &suite, &dialler.0, &listener.0].concat()
    }
}

fn expand(key: &hkdf::Prk, label: &[u8], context: &[u8]) -> Result<Secret, ExportError> {
    let mut out = [0; 32];
    let info = [label, context];
    let okm = key.expand(&info, hkdf::HKDF_SHA256).map_err(|_| ExportError)?;
    okm.fill(&mut out).map_err(|_| ExportError)?;
    let secret = Secret(out);
    out.zeroize();
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::identity::sha256;

    struct Shared(u8);

    impl Exporter for Shared {
        fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExportError> {
            Ok(sha256(&[&[self.0], label, context].concat()))
        }
    }

    fn secrets(
        shared: u8,
        setup: u8,
        key: u8,
        ends: [u8; 2],
        is_dialler: bool,
        suite: Suite,
    ) -> TunnelSecrets {
        let [own, peer] = ends.map(|n| KeyHash([n; 32]));
        let context = TunnelContext {
            setup: SetupId([setup; 16]),
            own_spki_sha256: &own,
            peer_spki_sha256: &peer,
            is_dialler,
            suite,
        };
        Exported::new(&Shared(shared), &context).unwrap().secrets(&[key; 32]).unwrap()
    }

    proptest! {
        #[test]
        fn what_one_end_sends_with_the_other_receives_with(shared: u8, setup: u8, key: u8, a: u8, b: u8) {
            for suite in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305] {
                let dialler = secrets(shared, setup, key, [a, b], true, suite);
                let listener = secrets(shared, setup, key, [b, a], false, suite);
                prop_assert_eq!(&dialler.send, &listener.recv);
                prop_assert_eq!(&dialler.recv, &listener.send);
                prop_assert_ne!(&dialler.send, &dialler.recv);
            }
        }
    }

    #[test]
    fn every_input_changes_both_keys() {
        let all = [
            secrets(1, 1, 1, [1, 2], true, Suite::Aes128Gcm),
            secrets(2, 1, 1, [1, 2], true, Suite::Aes128Gcm),
            secrets(1, 2, 1, [1, 2], true, Suite::Aes128Gcm),
            secrets(1, 1, 2, [1, 2], true, Suite::Aes128Gcm),
            secrets(1, 1, 1, [3, 2], true, Suite::Aes128Gcm),
            secrets(1, 1, 1, [1, 3], true, Suite::Aes128Gcm),
            secrets(1, 1, 1, [2, 1], true, Suite::Aes128Gcm),
            secrets(1, 1, 1, [1, 2], true, Suite::ChaCha20Poly1305),
        ];
        let keys: HashSet<_> = all.iter().flat_map(|s| [s.send.0, s.recv.0]).collect();
        assert_eq!(keys.len(), 2 * all.len());
    }

    #[test]
    fn a_failing_exporter_gives_no_keys_and_debug_shows_none() {
        struct Broken;
        impl Exporter for Broken {
            fn export(&self, _: &[u8], _: &[u8]) -> Result<[u8; 32], ExportError> {
                Err(ExportError)
            }
        }
        let context = TunnelContext {
            setup: SetupId([0; 16]),
            own_spki_sha256: &KeyHash([0; 32]),
            peer_spki_sha256: &KeyHash([1; 32]),
            is_dialler: true,
            suite: Suite::Aes128Gcm,
        };
        assert_eq!(Exported::new(&Broken, &context).unwrap_err(), ExportError);
        let exported = Exported::new(&Shared(7), &context).unwrap();
        assert_eq!(format!("{exported:?}"), "Exported { .. }");
        assert_eq!(format!("{:?}", Secret([7; 32])), "Secret(..)");
    }
}
