//! What a ring does with packets that no honest peer sends, and with the control frames of one that does.
//!
//! The test is the peer: it seals packets itself and sends them from a plain socket. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use cyphonic_common::frame::Close;
use cyphonic_common::quic::PUNCH;
use cyphonic_common::{ConnectionId, DropReason, Frame, Frames};
use cyphonic_dataplane::protect::{HEADER_LEN, Opener, Sealer, pair};
use cyphonic_dataplane::ring::{Control, Path, PathMtu, RingError, RingEvent, TunnelId};
use etherparse::PacketBuilder;
use ring_lab::{
    A, B, Kinds, MTU, Node, PATIENCE, PREFIX, cid, eventually, outer, tunnel, uninterrupted, wire,
};

with_each_kind! {
    only_packets_between_the_tunnels_two_ends_reach_an_application,
    replays_forgeries_and_strangers_are_dropped_by_name,
    signalling_goes_to_its_sink_untouched,
    nothing_is_sent_before_the_listening_end_has_heard_its_peer,
    a_challenge_is_answered_in_kind_and_only_an_awaited_answer_is_believed,
    a_moved_peer_is_reported_for_its_newest_packet_only,
    a_close_is_reported_once_and_sent_when_asked_for,
    frames_that_have_no_business_in_a_tunnel_are_malformed_and_frames_may_share_a_packet,
    a_tunnel_that_contradicts_the_node_is_refused_and_nothing_changes,
}

const ID: TunnelId = TunnelId(1);
const OUTSIDER: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xbad);

/// The peer of node B: node A's place on the wire, without a ring.
struct Peer {
    socket: UdpSocket,
    sealer: Sealer,
    opener: Opener,
    to: SocketAddr,
    _namespace: ring_lab::Namespace,
}

impl Peer {
    /// The peer of a ring at B, which has the tunnel installed.
    fn of_ring(kinds: Kinds, confirmed: bool) -> (Self, Node) {
        let (a, b) = wire();
        let b = Node::start(kinds.1, b, B);
        let socket = a.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        b.ring.install(tunnel(1, 2, A, socket.local_addr().unwrap(), confirmed)).unwrap();
        let own = tunnel(1, 1, B, outer(false, 2, b.port), true);
        let (sealer, opener) = pair(own.suite, &own.send, &own.recv);
        (Self { socket, sealer, opener, to: outer(false, 2, b.port), _namespace: a }, b)
    }

    fn seal(&mut self, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut packet = vec![0; 4096];
        let mut len = 0;
        for frame in frames {
            len += frame.encode(&mut packet[HEADER_LEN + len..]).unwrap();
        }
        let len = self.sealer.seal(cid(2, 1), cid(2, 1), &mut packet, len).unwrap();
        packet.truncate(len);
        packet
    }

