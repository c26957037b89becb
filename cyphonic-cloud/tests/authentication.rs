//! The AS without sockets: who gets a certificate, who may log in.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};

use common::{Device, NOW, Overlay, enrolled};
use cyphonic_cloud::register::DeviceState;
use cyphonic_proto::message::{EnrolRequest, LoginRequest, Message, RefusalCode, RenewRequest};
use cyphonic_proto::{Identity, Role, address, version};

fn from() -> SocketAddr {
    "198.51.100.7:40000".parse().unwrap()
}

fn refused(answer: Message) -> RefusalCode {
    match answer {
        Message::Refusal(refusal) => refusal.code(),
        other => panic!("not refused: {other:?}"),
    }
}

fn login() -> Message {
    Message::LoginRequest(LoginRequest {
        protocol_version: version::CURRENT,
        software_version: "0.1.0".into(),
    })
}

#[test]
fn a_device_gets_the_tokens_name_and_not_the_one_it_asks_for() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let device = Device::new();
    let token = overlay.token("press-7.plant", NOW);
    let answer = enrolled(service.answer(None, from(), &device.enrol_request(&token), NOW));
    let identity = Identity::from_der(&answer.certificate_chain[0]).unwrap();
    assert_eq!(answer.fqdn, "press-7.plant.cyphonic.internal");
    assert_eq!((identity.fqdn.as_str(), identity.role), (answer.fqdn.as_str(), Role::Device));
    let network = &overlay.config.network;
    let expected = address::virtual_address(network.prefix, network.id, &answer.fqdn);
    assert_eq!(identity.virtual_address, Some(expected));
    assert_eq!(answer.virtual_address, expected.octets());
    assert_eq!(answer.root_certificate, overlay.root().to_vec());
    assert_eq!(identity.not_after - i64::try_from(NOW).unwrap(), 90 * 86_400);
}

#[test]
fn a_token_used_a_thousand_times_at_once_makes_one_certificate() {
    let overlay = Overlay::found(NOW);
    let service = Arc::new(overlay.service());
    let token = overlay.token("press-7.plant", NOW);
    let start = Arc::new(Barrier::new(20));
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let (service, start, token) = (Arc::clone(&service), Arc::clone(&start), token.clone());
            std::thread::spawn(move || {
                let requests: Vec<_> = (0..50).map(|_| Device::new().enrol_request(&token)).collect();
                start.wait();
                let answers = requests.iter().map(|request| service.answer(None, from(), request, NOW));
                answers.collect::<Vec<_>>()
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let issued: Vec<_> = answers.iter().filter(|a| matches!(a, Message::EnrolResponse(_))).collect();
    assert_eq!((answers.len(), issued.len()), (1000, 1));
    let others = answers.into_iter().filter(|a| !matches!(a, Message::EnrolResponse(_)));
    assert!(others.map(refused).all(|code| code == RefusalCode::BadToken));
    assert_eq!(overlay.register().certificate_count("press-7.plant.cyphonic.internal").unwrap(), 1);
}

#[test]
fn a_thousand_retries_of_one_device_get_one_and_the_same_certificate() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let token = overlay.token("press-7.plant", NOW);
    let device = Device::new();
    let answers = (0..1000).map(|_| service.answer(None, from(), &device.enrol_request(&token), NOW + 9));
    let certificates: HashSet<_> = answers.map(|answer| enrolled(answer).certificate_chain).collect();
    assert_eq!(certificates.len(), 1);
}

#[test]
fn a_copy_of_an_enrolled_device_is_told_to_have_a_key_of_its_own() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let device = Device::new();
    enrolled(service.answer(None, from(), &device.enrol_request(&overlay.token("a.lab", NOW)), NOW));
    let token = overlay.token("b.lab", NOW);
    let copied = service.answer(None, from(), &device.enrol_request(&token), NOW);
    assert_eq!(refused(copied), RefusalCode::KeyInUse);
    enrolled(service.answer(None, from(), &Device::new().enrol_request(&token), NOW));
}

