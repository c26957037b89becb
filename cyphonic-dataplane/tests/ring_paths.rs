//! A tunnel that moves between two paths under load, and what a ring tells of other paths. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use cyphonic_common::frame::CandidateFlags;
use cyphonic_dataplane::ring::{Amount, CandidateSet, Control, Path, RingEvent, Traffic, TunnelId};
use ring_lab::{Kinds, Node, PATIENCE, cid, eventually, joined, outer, uninterrupted};

with_every_kind! {
    a_move_between_paths_under_load_loses_nothing,
    a_probe_validates_another_path_and_is_told_apart_from_a_move,
    candidates_arrive_as_they_were_told,
    what_passes_is_counted_by_the_route_it_takes,
}

const ID: TunnelId = TunnelId(1);
/// Small enough for the least datagram, so that what a new path carries does not matter here.
const LEN: usize = 900;

fn socket(node: &Node) -> UdpSocket {
    let own = node.own;
    let socket = node.namespace.run(move || UdpSocket::bind((own, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The direct path to a node, over either family.
fn to(node: &Node, ipv6: bool, host: u8) -> Path {
    Path { remote: outer(ipv6, host.into(), node.port), wire_cid: cid(host, 1) }
}

/// Sends numbered packets, never more ahead of the receiver than the queues on the way hold, and counts
/// disorder.
fn flow(from: UdpSocket, into: UdpSocket, packets: u32) -> u32 {
    const AHEAD: u32 = 64;
    let address = into.local_addr().unwrap();
    from.connect(address).unwrap();
    let (done, progress) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        let (mut buffer, mut seen, mut newest, mut disorder) =
            ([0; 2048], vec![false; packets as usize], 0, 0);
        for _ in 0..packets {
            let len = uninterrupted(|| into.recv(&mut buffer)).expect("no packet is lost");
            assert_eq!(len, LEN);
            let number = u32::from_be_bytes(buffer[..4].try_into().unwrap());
            assert!(!std::mem::replace(&mut seen[number as usize], true), "{number} came twice");
            disorder += u32::from(number < newest);
            newest = newest.max(number);
            done.send(()).unwrap();
        }
        disorder
    });
    let mut arrived = 0;
    for number in 0..packets {
        while number - arrived > AHEAD {
            progress.recv_timeout(PATIENCE).expect("no packet is lost");
            arrived += 1;
        }
        let mut packet = [0; LEN];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        uninterrupted(|| from.send(&packet)).unwrap();
    }
    receiver.join().unwrap()
}

fn a_move_between_paths_under_load_loses_nothing(kinds: Kinds) {
    const MOVES: usize = 40;
    const PACKETS: u32 = 30_000;
    let (a, b) = joined(kinds, false);
    // Until then the listening end holds what it is to send, and fewer packets than come here.
    eventually("they know each other", || [&a, &b].iter().all(|n| n.ring.tunnel_stats(ID).unwrap().heard));
    let (there, back) = ((socket(&a), socket(&b)), (socket(&b), socket(&a)));
    let flows = [there, back].map(|(from, into)| std::thread::spawn(move || flow(from, into, PACKETS)));
    for n in 0..MOVES {
        // The two ends do not move at the same moment, and packets flow between any two moves.
        let ipv6 = n % 2 == 0;
        for (node, path) in [(&a, to(&b, ipv6, 2)), (&b, to(&a, ipv6, 1))] {
            let before = node.ring.tunnel_stats(ID).unwrap().tx_packets;
            node.ring.set_path(ID, path);
            if !flows.iter().any(std::thread::JoinHandle::is_finished) {
                eventually("packets flow", || {
                    node.ring.tunnel_stats(ID).unwrap().tx_packets > before + 50
                        || flows.iter().any(std::thread::JoinHandle::is_finished)
                });
            }
        }
    }
    // Over paths of one length a few packets that are on the way change places at most.
    let most = MOVES as u32 * 64;
    for flow in flows.map(std::thread::JoinHandle::join) {
        let disorder = flow.unwrap_or_else(|_| panic!("a flow broke off\n{}\n{}", told_of(&a), told_of(&b)));
        assert!(disorder <= most, "{disorder} of {PACKETS} out of order in {MOVES} moves");
    }
}

/// What ring and kernel have counted at a node: for whoever looks for a packet that is missing.
fn told_of(node: &Node) -> String {
    let kernel = node.namespace.run(|| {
        let files = ["dev", "snmp", "snmp6", "softnet_stat"];
        files.map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default())
    });
    let (stats, counters) = (node.ring.tunnel_stats(ID), node.ring.counters());
    format!("{}: {stats:?}\n{counters:?}\n{}", node.own, kernel.join("\n"))
}

fn moved(node: &Node) -> impl Iterator<Item = RingEvent> {
    let events: Vec<_> = node.events.lock().unwrap().try_iter().collect();
    events.into_iter().filter(|event| matches!(event, RingEvent::PeerMoved { .. }))
}

fn a_probe_validates_another_path_and_is_told_apart_from_a_move(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    eventually("they know each other", || [&a, &b].iter().all(|n| n.ring.tunnel_stats(ID).unwrap().heard));
    let path = to(&b, true, 2);
    a.ring.send_control(ID, Control::Probe { path, data: [7; 8] });
    let answered = a.event(|event| match event {
        RingEvent::PathResponse { tunnel: ID, data } => Some(*data),
        _ => None,
    });
    assert_eq!(answered, [7; 8]);
    let from: SocketAddr = b.event(|event| match event {
        RingEvent::Probed { tunnel: ID, from } => Some(*from),
        RingEvent::PeerMoved { .. } => panic!("a probe is no move"),
        _ => None,
    });
    assert_eq!(from, outer(true, 1, a.port));
    assert_eq!(
        a.ring.tunnel_stats(ID).unwrap().path,
        to(&b, false, 2),
        "the path stays until its owner moves it"
    );
    assert_eq!(moved(&a).count(), 0);

    a.ring.set_path(ID, path);
    a.ring.send_control(ID, Control::Ping);
    let from = b.event(|event| match event {
        RingEvent::PeerMoved { tunnel: ID, from } => Some(*from),
        _ => None,
    });
    assert_eq!(from, outer(true, 1, a.port));
}

fn candidates_arrive_as_they_were_told(kinds: Kinds) {
    let (a, b) = joined(kinds, true);
    let endpoints = (1..=20).map(|n| SocketAddr::from(([192, 0, 2, n], 7000))).collect();
    let flags = CandidateFlags { answer: true, keep: false, moved: true };
    let told = CandidateSet { sequence: 5, heard: 3, flags, endpoints };
    a.ring.send_control(ID, Control::Candidates(told.clone()));
    let heard = b.event(|event| match event {
        RingEvent::Candidates { tunnel: ID, set } => Some(set.clone()),
        _ => None,
    });
    assert_eq!((heard.sequence, heard.heard, heard.flags), (5, 3, flags));
    assert_eq!(heard.endpoints, told.endpoints[..16], "the best of them");

    // The listening end has just heard of the other: what it is asked to send at once is sent.
    b.ring.send_control(ID, Control::Candidates(CandidateSet { sequence: 1, ..told.clone() }));
    let heard = a.event(|event| match event {
        RingEvent::Candidates { tunnel: ID, set } => Some(set.sequence),
        _ => None,
    });
    assert_eq!(heard, 1);

    // However many are told, few are passed on.
    for sequence in 100..200 {
        a.ring.send_control(ID, Control::Candidates(CandidateSet { sequence, ..told.clone() }));
    }
    a.ring.send_control(ID, Control::Close { code: 1, reason: String::new() });
    let (begin, passed) = (Instant::now(), AtomicUsize::new(0));
    b.event(|event| match event {
        RingEvent::Candidates { .. } => {
            passed.fetch_add(1, Relaxed);
            None
        }
        RingEvent::PeerClosed { .. } => Some(()),
        _ => None,
    });
    let seconds = usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!(passed.load(Relaxed) <= 10 * (seconds + 2), "{passed:?}");
}

fn what_passes_is_counted_by_the_route_it_takes(kinds: Kinds) {
    let (a, b) = joined(kinds, true);
    let (here, there) = (socket(&a), socket(&b));
    here.connect(there.local_addr().unwrap()).unwrap();
    there.connect(here.local_addr().unwrap()).unwrap();
    // IPv6, UDP and what is asked for.
    let bytes = 40 + 8 + LEN as u64;
    let amount = |packets| Amount { packets, bytes: packets * bytes };
    let echo = || {
        let mut buffer = [0; 2048];
        here.send(&[1; LEN]).unwrap();
        assert_eq!(uninterrupted(|| there.recv(&mut buffer)).unwrap(), LEN);
        there.send(&[2; LEN]).unwrap();
        assert_eq!(uninterrupted(|| here.recv(&mut buffer)).unwrap(), LEN);
    };
    echo();
    let sent = |packets, relayed| Traffic { direct: amount(packets), relayed: amount(relayed) };
    for node in [&a, &b] {
        eventually("both directions are counted", || {
            let counters = node.ring.counters();
            (counters.sent, counters.received) == (sent(1, 0), sent(1, 0))
        });
    }
    // Nobody has this connection ID, as a relay would that has lost the leg: what is sent there ends there.
    a.ring.set_path(ID, Path { wire_cid: cid(9, 9), ..to(&b, true, 2) });
    for _ in 0..3 {
        here.send(&[1; LEN]).unwrap();
    }
    eventually("what goes to a relay is counted apart", || a.ring.counters().sent == sent(1, 3));
    there.send(&[2; LEN]).unwrap();
    eventually("and so is what comes meanwhile", || a.ring.counters().received == sent(1, 1));
    a.ring.remove(ID);
    assert_eq!(a.ring.counters().sent, sent(1, 3), "a tunnel that is gone has carried what it has");
}
