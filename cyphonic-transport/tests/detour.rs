//! The detour over real sockets: who gets through, who does not, and what it costs the rest.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "shared with other tests")]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Authority, Host};
use cyphonic_proto::identity::{Role, sha256};
use cyphonic_proto::message::{ObservationRequest, ObservationResponse, endpoint};
use cyphonic_proto::{Message, alpn};
use cyphonic_transport::{
    ClientTls, Clock, Credentials, DetourError, DetourServer, DetourTls, DialError, Incoming, ServerTls,
    enrol,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NMS: &str = "nms.svc.test.internal";
const AS: &str = "as.svc.test.internal";
const A: &str = "a.test.internal";

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// A cloud of one process, and the door for TCP beside it: at a port of its own, so that UDP to that port is
/// lost.
struct Cloud {
    host: Host,
    detours: DetourServer,
}

fn services_tls(authority: &Authority) -> ServerTls {
    let (nms, server) = (authority.issue(Role::Nms, NMS), authority.issue(Role::As, AS));
    ServerTls::services(&nms)
        .unwrap()
        .with_protocol(alpn::NMS, &nms)
        .unwrap()
        .with_anonymous_protocol(alpn::ENROL, &server)
        .unwrap()
}

fn detour_tls(authority: &Authority) -> DetourTls {
    DetourTls::new(&services_tls(authority), authority.network).unwrap()
}

impl Cloud {
    fn start(authority: &Authority) -> Self {
        let host = Host::start(Some((services_tls(authority), authority.network)));
        let detours = DetourServer::start(host.address, detour_tls(authority)).unwrap();
        answer_with_where_it_came_from(&host);
        Self { host, detours }
    }

    fn tcp(&self) -> SocketAddr {
        self.detours.local_addr()
    }
}

fn answer_with_where_it_came_from(host: &Host) {
    let transport = host.transport.clone();
    tokio::spawn(async move {
        while let Some(Incoming { connection, .. }) = transport.accept().await {
            tokio::spawn(async move {
                while let Ok((_, responder)) = connection.accept_exchange().await {
                    let observed = Some(endpoint::to_wire(connection.remote_address()));
                    let answer = Message::ObservationResponse(ObservationResponse { observed });
                    responder.respond(&answer).await.unwrap();
                }
            });
        }
    });
}

fn question() -> Message {
    Message::ObservationRequest(ObservationRequest::default())
}

fn observed(answer: Message) -> SocketAddr {
    match answer {
        Message::ObservationResponse(response) => endpoint::from_wire(&response.observed.unwrap()).unwrap(),
        other => panic!("{}", other.name()),
    }
}

#[tokio::test]
async fn a_device_reaches_its_nms_by_tcp_alone_and_is_seen_at_no_address_that_means_anything() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let connection =
        device.transport.connect_service_by_detour(&tls, &[cloud.tcp()], NMS, Role::Nms).await.unwrap();
    assert_eq!(connection.detour(), Some(cloud.tcp()));
    assert_ne!(connection.remote_address(), cloud.host.address);
    let seen = observed(connection.open_exchange(&question()).await.unwrap());
    assert!(seen.ip().is_loopback() && seen != device.address, "{seen}");
}

#[tokio::test]
async fn with_udp_open_the_detour_is_not_taken() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let connection =
        device.transport.connect_service_somehow(&tls, &[cloud.host.address], NMS, Role::Nms).await.unwrap();
    assert_eq!((connection.detour(), connection.remote_address()), (None, cloud.host.address));
}

#[tokio::test]
async fn a_service_that_udp_does_not_reach_is_reached_by_tcp() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    // The same door at an address whose UDP nobody serves: bound, so that nothing answers, not even with an
    // error.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let door = cloud.tcp();
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(door).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut inside, &mut outside).await);
            });
        }
    });
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let addresses = [address];
    let dial = device.transport.connect_service_somehow(&tls, &addresses, NMS, Role::Nms);
    let connection = tokio::time::timeout(SOON, dial).await.unwrap().unwrap();
    assert_eq!(connection.detour(), Some(address));
    drop(connection.open_exchange(&question()).await.unwrap());

    let connection = enrol::connect(&[address], sha256(&authority.root), &Clock::new(0)).await.unwrap();
    assert_eq!(connection.detour(), Some(address), "a device that enrols has the same way");
    drop(connection.open_exchange(&question()).await.unwrap());
    let other = enrol::connect(&[address], [7; 32], &Clock::new(0)).await;
    assert!(other.is_err(), "and trusts nobody more");
}

/// The node gives a dial up at some time, and would not know then what was tried.
#[tokio::test]
async fn tcp_tls_and_quic_inside_have_the_time_of_one_handshake() {
    let authority = Authority::new(1);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nms = ServerTls::services(&authority.issue(Role::Nms, NMS)).unwrap();
    let nms = nms.with_protocol(alpn::NMS, &authority.issue(Role::Nms, NMS)).unwrap();
    let tls = DetourTls::new(&nms, authority.network).unwrap();
    let door = DetourServer::start(silent.local_addr().unwrap(), tls).unwrap();
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let addresses = [door.local_addr()];
    let dial = device.transport.connect_service_by_detour(&tls, &addresses, NMS, Role::Nms);
    let failed = tokio::time::timeout(SOON, dial).await.unwrap();
    // Had QUIC a time of its own, its own error would say that UDP did not reach an address on this host.
    assert!(
        matches!(&failed, Err(DialError::Detour(DetourError::Silent { address })) if *address == addresses[0]),
        "{failed:?}"
    );
}

