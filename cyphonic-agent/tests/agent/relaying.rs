//! Queries for other names, where the host's own DNS servers are not there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_agent::dns::{DnsServer, Upstream};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use nix::sched::CloneFlags;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::dns::{ask, extended_error, host_server, query, server, server_that_is_silent};
use super::netlink::{in_namespace, ip};

/// Far less than any server's part of the time.
const AT_ONCE: Duration = Duration::from_millis(1_000);

fn relay_to(server: &DnsServer, servers: &[SocketAddr]) {
    server.set_upstream(Some(Upstream::new(servers.iter().copied(), server.address())));
}

async fn ask_for_another(server: &DnsServer) -> (Message, Duration) {
    let begun = Instant::now();
    let reply = ask(server, &query("example.com.", RecordType::A)).await;
    (reply, begun.elapsed())
}

/// An address whose port is closed.
async fn closed() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_server_with_a_closed_port_costs_no_time_and_is_left_alone_for_a_while() {
    let server = server().await;
    let (gone, (host, _)) = (closed().await, host_server().await);
    relay_to(&server, &[gone, gone, host]);
    let (reply, took) = ask_for_another(&server).await;
    assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{took:?}");
    // Even where it would not say so again, as routers say it once a second.
    let silent = UdpSocket::bind(gone).await.unwrap();
    let (reply, took) = ask_for_another(&server).await;
    assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{took:?}");
    let asked = timeout(Duration::from_millis(50), silent.recv(&mut [0; 1500])).await;
    assert!(asked.is_err(), "it was not there a moment ago");
    // Alone, it is asked all the same.
    relay_to(&server, &[closed().await]);
    for _ in 0..2 {
        let (reply, took) = ask_for_another(&server).await;
        assert_eq!(extended_error(&reply).unwrap().0, 22);
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[test]
fn a_server_without_a_route_costs_no_time() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link set lo up");
        let server = server().await;
        let (host, _) = host_server().await;
        let without_route = ["192.0.2.1:53", "[2001:db8::1]:53"].map(|server| server.parse().unwrap());
        relay_to(&server, &[without_route[0], without_route[1], host]);
        let (reply, took) = ask_for_another(&server).await;
        assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{took:?}");
    });
}

#[tokio::test]
async fn a_server_that_never_answers_what_others_do_soon_costs_no_time() {
    let server = server().await;
    let ((silent, asked), (host, _)) = (server_that_is_silent().await, host_server().await);
    relay_to(&server, &[silent, host]);
    let waited = tokio::join!(ask_for_another(&server), ask_for_another(&server), ask_for_another(&server));
    assert!([waited.0.1, waited.1.1, waited.2.1].iter().all(|took| *took > AT_ONCE), "{waited:?}");
    asked.lock().unwrap().clear();
    let (reply, took) = ask_for_another(&server).await;
    assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{took:?}");
    assert!(asked.lock().unwrap().is_empty());
}
