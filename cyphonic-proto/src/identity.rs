//! Who a certificate says its holder is.
//!
//! The chain to the AS's intermediate and its validity are the TLS stack's to check; this module reads the
//! rest. In a certificate of Cyphonic the subject alternative names (RFC 5280 §4.2.1.6) are exactly:
//!
//! - one dNSName: the canonical name;
//! - one URI, `cyphonic://<network id in hex>/<role>`, so that a device cannot pose as a service;
//! - for devices, one iPAddress: the virtual address, so that the AS's signature binds name, address and key.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use ring::digest;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::time::Validity;
use crate::{address, name};

const SCHEME: &str = "cyphonic://";

/// Largest certificate looked at.
pub const MAX_CERTIFICATE_BYTES: usize = 16_384;

/// A network's identity: random, chosen once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 16]);

/// What a certificate's holder may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Authentication Service.
    As,
    /// Node Management Service.
    Nms,
    /// Tunnel Relay Service.
    Trs,
    /// An edge device.
    Device,
}

/// What a public key is known by: SHA-256 of the DER of its SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 32]);

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The network it belongs to.
    pub network_id: NetworkId,
    /// What its holder may be.
    pub role: Role,
    /// Its holder's canonical name.
    pub fqdn: String,
    /// A device's virtual address.
    pub virtual_address: Option<Ipv6Addr>,
    /// Its holder's public key.
    pub spki_sha256: KeyHash,
    /// The serial number's bytes.
    pub serial: Vec<u8>,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970.
    pub not_after: i64,
}

/// Why a certificate gives no identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not a certificate, or larger than [`MAX_CERTIFICATE_BYTES`].
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// A subject alternative name is missing.
    #[error("the certificate has no {0} among its subject alternative names")]
    Missing(&'static str),
    /// A subject alternative name is there twice.
    #[error("the certificate has more than one {0} among its subject alternative names")]
    Twice(&'static str),
    /// A subject alternative name has a form that Cyphonic does not use.
    #[error("the certificate's {0} is not one of Cyphonic's")]
    Foreign(&'static str),
    /// A device's name and address do not belong together.
    #[error("the certificate's virtual address is not the one that follows from its name")]
    AddressMismatch,
}

impl KeyHash {
    /// That of a SubjectPublicKeyInfo in DER.
    pub fn of(spki: &[u8]) -> Self {
        Self(sha256(spki))
    }
}

impl Identity {
    /// Reads the identity out of an end-entity certificate.
    ///
    /// # Errors
    /// Where the certificate is not of the form described above. Whether its chain and dates are good is not
    /// asked.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(IdentityError::Malformed);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed);
        }
        let names = Names::of(&certificate)?;
        let (network_id, role) = names.uri.ok_or(IdentityError::Missing("URI"))?;
        let identity = Self {
            network_id,
            role,
            fqdn: names.dns.ok_or(IdentityError::Missing("dNSName"))?,
            virtual_address: names.address,
            spki_sha256: KeyHash::of(certificate.public_key().raw),
            serial: certificate.raw_serial().to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        };
        identity.check_address()?;
        Ok(identity)
    }

    /// From when to when the certificate is valid.
    pub fn validity(&self) -> Validity {
        Validity::of(self.not_before, self.not_after)
    }

    /// The URI that says network and role.
    pub fn uri(network_id: NetworkId, role: Role) -> String {
        format!("{SCHEME}{network_id}/{role}")
    }

    /// Whether this is the device `fqdn` at `address` of the network.
    pub fn is_device(&self, network_id: NetworkId, fqdn: &str, address: Ipv6Addr) -> bool {
        self.role == Role::Device
            && self.network_id == network_id
            && self.fqdn == fqdn
            && self.virtual_address == Some(address)
            && self.check_address().is_ok()
    }

    fn check_address(&self) -> Result<(), IdentityError> {
        match (self.role, self.virtual_address) {
            (Role::Device, None) => Err(IdentityError::Missing("iPAddress")),
            (Role::Device, Some(given)) => {
                let prefix = address::Prefix::of(given);
                let expected = address::virtual_address(prefix, self.network_id, &self.fqdn);
                if given == expected { Ok(()) } else { Err(IdentityError::AddressMismatch) }
            }
            (Role::As | Role::Nms | Role::Trs, None) => Ok(()),
            (Role::As | Role::Nms | Role::Trs, Some(_)) => Err(IdentityError::Foreign("iPAddress")),
        }
    }
}

/// While every certificate of a chain is valid. Who signed them is not asked.
///
/// # Errors
/// Where one is no certificate, or larger than [`MAX_CERTIFICATE_BYTES`].
pub fn validity_of_chain<'a>(chain: impl IntoIterator<Item = &'a [u8]>) -> Result<Validity, IdentityError> {
    chain.into_iter().try_fold(Validity::ALWAYS, |whole, der| {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(IdentityError::Malformed);
        }
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        let validity = certificate.validity();
        Ok(whole.and(Validity::of(validity.not_before.timestamp(), validity.not_after.timestamp())))
    })
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[derive(Default)]
struct Names {
    dns: Option<String>,
    uri: Option<(NetworkId, Role)>,
    address: Option<Ipv6Addr>,
}

impl Names {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let extension = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        let extension = extension.ok_or(IdentityError::Missing("dNSName"))?;
        let mut names = Self::default();
        for general in &extension.value.general_names {
            names.add(general)?;
        }
        Ok(names)
    }

    fn add(&mut self, general: &GeneralName<'_>) -> Result<(), IdentityError> {
        match general {
            GeneralName::DNSName(text) => {
                let canonical = name::canonical(text).ok().filter(|canonical| canonical == text);
                once(&mut self.dns, canonical, "dNSName")
            }
            GeneralName::URI(text) => once(&mut self.uri, parse_uri(text), "URI"),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 16]>::try_from(*bytes).ok().map(Ipv6Addr::from_octets);
                once(&mut self.address, address, "iPAddress")
            }
            _ => Err(IdentityError::Foreign("subject alternative name")),
        }
    }
}

fn once<T>(slot: &mut Option<T>, value: Option<T>, what: &'static str) -> Result<(), IdentityError> {
    let value = value.ok_or(IdentityError::Foreign(what))?;
    if slot.replace(value).is_some() { Err(IdentityError::Twice(what)) } else { Ok(()) }
}

fn parse_uri(text: &str) -> Option<(NetworkId, Role)> {
    let (network, role) = text.strip_prefix(SCHEME)?.split_once('/')?;
    Some((network.parse().ok()?, role.parse().ok()?))
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({self})")
    }
}

/// Its beginning, which tells keys apart.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", data_encoding::HEXLOWER.encode(&self.0[..8]))
    }
}

/// A text is no network id or no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a {0}")]
pub struct ParseError(&'static str);

impl FromStr for NetworkId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(ParseError("network id: 32 lowercase hexadecimal digits"))
    }
}

impl Role {
    /// The role as certificates write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::As => "as",
            Self::Nms => "nms",
            Self::Trs => "trs",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let all = [Self::As, Self::Nms, Self::Trs, Self::Device];
        all.into_iter().find(|role| role.as_str() == text).ok_or(ParseError("role: as, nms, trs or device"))
    }
}

#[cfg(test)]
mod tests;
