//! Whether certificates are of one overlay, as those judge it who are to believe them.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{Authority, DeviceKey, PkiError};
use crate::network::Network;
use crate::register::UnixSeconds;

/// Checks that a service's chain, leaf first, leads to this root at a time. Whether it is that time is another
/// matter.
///
/// # Errors
/// Why clients would not believe it.
pub fn check_service(
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    at: UnixSeconds,
) -> Result<(), String> {
    check(chain, root, at, KeyUsage::server_auth())
}

/// Checks that what an authority signs for a device of this overlay leads to this root.
///
/// # Errors
/// Why nobody would believe it.
pub fn check_devices_authority(
    authority: &Authority,
    network: &Network,
    root: &CertificateDer<'_>,
) -> Result<(), PkiError> {
    let refused = |reason: String| PkiError::Overlay("devices' authority", reason);
    let at = authority.not_before().map_err(refused)?.saturating_add(1);
    // Signed for the trial, and kept by nobody.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let key = DeviceKey::from_csr(request.der()).map_err(|error| refused(error.to_string()))?;
    let fqdn = format!("trial.{}", network.zone);
    let issued = authority.issue_device(network, &fqdn, &key, at, TRIAL)?;
    let chain = [CertificateDer::from(issued.der), authority.certificate().clone()];
    check(&chain, root, at, KeyUsage::client_auth()).map_err(refused)
}

/// Seconds.
const TRIAL: UnixSeconds = 3_600;

fn check(
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    at: UnixSeconds,
    usage: KeyUsage,
) -> Result<(), String> {
    let (leaf, between) = chain.split_first().ok_or("there is no certificate")?;
    let anchors = [anchor_from_trusted_cert(root).map_err(|error| format!("the root: {error}"))?];
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let verified = leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, between, at, usage, None, None);
    verified.map(drop).map_err(|error| format!("it does not lead to the root of this overlay ({error})"))
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::Role;

    use super::*;
    use crate::pki::Kind;

    const NOW: UnixSeconds = 1_800_000_000;

    fn network(zone: &str, seed: u8) -> Network {
        let prefix = cyphonic_proto::address::Prefix::from_random([seed; 5]);
        Network { id: cyphonic_proto::NetworkId([seed; 16]), prefix, zone: zone.into() }
    }

    #[test]
    fn only_authorities_of_the_same_overlay_are_taken() {
        let (ours, theirs) = (network("plant.example", 1), network("mill.example", 2));
        let [root, other] = [&ours, &theirs].map(|network| Authority::create_root(network, NOW).unwrap());
        let authority = root.create_below(Kind::Devices, &ours, NOW).unwrap();
        check_devices_authority(&authority, &ours, root.certificate()).unwrap();
        let refused = |authority: &Authority, network: &Network, root: &Authority| {
            check_devices_authority(authority, network, root.certificate()).unwrap_err().to_string()
        };
        let error = refused(&authority, &ours, &other);
        assert!(error.contains("devices' authority") && error.contains("root"), "{error}");
        let elsewhere = Network { prefix: theirs.prefix, ..ours.clone() };
        refused(&authority, &elsewhere, &root);
        refused(&authority, &theirs, &root);
        let services = root.create_below(Kind::Services, &ours, NOW).unwrap();
        refused(&services, &ours, &root);

        let (leaf, _) = services.issue_service(&ours, "as.svc.plant.example", Role::As, NOW, TRIAL).unwrap();
        check_service(&leaf, root.certificate(), NOW).unwrap();
        assert!(check_service(&leaf, other.certificate(), NOW).unwrap_err().contains("root"));
        assert!(check_service(&leaf[..1], root.certificate(), NOW).is_err());
    }
}
