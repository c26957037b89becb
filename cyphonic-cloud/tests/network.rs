//! The services over loopback, spoken to with the transport that agents use.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;

use std::time::Duration;

use client::{Client, Member, enrol, login_request};
use common::{Device, Overlay, enrolled};
use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::DeviceState;
use cyphonic_cloud::server::{Cloud, unix_now};
use cyphonic_proto::message::{
    DirectionRequest, Message, ObservationRequest, RefusalCode, RegistrationRequest, endpoint,
};
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_proto::{Role, version};
use cyphonic_transport::{ClientTls, Clock, Connection, enrol as enrolment};

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

async fn overlay() -> (Overlay, Cloud) {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    (overlay, cloud)
}

fn registration() -> Message {
    Message::RegistrationRequest(RegistrationRequest {
        protocol_version: version::CURRENT,
        addresses: endpoint::list_to_wire(&["192.0.2.7:4000".parse().unwrap()]),
        observations: Vec::new(),
        ..RegistrationRequest::default()
    })
}

async fn register(connection: &Connection) -> Message {
    connection.open_exchange(&registration()).await.unwrap()
}

/// A device with a certificate that ends after so long, enrolled beside the running cloud and not by it.
fn enrolled_for(overlay: &mut Overlay, lifetime: Duration, name: &str) -> Member {
    overlay.config.device_certificate_lifetime = lifetime;
    let (device, token) = (Device::new(), overlay.token(name, unix_now()));
    let request = device.enrol_request(&token);
    let answer = overlay.service().answer(None, overlay.address, &request, unix_now());
    Member { answer: enrolled(answer), device }
}

