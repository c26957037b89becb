//! Network cards that give a ring its packets past the host's stack, and what they leave to it. Needs root
//! and the eBPF objects.

#![expect(unsafe_code, reason = "IP options are set by a system call")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;

use cyphonic_common::{ConnectionId, DropReason};
use cyphonic_dataplane::ring::{CardError, Path, RingEvent, TunnelId};
use cyphonic_dataplane::xsk::CopyMode;
use ring_lab::{
    A, B, Kind, Namespace, Node, Outside, PATIENCE, SECOND_WIRE, UNDERLAY, WIRE, cid, eventually, joined,
    lay_second_wire, lay_wire, outer, tunnel, uninterrupted, wire,
};

/// What the host's stack has given to UDP sockets.
fn through_the_stack(node: &Node, ipv6: bool) -> u64 {
    node.namespace.run(move || {
        if ipv6 {
            let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let line = snmp.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams")).unwrap();
            return line.trim().parse().unwrap();
        }
        let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let udp: Vec<_> = snmp.lines().filter_map(|line| line.strip_prefix("Udp: ")).collect();
        let at = udp[0].split(' ').position(|name| name == "InDatagrams").unwrap();
        udp[1].split(' ').nth(at).unwrap().parse().unwrap()
    })
}

/// Packets that came in by a wire.
fn received(node: &Node, wire: &'static str) -> u64 {
    node.namespace.run(move || {
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let prefix = format!("{wire}:");
        let counts = devices.lines().find_map(|line| line.trim().strip_prefix(&prefix)).unwrap();
        counts.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

fn has_program(namespace: &Namespace) -> bool {
    namespace.run(|| {
        let output = Command::new("ip").args(["-d", "link", "show", WIRE]).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().contains("xdp")
    })
}

fn udp(node: &Node) -> UdpSocket {
    let own = node.own;
    let socket = node.namespace.run(move || UdpSocket::bind((own, 6000)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One datagram each way, and back.
fn echo(a: (&Node, &UdpSocket), b: (&Node, &UdpSocket)) {
    for ((from, sender), (to, receiver)) in [(a, b), (b, a)] {
        sender.send_to(b"through the tunnel", (to.own, 6000)).unwrap();
        let mut buffer = [0; 64];
        let (len, source) = uninterrupted(|| receiver.recv_from(&mut buffer)).expect("it arrives");
        assert_eq!((&buffer[..len], source.ip()), (&b"through the tunnel"[..], from.own.into()));
    }
}

#[test]
fn data_goes_past_the_stack_and_signalling_through_it() {
    for ipv6 in [false, true] {
        let (a, b) = joined(UNDERLAY, ipv6);
        let (app_a, app_b) = (udp(&a), udp(&b));
        echo((&a, &app_a), (&b, &app_b));
        let before = [&a, &b].map(|node| through_the_stack(node, ipv6));
        for _ in 0..100 {
            echo((&a, &app_a), (&b, &app_b));
        }
        // The inner datagrams are IPv6, and go through the stack behind the virtual interface.
        let inner = if ipv6 { 100 } else { 0 };
        let after = [&a, &b].map(|node| through_the_stack(node, ipv6) - inner);
        assert_eq!(after, before, "no outer packet went through the stack");

        let stranger = a.namespace.run(move || UdpSocket::bind(outer(ipv6, 1, 0)).unwrap());
        let signalling =
            [&[0x45][..], ConnectionId::from_random_signalling([3; 8]).as_bytes(), &[9; 40]].concat();
        stranger.send_to(&signalling, outer(ipv6, 2, b.port)).unwrap();
        let from = stranger.local_addr().unwrap();
        eventually("signalling reaches its sink", || {
            b.signalling.0.lock().unwrap().iter().any(|received| *received == (from, signalling.clone()))
        });
        for node in [&a, &b] {
            for (reason, packets) in node.ring.counters().drops() {
                assert_eq!(packets, 0, "{reason}");
            }
        }
    }
}

/// Gives a socket's packets two IP options of no meaning, which still make their headers longer.
fn set_options(socket: &UdpSocket) {
    let options = [1u8, 1, 1, 1];
    // SAFETY: the descriptor is open, and the kernel reads the bytes of a live array.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn what_is_not_plainly_a_tunnels_packet_goes_to_the_stack_and_all_is_counted() {
    for ipv6 in [false, true] {
        let (a, b) = joined(UNDERLAY, ipv6);
        let to = outer(ipv6, 2, b.port);
        let stranger = a.namespace.run(move || UdpSocket::bind(outer(ipv6, 1, 0)).unwrap());
        let short = |cid: ConnectionId, len| [&[0x45][..], cid.as_bytes(), &vec![9; len]].concat();
        eventually("both ends have heard each other", || {
            b.ring.all_stats().iter().all(|(_, stats)| stats.heard)
        });
        let check = |what: &str, socket: &UdpSocket, packet: &[u8], reason, through_stack: u64| {
            let stack = through_the_stack(&b, ipv6);
            let dropped = b.ring.counters().dropped(reason);
            socket.send_to(packet, to).unwrap();
            eventually(what, || b.ring.counters().dropped(reason) == dropped + 1);
            assert_eq!(through_the_stack(&b, ipv6), stack + through_stack, "{what}");
        };
        check("garbage for a tunnel", &stranger, &short(cid(2, 1), 40), DropReason::Forged, 0);
        check("too short to open", &stranger, &short(cid(2, 1), 4), DropReason::NotQuic, 1);
        check("nobody's tunnel", &stranger, &short(cid(2, 99), 40), DropReason::UnknownConnectionId, 1);
        check("not QUIC", &stranger, &[0; 40], DropReason::NotQuic, 1);
        check("fragments", &stranger, &short(cid(2, 1), 4000), DropReason::Forged, 1);
        if !ipv6 {
            let optional = a.namespace.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
            set_options(&optional);
            check("IP options", &optional, &short(cid(2, 1), 40), DropReason::Forged, 1);
        }
    }
}

#[test]
fn a_card_comes_and_goes_while_the_tunnel_stands() {
    let (a, b) = joined((Kind::Xdp, Kind::Xdp), false);
    let (app_a, app_b) = (udp(&a), udp(&b));
    assert!(!has_program(&b.namespace));
    for _ in 0..3 {
        let stack = through_the_stack(&b, false);
        echo((&a, &app_a), (&b, &app_b));
        // At least this one: what is said of paths goes the same way.
        assert!(through_the_stack(&b, false) > stack, "by the port");
        let card = b.outside(|outside| outside.attach()).unwrap();
        assert_eq!((card.name.as_str(), card.queues, card.zero_copy), (WIRE, 1, false));
        assert_eq!(b.outside(|outside| outside.attach()).unwrap(), card, "again changes nothing");
        assert!(has_program(&b.namespace));
        let stack = through_the_stack(&b, false);
        echo((&a, &app_a), (&b, &app_b));
        assert_eq!(through_the_stack(&b, false), stack, "by the card");
        b.outside(|outside| outside.underlay.detach(card.index));
        eventually("the card is free", || !has_program(&b.namespace));
    }
    b.outside(|outside| outside.attach()).unwrap();
    let Node { outside, namespace, .. } = b;
    drop(outside);
    eventually("the host is left as it was found", || !has_program(&namespace));
}

#[test]
fn two_cards_give_their_packets_each() {
    let (a, b) = joined(UNDERLAY, false);
    let (app_a, app_b) = (udp(&a), udp(&b));
    lay_second_wire(&a.namespace, &b.namespace);
    for node in [&a, &b] {
        node.outside(|outside| outside.attach_to(SECOND_WIRE)).unwrap();
    }
    // Once again by the first wire, after packets have come by the second.
    for net in [77, 78, 77] {
        for (node, peer, host) in [(&a, &b, 2), (&b, &a, 1)] {
            let remote = SocketAddr::from(([10, net, 0, host], peer.port));
            node.ring.set_path(TunnelId(1), Path { remote, wire_cid: cid(host, 1) });
        }
        // Until both ends have moved, packets may come by either wire.
        echo((&a, &app_a), (&b, &app_b));
        let counted = |name: &'static str| received(&b, name);
        let before = (through_the_stack(&b, false), [WIRE, SECOND_WIRE].map(counted));
        echo((&a, &app_a), (&b, &app_b));
        let after = (through_the_stack(&b, false), [WIRE, SECOND_WIRE].map(counted));
        assert_eq!(after.0, before.0, "no outer packet went through the stack");
        let used = usize::from(net == 78);
        assert!(after.1[used] > before.1[used], "10.{net}.0.0 has a wire of its own");
    }
    for node in [&a, &b] {
        for (reason, packets) in node.ring.counters().drops() {
            assert_eq!(packets, 0, "{reason}");
        }
    }
}

#[test]
fn a_wire_that_is_pulled_and_laid_anew_is_used_again() {
    let (a, b) = joined(UNDERLAY, false);
    let (app_a, app_b) = (udp(&a), udp(&b));
    echo((&a, &app_a), (&b, &app_b));
    b.namespace.ip("link del under0");
    lay_wire(&a.namespace, &b.namespace, 1);
    echo((&a, &app_a), (&b, &app_b));
    for node in [&a, &b] {
        let old = node.outside(|outside| outside.underlay.cards().next().unwrap().index);
        let new = node.outside(|outside| outside.attach()).unwrap();
        assert_ne!(old, new.index);
        node.outside(|outside| outside.underlay.detach(old));
        assert_eq!(node.outside(|outside| outside.underlay.cards().cloned().collect::<Vec<_>>()), [new]);
    }
    let stack = through_the_stack(&b, false);
    echo((&a, &app_a), (&b, &app_b));
    assert_eq!(through_the_stack(&b, false), stack, "by the new card");
    assert!(a.events.lock().unwrap().try_iter().all(|event| { !matches!(event, RingEvent::Failed { .. }) }));
}

#[test]
fn all_queues_of_a_card_are_served() {
    const QUEUES: u32 = 4;
    let (a, b) = (Namespace::new(), Namespace::new());
    lay_wire(&a, &b, QUEUES);
    let b = Node::start(Kind::Underlay, b, B);
    let queues = b.outside(|outside| outside.underlay.cards().next().unwrap().queues);
    assert_eq!(queues, QUEUES);
    b.ring.install(tunnel(1, 2, A, outer(false, 1, 9), true)).unwrap();
    let to = outer(false, 2, b.port);
    let packet = [&[0x45][..], cid(2, 1).as_bytes(), &[9; 40]].concat();
    let stack = through_the_stack(&b, false);
    // The kernel chooses the queue by flow: many flows meet all.
    for sent in 1..=64 {
        let stranger = a.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
        stranger.send_to(&packet, to).unwrap();
        eventually("it is taken", || b.ring.counters().dropped(DropReason::Forged) == sent);
    }
    assert_eq!(through_the_stack(&b, false), stack);
}

#[test]
fn a_flood_loses_packets_by_name_and_then_it_goes_on() {
    let (a, b) = joined(UNDERLAY, false);
    let (app_a, app_b) = (udp(&a), udp(&b));
    echo((&a, &app_a), (&b, &app_b));
    let to = outer(false, 2, b.port);
    let packet = [&[0x45][..], cid(2, 1).as_bytes(), &[9; 40]].concat();
    let stranger = a.namespace.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
    stranger.set_write_timeout(Some(PATIENCE)).unwrap();
    const FLOOD: u64 = 50_000;
    for _ in 0..FLOOD {
        stranger.send_to(&packet, to).unwrap();
    }
    let counted = || {
        let counters = b.ring.counters();
        counters.dropped(DropReason::Forged) + counters.dropped(DropReason::QueueFull)
    };
    eventually("every packet is counted", || counted() == FLOOD);
    echo((&a, &app_a), (&b, &app_b));
    // What a card has lost stays counted when it goes.
    b.outside(|outside| {
        let index = outside.underlay.cards().next().unwrap().index;
        outside.underlay.detach(index);
    });
    assert_eq!(counted(), FLOOD);
}

#[test]
fn a_card_that_cannot_be_used_says_why_and_stays_as_it_is() {
    let (a, b) = wire();
    let (b, other) = (Node::start(Kind::Xdp, b, B), Node::start(Kind::Underlay, a, A));
    let attach = |interface: &'static str| {
        b.outside(|outside| {
            let attached = outside.underlay.attach(&mut outside.programs, interface, CopyMode::Auto);
            attached.map(drop)
        })
    };
    assert!(matches!(attach("nosuch0"), Err(CardError::Interface { .. })));
    assert!(matches!(attach("lo"), Err(CardError::MtuTooLarge { mtu: 65_536, .. })));
    let zero_copy = b.outside(|outside| {
        let Outside { underlay, programs } = outside;
        underlay.attach(programs, WIRE, CopyMode::ZeroCopy).map(drop)
    });
    assert!(matches!(zero_copy, Err(CardError::Xsk(_))), "{zero_copy:?}");
    // A process that another test starts has this one's programs attached as long as it is between `fork` and `exec`.
    eventually("nothing stays", || !has_program(&b.namespace));
    // A program at the other end forbids what it could not take.
    let Node { outside, namespace: _other_end, .. } = other;
    drop(outside);
    let enlarge = || Command::new("ip").args(["link", "set", WIRE, "mtu", "9000"]).output().unwrap();
    eventually("the other end has no program", || b.namespace.run(move || enlarge().status.success()));
    assert!(matches!(attach(WIRE), Err(CardError::MtuTooLarge { mtu: 9000, .. })));
    eventually("nothing stays", || !has_program(&b.namespace));
}
