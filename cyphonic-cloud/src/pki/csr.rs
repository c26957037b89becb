//! A device's certificate signing request (PKCS #10, RFC 2986): the key, and the proof that the device holds
//! it.
//!
//! Nothing else of it is used. What a device is called is written on its token, not in its request.

use cyphonic_proto::identity::KeyHash;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

/// A request with a P-256 key and some extensions is some 300 bytes; this leaves room for verbose tools.
const MAX_CSR_BYTES: usize = 8 * 1024;

/// Why a request was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than any sensible one.
    #[error("the certificate signing request has {0} bytes; {MAX_CSR_BYTES} are the limit")]
    TooLarge(usize),
    /// Not PKCS #10.
    #[error("the certificate signing request is not PKCS #10 in DER")]
    Malformed,
    /// Another algorithm or curve.
    #[error("the certificate signing request's key is not ECDSA on P-256 with SHA-256")]
    Key,
    /// Whoever sent it does not hold the key.
    #[error("the certificate signing request's signature is wrong")]
    Signature,
}

/// A public key whose holder has proved to hold the private one.
#[derive(Debug, Clone)]
pub struct DeviceKey {
    public_key: SubjectPublicKeyInfo,
    spki_sha256: KeyHash,
}

impl DeviceKey {
    /// Checks a request and takes its key.
    ///
    /// # Errors
    /// If it is malformed, of another kind of key, or not signed by it.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge(der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let spki = &csr.certification_request_info.subject_pki;
        let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let is_p256 = spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
        if !is_p256 || csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(CsrError::Key);
        }
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        let public_key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
        Ok(Self { public_key, spki_sha256: KeyHash::of(spki.raw) })
    }

    /// The key, to be certified.
    pub(super) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }

    /// By which the register knows the key.
    pub fn spki_sha256(&self) -> &KeyHash {
        &self.spki_sha256
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_sound_request_gives_its_key() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let parsed = DeviceKey::from_csr(csr.der()).unwrap();
        let expected = KeyHash::of(&rcgen::PublicKeyData::subject_public_key_info(&key));
        assert_eq!(*parsed.spki_sha256(), expected);
    }

    #[test]
    fn other_kinds_of_key_are_refused() {
        assert_eq!(DeviceKey::from_csr(&request(&PKCS_ECDSA_P384_SHA384)).unwrap_err(), CsrError::Key);
        assert_eq!(DeviceKey::from_csr(&request(&PKCS_ED25519)).unwrap_err(), CsrError::Key);
    }

    #[test]
    fn garbage_is_refused() {
        let sound = request(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(DeviceKey::from_csr(b"").unwrap_err(), CsrError::Malformed);
        assert_eq!(DeviceKey::from_csr(&[0x30; 100]).unwrap_err(), CsrError::Malformed);
        assert_eq!(
            DeviceKey::from_csr(&vec![0x30; MAX_CSR_BYTES + 1]).unwrap_err(),
            CsrError::TooLarge(8193)
        );
        assert_eq!(DeviceKey::from_csr(&[&sound[..], &[0]].concat()).unwrap_err(), CsrError::Malformed);
        for length in 0..sound.len() {
            assert!(DeviceKey::from_csr(&sound[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn no_flipped_bit_gives_another_key() {
        let sound = request(&PKCS_ECDSA_P256_SHA256);
        let key = *DeviceKey::from_csr(&sound).unwrap().spki_sha256();
        let mut refused = 0;
        for index in 0..sound.len() * 8 {
            let mut changed = sound.clone();
            changed[index / 8] ^= 1 << (index % 8);
            // Some bits of the outermost headers are not signed, and the parser is lenient there.
            match DeviceKey::from_csr(&changed) {
                Ok(parsed) => assert_eq!(*parsed.spki_sha256(), key, "bit {index} flipped"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > sound.len() * 8 - 32, "only {refused} were refused");
    }
}