    fn send(&mut self, frames: &[Frame<'_>]) {
        let packet = self.seal(frames);
        self.socket.send_to(&packet, self.to).unwrap();
    }

    /// The next packet of the ring's: its frames' bytes and the size of the datagram.
    fn receive(&mut self) -> (Vec<u8>, usize) {
        let mut buffer = [0; 65_536];
        let len = uninterrupted(|| self.socket.recv(&mut buffer)).expect("the ring answers");
        let opened = self.opener.open(&mut buffer[..len]).expect("the ring seals for this peer");
        (opened.payload.to_vec(), len)
    }
}

fn inner(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(from.octets(), to.octets(), 64).udp(6000, 6000).write(&mut packet, payload).unwrap();
    packet
}

fn application(node: &Node) -> UdpSocket {
    let own = node.own;
    let socket = node.namespace.run(move || UdpSocket::bind((own, 6000)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The application's next datagram, after which it has received nothing else.
fn only(application: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let len = uninterrupted(|| application.recv(&mut buffer)).expect("the honest packet arrives");
    application.set_nonblocking(true).unwrap();
    assert!(application.recv(&mut [0; 16]).is_err(), "nothing else arrives");
    buffer[..len].to_vec()
}

fn dropped(node: &Node, reason: DropReason, count: u64) {
    eventually(reason.name(), || node.ring.counters().dropped(reason) == count);
}

fn only_packets_between_the_tunnels_two_ends_reach_an_application(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let app = application(&node);
    peer.send(&[Frame::Datagram(&inner(OUTSIDER, B, b"spoofed source"))]);
    peer.send(&[Frame::Datagram(&inner(B, B, b"the node's own source"))]);
    peer.send(&[Frame::Datagram(&inner(A, OUTSIDER, b"for someone else"))]);
    peer.send(&[Frame::Datagram(&inner(A, B, b"cut")[..45])]);
    peer.send(&[Frame::Datagram(b"")]);
    peer.send(&[Frame::Datagram(&[0x45; 60])]);
    peer.send(&[Frame::Datagram(&inner(A, B, b"honest"))]);
    assert_eq!(only(&app), b"honest");
    dropped(&node, DropReason::SpoofedSource, 2);
    dropped(&node, DropReason::WrongDestination, 1);
    dropped(&node, DropReason::MalformedInner, 3);
    eventually("one packet is counted", || node.ring.tunnel_stats(ID).unwrap().rx_packets == 1);
}

fn replays_forgeries_and_strangers_are_dropped_by_name(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let app = application(&node);
    let honest = peer.seal(&[Frame::Datagram(&inner(A, B, b"once"))]);
    let mut forged = peer.seal(&[Frame::Datagram(&inner(A, B, b"forged"))]);
    *forged.last_mut().unwrap() ^= 1;
    let mut unknown = honest.clone();
    unknown[1..9].copy_from_slice(cid(2, 99).as_bytes());
    let punch = PUNCH.to_vec();
    for packet in [&forged, &unknown, &vec![0x00; 40], &punch, &honest, &honest, &honest] {
        peer.socket.send_to(packet, peer.to).unwrap();
    }
    assert_eq!(only(&app), b"once");
    dropped(&node, DropReason::Forged, 1);
    dropped(&node, DropReason::UnknownConnectionId, 1);
    dropped(&node, DropReason::NotQuic, 1);
    dropped(&node, DropReason::Replayed, 2);
}

fn signalling_goes_to_its_sink_untouched(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let app = application(&node);
    let mut short = vec![0x40];
    short.extend_from_slice(ConnectionId::from_random_signalling([9; 8]).as_bytes());
    short.extend_from_slice(&[7; 30]);
    let long = [0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0].to_vec();
    for packet in [&short, &long] {
        peer.socket.send_to(packet, peer.to).unwrap();
    }
    peer.send(&[Frame::Datagram(&inner(A, B, b"data"))]);
    assert_eq!(only(&app), b"data");
    let from = peer.socket.local_addr().unwrap();
    // A ring may take data past the stack that signalling goes through.
    eventually("signalling arrives", || node.signalling.0.lock().unwrap().len() == 2);
    assert_eq!(*node.signalling.0.lock().unwrap(), [(from, short), (from, long)]);
}

fn nothing_is_sent_before_the_listening_end_has_heard_its_peer(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, false);
    application(&node).send_to(b"early", (A, 6000)).unwrap();
    node.ring.send_control(ID, Control::Ping);
    node.ring.send_control(ID, Control::PathChallenge([3; 8]));
    eventually("it is held", || node.ring.counters().held == 1);
    peer.socket.set_nonblocking(true).unwrap();
    assert!(peer.socket.recv(&mut [0; 2048]).is_err());
    peer.socket.set_nonblocking(false).unwrap();
    // A forgery confirms nothing.
    let mut forged = peer.seal(&[Frame::Ping]);
    forged[20] ^= 1;
    peer.socket.send_to(&forged, peer.to).unwrap();
    dropped(&node, DropReason::Forged, 1);
    assert!(!node.ring.tunnel_stats(ID).unwrap().heard);
    peer.send(&[Frame::Ping]);
    let (payload, _) = peer.receive();
    let frames: Vec<_> = Frames::new(&payload).collect();
    let Ok(Frame::Datagram(packet)) = frames[0] else { panic!("not a packet: {frames:?}") };
    assert!(packet.ends_with(b"early"));
}

fn a_challenge_is_answered_in_kind_and_only_an_awaited_answer_is_believed(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    // The ring is a dialler here and greets.
    let (greeting, _) = peer.receive();
    let Some(Ok(Frame::PathChallenge(data))) = Frames::new(&greeting).next() else { panic!("no greeting") };
    peer.send(&[Frame::PathResponse(data)]);
    peer.send(&[Frame::PathChallenge([1; 8])]);
    let answer = |peer: &mut Peer| loop {
        let (payload, size) = peer.receive();
        if let Some(Ok(Frame::PathResponse(data))) = Frames::new(&payload).next() {
            return (data, size);
        }
    };
    let (data, size) = answer(&mut peer);
    assert_eq!((data, size < 100), ([1; 8], true));
    peer.send(&[Frame::PathChallenge([2; 8]), Frame::Padding(1200 - 9 - 29)]);
    assert_eq!(answer(&mut peer), ([2; 8], 1200));

    peer.send(&[Frame::PathResponse([0xee; 8])]);
    node.ring.send_control(ID, Control::PathChallenge([5; 8]));
    let asked = loop {
        let (payload, size) = peer.receive();
        if let Some(Ok(Frame::PathChallenge(data))) = Frames::new(&payload).next() {
            assert!(data != [5; 8] || size == 1200, "a probe of the path is padded");
            if data == [5; 8] {
                break data;
            }
        }
    };
    peer.send(&[Frame::PathResponse(asked)]);
    let first = node.event(|event| match event {
        RingEvent::PathResponse { tunnel, data } => Some((*tunnel, *data)),
        _ => None,
    });
    assert_eq!(first, (ID, [5; 8]), "neither the greeting's nor an unasked answer is reported");
}

fn a_moved_peer_is_reported_for_its_newest_packet_only(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let late = peer.seal(&[Frame::Ping]);
    peer.send(&[Frame::Ping]);
    eventually("it is heard", || node.ring.tunnel_stats(ID).unwrap().heard);
    let elsewhere = peer._namespace.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
    elsewhere.send_to(&late, peer.to).unwrap();
    let third = peer._namespace.run(|| UdpSocket::bind(outer(true, 1, 0)).unwrap());
    let newest = peer.seal(&[Frame::Ping]);
    third.send_to(&newest, outer(true, 2, node.port)).unwrap();
    let from = node.event(|event| match event {
        RingEvent::PeerMoved { tunnel: ID, from } => Some(*from),
        _ => None,
    });
    assert_eq!(from, third.local_addr().unwrap(), "an overtaken packet moves nothing");

    // The path moves when the owner says so, and a challenge from the old address is answered there.
    node.ring.set_path(ID, Path { remote: from, wire_cid: cid(1, 1) });
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    node.ring.send_control(ID, Control::Ping);
    let mut buffer = [0; 2048];
    let len = uninterrupted(|| third.recv(&mut buffer)).expect("packets follow the path");
    peer.opener.open(&mut buffer[..len]).unwrap();
    assert_eq!(node.ring.tunnel_stats(ID).unwrap().path.remote, from);
}

fn a_close_is_reported_once_and_sent_when_asked_for(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let close = Close { error_code: 7, frame_type: None, reason: b"good night" };
    peer.send(&[Frame::Close(close)]);
    peer.send(&[Frame::Close(close)]);
    let told = node.event(|event| match event {
        RingEvent::PeerClosed { tunnel, code, reason } => Some((*tunnel, *code, reason.clone())),
        _ => None,
    });
    assert_eq!(told, (ID, 7, "good night".to_owned()));
    node.ring.send_control(ID, Control::Close { code: 9, reason: "x".repeat(5000) });
    loop {
        let (payload, _) = peer.receive();
        if let Some(Ok(Frame::Close(close))) = Frames::new(&payload).next() {
            assert_eq!((close.error_code, close.reason.len()), (9, 256), "the reason is cut to its bound");
            break;
        }
    }
    let again =
        node.events.lock().unwrap().try_iter().any(|event| matches!(event, RingEvent::PeerClosed { .. }));
    assert!(!again);
}

fn frames_that_have_no_business_in_a_tunnel_are_malformed_and_frames_may_share_a_packet(kinds: Kinds) {
    let (mut peer, node) = Peer::of_ring(kinds, true);
    let app = application(&node);
    let mut stream_frame = vec![0; 64];
    stream_frame[HEADER_LEN] = 0x08;
    let len = peer.sealer.seal(cid(2, 1), cid(2, 1), &mut stream_frame, 4).unwrap();
    peer.socket.send_to(&stream_frame[..len], peer.to).unwrap();
    dropped(&node, DropReason::MalformedFrame, 1);
    let packet = inner(A, B, b"one of several frames");
    peer.send(&[Frame::Ping, Frame::DatagramWithLength(&packet), Frame::Padding(3)]);
    assert_eq!(only(&app), b"one of several frames");
}

fn a_tunnel_that_contradicts_the_node_is_refused_and_nothing_changes(kinds: Kinds) {
    let (namespace, _other) = wire();
    let node = Node::start(kinds.1, namespace, B);
    let remote = outer(false, 1, 9);
    let good = || tunnel(1, 2, A, remote, true);
    assert!(node.ring.install(good()).is_ok());
    assert!(matches!(node.ring.install(good()), Err(RingError::DuplicateTunnel(ID))));
    let mut same_cid = tunnel(2, 2, A, remote, true);
    same_cid.local_cid = cid(2, 1);
    assert!(matches!(node.ring.install(same_cid), Err(RingError::DuplicateConnectionId(_))));
    let mut signalling = tunnel(2, 2, A, remote, true);
    signalling.remote_cid = ConnectionId::from_random_signalling([1; 8]);
    assert!(matches!(node.ring.install(signalling), Err(RingError::NotData(_))));
    for peer in [B, Ipv6Addr::LOCALHOST, "2001:db8::1".parse().unwrap()] {
        assert!(matches!(node.ring.install(tunnel(2, 2, peer, remote, true)), Err(RingError::BadPeer(_))));
    }
    let mut narrow = tunnel(2, 2, A, remote, true);
    narrow.mtu = PathMtu::carrying(1279);
    assert!(matches!(node.ring.install(narrow), Err(RingError::MtuTooSmall(mtu)) if mtu.inner == 1279));
    assert_eq!(node.ring.all_stats().len(), 1);
    assert!(PREFIX.0 < A && MTU >= 1280);
}
