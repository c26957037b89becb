use std::net::IpAddr;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

const NETWORK: NetworkId = NetworkId([0xab; 16]);

fn own_address(fqdn: &str) -> Ipv6Addr {
    address::virtual_address(address::Prefix::from_random([1, 2, 3, 4, 5]), NETWORK, fqdn)
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn ip(address: impl Into<IpAddr>) -> SanType {
    SanType::IpAddress(address.into())
}

fn certificate(names: Vec<SanType>) -> (Vec<u8>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = names;
    parameters.serial_number = Some(vec![1, 2, 3].into());
    (parameters.self_signed(&key).unwrap().der().to_vec(), key)
}

fn read(names: Vec<SanType>) -> Result<Identity, IdentityError> {
    Identity::from_der(&certificate(names).0)
}

fn role_uri(role: Role) -> SanType {
    uri(&Identity::uri(NETWORK, role))
}

#[test]
fn a_device_s_certificate_gives_its_identity() {
    let (der, key) = certificate(vec![dns("a.lab"), role_uri(Role::Device), ip(own_address("a.lab"))]);
    let identity = Identity::from_der(&der).unwrap();
    assert!(identity.is_device(NETWORK, "a.lab", own_address("a.lab")));
    assert_eq!(identity.serial, [1, 2, 3]);
    assert_eq!(identity.spki_sha256, KeyHash::of(&rcgen::PublicKeyData::subject_public_key_info(&key)));
    assert!(identity.not_before < identity.not_after);
    assert!(!identity.is_device(NETWORK, "b.lab", own_address("a.lab")));
    assert!(!identity.is_device(NetworkId([1; 16]), "a.lab", own_address("a.lab")));
}

#[test]
fn a_key_is_shown_by_its_beginning() {
    let mut hash = [0xab; 32];
    hash[8..].fill(0xcd);
    assert_eq!(format!("{:?}", KeyHash(hash)), "KeyHash(abababababababab)");
}

#[test]
fn a_service_has_a_role_and_no_virtual_address() {
    for role in [Role::As, Role::Nms, Role::Trs] {
        let identity = read(vec![dns("cloud.lab"), role_uri(role)]).unwrap();
        assert_eq!((identity.role, identity.virtual_address), (role, None));
        assert!(!identity.is_device(NETWORK, "cloud.lab", own_address("cloud.lab")));
        let with_address = read(vec![dns("cloud.lab"), role_uri(role), ip(own_address("cloud.lab"))]);
        assert_eq!(with_address, Err(IdentityError::Foreign("iPAddress")));
    }
}

#[test]
fn whatever_deviates_from_the_form_is_refused() {
    let device = || vec![dns("a.lab"), role_uri(Role::Device), ip(own_address("a.lab"))];
    let with = |extra: SanType| [device(), vec![extra]].concat();
    assert!(read(device()).is_ok());
    assert_eq!(read(vec![]), Err(IdentityError::Missing("dNSName")));
    assert_eq!(read(vec![dns("a.lab")]), Err(IdentityError::Missing("URI")));
    assert_eq!(read(vec![role_uri(Role::As)]), Err(IdentityError::Missing("dNSName")));
    assert_eq!(read(device()[..2].to_vec()), Err(IdentityError::Missing("iPAddress")));
    assert_eq!(read(with(dns("b.lab"))), Err(IdentityError::Twice("dNSName")));
    assert_eq!(read(with(role_uri(Role::Nms))), Err(IdentityError::Twice("URI")));
    assert_eq!(read(with(ip(own_address("b.lab")))), Err(IdentityError::Twice("iPAddress")));
    let mail = SanType::Rfc822Name("a@lab".try_into().unwrap());
    assert_eq!(read(with(mail)), Err(IdentityError::Foreign("subject alternative name")));
    assert_eq!(read(vec![dns("A.lab"), role_uri(Role::As)]), Err(IdentityError::Foreign("dNSName")));
    assert_eq!(read(vec![dns("*.lab"), role_uri(Role::As)]), Err(IdentityError::Foreign("dNSName")));
    let v4 = vec![dns("a.lab"), role_uri(Role::Device), ip([192, 0, 2, 1])];
    assert_eq!(read(v4), Err(IdentityError::Foreign("iPAddress")));
    for bad in ["https://x/device", "cyphonic://abab/device", "cyphonic://", "cyphonic://00/root/device"] {
        assert_eq!(read(vec![dns("a.lab"), uri(bad)]), Err(IdentityError::Foreign("URI")), "{bad}");
    }
    let root = Identity::uri(NETWORK, Role::Device).replace("device", "root");
    assert_eq!(read(vec![dns("a.lab"), uri(&root)]), Err(IdentityError::Foreign("URI")));
}

#[test]
fn a_device_cannot_have_the_address_of_another_name() {
    let stolen = vec![dns("a.lab"), role_uri(Role::Device), ip(own_address("b.lab"))];
    assert_eq!(read(stolen), Err(IdentityError::AddressMismatch));
}

#[test]
fn trailing_bytes_and_giants_are_refused() {
    let (mut der, _) = certificate(vec![dns("cloud.lab"), role_uri(Role::As)]);
    der.push(0);
    assert_eq!(Identity::from_der(&der), Err(IdentityError::Malformed));
    assert_eq!(Identity::from_der(&vec![0x30; MAX_CERTIFICATE_BYTES + 1]), Err(IdentityError::Malformed));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = Identity::from_der(&bytes);
    }

    #[test]
    fn a_damaged_certificate_makes_no_panic(at: prop::sample::Index, value: u8) {
        let mut der = certificate(vec![dns("a.lab"), role_uri(Role::Device), ip(own_address("a.lab"))]).0;
        let at = at.index(der.len());
        der[at] = value;
        let _ = Identity::from_der(&der);
    }

    #[test]
    fn the_network_id_survives_its_text_form(id: [u8; 16]) {
        prop_assert_eq!(NetworkId(id).to_string().parse(), Ok(NetworkId(id)));
    }
}
