use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_agent::dns::{DnsServer, ResolveError, Resolver, Upstream, Zone};
use futures_util::future::BoxFuture;
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::time::timeout;

const PEER: &str = "fd12:3456:789a::7";

/// An engine's answers without an engine.
struct Table(HashMap<&'static str, Result<Ipv6Addr, ResolveError>>);

impl Resolver for Table {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        Box::pin(async move {
            if name.starts_with("stuck") {
                std::future::pending::<()>().await;
            }
            self.0.get(name).cloned().unwrap_or(Err(ResolveError::NoSuchPeer))
        })
    }

    fn name_of(&self, address: Ipv6Addr) -> Option<String> {
        (address == PEER.parse::<Ipv6Addr>().unwrap()).then(|| "b.cyphonic.internal".to_owned())
    }
}

fn zone() -> Zone {
    Zone::new("cyphonic.internal", "fd12:3456:789a::/48".parse().unwrap()).unwrap()
}

pub(crate) async fn server() -> DnsServer {
    server_of(zone()).await
}

async fn server_of(zone: Zone) -> DnsServer {
    let table = Table(HashMap::from([
        ("b.cyphonic.internal", Ok(PEER.parse().unwrap())),
        ("off.cyphonic.internal", Err(ResolveError::PeerOffline("last seen 3 h ago".into()))),
        ("lost.cyphonic.internal", Err(ResolveError::NotConnected("x".repeat(2000)))),
    ]));
    DnsServer::start("127.0.0.1:0".parse().unwrap(), zone, Arc::new(table)).await.unwrap()
}

pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    message.set_edns(edns);
    message
}

pub(crate) async fn ask_raw(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer)
}

pub(crate) async fn ask(server: &DnsServer, message: &Message) -> Message {
    let reply = ask_raw(server.address(), &message.to_vec().unwrap()).await.unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    reply
}

pub(crate) fn extended_error(reply: &Message) -> Option<(u16, String)> {
    let EdnsOption::Unknown(_, data) = reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? else {
        return None;
    };
    Some((u16::from_be_bytes([data[0], data[1]]), String::from_utf8(data[2..].to_vec()).unwrap()))
}

fn has_soa(reply: &Message) -> bool {
    reply.authorities.iter().any(|record| matches!(record.data, RData::SOA(_)))
}

