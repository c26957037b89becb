//! STUN as the services answer it: over real sockets, from each of the four places that RFC 5780 asks for.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use common::{Overlay, free_port};
use cyphonic_cloud::config::ServiceRole;
use cyphonic_cloud::server::{Cloud, unix_now};
use cyphonic_proto::stun::{Message, Request, Success};

const OTHER: [u8; 4] = [127, 0, 0, 2];

async fn start() -> (Overlay, Cloud, u16) {
    let mut overlay = Overlay::found(unix_now());
    let other_port = free_port().port();
    overlay.config.stun.alternate_port = Some(other_port);
    overlay.config.stun.alternate_addresses = vec![IpAddr::from(OTHER)];
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    (overlay, cloud, other_port)
}

/// Asks from `socket` and waits on `listener`: where the answer came from, and what it says.
async fn ask(
    socket: &UdpSocket,
    listener: &UdpSocket,
    to: SocketAddr,
    request: Request,
) -> (SocketAddr, Message) {
    socket.send_to(&Message::Request(request).encode(), to).unwrap();
    let listener = listener.try_clone().unwrap();
    let receive = move || {
        listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut buffer = [0; 600];
        let (len, from) = listener.recv_from(&mut buffer).unwrap();
        (from, Message::decode(&buffer[..len]).unwrap())
    };
    tokio::task::spawn_blocking(receive).await.unwrap()
}

/// The other address is opened once, and with that of its IP version.
#[tokio::test(flavor = "multi_thread")]
async fn services_with_several_addresses_have_their_other_one_too() {
    let mut overlay = Overlay::found(unix_now());
    overlay.config.roles.remove(&ServiceRole::Trs);
    let first = overlay.address;
    overlay.config.listen = vec![first, ([127, 0, 0, 3], first.port()).into()];
    overlay.config.listen.push((Ipv6Addr::LOCALHOST, first.port()).into());
    overlay.config.stun.alternate_port = Some(free_port().port());
    overlay.config.stun.alternate_addresses = vec![IpAddr::from(OTHER)];
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let request = Request { change_address: true, ..Request::default() };
    let (from, _) = ask(&socket, &socket, first, request).await;
    assert_eq!(from, SocketAddr::from((OTHER, first.port())));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_four_places_answers_as_asked() {
    let (overlay, cloud, other_port) = start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let own = socket.local_addr().unwrap();
    let other = |port| SocketAddr::from((OTHER, port));
    let (main, port) = (overlay.address, overlay.address.port());
    for to in [main, SocketAddr::new(main.ip(), other_port), other(port), other(other_port)] {
        for (change_address, change_port) in [(false, false), (false, true), (true, false), (true, true)] {
            let request = Request { transaction: [9; 12], change_address, change_port, ..Request::default() };
            let (from, message) = ask(&socket, &socket, to, request).await;
            let ip = match (to == main || to.ip() == main.ip()) ^ change_address {
                true => main.ip(),
                false => OTHER.into(),
            };
            let number = if (to.port() == port) ^ change_port { port } else { other_port };
            assert_eq!(from, SocketAddr::new(ip, number), "asked {to} {change_address} {change_port}");
            let Message::Success(Success { mapped, origin, other, .. }) = message else {
                panic!("{message:?}")
            };
            assert_eq!((mapped, origin), (own, Some(from)));
            let (other_ip, other_number) = (other.unwrap().ip(), other.unwrap().port());
            assert!(other_ip != to.ip() && other_number != to.port(), "{other:?} beside {to}");
        }
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_port_of_the_asker_may_get_the_answer() {
    let (overlay, cloud, _) = start().await;
    let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    let response_port = Some(listener.local_addr().unwrap().port());
    let request = Request { transaction: [5; 12], response_port, ..Request::default() };
    let (from, message) = ask(&asker, &listener, overlay.address, request).await;
    assert_eq!(from, overlay.address);
    let Message::Success(success) = message else { panic!("{message:?}") };
    assert_eq!(success.mapped, asker.local_addr().unwrap());
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_second_port_what_needs_one_is_refused() {
    let mut overlay = Overlay::found(unix_now());
    overlay.config.stun.alternate_port = Some(0);
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let request = Request { change_port: true, ..Request::default() };
    let (_, message) = ask(&socket, &socket, overlay.address, request).await;
    assert!(matches!(&message, Message::Failure(failure) if failure.code == 420), "{message:?}");
    let (_, message) = ask(&socket, &socket, overlay.address, Request::default()).await;
    assert!(matches!(&message, Message::Success(success) if success.other.is_none()), "{message:?}");
    cloud.shutdown().await;
}
