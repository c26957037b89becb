//! What stands in each kind of certificate.

use std::net::{IpAddr, Ipv6Addr};

use cyphonic_proto::identity::{Identity, Role};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{PkiError, random};
use crate::network::Network;
use crate::register::UnixSeconds;

/// Certificates are valid from this long before they were made: a device without a battery-backed clock may
/// be behind, and must not take its new certificate for one of the future.
const BACKDATED: UnixSeconds = 3600;

/// Longest common name (RFC 5280 appendix A, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The part of the zone that is the services' own; devices cannot have names in it.
pub fn services_zone(zone: &str) -> String {
    format!("svc.{zone}")
}

/// The short name of an overlay's own NMS.
pub const NMS_NAME: &str = "nms";

/// The certificate name of a service: `as`, `nms`, or the short name of a relay or of a standby.
pub fn service_name(short: &str, zone: &str) -> String {
    format!("{short}.svc.{zone}")
}

/// An authority's certificate. `constraints` is absent for the root, which everybody trusts for everything
/// anyway.
pub(super) fn authority(
    common_name: &str,
    constraints: Option<NameConstraints>,
    now: UnixSeconds,
    lifetime: UnixSeconds,
) -> Result<CertificateParams, PkiError> {
    let mut params = common(common_name, now, lifetime)?;
    let depth = u8::from(constraints.is_none());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = constraints.is_some();
    params.name_constraints = constraints;
    Ok(params)
}

/// Devices: any name of the zone but the services', addresses of the overlay only.
pub(super) fn device_constraints(network: &Network) -> NameConstraints {
    NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(network.zone.clone()),
            GeneralSubtree::IpAddress(CidrSubnet::V6(network.prefix.address().octets(), prefix_mask())),
        ],
        excluded_subtrees: vec![GeneralSubtree::DnsName(services_zone(&network.zone))],
    }
}

/// Services: only their own part of the zone, no address at all.
pub(super) fn service_constraints(network: &Network) -> NameConstraints {
    NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(services_zone(&network.zone))],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    }
}

/// A device's certificate: it is client to the services, client and server to its peers.
pub(super) fn device(
    network: &Network,
    fqdn: &str,
    address: Ipv6Addr,
    now: UnixSeconds,
    lifetime: UnixSeconds,
) -> Result<CertificateParams, PkiError> {
    let mut params = leaf(network, fqdn, Role::Device, now, lifetime)?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V6(address)));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// A service's certificate: it is only ever a server, so a stolen one cannot connect anywhere; but an NMS that stands in
/// for the overlay's own is also client to that one.
pub(super) fn service(
    network: &Network,
    fqdn: &str,
    role: Role,
    now: UnixSeconds,
    lifetime: UnixSeconds,
) -> Result<CertificateParams, PkiError> {
    let mut params = leaf(network, fqdn, role, now, lifetime)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if role == Role::Nms && fqdn != service_name(NMS_NAME, &network.zone) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    Ok(params)
}

fn leaf(
    network: &Network,
    fqdn: &str,
    role: Role,
    now: UnixSeconds,
    lifetime: UnixSeconds,
) -> Result<CertificateParams, PkiError> {
    let common_name = if fqdn.len() <= MAX_COMMON_NAME { fqdn } else { "Cyphonic" };
    let mut params = common(common_name, now, lifetime)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![
        SanType::DnsName(Ia5String::try_from(fqdn)?),
        SanType::URI(Ia5String::try_from(Identity::uri(network.id, role))?),
    ];
    Ok(params)
}

fn common(common_name: &str, now: UnixSeconds, lifetime: UnixSeconds) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = date(now.saturating_sub(BACKDATED))?;
    params.not_after = date(now.saturating_add(lifetime))?;
    params.serial_number = Some(serial()?);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Cyphonic");
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// 127 random bits, positive and never shorter (RFC 5280 §4.1.2.2): the register and deny lists are keyed by
/// it.
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn date(seconds: UnixSeconds) -> Result<OffsetDateTime, PkiError> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(PkiError::Time(seconds))
}

fn prefix_mask() -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..6].fill(0xff);
    mask
}
