//! Who may talk to whom, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Authority, Exchange, Host};
use cyphonic_proto::identity::{Identity, Role, sha256};
use cyphonic_proto::message::{self, ObservationRequest, ObservationResponse, RefusalCode};
use cyphonic_proto::tunnel::Exporter;
use cyphonic_proto::{Message, alpn};
use cyphonic_transport::{ClientTls, Clock, Connection, Credentials, DialError, Incoming, ServerTls, enrol};
use quinn::crypto::rustls::HandshakeData;

const NMS: &str = "nms.svc.test.internal";
const A: &str = "a.test.internal";
const B: &str = "b.test.internal";

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

fn nms(authority: &Authority, credentials: &Credentials) -> Host {
    let tls = ServerTls::services(credentials).unwrap().with_protocol(alpn::NMS, credentials).unwrap();
    Host::start(Some((tls, authority.network)))
}

async fn dial_nms(
    from: &Host,
    credentials: &Credentials,
    to: &Host,
    name: &str,
) -> Result<Connection, DialError> {
    let tls = ClientTls::new(credentials.clone());
    from.transport.connect_service(&tls, &[to.address], name, Role::Nms).await
}

/// Answers every request of every connection with an empty observation.
fn answer_all(host: &Host) {
    let (services, peers) = (host.transport.clone(), host.transport.clone());
    tokio::spawn(async move {
        while let Some(Incoming { connection, .. }) = services.accept().await {
            tokio::spawn(answer(connection));
        }
    });
    tokio::spawn(async move {
        while let Some(peer) = peers.accept_peer().await {
            tokio::spawn(async move {
                if let Ok(connection) = peer.verified().await {
                    answer(connection).await;
                }
            });
        }
    });
}

async fn answer(connection: Connection) {
    while let Ok((_, responder)) = connection.accept_exchange().await {
        let answer = Message::ObservationResponse(ObservationResponse::default());
        responder.respond(&answer).await.unwrap();
    }
}

fn question() -> Message {
    Message::ObservationRequest(ObservationRequest::default())
}

#[tokio::test]
async fn a_device_and_its_nms_know_each_other_and_exchange_messages_both_ways() {
    let authority = Authority::new(1);
    let server = nms(&authority, &authority.issue(Role::Nms, NMS));
    let device = Host::start(None);
    let dialled = dial_nms(&device, &authority.issue(Role::Device, A), &server, NMS).await.unwrap();
    let Incoming { connection: accepted, alpn } = server.transport.accept().await.unwrap();
    assert_eq!(alpn, alpn::NMS);
    assert_eq!(dialled.identity().unwrap().role, Role::Nms);
    assert_eq!(accepted.identity().unwrap().fqdn, A);
    assert_eq!(accepted.remote_address(), device.address);
    for (asker, asked) in [(&dialled, &accepted), (&accepted, &dialled)] {
        let answer = async {
            let (message, responder) = asked.accept_exchange().await.unwrap();
            assert_eq!(message, question());
            responder.respond(&question()).await.unwrap();
        };
        let request = question();
        let (answered, ()) = tokio::join!(asker.open_exchange(&request), answer);
        assert_eq!(answered.unwrap(), question());
    }
    assert_eq!(dialled.export(b"label", b"context").unwrap(), accepted.export(b"label", b"context").unwrap());
    assert_ne!(dialled.export(b"label", b"context").unwrap(), dialled.export(b"label", b"other").unwrap());
}