#[tokio::test]
async fn a_peer_has_an_aaaa_and_nothing_else() {
    let server = server().await;
    let reply = ask(&server, &query("B.Cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
    assert!(
        matches!(&reply.answers[..], [record] if matches!(&record.data, RData::AAAA(a) if a.0.to_string() == PEER))
    );
    for kind in [RecordType::A, RecordType::MX, RecordType::TXT, RecordType::HTTPS] {
        let reply = ask(&server, &query("b.cyphonic.internal.", kind)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(reply.answers.is_empty() && has_soa(&reply), "{kind}");
    }
}

/// "There is the name, and no such record" would end systemd-resolved's search.
#[tokio::test]
async fn where_the_zone_is_searched_a_name_that_nobody_has_is_none_for_ipv4_either() {
    let server = server_of(zone().searched_by("a.hall.cyphonic.internal")).await;
    for (name, code) in [
        ("b.cyphonic.internal.", ResponseCode::NoError),
        ("nobody.cyphonic.internal.", ResponseCode::NXDomain),
        ("off.cyphonic.internal.", ResponseCode::ServFail),
    ] {
        let reply = ask(&server, &query(name, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, code, "{name}");
        assert!(reply.answers.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn failures_say_why() {
    let server = server().await;
    let reply = ask(&server, &query("nobody.cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(has_soa(&reply));
    let reply = ask(&server, &query("off.cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply).unwrap(), (22, "the device is offline: last seen 3 h ago".into()));
    let reply = ask(&server, &query("lost.cyphonic.internal.", RecordType::AAAA)).await;
    let (code, text) = extended_error(&reply).unwrap();
    assert_eq!((code, text.len()), (14, 200), "long texts are cut");
    let reply = ask(&server, &query("stuck.cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(extended_error(&reply).unwrap().0, 23, "nobody waits for ever");
    assert_eq!(server.stats().failures, 3);
}

#[tokio::test]
async fn without_edns_there_is_none_in_the_answer() {
    let server = server().await;
    let mut message = query("off.cyphonic.internal.", RecordType::AAAA);
    message.edns = None;
    let reply = ask(&server, &message).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(reply.edns.is_none());
}

#[tokio::test]
async fn an_unknown_edns_version_is_badvers() {
    let server = server().await;
    let mut message = query("b.cyphonic.internal.", RecordType::AAAA);
    message.edns.as_mut().unwrap().set_version(1);
    // 16 is BADVERS here (RFC 6891 section 9), though the library's name for it is that of TSIG's.
    assert_eq!(u16::from(ask(&server, &message).await.metadata.response_code), 16);
}

#[tokio::test]
async fn outside_the_zone_is_refused() {
    let server = server().await;
    for name in ["example.com.", ".", "internal.", "1.0.0.127.in-addr.arpa."] {
        let reply = ask(&server, &query(name, RecordType::AAAA)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative);
    }
    let transfer = ask(&server, &query("cyphonic.internal.", RecordType::AXFR)).await;
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn malformed_packets_change_nothing() {
    let server = server().await;
    // Nothing for what has no header, and for answers.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for packet in [&[][..], &[0; 11], &[0xff; 12], &[0xff; 600]] {
        socket.send_to(packet, server.address()).await.unwrap();
    }
    // A header that promises a question that is not there.
    let mut packet = [0; 12];
    (packet[0], packet[1], packet[5]) = (0xab, 0xcd, 1);
    let reply = Message::from_vec(&ask_raw(server.address(), &packet).await.unwrap()).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0xabcd, ResponseCode::FormErr));
    // Every prefix and every single-byte damage of a query: an answer or none, and the server lives.
    let good = query("b.cyphonic.internal.", RecordType::AAAA).to_vec().unwrap();
    for cut in 0..good.len() {
        socket.send_to(&good[..cut], server.address()).await.unwrap();
        let mut bad = good.clone();
        bad[cut] ^= 0xff;
        socket.send_to(&bad, server.address()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let reply = ask(&server, &query("b.cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(reply.answers.len(), 1);
}

#[tokio::test]
async fn tcp_answers_several_queries_on_one_connection() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    for name in ["b.cyphonic.internal.", "nobody.cyphonic.internal."] {
        let message = query(name, RecordType::AAAA);
        let raw = message.to_vec().unwrap();
        stream.write_u16(raw.len() as u16).await.unwrap();
        stream.write_all(&raw).await.unwrap();
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().metadata.id, message.metadata.id);
    }
}

async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(message.len() as u16).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Message {
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

#[tokio::test]
async fn malformed_messages_by_tcp_are_told_so_and_the_connection_goes_on() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // What is shorter than a header, an answer, and a header that promises a question that is not there.
    let mut answer = query("b.cyphonic.internal.", RecordType::AAAA);
    answer.metadata.message_type = MessageType::Response;
    for packet in [&[][..], &[0; 11], &answer.to_vec().unwrap()] {
        send(&mut stream, packet).await;
    }
    let mut packet = [0; 12];
    (packet[0], packet[1], packet[5]) = (0xab, 0xcd, 1);
    send(&mut stream, &packet).await;
    let reply = receive(&mut stream).await;
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0xabcd, ResponseCode::FormErr));
    send(&mut stream, &query("b.cyphonic.internal.", RecordType::AAAA).to_vec().unwrap()).await;
    assert_eq!(receive(&mut stream).await.answers.len(), 1);
}

#[tokio::test]
async fn who_connects_and_asks_nothing_gives_its_place_to_who_does() {
    let server = server().await;
    let message = query("b.cyphonic.internal.", RecordType::AAAA).to_vec().unwrap();
    let mut waits = TcpStream::connect(server.address()).await.unwrap();
    send(&mut waits, &query("stuck.cyphonic.internal.", RecordType::AAAA).to_vec().unwrap()).await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        send(&mut stream, &message).await;
        assert_eq!(receive(&mut stream).await.answers.len(), 1, "there is always a place");
        idle.push(stream);
    }
    // The first had its answer and asked nothing more; it would have stayed for ten seconds.
    let ended = timeout(Duration::from_secs(5), idle[0].read_u8()).await.expect("it is closed at once");
    assert!(ended.is_err());
    assert!(timeout(Duration::from_millis(50), idle[1].read_u8()).await.is_err(), "one made room");
    assert_eq!(extended_error(&receive(&mut waits).await).unwrap().0, 23, "who asked before has its answer");
}

/// Asks more than the server has places for, of which it answers none soon: what it says to the first that
/// finds no place.
async fn first_answer_of_many(server: &DnsServer, query: impl Fn(u32) -> Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for i in 0..300 {
        socket.send_to(&query(i).to_vec().unwrap(), server.address()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut buffer = [0; 1500];
    let length = timeout(Duration::from_secs(3), socket.recv(&mut buffer));
    let length = length.await.expect("before any times out").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn too_many_at_once_are_told_so() {
    let server = server().await;
    let reply =
        first_answer_of_many(&server, |i| query(&format!("stuck{i}.cyphonic.internal."), RecordType::AAAA))
            .await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(extended_error(&reply).unwrap().1.contains("too many"));
}

/// The host's own server: has 100 addresses for every name, which is too much for UDP, and remembers who was
/// asked for.
pub(crate) async fn host_server() -> (SocketAddr, Arc<Mutex<HashSet<Name>>>) {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // The port may be taken by TCP.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(HashSet::new()));
    let answer = {
        let asked = asked.clone();
        move |query: &[u8]| {
            let query = Message::from_vec(query).unwrap();
            let name = query.queries[0].name();
            asked.lock().unwrap().insert(name.clone());
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.metadata.recursion_available = true;
            reply.queries.clone_from(&query.queries);
            let record = |i| Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, i].into())));
            reply.add_answers((0..100).map(record));
            reply
        }
    };
    let by_tcp = answer.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let reply = answer(&buffer[..length]).truncate();
            udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let reply = by_tcp(&query).to_vec().unwrap();
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn with_an_upstream_other_names_are_relayed_and_ours_never_leave() {
    let server = server().await;
    let (host, asked) = host_server().await;
    server.set_upstream(Some(Upstream::new([host], server.address())));
    let reply = ask(&server, &query("example.com.", RecordType::A)).await;
    assert!(reply.metadata.truncation && reply.metadata.recursion_available);
    let by_tcp = dig(&server, &["+short", "A", "example.com"]).await;
    assert_eq!(by_tcp.lines().filter(|line| line.starts_with("192.0.2.")).count(), 100, "{by_tcp}");
    assert_eq!(server.stats().relayed, 3, "ours, and dig's by UDP and TCP");
    for name in
        ["b.cyphonic.internal.", "nobody.cyphonic.internal.", "off.cyphonic.internal.", "cyphonic.internal."]
    {
        ask(&server, &query(name, RecordType::AAAA)).await;
    }
    // As glibc asks when it had no answer, by `search` of whoever runs the network.
    for name in ["b.cyphonic.internal.lan.", "off.CYPHONIC.internal.evil.example."] {
        let reply = ask(&server, &query(name, RecordType::AAAA)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(server.stats().relayed, 3);
    assert_eq!(*asked.lock().unwrap(), HashSet::from([Name::from_ascii("example.com.").unwrap()]));
    // A loop is impossible, and a silent upstream is a SERVFAIL that says so.
    let own = Upstream::new([server.address()], server.address());
    assert!(own.servers().is_empty());
    server.set_upstream(Some(own));
    let reply = ask(&server, &query("example.com.", RecordType::A)).await;
    assert_eq!(
        (reply.metadata.response_code, extended_error(&reply).unwrap().0),
        (ResponseCode::ServFail, 22)
    );
    server.set_upstream(None);
    let reply = ask(&server, &query("example.com.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

/// A server that answers nothing, and notes when it is asked.
pub(crate) async fn server_that_is_silent() -> (SocketAddr, Arc<Mutex<Vec<Instant>>>) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while udp.recv_from(&mut buffer).await.is_ok() {
            times.lock().unwrap().push(Instant::now());
        }
    });
    (address, asked)
}

#[tokio::test]
async fn servers_share_the_time_that_a_program_waits() {
    let server = server().await;
    let (silent, asked) = server_that_is_silent().await;
    let refuses = server_that_says(ResponseCode::Refused).await;
    // Alone, or after others that took no time, a server has all of it, which nobody asks it to use in a
    // hurry.
    for servers in [vec![silent], vec![refuses, refuses, silent]] {
        asked.lock().unwrap().clear();
        server.set_upstream(Some(Upstream::new(servers.clone(), server.address())));
        let start = Instant::now();
        let reply = ask(&server, &query("example.com.", RecordType::A)).await;
        assert!(start.elapsed() >= Duration::from_millis(4_400), "{:?} for {servers:?}", start.elapsed());
        assert_ne!(reply.metadata.response_code, ResponseCode::NoError);
        let asked = asked.lock().unwrap();
        let apart = *asked.last().unwrap() - asked[0];
        assert!(apart >= Duration::from_secs(2), "asked {} times in {apart:?}", asked.len());
    }
    // Behind silent ones there is still time for one that answers.
    let (host, _) = host_server().await;
    server.set_upstream(Some(Upstream::new([silent, silent, host], server.address())));
    let reply = ask(&server, &query("example.com.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn servers_that_are_gone_take_no_places_of_the_overlays_names() {
    let server = server().await;
    let (silent, _) = server_that_is_silent().await;
    server.set_upstream(Some(Upstream::new([silent], server.address())));
    let reply = first_answer_of_many(&server, |i| query(&format!("{i}.example.com."), RecordType::A)).await;
    let (code, text) = extended_error(&reply).unwrap();
    assert!(code == 22 && text.contains("too many queries wait"), "{code} {text}");
    let reply = ask(&server, &query("b.cyphonic.internal.", RecordType::AAAA)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
}

/// A server that answers every query with this code.
pub(crate) async fn server_that_says(code: ResponseCode) -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.metadata.response_code = code;
            reply.queries.clone_from(&query.queries);
            udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_refuses_is_no_reason_not_to_ask_the_next() {
    let server = server().await;
    let (host, _) = host_server().await;
    let refusals = [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp];
    for code in refusals {
        let first = server_that_says(code).await;
        server.set_upstream(Some(Upstream::new([first, host], server.address())));
        let reply = ask(&server, &query("example.com.", RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "after {code}");
    }
    // Where no other does better, the first refusal is the answer; that a name does not exist is none.
    for (codes, says) in [
        ([ResponseCode::Refused, ResponseCode::ServFail], ResponseCode::Refused),
        ([ResponseCode::ServFail, ResponseCode::NXDomain], ResponseCode::NXDomain),
        ([ResponseCode::NXDomain, ResponseCode::ServFail], ResponseCode::NXDomain),
    ] {
        let [first, second] = [server_that_says(codes[0]).await, server_that_says(codes[1]).await];
        server.set_upstream(Some(Upstream::new([first, second], server.address())));
        let reply = ask(&server, &query("example.com.", RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, says, "{codes:?}");
    }
}

async fn dig(server: &DnsServer, arguments: &[&str]) -> String {
    let output = Command::new("dig")
        .args(["@127.0.0.1", "-p", &server.address().port().to_string(), "+tries=1", "+time=8"])
        .args(arguments)
        .output()
        .await
        .expect("dig is installed (bind9-dnsutils)");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn dig_understands_every_kind_of_answer() {
    let server = server().await;
    assert_eq!(dig(&server, &["+short", "AAAA", "b.cyphonic.internal"]).await, format!("{PEER}\n"));
    assert_eq!(dig(&server, &["+short", "+tcp", "AAAA", "b.cyphonic.internal"]).await, format!("{PEER}\n"));
    assert_eq!(dig(&server, &["+short", "-x", PEER]).await, "b.cyphonic.internal.\n");
    assert!(dig(&server, &["-x", "fd12:3456:789a::8"]).await.contains("status: NXDOMAIN"));
    assert!(
        dig(&server, &["+short", "SOA", "cyphonic.internal"]).await.contains("hostmaster.cyphonic.internal.")
    );
    assert_eq!(dig(&server, &["+short", "NS", "cyphonic.internal"]).await, "localhost.\n");
    assert!(dig(&server, &["SOA", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"]).await.contains("status: NOERROR"));
    let offline = dig(&server, &["AAAA", "off.cyphonic.internal"]).await;
    assert!(offline.contains("status: SERVFAIL"), "{offline}");
    assert!(
        offline.contains("EDE: 22 (No Reachable Authority): (the device is offline: last seen 3 h ago)"),
        "{offline}"
    );
    assert!(dig(&server, &["A", "example.com"]).await.contains("status: REFUSED"));
}
