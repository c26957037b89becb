//! Applications' traffic through two rings between two network namespaces. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cyphonic_common::DropReason;
use cyphonic_common::packet::protocol::UDP;
use cyphonic_common::policy::{Direction, EVERY_CLASS, PolicyKey};
use cyphonic_dataplane::null_gso;
use cyphonic_dataplane::ring::{
    AwakeRequest, Control, HoldLimits, Path, PathMtu, RingEvent, RingKind, TunnelId,
};
use cyphonic_dataplane::tun::TunDevice;
use cyphonic_dataplane::udp::{Transmit, UdpPort};
use ring_lab::{
    A, B, FAR_END, INTERFACE, Kind, Kinds, MTU, Namespace, Node, PATIENCE, PREFIX, WIRE, cid, eventually,
    join, joined, outer, started, tunnel, uninterrupted, wire,
};

with_every_kind! {
    ping_and_bulk_tcp_pass_over_ipv4_and_ipv6,
    no_first_packet_is_lost_while_the_tunnel_is_set_up,
    what_overtakes_its_tunnel_is_opened_once_that_is_installed,
    the_listening_end_holds_its_packets_until_it_hears_the_dialler,
    giving_up_on_a_destination_tells_the_application,
    what_is_held_too_long_goes,
    key_updates_under_load_lose_nothing,
    a_packet_too_big_for_the_tunnel_is_answered_and_the_next_one_fits,
    the_newest_tunnel_sends_and_an_older_one_takes_over_when_it_goes,
    datagrams_of_one_flow_stay_in_order,
    a_link_that_takes_no_more_does_not_stop_what_arrives,
    a_link_that_takes_next_to_nothing_leaves_room_to_others,
    a_port_policy_is_enforced_both_ways,
    a_ring_whose_interface_is_taken_away_says_so,
}

/// A byte stream that shows every lost, doubled or moved byte.
fn pattern(at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// Sends `len` bytes from one node to the other over TCP and checks every one.
fn transfer(from: &Node, to: &Node, len: usize) {
    transfer_between(&from.namespace, (&to.namespace, to.own), len);
}

fn transfer_between(from: &Namespace, (to, own): (&Namespace, Ipv6Addr), len: usize) {
    let listener = to.run(move || TcpListener::bind((own, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut buffer, mut at) = (vec![0; 1 << 18], 0);
        loop {
            let read = uninterrupted(|| stream.read(&mut buffer)).unwrap();
            if read == 0 {
                return at;
            }
            let wrong = (0..read).find(|i| buffer[*i] != pattern(at + i));
            assert_eq!(wrong, None, "a wrong byte after {at}");
            at += read;
        }
    });
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 1 << 18];
        let mut at = 0;
        while at < len {
            let part = buffer.len().min(len - at);
            buffer[..part].iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(at + i));
            stream.write_all(&buffer[..part]).unwrap();
            at += part;
        }
    });
    assert_eq!(receiver.join().unwrap(), len);
}

fn ping(node: &Node, to: Ipv6Addr) {
    node.namespace.run(move || {
        let arguments = ["-6", "-q", "-n", "-c3", "-i0.05", "-W20", &to.to_string()];
        let output = Command::new("ping").args(arguments).output().expect("iputils-ping is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss"), "{output:?}");
    });
}

/// For each kind of device: whether its ring has the kernel keep processors awake from packets on, until it
/// ends.
#[test]
fn processors_are_kept_awake_after_packets() {
    let are_kept_awake = || {
        let mut latency = [0; 4];
        File::open("/dev/cpu_dma_latency").unwrap().read_exact(&mut latency).unwrap();
        latency == [0; 4]
    };
    for kind in [Kind::Offload, Kind::Xdp] {
        let ((a, b), awake) = (wire(), AwakeRequest::after_packets(PATIENCE).unwrap());
        let a = Node::start_with(kind, a, A, HoldLimits::default(), Some(awake));
        let b = Node::start(kind, b, B);
        join(&a, &b, 1, false);
        ping(&a, B);
        assert!(are_kept_awake());
        drop(a);
        eventually("processors may halt again", || !are_kept_awake());
    }
}

