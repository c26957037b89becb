//! The device's key and certificates, together.

use std::fmt;
use std::net::Ipv6Addr;

use cyphonic_proto::identity::Identity;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::FromDer;

/// A chain is the leaf and one intermediate; more than this is not one of ours.
const MAX_CHAIN: usize = 4;

/// An enrolled device's key, certificate chain and trust anchor. Key and leaf belong together.
pub struct DeviceIdentity {
    key: PrivateKeyDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

impl DeviceIdentity {
    /// Puts an identity together; says why if key and leaf do not belong to each other.
    pub fn new(
        key: &KeyPair,
        chain: Vec<CertificateDer<'static>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, String> {
        let leaf = chain.first().ok_or("there is no certificate")?;
        if chain.len() > MAX_CHAIN {
            return Err(format!(
                "the chain has {} certificates, at most {MAX_CHAIN} are usable",
                chain.len()
            ));
        }
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(leaf)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("the certificate is for another key".into());
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Self { key, chain, root })
    }

    pub(super) fn from_pem(key: KeyPair, chain: &[u8], root: &[u8]) -> Result<Self, String> {
        let certificates = |pem: &[u8], what: &str| {
            CertificateDer::pem_slice_iter(pem)
                .take(MAX_CHAIN + 1)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("the {what} cannot be read: {error}"))
        };
        let root = certificates(root, "root certificate")?
            .into_iter()
            .next()
            .ok_or("there is no root certificate")?;
        Self::new(&key, certificates(chain, "certificate chain")?, root)
    }

    /// Whether the certificates are for this key.
    pub(super) fn is_for(&self, key: &KeyPair) -> bool {
        Self::new(key, self.chain.clone(), self.root.clone()).is_ok()
    }

    /// The private key, PKCS #8.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// Leaf first, then the intermediate.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The device's virtual address, as its certificate has it.
    pub fn address(&self) -> Option<Ipv6Addr> {
        Identity::from_der(self.leaf()).ok()?.virtual_address
    }

    /// The device's own certificate.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        // `new` refuses an empty chain.
        &self.chain[0]
    }

    /// The overlay's root.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub(super) fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| certificate_pem(der)).collect()
    }

    pub(super) fn root_pem(&self) -> String {
        certificate_pem(&self.root)
    }
}

fn certificate_pem(der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

impl Clone for DeviceIdentity {
    fn clone(&self) -> Self {
        Self { key: self.key.clone_key(), chain: self.chain.clone(), root: self.root.clone() }
    }
}

impl fmt::Debug for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceIdentity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;

    use super::*;
    use crate::state::StateDir;

    fn certificate(key: &KeyPair) -> CertificateDer<'static> {
        CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(key).unwrap().der().clone()
    }

    #[test]
    fn an_identity_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = state.key_or_generate().unwrap();
        let (leaf, root) = (certificate(&key), certificate(&KeyPair::generate().unwrap()));
        let identity = DeviceIdentity::new(&key, vec![leaf.clone(), root.clone()], root.clone()).unwrap();
        state.save_identity(&identity).unwrap();
        let read = state.identity().unwrap().unwrap();
        assert_eq!((read.chain(), read.root()), (&[leaf, root.clone()][..], &root));
        assert_eq!(read.key().secret_der(), identity.key().secret_der());
    }

    #[test]
    fn a_renewal_keeps_the_certificate_before_it_and_an_enrolment_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = state.key_or_generate().unwrap();
        let root = certificate(&KeyPair::generate().unwrap());
        let identity = || DeviceIdentity::new(&key, vec![certificate(&key)], root.clone()).unwrap();
        let (first, second) = (identity(), identity());
        state.save_identity(&first).unwrap();
        assert!(state.former().is_none());
        state.save_renewed(&second, &first).unwrap();
        assert_eq!(state.identity().unwrap().unwrap().leaf(), second.leaf());
        assert_eq!(state.former().unwrap().leaf(), first.leaf());
        state.save_identity(&second).unwrap();
        assert!(state.former().is_none());
    }

    #[test]
    fn another_key_takes_its_place_with_its_certificate_or_at_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let root = certificate(&KeyPair::generate().unwrap());
        let identity =
            |key: &KeyPair| DeviceIdentity::new(key, vec![certificate(key)], root.clone()).unwrap();
        let first = identity(&state.key_or_generate().unwrap());
        state.save_identity(&first).unwrap();
        let next = state.generate_next_key().unwrap();
        assert_eq!(state.identity().unwrap().unwrap().leaf(), first.leaf(), "there is no certificate for it");
        let again = state.key_or_generate().unwrap();
        assert_eq!(again.public_key_raw(), next.public_key_raw(), "who asks again asks for the same");

        // The power fails between certificate and key.
        state.write_identity(&identity(&next)).unwrap();
        for _ in 0..2 {
            assert!(state.identity().unwrap().unwrap().is_for(&next));
            assert!(!state.next_key_path().exists(), "the other device's key has made way");
        }
        // A certificate for the present key makes the next one useless.
        state.generate_next_key().unwrap();
        state.save_identity(&identity(&next)).unwrap();
        assert!(state.identity().unwrap().unwrap().is_for(&next) && !state.next_key_path().exists());
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let leaf = certificate(&other);
        let error = DeviceIdentity::new(&mine, vec![leaf.clone()], leaf).unwrap_err();
        assert!(error.contains("another key"), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let key = KeyPair::generate().unwrap();
        let leaf = certificate(&key);
        let shown = format!("{:?}", DeviceIdentity::new(&key, vec![leaf.clone()], leaf).unwrap());
        assert_eq!(shown, "DeviceIdentity { certificates: 1, .. }");
    }
}
