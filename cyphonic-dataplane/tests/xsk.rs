//! AF_XDP sockets on veth pairs in a network namespace of their own. Needs root and the eBPF objects.

#![expect(unsafe_code, reason = "namespaces are made by system calls")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::{Ipv6Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_common::InterfaceConfig;
use cyphonic_dataplane::bpf::{Options, Programs};
use cyphonic_dataplane::xsk::{CopyMode, Frame, FramePool, Umem, UmemConfig, Xsk, XskConfig, XskError};
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};

/// Long enough for any machine; a passing test never waits this long.
const PATIENCE: Duration = Duration::from_secs(20);
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xa);
const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xb);
const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FRAMES: u32 = 128;

fn in_namespace(test: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: it takes no pointers, and only this short-lived thread changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
        test();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

/// The virtual interface: a pair with as many queues, whose near end has the node's address.
fn pair(queues: u32) {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    run("ip", &format!("link add near0 {queues} type veth peer name far0 {queues}"));
    run("ip", "link set near0 arp off addrgenmode none mtu 1420 address 02:00:00:00:00:01");
    run("ip", "link set far0 arp off addrgenmode none mtu 1420");
    run("ethtool", "-K near0 tx off");
    run("ip", "link set near0 up");
    run("ip", "link set far0 up");
    run("ip", &format!("-6 addr add {OWN}/48 dev near0 nodad"));
}

fn programs() -> Programs {
    let prefix = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0);
    let config = InterfaceConfig::new(OWN.octets(), prefix.octets(), 48).unwrap();
    Programs::load(config, Options::default()).unwrap()
}

fn memory() -> (Umem, FramePool) {
    Umem::new(UmemConfig { frames: FRAMES, ..UmemConfig::default() }).unwrap()
}

const CONFIG: XskConfig = XskConfig { ring_size: 64, mode: CopyMode::Auto };

/// An application's socket, as soon as the address may be used.
fn application(port: u16) -> UdpSocket {
    let mut socket = None;
    eventually("the address is the host's", || {
        socket = UdpSocket::bind((OWN, port)).ok();
        socket.is_some()
    });
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the next packets.
fn receive(xsk: &mut Xsk, count: usize) -> Vec<Frame> {
    let mut frames = Vec::with_capacity(count);
    eventually("packets arrive at the socket", || {
        xsk.rx.recv(&mut frames);
        frames.len() >= count
    });
    frames
}

/// A packet from the peer to the application's port.
fn answer(umem: &Umem, pool: &mut FramePool, payload: &[u8]) -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([4; 6], NEAR_MAC)
        .ipv6(PEER.octets(), OWN.octets(), 64)
        .udp(4000, 5000)
        .write(&mut bytes, payload)
        .unwrap();
    let mut frame = pool.take().unwrap();
    let start = frame.start();
    assert!(frame.set_packet(start, bytes.len()));
    umem.packet_mut(&mut frame).copy_from_slice(&bytes);
    frame
}

/// Every frame is somewhere.
fn none_is_lost(umem: &Umem, pool: &FramePool, held: usize) {
    assert_eq!(pool.len() + umem.lent() + held, FRAMES as usize);
}