async fn closed(connection: &Connection) -> String {
    tokio::time::timeout(SOON, connection.closed()).await.expect("still open").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrols_logs_in_and_registers() {
    let (overlay, cloud) = overlay().await;
    let token = overlay.token("press-7.plant", unix_now());
    let member = enrol(&overlay, &token).await;
    let client = Client::open();

    let authentication = client.connect(&overlay, &member, Role::As).await.unwrap();
    let Message::LoginResponse(login) = authentication.open_exchange(&login_request()).await.unwrap() else {
        panic!("not logged in");
    };
    assert_eq!(login.fqdn, "press-7.plant.cyphonic.internal");
    assert_eq!(endpoint::services_from_wire(&login.nms), [overlay.address]);

    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    let Message::RegistrationResponse(registered) = register(&management).await else {
        panic!("not registered");
    };
    assert_eq!(registered.virtual_address, member.answer.virtual_address);
    assert_eq!(registered.zone, "cyphonic.internal");
    assert_eq!(registered.relays.len(), 1);
    assert_eq!(registered.relays[0].name, "trs1.svc.cyphonic.internal");
    assert_eq!(endpoint::services_from_wire(&registered.relays[0].endpoints), [overlay.address]);
    assert_eq!(registered.observed, login.observed);

    let relay = client.connect(&overlay, &member, Role::Trs).await.unwrap();
    let observation = Message::ObservationRequest(ObservationRequest::default());
    let Message::ObservationResponse(seen) = relay.open_exchange(&observation).await.unwrap() else {
        panic!("not observed");
    };
    assert_eq!(seen.observed, login.observed, "one port for all services");
    cloud.shutdown().await;
    assert!(!closed(&management).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_keeps_nothing_running() {
    let overlay = Overlay::found(unix_now());
    std::fs::remove_file(overlay.directory.path().join("pki/devices.key")).unwrap();
    let refused = Cloud::start(&overlay.config).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("devices.key"), "{refused}");
    let bound = async {
        while std::net::UdpSocket::bind(overlay.address).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, bound).await.expect("the port is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nms_tells_unknown_names_from_devices_that_are_away() {
    let (overlay, cloud) = overlay().await;
    let a = enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    enrol(&overlay, &overlay.token("away.lab", unix_now())).await;
    let client = Client::open();
    let management = client.connect(&overlay, &a, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    let direction = |name: &str| {
        Message::DirectionRequest(DirectionRequest {
            fqdn: format!("{name}.cyphonic.internal"),
            ..DirectionRequest::default()
        })
    };
    // The enrolment reaches the NMS by the register's watch, in its own time.
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        match management.open_exchange(&direction("away.lab")).await.unwrap() {
            Message::Refusal(refusal) if refusal.code() == RefusalCode::PeerOffline => break,
            other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let Message::Refusal(refusal) = management.open_exchange(&direction("ghost.lab")).await.unwrap() else {
        panic!("a route to nobody");
    };
    assert_eq!(refusal.code(), RefusalCode::NoSuchPeer);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_thrown_out_of_nms_and_trs_within_seconds() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let client = Client::open();
    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    let relay = client.connect(&overlay, &member, Role::Trs).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));

    // By another connection to the register, as `device revoke` does it.
    overlay.register().revoke_device("press-7.plant.cyphonic.internal", unix_now()).unwrap();
    closed(&management).await;
    closed(&relay).await;

    let again = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    let reason = closed(&again).await;
    assert!(reason.contains("revoked"), "{reason}");
    let authentication = client.connect(&overlay, &member, Role::As).await.unwrap();
    let answer = authentication.open_exchange(&login_request()).await.unwrap();
    assert!(matches!(answer, Message::Refusal(refusal) if refusal.code() == RefusalCode::Revoked));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_hears_of_a_revocation_that_came_while_no_nms_ran() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    enrol(&overlay, &overlay.token("press-8.plant", unix_now())).await;
    cloud.shutdown().await;
    let gone = "press-8.plant.cyphonic.internal";
    overlay.register().revoke_device(gone, unix_now()).unwrap();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let client = Client::open();
    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    let told = tokio::time::timeout(SOON, management.accept_exchange()).await.expect("nothing is told");
    let (Message::RevocationNotice(notice), _responder) = told.unwrap() else { panic!("no notice") };
    assert_eq!(notice.fqdn, [gone]);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_fails_refuses_nobody() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let client = Client::open();
    let register_file = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    register_file.execute_batch("ALTER TABLE devices RENAME TO aside").unwrap();
    for role in [Role::Nms, Role::Trs] {
        let connection = client.connect(&overlay, &member, role).await.unwrap();
        let reason = closed(&connection).await;
        assert!(reason.contains("the service failed"), "{reason}");
        assert_eq!(connection.refused_us(), None, "the device is not at fault");
    }
    register_file.execute_batch("ALTER TABLE aside RENAME TO devices").unwrap();
    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_with_a_certificate_that_a_restored_register_lacks_is_not_lapsed() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let restored = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    restored.execute("UPDATE certificates SET not_after = not_before + 1", []).unwrap();
    let state = || {
        let device = overlay.register().device(&member.answer.fqdn).unwrap().unwrap();
        DeviceState::of(&device, unix_now() + 60)
    };
    assert_eq!(state(), DeviceState::Lapsed, "as it was in the backup");
    let client = Client::open();
    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    assert_eq!(state(), DeviceState::Enrolled);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_the_certificate_that_it_was_made_with() {
    let (mut overlay, cloud) = overlay().await;
    let young = enrol(&overlay, &overlay.token("old.plant", unix_now())).await;
    let client = Client::open();
    let others = client.connect(&overlay, &young, Role::Nms).await.unwrap();
    // Long enough to connect with it: nothing but that is within its life.
    let ending = enrolled_for(&mut overlay, Duration::from_secs(10), "press-7.plant");
    let management = client.connect(&overlay, &ending, Role::Nms).await.unwrap();
    let relay = client.connect(&overlay, &ending, Role::Trs).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    assert!(matches!(register(&others).await, Message::RegistrationResponse(_)));

    for connection in [&management, &relay] {
        let reason = closed(connection).await;
        assert!(reason.contains("the certificate that it came with has ended"), "{reason}");
        assert_eq!(connection.refused_us(), None, "it may come back, with another");
    }
    // TLS 1.3: a client learns late that its certificate is not taken.
    let again = client.connect(&overlay, &ending, Role::Nms).await.unwrap();
    assert!(again.open_exchange(&registration()).await.is_err(), "not with this one");
    assert!(matches!(register(&others).await, Message::RegistrationResponse(_)), "another's stands");
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_device_is_thrown_out_and_the_new_one_gets_in() {
    let (overlay, cloud) = overlay().await;
    let old = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let client = Client::open();
    let management = client.connect(&overlay, &old, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    let new = enrol(&overlay, &overlay.token_for("press-7.plant", unix_now(), true)).await;
    closed(&management).await;
    let management = client.connect(&overlay, &new, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_overlay_sends_nothing_to_this_one() {
    let (overlay, cloud) = overlay().await;
    let foreign = EnrolmentToken::new([1; 32], [2; 32]);
    assert!(enrolment::connect(&[overlay.address], *foreign.root_sha256(), &Clock::new(0)).await.is_err());
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_another_overlay_is_refused() {
    let (overlay, cloud) = overlay().await;
    let (other, other_cloud) = self::overlay().await;
    let member = enrol(&other, &other.token("a.lab", unix_now())).await;
    let client = Client::open();
    // It trusts this overlay's root, but presents its own certificate.
    let mut credentials = member.device.credentials(&member.answer, &overlay);
    credentials.root = overlay.root();
    let tls = ClientTls::new(credentials);
    let name = "nms.svc.cyphonic.internal";
    let connected = client.transport.connect_service(&tls, &[overlay.address], name, Role::Nms).await;
    if let Ok(connection) = connected {
        // TLS 1.3 clients are done before the server has looked at their certificate.
        closed(&connection).await;
    }
    cloud.shutdown().await;
    other_cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_cannot_serve_as_nms() {
    let (overlay, cloud) = overlay().await;
    let impostor = enrol(&overlay, &overlay.token("impostor", unix_now())).await;
    let victim = enrol(&overlay, &overlay.token("victim", unix_now())).await;
    cloud.shutdown().await;

    // The impostor takes the NMS's place with the only certificate it has.
    let pki = overlay.directory.path().join("pki");
    let chain: Vec<_> = impostor.answer.certificate_chain.iter().map(|der| der.clone().into()).collect();
    std::fs::remove_file(pki.join("nms.crt")).unwrap();
    std::fs::remove_file(pki.join("nms.key")).unwrap();
    cyphonic_cloud::pki::write_certificates(&pki.join("nms.crt"), &chain).unwrap();
    cyphonic_cloud::pki::write_secret(&pki.join("nms.key"), &impostor.device.key.serialize_pem()).unwrap();
    let Err(error) = Cloud::start(&overlay.config).await else { panic!("our own cloud runs with it") };
    let error = error.to_string();
    assert!(error.contains("nms.crt") && error.contains("role device"), "{error}");

    // A program without that check gets no further.
    let server = impostor_server(&overlay, &impostor);
    let client = Client::open();
    let tls = ClientTls::new(victim.device.credentials(&victim.answer, &overlay));
    for name in ["nms.svc.cyphonic.internal", "impostor.cyphonic.internal"] {
        let connected = client.transport.connect_service(&tls, &[server.address], name, Role::Nms).await;
        assert!(connected.is_err(), "the victim talks to {name}");
    }
}

struct Impostor {
    address: std::net::SocketAddr,
    _client: Client,
}

fn impostor_server(overlay: &Overlay, member: &Member) -> Impostor {
    let credentials = member.device.credentials(&member.answer, overlay);
    let tls = cyphonic_transport::ServerTls::services(&credentials)
        .and_then(|tls| tls.with_protocol(cyphonic_proto::alpn::NMS, &credentials))
        .unwrap();
    let client = Client::serving(tls, overlay.config.network.id);
    Impostor { address: (std::net::Ipv4Addr::LOCALHOST, client.port()).into(), _client: client }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_no_device_and_no_token() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    let open = overlay.token("b.lab", unix_now());
    cloud.shutdown().await;
    let config = Config::load(&overlay.config_path).unwrap();
    let cloud = Cloud::start(&config).await.unwrap();
    enrol(&overlay, &open).await;
    let client = Client::open();
    let management = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(register(&management).await, Message::RegistrationResponse(_)));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_used_by_many_devices_at_once_over_the_network_enrols_one() {
    let (overlay, cloud) = overlay().await;
    let token = overlay.token("press-7.plant", unix_now());
    let attempts: Vec<_> = (0..20)
        .map(|_| {
            let (address, token) = (overlay.address, token.clone());
            tokio::spawn(async move {
                let connection =
                    enrolment::connect(&[address], *token.root_sha256(), &Clock::new(0)).await.unwrap();
                connection.open_exchange(&Device::new().enrol_request(&token)).await.unwrap()
            })
        })
        .collect();
    let mut issued = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Message::EnrolResponse(_) => issued += 1,
            Message::Refusal(refusal) => assert_eq!(refusal.code(), RefusalCode::BadToken),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(issued, 1);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told() {
    let (overlay, cloud) = overlay().await;
    let Err(error) = Cloud::start(&overlay.config).await else { panic!("two clouds on one port") };
    assert!(error.to_string().contains(&overlay.address.to_string()), "{error}");
    cloud.shutdown().await;
}

/// A device dials all addresses of a service, one shortly after the other, and drops all connections but the
/// first to stand. A service that was slow for a moment answers several dials at once, in an order of its
/// own.
#[test]
fn a_device_keeps_the_connection_it_chose_whichever_the_service_saw_last() {
    const ROUNDS: usize = 8;
    let overlay = Overlay::found(unix_now());
    let runtime = |threads| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    };
    // The service's own, with one thread, so that it can be held up.
    let service = runtime(1);
    let cloud = service.block_on(Cloud::start(&overlay.config)).unwrap();
    runtime(2).block_on(async {
        let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
        let client = Client::open();
        let tls = ClientTls::new(member.device.credentials(&member.answer, &overlay));
        for (round, role) in (0..ROUNDS).flat_map(|round| [(round, Role::Nms), (round, Role::Trs)]) {
            let name = if role == Role::Nms { "nms" } else { "trs1" };
            let name = format!("{name}.svc.cyphonic.internal");
            service.spawn(async { std::thread::sleep(Duration::from_millis(350)) });
            let twice = [overlay.address, overlay.address];
            let connection = client.transport.connect_service(&tls, &twice, &name, role).await.unwrap();
            for _ in 0..10 {
                let request = match role {
                    Role::Nms => registration(),
                    _ => Message::ObservationRequest(ObservationRequest::default()),
                };
                let answer = connection.open_exchange(&request).await;
                assert!(answer.is_ok(), "round {round}, {name}: {answer:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    service.block_on(cloud.shutdown());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_supersedes_once_it_speaks() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let client = Client::open();
    let old = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    // The answer shows that the service has it: a handshake ends at the client first.
    assert!(matches!(register(&old).await, Message::RegistrationResponse(_)));
    let new = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(register(&old).await, Message::RegistrationResponse(_)));
    assert!(matches!(register(&new).await, Message::RegistrationResponse(_)));
    let reason = closed(&old).await;
    assert!(reason.contains("replaced by a newer connection"), "{reason}");
    // Nobody hoards connections by saying nothing.
    let mut silent = Vec::new();
    for _ in 0..9 {
        silent.push(client.connect(&overlay, &member, Role::Nms).await.unwrap());
    }
    // The oldest, in the order in which the service came to know them.
    let one_is_closed = async {
        while !silent.iter().any(|connection| connection.quinn().close_reason().is_some()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, one_is_closed).await.expect("all are still open");
    assert!(matches!(register(&new).await, Message::RegistrationResponse(_)));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_as_has_the_newest_few_connections_of_a_device() {
    let (overlay, cloud) = overlay().await;
    let member = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let other = enrol(&overlay, &overlay.token("press-8.plant", unix_now())).await;
    let client = Client::open();
    let log_in = async |member: &Member| {
        let connection = client.connect(&overlay, member, Role::As).await.unwrap();
        // The answer shows that the service has it: a handshake ends at the client first.
        let answer = connection.open_exchange(&login_request()).await.unwrap();
        assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
        connection
    };
    let elsewhere = log_in(&other).await;
    let mut connections = Vec::new();
    for _ in 0..9 {
        connections.push(log_in(&member).await);
    }
    let reason = closed(&connections[0]).await;
    assert!(reason.contains("more connections than a device needs"), "{reason}");
    for connection in connections[1..].iter().chain([&elsewhere]) {
        let answer = connection.open_exchange(&login_request()).await;
        assert!(matches!(answer, Ok(Message::LoginResponse(_))), "{answer:?}");
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_device_does_not_crowd_out_the_one_that_has_its_name_now() {
    let (overlay, cloud) = overlay().await;
    let old = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let new = enrol(&overlay, &overlay.token_for("press-7.plant", unix_now(), true)).await;
    let client = Client::open();
    let connection = client.connect(&overlay, &new, Role::As).await.unwrap();
    assert!(matches!(connection.open_exchange(&login_request()).await, Ok(Message::LoginResponse(_))));
    let mut refused = Vec::new();
    for _ in 0..9 {
        // Strangers from loopback are told apart by their ports.
        let stranger = Client::open();
        let connection = stranger.connect(&overlay, &old, Role::As).await.unwrap();
        let answer = connection.open_exchange(&login_request()).await.unwrap();
        assert!(matches!(answer, Message::Refusal(_)), "{answer:?}");
        refused.push((stranger, connection));
    }
    assert!(matches!(connection.open_exchange(&login_request()).await, Ok(Message::LoginResponse(_))));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stood_when_a_device_was_replaced_are_not_its_successors_and_end_when_it_asks() {
    let (overlay, cloud) = overlay().await;
    let old = enrol(&overlay, &overlay.token("press-7.plant", unix_now())).await;
    let client = Client::open();
    let log_in = async |member: &Member| {
        let connection = client.connect(&overlay, member, Role::As).await.unwrap();
        let answer = connection.open_exchange(&login_request()).await;
        assert!(matches!(answer, Ok(Message::LoginResponse(_))), "{answer:?}");
        connection
    };
    let mut standing = Vec::new();
    for _ in 0..8 {
        standing.push(log_in(&old).await);
    }
    let new = enrol(&overlay, &overlay.token_for("press-7.plant", unix_now(), true)).await;
    let successor = log_in(&new).await;
    for connection in &standing {
        let answer = connection.open_exchange(&login_request()).await;
        let Ok(Message::Refusal(refusal)) = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code(), RefusalCode::NotAllowed);
        let reason = closed(connection).await;
        assert!(reason.contains("another device has taken the name over"), "{reason}");
    }
    assert!(matches!(successor.open_exchange(&login_request()).await, Ok(Message::LoginResponse(_))));
    cloud.shutdown().await;
}

const DAY: u64 = 86_400;

/// When the certificate of the service ends that a device sees.
async fn end_seen(client: &Client, overlay: &Overlay, member: &Member, role: Role) -> (Connection, u64) {
    let connection = client.connect(overlay, member, role).await.unwrap();
    let end = connection.identity().unwrap().not_after;
    (connection, end.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_renew_their_certificates_in_good_time_and_use_new_ones_at_once() {
    let overlay = Overlay::found(unix_now() - 700 * DAY);
    let [key, aside] = ["services.key", "aside"].map(|file| overlay.directory.path().join("pki").join(file));
    std::fs::rename(&key, &aside).unwrap();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let member = enrol(&overlay, &overlay.token("a", unix_now())).await;
    let client = Client::open();
    let soon = unix_now() + 31 * DAY;
    let (standing, end) = end_seen(&client, &overlay, &member, Role::Nms).await;
    assert!(end < soon, "without the key nothing is renewed");
    std::fs::rename(&aside, &key).unwrap();
    cloud.reloader().look_after_certificates();
    for role in [Role::Nms, Role::As, Role::Trs] {
        let seen = async { while end_seen(&client, &overlay, &member, role).await.1 < soon {} };
        tokio::time::timeout(SOON, seen).await.expect("it is renewed");
    }
    drop(register(&standing).await);
    cloud.shutdown().await;
    let on_disk = || {
        ["as", "nms", "trs1"]
            .map(|name| std::fs::read(overlay.directory.path().join(format!("pki/{name}.crt"))).unwrap())
    };
    let before = on_disk();
    Cloud::start(&overlay.config).await.unwrap().shutdown().await;
    assert!(on_disk() == before, "they are sound");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_whose_certificates_have_ended_start_where_they_can_renew_them() {
    let overlay = Overlay::found(unix_now() - 731 * DAY);
    let key = overlay.directory.path().join("pki/services.key");
    let held = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let refused = Cloud::start(&overlay.config).await.err().expect("they have ended").to_string();
    assert!(refused.contains("it has expired"), "{refused}");
    std::fs::write(&key, held).unwrap();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let member = enrol(&overlay, &overlay.token("a", unix_now())).await;
    let (_, end) = end_seen(&Client::open(), &overlay, &member, Role::Nms).await;
    assert!(end > unix_now() + 700 * DAY);
    cloud.shutdown().await;
}