fn udp(node: &Node, port: u16) -> UdpSocket {
    let own = node.own;
    let socket = node.namespace.run(move || UdpSocket::bind((own, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let len = uninterrupted(|| socket.recv(&mut buffer)).expect("the datagram arrives");
    buffer[..len].to_vec()
}

fn ping_and_bulk_tcp_pass_over_ipv4_and_ipv6(kinds: Kinds) {
    const LEN: usize = 32 << 20;
    for ipv6 in [false, true] {
        let (a, b) = joined(kinds, ipv6);
        for (node, kind) in [(&a, kinds.0), (&b, kinds.1)] {
            let expected = if kind.is_offload() { RingKind::Offload } else { RingKind::Xdp };
            assert_eq!(node.ring.kind(), expected);
        }
        ping(&a, B);
        ping(&b, A);
        transfer(&a, &b, LEN);
        transfer(&b, &a, LEN);
        for (node, kind) in [(&a, kinds.0), (&b, kinds.1)] {
            let counters = node.ring.counters();
            assert!(counters.tx_packets > LEN as u64 / 1400);
            // An AF_XDP ring sends together what waits for it, which the machine decides.
            let together = if kind.is_offload() { 4 } else { 0 };
            assert!(
                counters.tx_packets > together * counters.tx_sends,
                "packets are sent together: {counters:?}"
            );
            let together = together / 2;
            assert!(
                counters.rx_packets > together * counters.rx_writes,
                "packets are written together: {counters:?}"
            );
            for reason in
                [DropReason::Forged, DropReason::Replayed, DropReason::SpoofedSource, DropReason::TooBig]
            {
                assert_eq!(counters.dropped(reason), 0, "{reason}");
            }
        }
        let stats = a.ring.tunnel_stats(TunnelId(1)).unwrap();
        assert!(stats.heard && stats.last_rx.is_some() && stats.last_tx.is_some());
        assert!(stats.tx_bytes > LEN as u64 && stats.rx_bytes > LEN as u64);
        assert_eq!(stats.path.remote, outer(ipv6, 2, b.port));
        assert_eq!(a.ring.all_stats().len(), 1);
    }
}

/// Nothing opens but what is permitted, at the end that sends and at the end that receives; answers come
/// back. By the workers, or by the programs where the ring has some.
fn a_port_policy_is_enforced_both_ways(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    let only = |services: &[(Direction, u16)]| {
        Arc::new(services.iter().map(|(way, port)| PolicyKey::new(*way, EVERY_CLASS, UDP, *port)).collect())
    };
    a.ring.set_permissions(only(&[(Direction::Out, 6000), (Direction::Out, 6001)])).unwrap();
    b.ring.set_permissions(only(&[(Direction::In, 6000)])).unwrap();
    let (client, service, closed) = (udp(&a, 5000), udp(&b, 6000), udp(&b, 6001));
    let denied = Node::denied;
    eventually("the sending end denies", || {
        client.send_to(b"a", (B, 6002)).unwrap();
        denied(&a) > 0
    });
    eventually("the receiving end denies", || {
        client.send_to(b"b", (B, 6001)).unwrap();
        denied(&b) > 0
    });
    client.send_to(b"denied", (B, 6001)).unwrap();
    client.send_to(b"question", (B, 6000)).unwrap();
    assert_eq!(received(&service), b"question");
    service.send_to(b"answer", (A, 5000)).unwrap();
    assert_eq!(received(&client), b"answer");
    let before = denied(&b);
    service.send_to(b"no answer: nobody has asked from there", (A, 5001)).unwrap();
    eventually("it is denied where it is sent", || denied(&b) > before);
    // What the policy had not reached yet may have passed; what came after may not.
    closed.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    while let Ok(len) = closed.recv(&mut buffer) {
        assert_eq!(&buffer[..len], b"b");
    }
    for node in [&a, &b] {
        node.ring.set_permissions(Arc::default()).unwrap();
    }
    eventually("everything passes again", || {
        client.send_to(b"again", (B, 6001)).unwrap();
        closed.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"again")
    });
}

fn no_first_packet_is_lost_while_the_tunnel_is_set_up(kinds: Kinds) {
    let (a, b) = started(kinds);
    let (sender, receiver) = (udp(&a, 6000), udp(&b, 6000));
    for number in 0..10u8 {
        sender.send_to(&[number], (B, 6000)).unwrap();
    }
    assert_eq!(a.unknown_destination(), B);
    eventually("all are held", || a.ring.counters().held == 10);
    join(&a, &b, 1, false);
    for number in 0..10u8 {
        assert_eq!(received(&receiver), [number]);
    }
    eventually("nothing is held", || a.ring.counters().held == 0);
}

fn what_overtakes_its_tunnel_is_opened_once_that_is_installed(kinds: Kinds) {
    let (a, b) = started(kinds);
    let (sender, receiver) = (udp(&a, 6000), udp(&b, 6000));
    b.ring.expect(cid(2, 1));
    a.ring.install(tunnel(1, 1, B, outer(false, 2, b.port), true)).unwrap();
    for number in 0..10u8 {
        sender.send_to(&[number], (B, 6000)).unwrap();
    }
    eventually("all are sent", || a.ring.counters().tx_packets == 10);
    // Of another connection ID nothing is held: what comes is counted, and everything before it has come.
    a.ring.install(tunnel(2, 1, B, outer(false, 2, b.port), true)).unwrap();
    eventually("the stranger's greeting is dropped", || unknown(&b) > 0);
    b.ring.install(tunnel(1, 2, A, outer(false, 1, a.port), false)).unwrap();
    for number in 0..10u8 {
        assert_eq!(received(&receiver), [number]);
    }
}

fn unknown(node: &Node) -> u64 {
    node.ring.counters().dropped(DropReason::UnknownConnectionId)
}

fn the_listening_end_holds_its_packets_until_it_hears_the_dialler(kinds: Kinds) {
    let (a, b) = started(kinds);
    b.ring.install(tunnel(1, 2, A, outer(false, 1, a.port), false)).unwrap();
    let (sender, receiver) = (udp(&b, 6000), udp(&a, 6000));
    sender.send_to(b"first", (A, 6000)).unwrap();
    eventually("it is held", || b.ring.counters().held == 1);
    assert_eq!(b.ring.counters().tx_packets, 0);
    // The dialler sends nothing of its own: installing it is enough.
    a.ring.install(tunnel(1, 1, B, outer(false, 2, b.port), true)).unwrap();
    eventually("it is sent", || b.ring.counters().tx_packets == 1);
    eventually("it is delivered", || a.ring.counters().rx_packets == 1);
    assert_eq!(received(&receiver), b"first");
    let told = b.events.lock().unwrap().try_iter().count();
    assert_eq!(told, 0, "a destination with a tunnel that is not confirmed is not unknown");
}

fn giving_up_on_a_destination_tells_the_application(kinds: Kinds) {
    let (namespace, _other) = wire();
    let a = Node::start(kinds.0, namespace, A);
    let (done, result) = std::sync::mpsc::channel();
    a.namespace.run(|| {
        let connect = || TcpStream::connect_timeout(&SocketAddr::from((B, 80)), 3 * PATIENCE);
        std::thread::spawn(move || drop(done.send(connect().map(drop))));
    });
    // The kernel ignores an error that meets the socket while it is in use; then the repeated SYN gets the
    // next one.
    let error = loop {
        assert_eq!(a.unknown_destination(), B);
        a.ring.drop_held(B, true);
        if let Ok(result) = result.recv_timeout(Duration::from_millis(500)) {
            break result.unwrap_err();
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
    // The worker answers before it counts.
    eventually("the drop is counted", || a.ring.counters().dropped(DropReason::NoTunnel) >= 1);
    eventually("nothing is held", || a.ring.counters().held == 0);
}

fn what_is_held_too_long_goes(kinds: Kinds) {
    let (namespace, _other) = wire();
    let limits = HoldLimits { age: Duration::from_millis(50), ..HoldLimits::default() };
    let a = Node::start_with(kinds.0, namespace, A, limits, None);
    udp(&a, 6000).send_to(b"x", (B, 6000)).unwrap();
    assert_eq!(a.unknown_destination(), B);
    eventually("it is dropped", || a.ring.counters().dropped(DropReason::NoTunnel) == 1);
    eventually("nothing is held", || a.ring.counters().held == 0);
}

fn key_updates_under_load_lose_nothing(kinds: Kinds) {
    let (a, b) = joined(kinds, true);
    let load = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for _ in 0..4 {
                transfer(&a, &b, 16 << 20);
            }
        });
        let mut updates = 0;
        while !load.is_finished() {
            a.ring.force_key_update(TunnelId(1));
            b.ring.force_key_update(TunnelId(1));
            updates += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        load.join().unwrap();
        updates
    });
    assert!(load > 3);
    for node in [&a, &b] {
        let counters = node.ring.counters();
        assert_eq!(counters.dropped(DropReason::Forged), 0, "every packet finds its keys");
        assert_eq!(counters.dropped(DropReason::Replayed), 0);
        assert!(node.ring.tunnel_stats(TunnelId(1)).unwrap().key_updates >= 3);
    }
}

fn a_packet_too_big_for_the_tunnel_is_answered_and_the_next_one_fits(kinds: Kinds) {
    let (a, b) = started(kinds);
    let small = |mut tunnel: cyphonic_dataplane::ring::TunnelInstall| {
        tunnel.mtu = PathMtu::carrying(1300);
        tunnel
    };
    b.ring.install(small(tunnel(1, 2, A, outer(false, 1, a.port), false))).unwrap();
    a.ring.install(small(tunnel(1, 1, B, outer(false, 2, b.port), true))).unwrap();
    let (sender, receiver) = (udp(&a, 6000), udp(&b, 6000));
    sender.send_to(&[1; 1350], (B, 6000)).unwrap();
    eventually("it is refused", || a.ring.counters().dropped(DropReason::TooBig) == 1);
    // Datagrams that the application hands over together are as many packets.
    let from = SocketAddr::from((A, 0));
    let together = a.namespace.run(move || UdpPort::bind_to(from)).unwrap();
    let payload = [1; 3 * 1_350];
    let transmit = Transmit { segment_size: Some(1_350), ..Transmit::new((B, 6000).into(), &payload) };
    together.send(&transmit).unwrap();
    eventually("all three are counted", || a.ring.counters().dropped(DropReason::TooBig) == 4);
    // The kernel has learnt the path's MTU as soon as it has taken the answer in, and fragments from then on.
    eventually("a later one arrives", || {
        sender.send_to(&[2; 1350], (B, 6000)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        receiver.recv(&mut [0; 4096]).is_ok_and(|len| len == 1350)
    });
    transfer(&a, &b, 4 << 20);
}

fn the_newest_tunnel_sends_and_an_older_one_takes_over_when_it_goes(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    ping(&a, B);
    join(&a, &b, 2, true);
    eventually("both ends hear the new tunnel", || {
        [&a, &b].iter().all(|node| node.ring.tunnel_stats(TunnelId(2)).unwrap().heard)
    });
    let sent = |id| a.ring.tunnel_stats(TunnelId(id)).unwrap().tx_packets;
    let before = sent(1);
    ping(&a, B);
    eventually("the newer one has sent", || sent(2) >= 3);
    assert_eq!(sent(1), before);
    for node in [&a, &b] {
        node.ring.remove(TunnelId(2));
        assert_eq!(node.ring.tunnel_stats(TunnelId(2)), None);
    }
    ping(&a, B);
    eventually("the older one has sent", || sent(1) >= before + 3);
}

fn datagrams_of_one_flow_stay_in_order(kinds: Kinds) {
    let (a, b) = joined(kinds, true);
    let (sender, receiver) = (udp(&a, 6000), udp(&b, 6000));
    for number in 0..64u8 {
        sender.send_to(&[number; 900], (B, 6000)).unwrap();
    }
    for number in 0..64u8 {
        assert_eq!(received(&receiver), [number; 900]);
    }
}

/// Without drops, nobody has waited for the link.
fn a_link_that_takes_no_more_does_not_stop_what_arrives(kinds: Kinds) {
    let (a, b) = joined(kinds, false);
    ping(&a, B);
    let (sender, receiver) = (udp(&b, 6001), udp(&a, 6001));
    a.namespace.limit(WIRE, "20mbit");
    flooded(&a, || {
        let before = a.ring.counters();
        // Each leaves when the one before has arrived: those that wait together are not counted as prompt.
        for number in 0..200u8 {
            sender.send_to(&[number], (A, 6001)).unwrap();
            assert_eq!(received(&receiver), [number]);
        }
        others_find_room(&a);
        // Commands are heeded, and control leaves ahead of the flood.
        let path = Path { remote: outer(false, 2, b.port), wire_cid: cid(2, 1) };
        a.ring.send_control(TunnelId(1), Control::Probe { path, data: [7; 8] });
        a.event(|event| matches!(event, RingEvent::PathResponse { data: [7, ..], .. }).then_some(()));
        let after = a.ring.counters();
        assert!(after.tx_packets > before.tx_packets, "the link is used");
        if kinds.0.is_offload() {
            assert_eq!(after.dropped(DropReason::QueueFull), 0, "{after:?}");
        }
    });
}

/// So slow that what waits is given up before it could leave.
fn a_link_that_takes_next_to_nothing_leaves_room_to_others(kinds: Kinds) {
    let (a, _b) = joined(kinds, false);
    ping(&a, B);
    a.namespace.limit(WIRE, "200kbit");
    flooded(&a, || {
        // Longer than anything waits.
        std::thread::sleep(Duration::from_secs(1));
        others_find_room(&a);
    });
}

/// Others send from the port as well, without waiting.
fn others_find_room(node: &Node) {
    let to_nobody = Transmit::new(outer(false, 2, 9), b"signalling");
    let sent = (0..200).filter(|_| {
        std::thread::sleep(Duration::from_millis(2));
        node.udp.send(&to_nobody).is_ok()
    });
    let sent = sent.count();
    // Nearly all do, and one of ten where bulk leaves nothing. How many exactly depends on what else the
    // machine does.
    assert!(sent > 80, "{sent} of 200 found room");
}

/// Runs `meanwhile` once a flood into the tunnel has filled the port's buffer, while it goes on.
fn flooded(node: &Node, meanwhile: impl FnOnce()) {
    let flooder = udp(node, 6000);
    // It may become larger.
    let (size, _) = node.udp.buffer_sizes().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                for _ in 0..16 {
                    // Whether there is room is not the flood's concern.
                    let _ = flooder.send_to(&[0; 1300], (B, 6000));
                }
                // Eight times what the faster link takes, and something of the machine left for other tests.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let _over = SetAtEnd(&over);
        eventually("the send buffer is full", || node.queued() >= size);
        meanwhile();
    });
}