#[test]
fn packets_go_both_ways_with_right_checksums() {
    in_namespace(|| {
        pair(1);
        let mut programs = programs();
        programs.attach_virtual("far0").unwrap();
        let (umem, mut pool) = memory();
        let mut xsk = Xsk::open(&umem, "far0", 0, CONFIG).unwrap();
        assert!(!xsk.zero_copy, "veth cannot");
        xsk.rx.refill(&mut pool, 32);
        programs.set_virtual_socket(0, &xsk.rx).unwrap();
        let socket = application(5000);

        socket.send_to(b"out", (PEER, 4000)).unwrap();
        let frame = receive(&mut xsk, 1).remove(0);
        let bytes = umem.packet(&frame).to_vec();
        let headers = PacketHeaders::from_ethernet_slice(&bytes).unwrap();
        let Some(TransportHeader::Udp(udp)) = &headers.transport else { panic!("no UDP") };
        let Some(etherparse::NetHeaders::Ipv6(ip, _)) = &headers.net else { panic!("no IPv6") };
        assert_eq!((headers.payload.slice(), udp.destination_port), (&b"out"[..], 4000));
        assert_eq!(udp.checksum, udp.calc_checksum_ipv6(ip, b"out").unwrap(), "complete, not partial");
        none_is_lost(&umem, &pool, 1);
        pool.put(frame);

        let sent = answer(&umem, &mut pool, b"in");
        xsk.tx.push(sent).unwrap();
        assert!(xsk.tx.flush().unwrap());
        let mut received = [0; 16];
        let (len, from) = socket.recv_from(&mut received).unwrap();
        assert_eq!((&received[..len], from.ip()), (&b"in"[..], PEER.into()));
        eventually("the frame comes back", || xsk.tx.complete(&mut pool) == 1);
        none_is_lost(&umem, &pool, 0);
        assert_eq!((xsk.rx.strange(), xsk.tx.strange()), (0, 0));
    });
}

#[test]
fn without_free_frames_packets_are_dropped_and_counted_and_then_it_goes_on() {
    in_namespace(|| {
        pair(1);
        let mut programs = programs();
        programs.attach_virtual("far0").unwrap();
        let (umem, mut pool) = memory();
        let mut xsk = Xsk::open(&umem, "far0", 0, CONFIG).unwrap();
        programs.set_virtual_socket(0, &xsk.rx).unwrap();
        let socket = application(5000);
        let mut kept = pool.split(FRAMES as usize - 4);
        assert_eq!(xsk.rx.refill(&mut pool, 0), 4);
        for _ in 0..10 {
            socket.send_to(b"flood", (PEER, 4000)).unwrap();
        }
        let frames = receive(&mut xsk, 4);
        eventually("the kernel counts", || xsk.rx.statistics().unwrap().fill_ring_empty >= 6);
        none_is_lost(&umem, &kept, 4);
        frames.into_iter().for_each(|frame| kept.put(frame));
        assert_eq!(xsk.rx.refill(&mut kept, 0), 64, "as many as the ring takes");
        socket.send_to(b"again", (PEER, 4000)).unwrap();
        let frame = receive(&mut xsk, 1).remove(0);
        assert!(umem.packet(&frame).ends_with(b"again"));
        kept.put(frame);
        none_is_lost(&umem, &kept, 0);
    });
}

#[test]
fn a_full_ring_gives_frames_back_and_every_sent_one_returns() {
    in_namespace(|| {
        pair(1);
        let (umem, mut pool) = memory();
        let mut xsk = Xsk::open(&umem, "far0", 0, CONFIG).unwrap();
        let empty = pool.take().unwrap();
        pool.put(xsk.tx.push(empty).unwrap_err());
        let mut queued = 0;
        while let Ok(()) = xsk.tx.push(answer(&umem, &mut pool, b"x")).map_err(|frame| pool.put(frame)) {
            queued += 1;
        }
        assert_eq!((queued, xsk.tx.free()), (64, 0));
        none_is_lost(&umem, &pool, 0);
        let mut back = 0;
        for _ in 0..3 {
            eventually("all are sent", || xsk.tx.flush().unwrap() && xsk.tx.pending() == 0);
            eventually("all come back", || {
                back += xsk.tx.complete(&mut pool);
                back >= queued
            });
            while xsk.tx.push(answer(&umem, &mut pool, b"y")).map_err(|frame| pool.put(frame)).is_ok() {
                queued += 1;
            }
        }
        assert_eq!((queued, back), (4 * 64, 3 * 64));
        none_is_lost(&umem, &pool, 0);
        assert_eq!(xsk.rx.statistics().unwrap().tx_invalid, 0);
    });
}

