//! Asking for a certificate, and believing one: the same at enrolment and at renewal.

use cyphonic_proto::identity::{Identity, Role};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::state::DeviceIdentity;

/// A PKCS #10 request that says nothing but the key: the AS decides the name.
pub(crate) fn signing_request(key: &KeyPair) -> Result<Vec<u8>, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|error| error.to_string())?;
    Ok(request.der().to_vec())
}

/// Believes a chain that an AS sent: for this key, ending in this root, valid now, of a device, whose address
/// follows from its name ([`Identity`] recomputes it).
pub(crate) fn check(
    chain: Vec<Vec<u8>>,
    root: CertificateDer<'static>,
    key: &KeyPair,
    now: UnixTime,
) -> Result<(DeviceIdentity, Identity), String> {
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let device = DeviceIdentity::new(key, chain, root)?;
    check_chain(device.chain(), device.root(), now)?;
    let identity = Identity::from_der(device.leaf()).map_err(|error| error.to_string())?;
    if identity.role != Role::Device {
        return Err(format!("the certificate is for a {}, not a device", identity.role));
    }
    Ok((device, identity))
}

fn check_chain(chain: &[CertificateDer<'_>], root: &CertificateDer<'_>, now: UnixTime) -> Result<(), String> {
    let wrong = |error: webpki::Error| {
        let hint = match error {
            webpki::Error::CertNotValidYet { .. } | webpki::Error::CertExpired { .. } => {
                "; is this device's clock right?"
            }
            _ => "",
        };
        format!("the certificate does not chain to the overlay's root: {error}{hint}")
    };
    let (leaf, intermediates) = chain.split_first().ok_or("no certificate")?;
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(wrong)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(wrong)?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &[anchor],
        intermediates,
        now,
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(wrong)
}
