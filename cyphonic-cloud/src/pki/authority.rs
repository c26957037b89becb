//! A certificate with a key that signs others.

use std::path::Path;

use cyphonic_proto::address;
use cyphonic_proto::identity::{Identity, Role};
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::csr::DeviceKey;
use super::{PkiError, files, profile};
use crate::network::Network;
use crate::register::{IssuedCertificate, UnixSeconds};

const YEAR: UnixSeconds = 365 * 24 * 3600;

/// The root outlives the fleet; replacing it means enrolling every device anew.
const ROOT_LIFETIME: UnixSeconds = 30 * YEAR;

/// Authorities below it are replaced without the devices noticing, as long as the root is there.
const AUTHORITY_LIFETIME: UnixSeconds = 15 * YEAR;

/// Which part of the overlay an authority below the root may sign for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Devices; its key is the AS's.
    Devices,
    /// AS, NMS and TRS.
    Services,
}

/// An authority: the root, or one below it.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Makes a root with a new key.
    ///
    /// # Errors
    /// If the clock or the generator of randomness is unusable.
    pub fn create_root(network: &Network, now: UnixSeconds) -> Result<Self, PkiError> {
        let key = new_key()?;
        let params = profile::authority(&format!("{} root", network.short()), None, now, ROOT_LIFETIME)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Makes an authority below this root, with a new key.
    ///
    /// # Errors
    /// If the clock or the generator of randomness is unusable.
    pub fn create_below(&self, kind: Kind, network: &Network, now: UnixSeconds) -> Result<Self, PkiError> {
        let key = new_key()?;
        let (what, constraints) = match kind {
            Kind::Devices => ("devices", profile::device_constraints(network)),
            Kind::Services => ("services", profile::service_constraints(network)),
        };
        let name = format!("{} {what}", network.short());
        let params = profile::authority(&name, Some(constraints), now, AUTHORITY_LIFETIME)?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Reads an authority from its two files.
    ///
    /// # Errors
    /// If one is missing or damaged, or they do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, PkiError> {
        let der = files::read_certificates(certificate)?.swap_remove(0);
        let secret = files::read_key(key)?;
        let content =
            |reason: String| PkiError::Content { path: key.to_owned(), expected: "usable key", reason };
        let pair = KeyPair::from_der_and_sign_algo(&secret, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| content(error.to_string()))?;
        if files::public_key_of(&der) != Some(pair.subject_public_key_info()) {
            return Err(content(format!("it is not the key of {}", certificate.display())));
        }
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, pair)?, certificate: der })
    }

    /// This authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// From when on it is valid.
    ///
    /// # Errors
    /// If its certificate cannot be read.
    pub(super) fn not_before(&self) -> Result<UnixSeconds, String> {
        let (_, parsed) = X509Certificate::from_der(&self.certificate).map_err(|error| error.to_string())?;
        Ok(u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0))
    }

    /// The private key, PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Makes a certificate for a device's own key. Name and address are ours to say, not the request's.
    ///
    /// # Errors
    /// If the certificate cannot be made; nothing is kept here either way.
    pub fn issue_device(
        &self,
        network: &Network,
        fqdn: &str,
        key: &DeviceKey,
        now: UnixSeconds,
        lifetime: UnixSeconds,
    ) -> Result<IssuedCertificate, PkiError> {
        let virtual_address = address::virtual_address(network.prefix, network.id, fqdn);
        let params = profile::device(network, fqdn, virtual_address, now, lifetime)?;
        let certificate = params.signed_by(key.public_key(), &self.issuer)?;
        let identity = Identity::from_der(certificate.der())
            .map_err(|error| PkiError::Check(fqdn.to_owned(), error.to_string()))?;
        let intended = identity.fqdn == fqdn
            && identity.role == Role::Device
            && identity.virtual_address == Some(virtual_address)
            && identity.spki_sha256 == *key.spki_sha256();
        if !intended {
            return Err(PkiError::Check(fqdn.to_owned(), "name, role, address or key differ".to_owned()));
        }
        Ok(IssuedCertificate {
            fqdn: fqdn.to_owned(),
            virtual_address,
            der: certificate.der().to_vec(),
            serial: identity.serial,
            spki_sha256: identity.spki_sha256,
            not_before: u64::try_from(identity.not_before).unwrap_or(0),
            not_after: u64::try_from(identity.not_after).unwrap_or(0),
        })
    }

    /// Makes a service's certificate (leaf, then this authority's) with a new key (PEM).
    ///
    /// # Errors
    /// If the certificate cannot be made.
    pub fn issue_service(
        &self,
        network: &Network,
        fqdn: &str,
        role: Role,
        now: UnixSeconds,
        lifetime: UnixSeconds,
    ) -> Result<(Vec<CertificateDer<'static>>, Zeroizing<String>), PkiError> {
        let key = new_key()?;
        let params = profile::service(network, fqdn, role, now, lifetime)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((vec![certificate.der().clone(), self.certificate.clone()], Zeroizing::new(key.serialize_pem())))
    }

    /// Makes a service's certificate anew, for the same name, role and key. Its dates are the only thing that
    /// changes.
    ///
    /// # Errors
    /// If this authority has not made the old one, it is not a service's of this network, or none can be
    /// made.
    pub fn renew_service(
        &self,
        network: &Network,
        old: &CertificateDer<'_>,
        now: UnixSeconds,
        lifetime: UnixSeconds,
    ) -> Result<(Identity, Vec<CertificateDer<'static>>), PkiError> {
        let identity = Identity::from_der(old).map_err(|error| PkiError::Renewal(error.to_string()))?;
        let refuse = |reason: &str| PkiError::Renewal(format!("that of {} {reason}", identity.fqdn));
        // Whoever brings a certificate must not get one that says more.
        if !self.has_signed(old) {
            return Err(refuse("was not made by this overlay's services authority"));
        }
        if identity.network_id != network.id || identity.role == Role::Device {
            return Err(refuse("is not of a service of this overlay"));
        }
        let key = files::public_key_of(old).and_then(|spki| SubjectPublicKeyInfo::from_der(&spki).ok());
        let key = key.ok_or_else(|| refuse("has a key that cannot be certified"))?;
        let mut params = profile::service(network, &identity.fqdn, identity.role, now, lifetime)?;
        // Whoever renews when the clock is ahead has a certificate that is valid when it is right again.
        if let Ok(since) = OffsetDateTime::from_unix_timestamp(identity.not_before) {
            params.not_before = params.not_before.min(since);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((identity, vec![certificate.der().clone(), self.certificate.clone()]))
    }

    /// Whether it has made a certificate.
    pub(crate) fn has_signed(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = (X509Certificate::from_der(certificate), X509Certificate::from_der(&self.certificate));
        let (Ok((_, certificate)), Ok((_, own))) = parsed else { return false };
        certificate.verify_signature(Some(own.public_key())).is_ok()
    }
}

fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}