#[tokio::test]
async fn the_end_of_the_tcp_connection_is_the_end_of_the_detour() {
    let authority = Authority::new(1);
    let Cloud { host: _host, detours } = Cloud::start(&authority);
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let address = detours.local_addr();
    let addresses = [address];
    let dial = device.transport.connect_service_by_detour(&tls, &addresses, NMS, Role::Nms);
    let connection = dial.await.unwrap();
    drop(detours);
    let reason = tokio::time::timeout(SOON, connection.detour_ended()).await.unwrap();
    assert!(!reason.is_empty());
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// A web server that is stopped, say: nobody should have to restart the cloud.
#[tokio::test]
async fn an_address_that_another_program_has_is_taken_as_soon_as_it_is_free() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let address = cloud.tcp();
    DetourServer::start(address, detour_tls(&authority)).expect_err("the cloud has it");
    let _waiting = DetourServer::start_once_free(address, detour_tls(&authority));
    drop(cloud.detours);
    // Its own end of the handshake: a listener alone would be the one that was there before.
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let connected = async {
        while device.transport.connect_service_by_detour(&tls, &[address], NMS, Role::Nms).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, connected).await.expect("it listens again");
}

/// Who had the name before has a valid certificate for it.
#[tokio::test]
async fn the_detours_of_a_replaced_device_do_not_end_its_successors() {
    const MORE_THAN_A_DEVICE_HAS: usize = 9;
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let device = Host::start(None);
    let [new, old] = [(); 2].map(|()| ClientTls::new(authority.issue(Role::Device, A)));
    let addresses = [cloud.tcp()];
    let dial = |tls| device.transport.connect_service_by_detour(tls, &addresses, NMS, Role::Nms);
    let successor = dial(&new).await.unwrap();
    let mut replaced = Vec::new();
    for _ in 0..MORE_THAN_A_DEVICE_HAS {
        replaced.push(dial(&old).await.unwrap());
    }
    tokio::time::timeout(SOON, replaced[0].detour_ended()).await.expect("it has too many");
    drop(successor.open_exchange(&question()).await.expect("the successor's stands"));
}

#[tokio::test]
async fn certificates_are_replaced_under_connections_that_stand() {
    let (authority, other) = (Authority::new(1), Authority::new(2));
    let cloud = Cloud::start(&authority);
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    let addresses = [cloud.tcp()];
    let dial = || device.transport.connect_service_by_detour(&tls, &addresses, NMS, Role::Nms);
    let standing = dial().await.unwrap();
    let certificates = cloud.detours.certificates();
    certificates.replace(detour_tls(&other));
    let refused = dial().await;
    assert!(matches!(refused, Err(DialError::Detour(_))), "{refused:?}");
    drop(standing.open_exchange(&question()).await.expect("it stands"));
    certificates.replace(detour_tls(&authority));
    drop(dial().await.expect("the right ones again"));
}

#[tokio::test]
async fn neither_other_services_nor_other_overlays_nor_those_who_ask_for_another_name_get_through() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let device = Host::start(None);
    let dial = async |credentials: Credentials, name: &'static str| {
        let tls = ClientTls::new(credentials);
        device.transport.connect_service_by_detour(&tls, &[cloud.tcp()], name, Role::Nms).await
    };
    let foreign = dial(Authority::new(2).issue(Role::Device, A), NMS).await;
    assert!(matches!(foreign, Err(DialError::Detour(_))), "{foreign:?}");
    let renamed = dial(authority.issue(Role::Device, A), "other.svc.test.internal").await;
    assert!(matches!(renamed, Err(DialError::Detour(_))), "{renamed:?}");
    let service = dial(authority.issue(Role::Trs, "trs1.svc.test.internal"), NMS).await;
    assert!(service.is_err(), "{service:?}");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_cut_off_and_many_who_say_nothing_keep_nobody_out() {
    let authority = Authority::new(1);
    let cloud = Cloud::start(&authority);
    let mut web = TcpStream::connect(cloud.tcp()).await.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: as\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let cut = tokio::time::timeout(SOON, web.read_to_end(&mut answer)).await.unwrap();
    assert!(cut.is_err() || answer.len() < 64, "no page: an alert at most");

    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(TcpStream::connect(cloud.tcp()).await.unwrap());
    }
    // From one source few may wait at once; the rest was closed, and those few are after the handshake's
    // time.
    let closed = async {
        for stream in &mut idle {
            let mut byte = [0];
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
        }
    };
    tokio::time::timeout(SOON, closed).await.unwrap();
    let (device, tls) = (Host::start(None), ClientTls::new(authority.issue(Role::Device, A)));
    device.transport.connect_service_by_detour(&tls, &[cloud.tcp()], NMS, Role::Nms).await.unwrap();
}