#[test]
fn an_interface_that_is_down_for_a_while_is_asked_now_and_then() {
    let (a, b) = joined((Kind::Offload, Kind::Xdp), false);
    ping(&a, B);
    let (sender, receiver) = (udp(&a, 6000), udp(&b, 6000));
    b.namespace.ip(&format!("link set {FAR_END} down"));
    let failed = || b.ring.counters().dropped(DropReason::InterfaceFailed);
    sender.send_to(b"first", (B, 6000)).unwrap();
    // It waits in the interface's queue, and is not lost.
    eventually("the second is dropped and counted", || {
        sender.send_to(b"second", (B, 6000)).unwrap();
        failed() > 0
    });
    let (before, start) = (b.ring.counters(), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let asked = b.ring.counters().rx_writes - before.rx_writes;
    // As many packets may still have been on their way as were sent.
    let most = start.elapsed().as_millis() as u64 / 50 + 10;
    assert!(asked <= most, "asked {asked} times");
    b.namespace.ip(&format!("link set {FAR_END} up"));
    assert_eq!(received(&receiver), b"first");
    eventually("packets arrive again", || {
        sender.send_to(b"third", (B, 6000)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 64];
        receiver.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"third")
    });
}

/// Ends the threads that look at it, also when what waits for them panics.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn a_ring_whose_interface_is_taken_away_says_so(kinds: Kinds) {
    let (a, _b) = wire();
    let a = Node::start(kinds.0, a, A);
    a.namespace.ip(&format!("link del {INTERFACE}"));
    let reason = a.event(|event| match event {
        RingEvent::Failed { reason } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.starts_with("ring-1: "), "{reason}");
}

