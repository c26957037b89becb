//! Queries for other names, where the host's own DNS servers are not there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_agent::dns::{DnsServer, Instead, Upstream};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use nix::sched::CloneFlags;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::dns::{ask, ask_raw, extended_error, host_server, query, server, server_that_is_silent};
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

/// A server of the host that asks the first of these, the next where that one refuses, and so on; as dnsmasq
/// does.
async fn forwarder(servers: Arc<Mutex<Vec<SocketAddr>>>) -> SocketAddr {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let (query, socket, servers) =
                (buffer[..length].to_vec(), socket.clone(), servers.lock().unwrap().clone());
            tokio::spawn(async move {
                let mut answer = Vec::new();
                for server in servers {
                    answer = ask_raw(server, &query).await.unwrap_or_default();
                    if Message::from_vec(&answer)
                        .is_ok_and(|answer| answer.metadata.response_code != ResponseCode::ServFail)
                    {
                        break;
                    }
                }
                socket.send_to(&answer, from).await.unwrap();
            });
        }
    });
    address
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.expect(what);
}

#[tokio::test]
async fn a_server_that_asks_us_in_turn_is_found_and_not_asked() {
    let server = Arc::new(server().await);
    let (host, _) = host_server().await;
    let asks = Arc::new(Mutex::new(vec![server.address()]));
    let loops = forwarder(asks.clone()).await;
    let watching = tokio::spawn({
        let server = server.clone();
        async move { server.watch_for_loops().await }
    });
    relay_to(&server, &[loops]);
    until("a loop is found", || server.leading_back().is_some()).await;
    let leading = server.leading_back().unwrap();
    assert_eq!((leading.instead, &leading.servers[..]), (Instead::Nobody, &[loops][..]));
    let said = leading.to_string();
    assert!(said.contains("127.0.0.1 asks this agent in turn") && said.contains("do not resolve"), "{said}");
    let relayed = server.stats().relayed;
    let (reply, took) = ask_for_another(&server).await;
    assert!(extended_error(&reply).unwrap().1.contains("in turn") && took < AT_ONCE, "{reply:?} {took:?}");
    assert_eq!(server.stats().relayed, relayed + 1, "it does not go around");
    // With another beside it.
    relay_to(&server, &[loops, host]);
    assert_eq!(server.leading_back(), None, "not looked for yet");
    until("a loop is found again", || server.leading_back().is_some()).await;
    assert_eq!(server.leading_back().unwrap().instead, Instead::Others);
    let relayed = server.stats().relayed;
    let (reply, took) = ask_for_another(&server).await;
    assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{took:?}");
    assert_eq!(server.stats().relayed, relayed + 1);
    // The only one, and it asks others besides.
    asks.lock().unwrap().push(host);
    relay_to(&server, &[loops]);
    until("part of a loop is found", || server.leading_back().is_some()).await;
    assert_eq!(server.leading_back().unwrap().instead, Instead::Others);
    let (reply, _) = ask_for_another(&server).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    watching.abort();
}

/// As a VPN that became the host's server, and had taken us for its own.
#[tokio::test]
async fn where_the_only_server_asks_us_those_from_before_it_are_asked() {
    let server = server().await;
    let (host, _) = host_server().await;
    let loops = forwarder(Arc::new(Mutex::new(vec![server.address()]))).await;
    relay_to(&server, &[host]);
    relay_to(&server, &[loops]);
    // It writes its file once more.
    relay_to(&server, &[loops]);
    tokio::select! {
        () = server.watch_for_loops() => {}
        () = until("a loop is found", || server.leading_back().is_some()) => {}
    }
    let leading = server.leading_back().unwrap();
    assert_eq!((leading.instead, &leading.servers[..]), (Instead::Earlier, &[loops][..]));
    let (reply, took) = ask_for_another(&server).await;
    assert!(reply.metadata.response_code == ResponseCode::NoError && took < AT_ONCE, "{reply:?} {took:?}");
}

#[tokio::test]
async fn what_servers_are_asked_to_find_loops_tells_them_nothing() {
    let server = server().await;
    let (host, asked) = host_server().await;
    relay_to(&server, &[host]);
    let asking = until("the server is asked", || !asked.lock().unwrap().is_empty());
    tokio::select! {
        () = server.watch_for_loops() => {}
        () = asking => {}
    }
    let names: Vec<Name> = asked.lock().unwrap().iter().cloned().collect();
    let [name] = &names[..] else { panic!("one question for each server: {names:?}") };
    let is_random =
        |label: &[u8]| label.iter().all(|byte| byte.is_ascii_hexdigit()) && [8, 16].contains(&label.len());
    assert!(name.num_labels() == 2 && name.iter().all(is_random), "{name}");
    assert_eq!(server.leading_back(), None);
}