#[test]
fn expired_unknown_and_malformed_tokens_change_nothing() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let token = overlay.token("press-7.plant", NOW);
    let device = Device::new();
    let expired = service.answer(None, from(), &device.enrol_request(&token), NOW + 3600);
    assert_eq!(refused(expired), RefusalCode::BadToken);
    for (secret, code) in [
        (vec![0; 32], RefusalCode::BadToken),
        (vec![0; 31], RefusalCode::Malformed),
        (Vec::new(), RefusalCode::Malformed),
    ] {
        let request = EnrolRequest {
            token_secret: secret,
            csr: device.csr(),
            protocol_version: 1,
            name: String::new(),
        };
        assert_eq!(refused(service.answer(None, from(), &Message::EnrolRequest(request), NOW)), code);
    }
    assert!(overlay.register().devices().unwrap().is_empty());
}

#[test]
fn devices_of_one_image_enrol_by_one_token_under_their_own_names() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let token = overlay.token_for_many("camera-*.gate", NOW, 2);
    let [first, second, late] = [Device::new(), Device::new(), Device::new()];
    let ask = |device: &Device, name: &str| {
        service.answer(None, from(), &device.enrol_request_as(name, &token), NOW)
    };
    let answer = enrolled(ask(&first, "CAMERA-1"));
    let identity = Identity::from_der(&answer.certificate_chain[0]).unwrap();
    assert_eq!((answer.fqdn.as_str(), &identity.fqdn), ("camera-1.gate.cyphonic.internal", &answer.fqdn));
    assert_eq!(identity.virtual_address.unwrap().octets().to_vec(), answer.virtual_address);
    assert_eq!(refused(ask(&second, "camera-1")), RefusalCode::NotAllowed, "the name is taken");
    let Message::Refusal(unfit) = ask(&second, "raspberrypi") else { panic!("enrolled") };
    assert_eq!((unfit.code(), unfit.retry_after()), (RefusalCode::NotAllowed, None));
    assert!(
        unfit.reason.contains("camera-*.gate") && unfit.reason.contains("raspberrypi"),
        "{}",
        unfit.reason
    );
    assert_eq!(enrolled(ask(&second, "camera-2.gate")).fqdn, "camera-2.gate.cyphonic.internal");
    assert_eq!(refused(ask(&late, "camera-3")), RefusalCode::BadToken);
}

/// A token for one name is for that, whatever a device is called.
#[test]
fn a_device_has_no_say_in_the_name_of_a_token_for_one() {
    let overlay = Overlay::found(NOW);
    let token = overlay.token("press-7.plant", NOW);
    let request = Device::new().enrol_request_as("nms.svc", &token);
    let answer = enrolled(overlay.service().answer(None, from(), &request, NOW));
    assert_eq!(answer.fqdn, "press-7.plant.cyphonic.internal");
}

#[test]
fn a_garbage_request_does_not_use_the_token_up() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let token = overlay.token("press-7.plant", NOW);
    let device = Device::new();
    let mut broken = device.csr();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    for csr in [Vec::new(), vec![0xff; 300], broken] {
        let request = EnrolRequest {
            token_secret: token.secret().to_vec(),
            csr,
            protocol_version: version::CURRENT,
            name: String::new(),
        };
        let answer = service.answer(None, from(), &Message::EnrolRequest(request), NOW);
        assert_eq!(refused(answer), RefusalCode::Malformed);
    }
    enrolled(service.answer(None, from(), &device.enrol_request(&token), NOW));
}

#[test]
fn too_old_a_protocol_is_told_so() {
    let overlay = Overlay::found(NOW);
    let token = overlay.token("press-7.plant", NOW);
    let request = EnrolRequest {
        token_secret: token.secret().to_vec(),
        csr: Device::new().csr(),
        protocol_version: 0,
        name: String::new(),
    };
    let answer = overlay.service().answer(None, from(), &Message::EnrolRequest(request), NOW);
    assert_eq!(refused(answer), RefusalCode::Version);
}

/// Enrols a device and gives its identity.
fn member(overlay: &Overlay, name: &str, replaces: bool) -> Identity {
    let token = overlay.token_for(name, NOW, replaces);
    let answer = overlay.service().answer(None, from(), &Device::new().enrol_request(&token), NOW);
    Identity::from_der(&enrolled(answer).certificate_chain[0]).unwrap()
}