#[test]
fn a_stopped_ring_takes_its_interface_along() {
    let (a, _b) = wire();
    let Node { ring, namespace, .. } = Node::start(Kind::Offload, a, A);
    let exists = |namespace: &Namespace| {
        namespace
            .run(|| Command::new("ip").args(["link", "show", INTERFACE]).output().unwrap().status.success())
    };
    assert!(exists(&namespace));
    drop(ring);
    assert!(!exists(&namespace));
}

/// What rings are measured against is to do the same, but for the cryptography.
#[test]
fn the_pipe_without_keys_carries_what_a_ring_does() {
    let (a, b) = wire();
    for (host, namespace, own) in [(1, &a, A), (2, &b, B)] {
        let (tun, port) = namespace.run(move || {
            let port = UdpPort::bind_to(outer(false, host, 4500)).unwrap();
            (TunDevice::create(INTERFACE, MTU).unwrap(), port)
        });
        namespace.ip(&format!("addr add {own}/{} dev {INTERFACE} nodad", PREFIX.1));
        namespace.ip(&format!("link set {INTERFACE} up"));
        std::thread::spawn(move || null_gso::run(&tun, &port, outer(false, 3 - host, 4500)));
    }
    transfer_between(&a, (&b, B), 8 << 20);
    transfer_between(&b, (&a, A), 8 << 20);
    // Both end with their devices.
    a.ip(&format!("link del {INTERFACE}"));
    b.ip(&format!("link del {INTERFACE}"));
}