#[tokio::test]
async fn nobody_on_the_way_reads_who_is_dialled() {
    let authority = Authority::new(1);
    let server = nms(&authority, &authority.issue(Role::Nms, NMS));
    let peer =
        Host::start(Some((ServerTls::peer(&authority.issue(Role::Device, B)).unwrap(), authority.network)));
    let device = Host::start(None);
    let own = authority.issue(Role::Device, A);
    let tls = ClientTls::new(own.clone());
    let _to_nms = dial_nms(&device, &own, &server, NMS).await.unwrap();
    let by_nms = server.transport.accept().await.unwrap().connection;
    let arrives = async { peer.transport.accept_peer().await.unwrap().verified().await.unwrap() };
    let peers = [peer.address];
    let (to_peer, by_peer) = tokio::join!(device.transport.connect_peer(&tls, &peers, B, SOON), arrives);
    let _to_peer = to_peer.unwrap();
    for (accepted, protocol) in [(by_nms, alpn::NMS), (by_peer, alpn::PEER)] {
        let said = accepted.quinn().handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
        assert_eq!((said.protocol.as_deref(), said.server_name), (Some(protocol), None));
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_those_who_come_and_disturbs_nobody_who_is_there() {
    let authority = Authority::new(1);
    let (old, new) = (authority.issue(Role::Device, B), authority.issue(Role::Device, B));
    let server = Host::start(Some((ServerTls::peer(&old).unwrap(), authority.network)));
    answer_all(&server);
    let device = Host::start(None);
    let tls = ClientTls::new(authority.issue(Role::Device, A));
    let dial = || device.transport.connect_peer(&tls, std::slice::from_ref(&server.address), B, SOON);
    let key_of = |connection: &Connection| connection.identity().unwrap().spki_sha256;

    let before = dial().await.unwrap();
    server.transport.set_server(ServerTls::peer(&new).unwrap()).unwrap();
    let after = dial().await.unwrap();
    assert_eq!(before.open_exchange(&question()).await.unwrap().name(), "ObservationResponse");
    assert_eq!(after.open_exchange(&question()).await.unwrap().name(), "ObservationResponse");
    let key = |credentials: &Credentials| Identity::from_der(&credentials.chain[0]).unwrap().spki_sha256;
    assert_eq!((key_of(&before), key_of(&after)), (key(&old), key(&new)));
}

#[tokio::test]
async fn a_service_that_crashed_and_came_back_says_that_it_knows_nobody() {
    let authority = Authority::new(1);
    let credentials = authority.issue(Role::Nms, NMS);
    let (before, after) = (nms(&authority, &credentials), nms(&authority, &credentials));
    answer_all(&before);
    let path = Exchange::to(before.address);
    let device = Host::start(None);
    let tls = ClientTls::new(authority.issue(Role::Device, A));
    let dial = || device.transport.connect_service(&tls, std::slice::from_ref(&path.address), NMS, Role::Nms);
    let connection = dial().await.unwrap();
    connection.open_exchange(&question()).await.unwrap();

    path.switch(after.address);
    // Half of the time that a silent service is given.
    let lost = tokio::time::timeout(SOON, connection.open_exchange(&question())).await;
    assert_eq!(lost.unwrap().unwrap_err().to_string(), "the connection ended: reset by peer");
    dial().await.unwrap();
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_the_next_request_is_heard() {
    let authority = Authority::new(1);
    let server = nms(&authority, &authority.issue(Role::Nms, NMS));
    answer_all(&server);
    let device = Host::start(None);
    let connection = dial_nms(&device, &authority.issue(Role::Device, A), &server, NMS).await.unwrap();
    // A length and a message that do not fit, a message of a kind that nobody knows, one that is too long.
    let cases = [(&[0x05, 0xff][..], true), (&[0x03, 0xff, 0xff, 0xff], true), (&[0; 70_000], false)];
    for (garbage, is_read) in cases {
        let (mut send, mut recv) = connection.quinn().open_bi().await.unwrap();
        // The other end may stop reading what is too long.
        let _ = send.write_all(garbage).await;
        let _ = send.finish();
        let answer = recv.read_to_end(1_000).await.map(|bytes| message::decode(&bytes));
        let is_refused = matches!(&answer, Ok(Ok(Message::Refusal(r))) if r.code() == RefusalCode::Malformed);
        assert!(is_refused || (!is_read && answer.is_err()), "{answer:?}");
    }
    assert_eq!(connection.open_exchange(&question()).await.unwrap().name(), "ObservationResponse");
}

#[tokio::test]
async fn a_device_cannot_pose_as_an_nms() {
    let authority = Authority::new(1);
    let impostor = nms(&authority, &authority.issue(Role::Device, NMS));
    let device = Host::start(None);
    let refused = dial_nms(&device, &authority.issue(Role::Device, A), &impostor, NMS).await;
    assert!(matches!(refused, Err(DialError::Handshake { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_nms_of_another_name_or_another_overlay_is_refused() {
    let (ours, theirs) = (Authority::new(1), Authority::new(2));
    let other_name = nms(&ours, &ours.issue(Role::Nms, "nms.svc.other.internal"));
    let other_overlay = nms(&theirs, &theirs.issue(Role::Nms, NMS));
    let device = Host::start(None);
    let credentials = ours.issue(Role::Device, A);
    for server in [&other_name, &other_overlay] {
        let refused = dial_nms(&device, &credentials, server, NMS).await;
        assert!(matches!(refused, Err(DialError::Handshake { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_service_does_not_listen_to_strangers_nor_to_other_services() {
    let (ours, theirs) = (Authority::new(1), Authority::new(2));
    let server = nms(&ours, &ours.issue(Role::Nms, NMS));
    answer_all(&server);
    let client = Host::start(None);
    let stranger = theirs.issue(Role::Device, A);
    // Trusts our root, so that it is the server that has to refuse.
    let stranger = Credentials { root: ours.root.clone(), network: ours.network, ..stranger };
    for credentials in [stranger, ours.issue(Role::Trs, "trs1.svc.test.internal")] {
        // A TLS 1.3 client is done before the server has judged its certificate: the request tells.
        if let Ok(connection) = dial_nms(&client, &credentials, &server, NMS).await {
            assert!(connection.open_exchange(&question()).await.is_err());
        }
    }
    let device = dial_nms(&client, &ours.issue(Role::Device, A), &server, NMS).await.unwrap();
    assert!(device.open_exchange(&question()).await.is_ok());
}

#[tokio::test]
async fn an_enrolling_device_trusts_only_the_root_of_its_token() {
    let authority = Authority::new(1);
    let credentials = authority.issue(Role::As, "as.svc.test.internal");
    let tls = ServerTls::services(&credentials)
        .unwrap()
        .with_anonymous_protocol(alpn::ENROL, &credentials)
        .unwrap()
        .with_protocol(alpn::AS, &credentials)
        .unwrap();
    let server = Host::start(Some((tls, authority.network)));
    answer_all(&server);
    let wrong = enrol::connect(&[server.address], [7; 32], &Clock::new(0)).await;
    let not_the_one = "this is not the cloud that issued the enrolment token";
    assert!(matches!(wrong, Err(DialError::Refused(reason)) if reason == not_the_one), "{wrong:?}");
    let right = enrol::connect(&[server.address], sha256(&authority.root), &Clock::new(0)).await.unwrap();
    assert!(right.open_exchange(&question()).await.is_ok());
}

#[tokio::test]
async fn a_listening_peer_may_speak_before_the_dialler_has_proved_who_it_is_but_hears_nothing_before() {
    let authority = Authority::new(1);
    let listener = authority.issue(Role::Device, B);
    let host = Host::start(Some((ServerTls::peer(&listener).unwrap(), authority.network)));
    let client = Host::start(None);
    // Trusts our root, so that it is the listener that has to refuse.
    let stranger = Authority::new(2).issue(Role::Device, A);
    let stranger = Credentials { root: authority.root.clone(), network: authority.network, ..stranger };
    for (credentials, is_welcome) in [(stranger, false), (authority.issue(Role::Device, A), true)] {
        let tls = ClientTls::new(credentials);
        let dial = client.transport.connect_peer(&tls, std::slice::from_ref(&host.address), B, SOON);
        let listen = async {
            let peer = host.transport.accept_peer().await.unwrap();
            // A stranger may be found out before that.
            let notified = peer.notify(&question()).await;
            assert!(notified.is_ok() || !is_welcome, "{notified:?}");
            peer.verified().await
        };
        let (dialled, verified) = tokio::join!(dial, listen);
        assert_eq!(verified.is_ok(), is_welcome, "{verified:?}");
        if is_welcome {
            let (dialled, accepted) = (dialled.unwrap(), verified.unwrap());
            assert_eq!(dialled.accept_notice().await.unwrap(), question());
            assert_eq!(accepted.identity().unwrap().fqdn, A);
            assert_eq!(dialled.export(b"l", b"c").unwrap(), accepted.export(b"l", b"c").unwrap());
        }
    }
}

#[tokio::test]
async fn the_first_address_that_answers_wins() {
    let authority = Authority::new(1);
    let server = nms(&authority, &authority.issue(Role::Nms, NMS));
    let device = Host::start(None);
    let tls = ClientTls::new(authority.issue(Role::Device, A));
    // Nobody listens on the first: loopback's port 1.
    let addresses = ["127.0.0.1:1".parse().unwrap(), server.address];
    let connection = device.transport.connect_service(&tls, &addresses, NMS, Role::Nms).await.unwrap();
    assert_eq!(connection.remote_address(), server.address);
}

/// Dials until a source has all its places.
async fn until_refused<T>(dial: impl AsyncFn() -> Result<T, DialError>) -> Vec<T> {
    let mut standing = Vec::new();
    loop {
        match dial().await {
            Ok(one) => standing.push(one),
            Err(error) => {
                assert!(matches!(error, DialError::Handshake { .. }), "{error}");
                return standing;
            }
        }
        assert!(standing.len() <= 64, "without end");
    }
}

#[tokio::test]
async fn a_source_that_has_all_its_places_keeps_nobody_else_out() {
    let authority = Authority::new(1);
    let tls = ServerTls::peer(&authority.issue(Role::Device, B)).unwrap();
    let server = Host::start(Some((tls, authority.network)));
    let tls = ClientTls::new(authority.issue(Role::Device, A));
    let dial = async |host: &Host| host.transport.connect_peer(&tls, &[server.address], B, SOON).await;
    let (many, one) = (Host::start(None), Host::start(None));
    // Nobody looks at who arrives, so every handshake stays under way.
    let _dialled = until_refused(async || dial(&many).await).await;
    dial(&one).await.unwrap();
    drop(server.transport.accept_peer().await.unwrap());
    dial(&many).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_proves_who_it_is_and_asks_nothing_keeps_its_place_until_it_leaves() {
    let authority = Authority::new(1);
    let tls = ServerTls::peer(&authority.issue(Role::Device, B)).unwrap();
    let server = Host::start(Some((tls, authority.network)));
    let tls = ClientTls::new(authority.issue(Role::Device, A));
    let dial = async |host: &Host| host.transport.connect_peer(&tls, &[server.address], B, SOON).await;
    let (many, one) = (Host::start(None), Host::start(None));
    let mut silent = until_refused(async || {
        let dialled = dial(&many).await?;
        Ok((dialled, server.transport.accept_peer().await.unwrap().verified().await.unwrap()))
    })
    .await;
    dial(&one).await.unwrap();
    silent.pop();
    dial(&many).await.unwrap();
}

/// The TRS of these tests swaps contexts and forwards, as the real one does.
async fn relay(from: Connection, to: Connection, context: u64) {
    let forward = |datagram: bytes::Bytes| {
        let (_, packet) = cyphonic_proto::relayed::decode(&datagram).unwrap();
        to.send_datagram(cyphonic_proto::relayed::encode(context, packet).unwrap());
        true
    };
    from.receive_datagrams(forward).await;
}

async fn listen_for_relayed(host: Arc<cyphonic_transport::Transport>, trs: Connection) {
    host.mux().enter(&trs);
    let deliver = |datagram: bytes::Bytes| {
        host.mux().deliver_relayed(&trs, &datagram);
        true
    };
    trs.receive_datagrams(deliver).await;
}

#[tokio::test]
async fn two_devices_shake_hands_through_a_relay_that_sees_only_datagrams() {
    shake_hands_over(usize::MAX).await;
}

/// A path of 1,280 bytes under IPv6, and QUIC's least: no packet of the peers' fits a DATAGRAM there.
#[tokio::test]
async fn two_devices_shake_hands_through_a_relay_over_the_narrowest_paths() {
    for carries in [1_232, 1_200] {
        shake_hands_over(carries).await;
    }
}

/// IPv6 paths of 1,290 bytes: one probe finds out that a peers' packet fits, whatever else the path carries.
#[tokio::test]
async fn a_service_learns_that_a_relayed_packet_fits_a_datagram_and_sends_nothing_larger() {
    for carries in [1_242, usize::MAX] {
        let authority = Authority::new(1);
        let (nms_credentials, credentials) =
            (authority.issue(Role::Nms, NMS), authority.issue(Role::Device, A));
        let server = nms(&authority, &nms_credentials);
        let path = Exchange::narrow(server.address, carries);
        let device = Host::start(None);
        let tls = ClientTls::new(credentials);
        let here = device.transport.connect_service(&tls, &[path.address], NMS, Role::Nms).await.unwrap();
        let there = server.transport.accept().await.unwrap().connection;
        for end in [&here, &there] {
            let learns = async {
                while end.quinn().max_datagram_size() != Some(1_204) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(SOON, learns).await.expect("it is found out");
        }
    }
}

/// Handshake packets that overtake the one with their keys are worth nothing: QUIC drops them, and waits for
/// a time-out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn relayed_packets_that_fit_no_datagram_keep_their_order() {
    let authority = Authority::new(1);
    let (nms_credentials, credentials) = (authority.issue(Role::Nms, NMS), authority.issue(Role::Device, A));
    let server = nms(&authority, &nms_credentials);
    let path = Exchange::narrow(server.address, 1_200);
    let device = Host::start(None);
    let tls = ClientTls::new(credentials);
    let here = device.transport.connect_service(&tls, &[path.address], NMS, Role::Nms).await.unwrap();
    let there = server.transport.accept().await.unwrap().connection;
    // Flights of a handshake's size, each once the one before has arrived, from a worker's own task as QUIC
    // sends them.
    const FLIGHT: u8 = 4;
    // No more than the streams that a connection begins with: whoever has to wait for one may be overtaken.
    const FLIGHTS: u8 = 4;
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    // The connection ends with its last handle.
    let sending = here.clone();
    let send = tokio::spawn(async move {
        let mut order = Vec::new();
        for flight in 0..FLIGHTS {
            for packet in 0..FLIGHT {
                sending.send_datagram(vec![flight * FLIGHT + packet; 1_204].into());
            }
            while order.len() < usize::from((flight + 1) * FLIGHT) {
                order.push(arrivals.recv().await.unwrap());
            }
        }
        order
    });
    let receive = there.receive_datagrams(|packet| packet.len() == 1_204 && arrived.send(packet[0]).is_ok());
    let order = tokio::select! {
        order = tokio::time::timeout(SOON, send) => order.unwrap().unwrap(),
        end = receive => panic!("nothing more came: {end:?}"),
    };
    assert_eq!(order, (0..FLIGHTS * FLIGHT).collect::<Vec<_>>());
}

/// Both devices' paths to the relay carry datagrams of this size.
async fn shake_hands_over(carries: usize) {
    const TRS: &str = "trs1.svc.test.internal";
    let (context_a, context_b) = (0x5000, 0x6000);
    let authority = Authority::new(1);
    let trs_credentials = authority.issue(Role::Trs, TRS);
    let tls =
        ServerTls::services(&trs_credentials).unwrap().with_protocol(alpn::TRS, &trs_credentials).unwrap();
    let trs = Host::start(Some((tls, authority.network)));
    let credentials = [authority.issue(Role::Device, A), authority.issue(Role::Device, B)];
    let (mut devices, mut paths) = (Vec::new(), Vec::new());
    for credentials in &credentials {
        let path = Exchange::narrow(trs.address, carries);
        let host = Host::start(Some((ServerTls::peer(credentials).unwrap(), authority.network)));
        let tls = ClientTls::new(credentials.clone());
        let leg = host.transport.connect_service(&tls, &[path.address], TRS, Role::Trs).await.unwrap();
        paths.push(path);
        let at_trs = trs.transport.accept().await.unwrap().connection;
        tokio::spawn(listen_for_relayed(host.transport.clone(), leg.clone()));
        devices.push((host, leg, at_trs));
    }
    let [(a, a_leg, a_at_trs), (b, _, b_at_trs)] = <[_; 2]>::try_from(devices).ok().unwrap();
    tokio::spawn(relay(a_at_trs.clone(), b_at_trs.clone(), context_b));
    tokio::spawn(relay(b_at_trs, a_at_trs, context_a));

    a.transport.mux().enter(&a_leg);
    let address = a.transport.mux().add_leg(&a_leg, context_a).unwrap();
    let tls = ClientTls::new(credentials[0].clone());
    let timeout = Duration::from_secs(5);
    let dialled = a.transport.connect_peer(&tls, &[address.socket_addr()], B, timeout).await.unwrap();
    let accepted = b.transport.accept_peer().await.unwrap().verified().await.unwrap();
    assert_eq!(dialled.identity().unwrap().fqdn, B);
    assert_eq!(accepted.identity().unwrap().fqdn, A);
    assert_eq!(dialled.export(b"l", b"c").unwrap(), accepted.export(b"l", b"c").unwrap());
    let request = question();
    let answer = async {
        let (_, responder) = accepted.accept_exchange().await.unwrap();
        responder.respond(&question()).await.unwrap();
    };
    let (answered, ()) = tokio::join!(dialled.open_exchange(&request), answer);
    assert_eq!(answered.unwrap(), question());
}