#[test]
fn login_tells_where_the_nms_is_and_what_address_was_seen() {
    let overlay = Overlay::found(NOW);
    let identity = member(&overlay, "press-7.plant", false);
    match overlay.service().answer(Some(&identity), from(), &login(), NOW) {
        Message::LoginResponse(answer) => {
            assert_eq!(answer.fqdn, identity.fqdn);
            assert_eq!(answer.nms_name, "nms.svc.cyphonic.internal");
            assert_eq!(answer.nms.len(), 1);
            let observed = answer.observed.unwrap();
            assert_eq!((observed.address, observed.port), (vec![198, 51, 100, 7], 40_000));
        }
        other => panic!("not logged in: {other:?}"),
    }
    let device = overlay.register().device(&identity.fqdn).unwrap().unwrap();
    assert_eq!(device.software_version.as_deref(), Some("0.1.0"));
}

#[test]
fn a_login_that_cannot_be_noted_keeps_out_only_a_next_key() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let old = member(&overlay, "press-7.plant", false);
    let renew = Message::RenewRequest(RenewRequest { csr: Device::new().csr() });
    let Message::RenewResponse(answer) = service.answer(Some(&old), from(), &renew, NOW + 60 * 86_400) else {
        panic!("not renewed")
    };
    let new = Identity::from_der(&answer.certificate_chain[0]).unwrap();
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    let broken = "CREATE TRIGGER full BEFORE UPDATE ON devices BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    register.execute_batch(broken).unwrap();
    assert!(matches!(service.answer(Some(&old), from(), &login(), NOW), Message::LoginResponse(_)));
    assert_eq!(refused(service.answer(Some(&new), from(), &login(), NOW)), RefusalCode::Internal);
    register.execute_batch("DROP TRIGGER full").unwrap();
    assert!(matches!(service.answer(Some(&new), from(), &login(), NOW), Message::LoginResponse(_)));
}

#[test]
fn a_device_that_renewed_after_the_backup_is_listed_until_its_certificate_ends() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let device = Device::new();
    let answer = service.answer(None, from(), &device.enrol_request(&overlay.token("a", NOW)), NOW);
    let old = Identity::from_der(&enrolled(answer).certificate_chain[0]).unwrap();
    let renew = Message::RenewRequest(RenewRequest { csr: device.csr() });
    let answer = service.answer(Some(&old), from(), &renew, NOW + 60 * 86_400);
    let Message::RenewResponse(answer) = answer else { panic!("not renewed: {answer:?}") };
    let new = Identity::from_der(&answer.certificate_chain[0]).unwrap();
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    let lost = register.execute("DELETE FROM certificates WHERE serial = ?1", [&new.serial]).unwrap();
    assert_eq!(lost, 1, "as in the backup");
    let state = || {
        let device = overlay.register().device(&new.fqdn).unwrap().unwrap();
        DeviceState::of(&device, NOW + 100 * 86_400)
    };
    assert_eq!(state(), DeviceState::Lapsed);
    let answer = service.answer(Some(&new), from(), &login(), NOW + 61 * 86_400);
    assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
    assert_eq!(state(), DeviceState::Enrolled);
}

#[test]
fn a_revoked_device_can_neither_log_in_nor_renew() {
    let overlay = Overlay::found(NOW);
    let identity = member(&overlay, "press-7.plant", false);
    let service = overlay.service();
    assert!(service.knows(&identity, NOW));
    overlay.register().revoke_device(&identity.fqdn, NOW).unwrap();
    assert!(!service.knows(&identity, NOW));
    assert_eq!(refused(service.answer(Some(&identity), from(), &login(), NOW)), RefusalCode::Revoked);
    let renew = Message::RenewRequest(RenewRequest { csr: Device::new().csr() });
    assert_eq!(refused(service.answer(Some(&identity), from(), &renew, NOW)), RefusalCode::Revoked);
}