#[test]
fn a_packet_received_on_one_interface_is_sent_on_another_from_the_same_memory() {
    in_namespace(|| {
        pair(1);
        run("ip", "link add out0 type veth peer name out1");
        run("ip", "link set out0 up");
        run("ip", "link set out1 up");
        let mut programs = programs();
        programs.attach_virtual("far0").unwrap();
        let (umem, mut pool) = memory();
        let mut first = Xsk::open(&umem, "far0", 0, CONFIG).unwrap();
        let mut second = Xsk::open(&umem, "out0", 0, CONFIG).unwrap();
        first.rx.refill(&mut pool, 32);
        programs.set_virtual_socket(0, &first.rx).unwrap();
        let packets = || -> u64 {
            std::fs::read_to_string("/proc/thread-self/net/dev")
                .unwrap()
                .lines()
                .map(str::trim)
                .find_map(|line| line.strip_prefix("out1:")?.split_whitespace().nth(1)?.parse().ok())
                .unwrap()
        };
        application(5000).send_to(b"through", (PEER, 4000)).unwrap();
        let frame = receive(&mut first, 1).remove(0);
        let before = packets();
        second.tx.push(frame).unwrap();
        assert!(second.tx.flush().unwrap());
        eventually("it comes out there", || packets() > before);
        eventually("and its frame back", || second.tx.complete(&mut pool) == 1);
        none_is_lost(&umem, &pool, 0);
    });
}

#[test]
fn each_queue_has_a_socket_of_its_own() {
    in_namespace(|| {
        pair(2);
        let mut programs = programs();
        programs.attach_virtual("far0").unwrap();
        let (umem, mut pool) = memory();
        let mut queues = [0, 1].map(|queue| Xsk::open(&umem, "far0", queue, CONFIG).unwrap());
        for (queue, xsk) in (0..).zip(&mut queues) {
            xsk.rx.refill(&mut pool, 16);
            programs.set_virtual_socket(queue, &xsk.rx).unwrap();
        }
        let mut seen = [0, 0];
        let mut frames = Vec::with_capacity(64);
        // The kernel chooses the queue by flow: many flows meet both.
        for port in 5000.. {
            application(port).send_to(b"flow", (PEER, 4000)).unwrap();
            eventually("it arrives at one of them", || {
                let before = frames.len();
                for (xsk, seen) in queues.iter_mut().zip(&mut seen) {
                    *seen += xsk.rx.recv(&mut frames);
                }
                frames.len() > before
            });
            frames.drain(..).for_each(|frame| pool.put(frame));
            for xsk in &mut queues {
                xsk.rx.refill(&mut pool, 16);
            }
            if seen.iter().all(|seen| *seen > 0) {
                break;
            }
            assert!(port < 5200, "only one queue is used: {seen:?}");
        }
        none_is_lost(&umem, &pool, 0);
    });
}

#[test]
fn what_cannot_be_is_told_in_words() {
    in_namespace(|| {
        pair(1);
        let (umem, _pool) = memory();
        let zero_copy = XskConfig { mode: CopyMode::ZeroCopy, ..CONFIG };
        let error = Xsk::open(&umem, "far0", 0, zero_copy).unwrap_err();
        assert!(matches!(error, XskError::NoZeroCopy { .. }), "{error}");
        let _first = Xsk::open(&umem, "far0", 0, CONFIG).unwrap();
        let (other, _pool) = memory();
        let error = Xsk::open(&other, "far0", 0, CONFIG).unwrap_err();
        assert!(matches!(error, XskError::Busy { .. }), "{error}");
        for (interface, queue) in [("nosuch0", 0), ("far0", 7)] {
            let error = Xsk::open(&other, interface, queue, CONFIG).unwrap_err();
            assert!(matches!(error, XskError::NoQueue { .. }), "{error}");
        }
        let odd = XskConfig { ring_size: 100, ..CONFIG };
        assert!(matches!(Xsk::open(&other, "far0", 0, odd).unwrap_err(), XskError::RingSize(100)));
        assert!(programs().attach_virtual("nosuch0").is_err());
    });
}
