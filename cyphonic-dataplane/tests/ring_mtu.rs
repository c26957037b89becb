//! Paths that carry less than applications send, between two network namespaces. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use cyphonic_common::DropReason;
use cyphonic_dataplane::ring::{Control, PathMtu, RingEvent, TunnelId, TunnelInstall};
use ring_lab::{
    A, B, INTERFACE, Kinds, MIXED_BACK, MTU, Node, PATIENCE, WIRE, cid, eventually, joined, outer, started,
    tunnel, uninterrupted,
};

with_each_kind! {
    everything_passes_a_path_that_is_narrower_than_ipv6_allows,
    a_probe_tells_what_the_path_carries,
    an_interface_that_becomes_too_small_is_reported_and_the_next_packet_passes,
    another_path_is_given_small_packets_only_until_it_is_known,
}

/// What a veth pair's end would drop uncounted.
#[test]
fn what_is_larger_than_the_interface_takes_is_counted_by_name() {
    let (a, b) = started(MIXED_BACK);
    a.namespace.ip(&format!("link set {INTERFACE} mtu 1460"));
    let wide = |mut tunnel: TunnelInstall| {
        tunnel.mtu = PathMtu::carrying(1_440);
        tunnel
    };
    b.ring.install(wide(tunnel(1, 2, A, outer(false, 1, a.port), false))).unwrap();
    a.ring.install(wide(tunnel(1, 1, B, outer(false, 2, b.port), true))).unwrap();
    let (at_a, at_b) = (udp(&a, 6000), udp(&b, 6000));
    pass(&at_a, &at_b, usize::from(MTU));
    at_a.send_to(&vec![0; usize::from(MTU) + 1 - 48], at_b.local_addr().unwrap()).unwrap();
    eventually("it is counted", || b.ring.counters().dropped(DropReason::TooBig) == 1);
    pass(&at_a, &at_b, usize::from(MTU));
}

const ID: TunnelId = TunnelId(1);

/// What a path of 1,280 bytes carries under IPv6.
const NARROW: u16 = 1_232;