#[test]
fn the_replaced_device_is_out_and_the_new_one_has_its_address() {
    let overlay = Overlay::found(NOW);
    let old = member(&overlay, "press-7.plant", false);
    let new = member(&overlay, "press-7.plant", true);
    assert_eq!(old.virtual_address, new.virtual_address);
    let service = overlay.service();
    assert_eq!(refused(service.answer(Some(&old), from(), &login(), NOW)), RefusalCode::NotAllowed);
    assert!(matches!(service.answer(Some(&new), from(), &login(), NOW), Message::LoginResponse(_)));
    assert_eq!([&old, &new].map(|identity| service.knows(identity, NOW)), [false, true]);
}

#[test]
fn renewal_with_a_new_key_works_even_if_its_answer_is_lost() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let old = member(&overlay, "press-7.plant", false);
    let renew = Message::RenewRequest(RenewRequest { csr: Device::new().csr() });
    let answer = service.answer(Some(&old), from(), &renew, NOW + 60 * 86_400);
    let Message::RenewResponse(answer) = answer else { panic!("not renewed: {answer:?}") };
    let new = Identity::from_der(&answer.certificate_chain[0]).unwrap();
    assert_eq!((&new.fqdn, new.virtual_address), (&old.fqdn, old.virtual_address));
    // The answer was lost: the old key still works. Then the new one is used, and the old one is out.
    assert!(matches!(service.answer(Some(&old), from(), &login(), NOW), Message::LoginResponse(_)));
    assert!(matches!(service.answer(Some(&new), from(), &login(), NOW), Message::LoginResponse(_)));
    assert_eq!(refused(service.answer(Some(&old), from(), &login(), NOW)), RefusalCode::NotAllowed);
}

#[test]
fn who_stays_connected_until_its_certificate_has_ended_is_let_on_no_longer() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let identity = member(&overlay, "press-7.plant", false);
    let renew = Message::RenewRequest(RenewRequest { csr: Device::new().csr() });
    let ended = NOW + 91 * 86_400;
    for request in [renew, login()] {
        assert_eq!(
            refused(service.answer(Some(&identity), from(), &request, ended)),
            RefusalCode::NotAllowed
        );
    }
    assert!(service.knows(&identity, NOW) && !service.knows(&identity, ended));
}

#[test]
fn a_device_that_renews_all_the_time_gets_one_certificate() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let device = Device::new();
    let answer = service.answer(None, from(), &device.enrol_request(&overlay.token("a", NOW)), NOW);
    let own = Identity::from_der(&enrolled(answer).certificate_chain[0]).unwrap();
    let due = NOW + 60 * 86_400;
    let renew =
        |csr, now| service.answer(Some(&own), from(), &Message::RenewRequest(RenewRequest { csr }), now);
    let serials: HashSet<_> = (0..1000)
        .map(|seconds| match renew(device.csr(), due + seconds) {
            Message::RenewResponse(answer) => {
                Identity::from_der(&answer.certificate_chain[0]).unwrap().serial
            }
            other => panic!("not renewed: {other:?}"),
        })
        .collect();
    assert_eq!(serials.len(), 1);
    match renew(Device::new().csr(), due + 1000) {
        Message::Refusal(refusal) => {
            assert_eq!(refusal.code(), RefusalCode::TooMany);
            assert!(refusal.retry_after().is_some());
        }
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(overlay.register().certificate_count(&own.fqdn).unwrap(), 2);
}

#[test]
fn strangers_only_enrol_and_members_only_log_in_and_renew() {
    let overlay = Overlay::found(NOW);
    let service = overlay.service();
    let identity = member(&overlay, "press-7.plant", false);
    assert_eq!(refused(service.answer(None, from(), &login(), NOW)), RefusalCode::NotAllowed);
    let token = overlay.token("press-8.plant", NOW);
    let request = Device::new().enrol_request(&token);
    assert_eq!(refused(service.answer(Some(&identity), from(), &request, NOW)), RefusalCode::NotAllowed);
    let unknown = Identity { fqdn: "ghost.cyphonic.internal".into(), ..identity.clone() };
    assert_eq!(refused(service.answer(Some(&unknown), from(), &login(), NOW)), RefusalCode::NotAllowed);
    let posing = Identity { role: Role::Nms, ..identity };
    assert_eq!(refused(service.answer(Some(&posing), from(), &login(), NOW)), RefusalCode::NotAllowed);
}
