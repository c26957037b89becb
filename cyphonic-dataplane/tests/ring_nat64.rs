//! A ring whose host has IPv6 alone and reaches IPv4 through a translator (NAT64), with the packets that the
//! translator would pass on both ways. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use cyphonic_common::{ConnectionId, Nat64Prefix};
use cyphonic_dataplane::ring::RingEvent;
use ring_lab::{Kinds, PATIENCE, WIRE, eventually, started, tunnel};

/// B as A's application sees it, and as the translator shows it.
const B_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const A_IPV6: &str = "2001:db8:64::a";
const LEN: usize = 4 << 20;

with_each_kind! {
    ipv4_through_a_translator_carries_a_tunnel_whose_ends_know_nothing_of_it,
}

fn ipv4_through_a_translator_carries_a_tunnel_whose_ends_know_nothing_of_it(kinds: Kinds) {
    let prefix = Nat64Prefix::new("2001:db8:64::".parse().unwrap(), 96).unwrap();
    let b_ipv6 = prefix.embed(B_IPV4).unwrap();
    let (a, b) = started(kinds);
    for (node, address) in [(&a, A_IPV6.to_owned()), (&b, b_ipv6.to_string())] {
        node.namespace.ip(&format!("-6 addr add {address}/64 dev {WIRE} nodad"));
    }
    eventually("the translator passes packets", || a.namespace.reaches(&b_ipv6.to_string()));
    a.udp.set_nat64(Some(prefix));
    assert_eq!(a.udp.nat64(), Some(prefix));
    let b_at = SocketAddr::from((B_IPV4, b.port));
    b.ring.install(tunnel(1, 2, a.own, SocketAddr::new(A_IPV6.parse().unwrap(), a.port), false)).unwrap();
    a.ring.install(tunnel(1, 1, b.own, b_at, true)).unwrap();

    let own = b.own;
    let listener = b.namespace.run(move || TcpListener::bind((own, 6001)).unwrap());
    let mut sender = a.namespace.run(move || TcpStream::connect((own, 6001)).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..LEN).map(|n| (n / 1_000) as u8).collect();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&sent).unwrap());
        let mut received = vec![0; LEN];
        receiver.read_exact(&mut received).unwrap();
        received
    });
    assert!(received == sent, "every byte comes as it was");

    let stranger = b.namespace.run(move || UdpSocket::bind((b_ipv6, 0)).unwrap());
    let signalling =
        [&[0x45][..], ConnectionId::from_random_signalling([3; 8]).as_bytes(), &[9; 40]].concat();
    stranger.send_to(&signalling, (A_IPV6, a.port)).unwrap();
    let from = SocketAddr::from((B_IPV4, stranger.local_addr().unwrap().port()));
    let heard = || a.signalling.0.lock().unwrap().contains(&(from, signalling.clone()));
    eventually("signalling comes from an IPv4 address, too", heard);

    // Had anything come from another address than the tunnel's, its owner would have been told.
    let moved = |event: &RingEvent| matches!(event, RingEvent::PeerMoved { .. });
    assert!(!a.events.lock().unwrap().try_iter().any(|event| moved(&event)));
}
