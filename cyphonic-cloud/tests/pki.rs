//! The certificates as rustls's verifier sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Device, NOW, Overlay};
use cyphonic_cloud::network::Network;
use cyphonic_cloud::pki::{self, Authority, DeviceKey};
use cyphonic_proto::Role;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

const DAY: u64 = 86_400;

fn roots(overlay: &Overlay) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(overlay.root()).unwrap();
    Arc::new(roots)
}

fn as_server(overlay: &Overlay, chain: &[CertificateDer<'_>], name: &str, now: u64) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(overlay), provider).build().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(drop)
}

fn as_client(overlay: &Overlay, chain: &[CertificateDer<'_>], now: u64) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(overlay), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.verify_client_cert(&chain[0], &chain[1..], now).map(drop)
}

fn device_chain(authority: &Authority, network: &Network, fqdn: &str) -> Vec<CertificateDer<'static>> {
    let key = DeviceKey::from_csr(&Device::new().csr()).unwrap();
    let issued = authority.issue_device(network, fqdn, &key, NOW, 90 * DAY).unwrap();
    vec![issued.der.into(), authority.certificate().clone()]
}

#[test]
fn services_are_servers_under_their_own_names_only() {
    let overlay = Overlay::found(NOW);
    for role in ["as", "nms", "trs1"] {
        let chain =
            pki::read_certificates(&overlay.directory.path().join(format!("pki/{role}.crt"))).unwrap();
        let own = format!("{role}.svc.cyphonic.internal");
        as_server(&overlay, &chain, &own, NOW).unwrap();
        assert!(as_server(&overlay, &chain, "other.svc.cyphonic.internal", NOW).is_err());
        assert!(as_client(&overlay, &chain, NOW).is_err(), "{role} is no client");
    }
}

#[test]
fn devices_are_clients_and_peers_as_long_as_they_are_valid() {
    let overlay = Overlay::found(NOW);
    let fqdn = "press-7.plant.cyphonic.internal";
    let chain = device_chain(&overlay.authority("devices"), &overlay.config.network, fqdn);
    as_client(&overlay, &chain, NOW).unwrap();
    as_server(&overlay, &chain, fqdn, NOW).unwrap();
    // A device whose clock is half an hour behind can use its new certificate.
    as_client(&overlay, &chain, NOW - 1800).unwrap();
    let ended = as_client(&overlay, &chain, NOW + 90 * DAY + 1);
    assert!(matches!(
        ended,
        Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }))
    ));
}

#[test]
fn the_devices_authority_cannot_make_a_service_even_if_its_key_is_stolen() {
    let overlay = Overlay::found(NOW);
    let network = &overlay.config.network;
    let stolen = overlay.authority("devices");
    let (chain, _) = stolen.issue_service(network, "nms.svc.cyphonic.internal", Role::Nms, NOW, DAY).unwrap();
    assert!(as_server(&overlay, &chain, "nms.svc.cyphonic.internal", NOW).is_err());
    let chain = device_chain(&stolen, network, "trs1.svc.cyphonic.internal");
    assert!(as_server(&overlay, &chain, "trs1.svc.cyphonic.internal", NOW).is_err());
}

#[test]
fn the_devices_authority_is_bound_to_zone_and_prefix() {
    let overlay = Overlay::found(NOW);
    let stolen = overlay.authority("devices");
    let chain = device_chain(&stolen, &overlay.config.network, "www.example.com");
    assert!(as_client(&overlay, &chain, NOW).is_err());
    let other_prefix = Network { prefix: "fd00:1:2::/48".parse().unwrap(), ..overlay.config.network.clone() };
    let chain = device_chain(&stolen, &other_prefix, "press-7.plant.cyphonic.internal");
    assert!(as_client(&overlay, &chain, NOW).is_err());
}

#[test]
fn the_services_authority_cannot_make_a_device() {
    let overlay = Overlay::found(NOW);
    let services = overlay.authority("services");
    let chain = device_chain(&services, &overlay.config.network, "press-7.plant.cyphonic.internal");
    assert!(as_client(&overlay, &chain, NOW).is_err());
    let chain = device_chain(&services, &overlay.config.network, "x.svc.cyphonic.internal");
    assert!(as_client(&overlay, &chain, NOW).is_err(), "services have no virtual address");
}

#[test]
fn another_overlays_certificates_do_not_verify() {
    let (overlay, other) = (Overlay::found(NOW), Overlay::found(NOW));
    let chain =
        device_chain(&other.authority("devices"), &other.config.network, "press-7.plant.cyphonic.internal");
    assert!(as_client(&overlay, &chain, NOW).is_err());
}

#[test]
fn serial_numbers_do_not_repeat() {
    let overlay = Overlay::found(NOW);
    let authority = overlay.authority("devices");
    let key = DeviceKey::from_csr(&Device::new().csr()).unwrap();
    let issue = || {
        authority.issue_device(&overlay.config.network, "a.cyphonic.internal", &key, NOW, DAY).unwrap().serial
    };
    let serials: std::collections::HashSet<_> = (0..500).map(|_| issue()).collect();
    assert_eq!(serials.len(), 500);
    assert!(serials.iter().all(|serial| serial.len() == 16 && serial[0] < 0x80));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let overlay = Overlay::found(NOW);
    let pki = overlay.directory.path().join("pki");
    let error = Authority::load(&pki.join("devices.crt"), &pki.join("services.key")).unwrap_err();
    assert!(error.to_string().contains("services.key"), "{error}");
    std::fs::write(pki.join("as.key"), "no key").unwrap();
    assert!(pki::read_key(&pki.join("as.key")).unwrap_err().to_string().contains("as.key"));
    assert!(pki::read_certificates(&pki.join("nothing.crt")).is_err());
}