fn udp(node: &Node, port: u16) -> UdpSocket {
    let own = node.own;
    let socket = node.namespace.run(move || UdpSocket::bind((own, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram whose inner packet has `len` bytes, and checks every byte where it arrives.
fn pass(from: &UdpSocket, to: &UdpSocket, len: usize) {
    let payload: Vec<u8> = (0..len - 48).map(|at| (at * 7) as u8).collect();
    from.send_to(&payload, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let received = uninterrupted(|| to.recv(&mut buffer)).expect("the datagram arrives");
    assert_eq!(buffer[..received], payload);
}

/// Passes a packet and returns how many of `from`'s datagrams were too large for a path that is not known
/// yet. A batch is counted after it was sent, so that a packet may arrive before it is counted.
fn pass_counted(from: (&Node, &UdpSocket), to: &UdpSocket, len: usize) -> u64 {
    let (node, socket) = from;
    let stats = || node.ring.tunnel_stats(ID).unwrap();
    let before = stats().tx_packets;
    pass(socket, to, len);
    eventually("the packet is counted", || stats().tx_packets > before);
    stats().tx_large
}

fn transfer(from: &Node, to: &Node, len: usize) {
    let (source, destination) = (from.own, to.own);
    let listener = to.namespace.run(move || TcpListener::bind((destination, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let pattern = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
    let receiver = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), source);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        uninterrupted(|| stream.read_to_end(&mut all)).unwrap();
        assert_eq!(all.len(), len);
        assert_eq!(all.iter().enumerate().find(|(at, byte)| **byte != pattern(*at)), None);
    });
    from.namespace.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(0..len).map(pattern).collect::<Vec<_>>()).unwrap();
    });
    receiver.join().unwrap();
}

fn ping(node: &Node, to: &Node, len: usize) {
    let (to, size) = (to.own.to_string(), (len - 48).to_string());
    node.namespace.run(move || {
        let arguments = ["-6", "-q", "-n", "-c3", "-i0.05", "-W20", "-s", &size, &to];
        let output = Command::new("ping").args(arguments).output().expect("iputils-ping is installed");
        assert!(String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss"), "{output:?}");
    });
}

fn everything_passes_a_path_that_is_narrower_than_ipv6_allows(kinds: Kinds) {
    let (a, b) = started(kinds);
    for node in [&a, &b] {
        node.namespace.ip(&format!("link set {WIRE} mtu 1280"));
    }
    let narrow = |mut tunnel: TunnelInstall| {
        tunnel.mtu = PathMtu { datagram: NARROW, inner: 1_420 };
        tunnel
    };
    b.ring.install(narrow(tunnel(1, 2, A, outer(true, 1, a.port), false))).unwrap();
    a.ring.install(narrow(tunnel(1, 1, B, outer(true, 2, b.port), true))).unwrap();
    let (at_a, at_b) = (udp(&a, 6000), udp(&b, 6000));
    // About what goes whole (1,202 bytes), what goes in two pieces, and the most that applications send.
    for len in [100, 1_201, 1_202, 1_203, 1_204, 1_280, 1_419, 1_420] {
        pass(&at_a, &at_b, len);
        pass(&at_b, &at_a, len);
    }
    ping(&a, &b, 1_420);
    transfer(&a, &b, 2 << 20);
    transfer(&b, &a, 2 << 20);
    for node in [&a, &b] {
        let counters = node.ring.counters();
        for reason in [DropReason::TooBig, DropReason::Incomplete, DropReason::BadPart, DropReason::Forged] {
            assert_eq!(counters.dropped(reason), 0, "{reason}");
        }
    }
    // A packet in two pieces is one packet. The transfers' last packets may still be on their way.
    let counted =
        || (a.ring.tunnel_stats(ID).unwrap().tx_packets, b.ring.tunnel_stats(ID).unwrap().rx_packets);
    eventually("one packet is counted", || {
        let before = counted();
        pass(&at_a, &at_b, 1_280);
        std::thread::sleep(Duration::from_millis(20));
        counted() == (before.0 + 1, before.1 + 1)
    });
}

fn a_probe_tells_what_the_path_carries(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    let path = tunnel(1, 1, B, outer(false, 2, b.port), true).path;
    let probe = |size: u16| {
        let data = u64::from(size).to_be_bytes();
        a.ring.send_control(ID, Control::MtuProbe { path, size, data });
        a.event(|event| match event {
            RingEvent::PathResponse { tunnel: ID, data: echoed } if *echoed == data => Some(true),
            RingEvent::TooBig { tunnel: ID, probe } if *probe == Some(data) => Some(false),
            _ => None,
        })
    };
    assert!(probe(1_200) && probe(1_471) && probe(1_472), "the wire carries 1,500 bytes");
    assert!(!probe(1_473) && !probe(9_000), "this host's interface says so at once");
    assert!(probe(1_472), "a probe that is refused changes nothing");
    for node in [&a, &b] {
        assert_eq!(node.ring.counters().dropped(DropReason::MalformedFrame), 0);
    }
}

fn an_interface_that_becomes_too_small_is_reported_and_the_next_packet_passes(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    let (at_a, at_b) = (udp(&a, 6000), udp(&b, 6000));
    assert!(pass_counted((&a, &at_a), &at_b, 1_420) > 0);
    a.namespace.ip(&format!("link set {WIRE} mtu 1300"));
    at_a.send_to(&[1; 1_372], at_b.local_addr().unwrap()).unwrap();
    let reported =
        |event: &RingEvent| matches!(event, RingEvent::TooBig { tunnel: ID, probe: None }).then_some(());
    a.event(reported);
    // What the owner then finds out is used again.
    let large = pass_counted((&a, &at_a), &at_b, 1_420);
    a.ring.set_mtu(ID, PathMtu { datagram: 1_272, inner: 1_420 });
    a.ring.set_mtu(ID, PathMtu { datagram: 1_100, inner: 1_420 });
    a.ring.set_mtu(ID, PathMtu { datagram: 1_272, inner: 1_000 });
    assert_eq!(pass_counted((&a, &at_a), &at_b, 1_242), large + 1, "it went whole");
    transfer(&a, &b, 1 << 20);
}

fn another_path_is_given_small_packets_only_until_it_is_known(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    let (at_a, at_b) = (udp(&a, 6000), udp(&b, 6000));
    let before = pass_counted((&a, &at_a), &at_b, 1_420);
    let remote: SocketAddr = outer(true, 2, b.port);
    a.ring.set_path(ID, cyphonic_dataplane::ring::Path { remote, wire_cid: cid(2, 1) });
    assert_eq!(pass_counted((&a, &at_a), &at_b, 1_420), before, "it went in pieces");
    a.ring.set_mtu(ID, PathMtu::carrying(1_420));
    assert_eq!(pass_counted((&a, &at_a), &at_b, 1_420), before + 1);
}
