//! The relay between real sockets on loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cyphonic_common::DropReason;

use super::*;
use crate::protect::{HEADER_LEN, Secret, Suite, TAG_LEN, pair};
use crate::udp::{SignallingSink, Transmit, UdpPort};

const PATIENCE: Duration = Duration::from_secs(10);

fn data_cid(byte: u8) -> ConnectionId {
    ConnectionId::from_random_data([byte; 8])
}

/// A packet in a tunnel's form, of `len` bytes.
fn packet(cid: ConnectionId, len: usize, filler: u8) -> Vec<u8> {
    let mut packet = vec![filler; len];
    packet[0] = 0x43;
    packet[1..9].copy_from_slice(cid.as_bytes());
    packet
}

/// Keeps what it is given.
#[derive(Default)]
struct Collector(Mutex<Vec<Delivered>>);

/// From where, to which local address, what.
type Delivered = (SocketAddr, Option<IpAddr>, Vec<u8>);

impl SignallingSink for Collector {
    fn deliver(
        &self,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        _: Option<u8>,
        payload: &[u8],
        stride: usize,
    ) {
        let datagrams = payload.chunks(stride).map(|datagram| (from, local_ip, datagram.to_vec()));
        self.0.lock().expect("unpoisoned").extend(datagrams);
    }
}

/// Keeps the scheduling policy of the thread that delivers.
#[derive(Default)]
struct Witness(Mutex<Option<libc::c_int>>);

impl SignallingSink for Witness {
    fn deliver(&self, _: SocketAddr, _: Option<IpAddr>, _: Option<u8>, _: &[u8], _: usize) {
        *self.0.lock().expect("unpoisoned") = Some(crate::thread::scheduling::policy().expect("a policy"));
    }
}

/// A running relay, stopped on drop.
struct Lab {
    relay: Arc<UserspaceRelay>,
    port: Arc<UdpPort>,
    sink: Arc<Collector>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl Lab {
    fn new() -> Self {
        let mut lab = Self {
            relay: Arc::new(UserspaceRelay::new(16)),
            port: Arc::new(UdpPort::bind(0).expect("port")),
            sink: Arc::default(),
            stop: Arc::default(),
            worker: None,
        };
        lab.start();
        lab
    }

    fn start(&mut self) {
        self.start_with(Arc::clone(&self.sink) as _);
    }

    fn start_with(&mut self, sink: Arc<dyn SignallingSink>) {
        self.stop.store(false, Ordering::Relaxed);
        let (relay, port, stop) = (Arc::clone(&self.relay), Arc::clone(&self.port), Arc::clone(&self.stop));
        self.worker = Some(std::thread::spawn(move || relay.run(port, sink, stop)));
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        if let Some(worker) = self.worker.take() {
            worker.join().expect("no panic").expect("no error");
        }
    }

    fn v4(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.local_port()))
    }

    fn v6(&self) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::LOCALHOST, self.port.local_port()))
    }

    /// Waits until the worker has dropped that many for `reason`.
    fn await_drops(&self, reason: DropReason, packets: u64) {
        self.await_that(|counters| counters.dropped(reason) == packets);
    }

    fn await_that(&self, done: impl Fn(&RelayCounters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.relay.counters()) {
            assert!(Instant::now() < deadline, "{:?}", self.relay.counters());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn socket(ip: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((ip.into(), 0)).expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
    socket
}

fn addr(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("address")
}

fn leg(from: &UdpSocket, to: &UdpSocket, real_cid: ConnectionId) -> Leg {
    Leg::new(addr(from), addr(to), real_cid)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 2048];
    let (len, from) = socket.recv_from(&mut buf).expect("a datagram");
    (buf[..len].to_vec(), from)
}

/// Nothing more arrives: proven by a packet that is sent behind whatever should not have come.
fn assert_nothing_before(socket: &UdpSocket, marker: &[u8]) {
    assert_eq!(receive(socket).0, marker);
}

#[test]
fn it_forwards_across_families_both_ways_with_the_real_connection_id() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv6Addr::LOCALHOST));
    let (virtual_b, real_b, virtual_a, real_a) =
        (data_cid(0x91), data_cid(0x92), data_cid(0x93), data_cid(0x94));
    lab.relay.insert(virtual_b, leg(&a, &b, real_b)).expect("bound");
    lab.relay.insert(virtual_a, leg(&b, &a, real_a)).expect("bound");

    a.send_to(&packet(virtual_b, 100, 1), lab.v4()).expect("sent");
    assert_eq!(receive(&b), (packet(real_b, 100, 1), lab.v6()));
    b.send_to(&packet(virtual_a, 1200, 2), lab.v6()).expect("sent");
    assert_eq!(receive(&a), (packet(real_a, 1200, 2), lab.v4()));

    lab.await_that(|counters| counters.packets == 2);
    let stats = lab.relay.stats(virtual_b).expect("bound");
    assert_eq!((stats.packets, stats.bytes), (1, 100));
    assert!(stats.last_seen.is_some_and(|seen| seen.elapsed() < PATIENCE));
    assert_eq!(lab.relay.counters().bytes, 1300);
    assert_eq!(lab.relay.counters().drops, []);
}

#[test]
fn a_sealed_packet_opens_behind_the_relay() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    let (wire, real) = (data_cid(0x91), data_cid(0x92));
    lab.relay.insert(wire, leg(&a, &b, real)).expect("bound");
    let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let (mut sealer, _) = pair(Suite::preferred(), &one, &other);
    let (_, mut opener) = pair(Suite::preferred(), &other, &one);
    let mut buf = [1; HEADER_LEN + 50 + TAG_LEN];
    let len = sealer.seal(real, wire, &mut buf, 50).expect("sealed");
    a.send_to(&buf[..len], lab.v4()).expect("sent");
    let (mut arrived, _) = receive(&b);
    assert_eq!(opener.open(&mut arrived).expect("opened").payload, [1; 50]);
}

#[test]
fn it_forwards_only_from_the_bound_source() {
    let lab = Lab::new();
    let (a, b, stranger) =
        (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    lab.relay.insert(data_cid(0x91), leg(&a, &b, data_cid(0x92))).expect("bound");
    stranger.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    // Not even the receiver may use the sender's leg.
    b.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    lab.await_drops(DropReason::UnboundSource, 2);
    a.send_to(&packet(data_cid(0x91), 100, 2), lab.v4()).expect("sent");
    assert_nothing_before(&b, &packet(data_cid(0x92), 100, 2));
    lab.await_that(|counters| counters.packets == 1);
    assert_eq!(lab.relay.stats(data_cid(0x91)).map(|stats| stats.packets), Some(1));
}

#[test]
fn what_is_not_a_bound_data_packet_is_dropped_or_signalling_but_never_forwarded() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    lab.relay.insert(data_cid(0x91), leg(&a, &b, data_cid(0x92))).expect("bound");

    a.send_to(&packet(data_cid(0x95), 100, 1), lab.v4()).expect("unknown");
    a.send_to(&packet(data_cid(0x92), 100, 1), lab.v4()).expect("the real ID is no key");
    lab.await_drops(DropReason::UnknownConnectionId, 2);

    a.send_to(&packet(data_cid(0x91), 100, 1)[..8], lab.v4()).expect("too short for an ID");
    a.send_to(&[0x03; 60], lab.v4()).expect("without the fixed bit");
    lab.await_drops(DropReason::NotQuic, 2);

    let mut long = packet(data_cid(0x91), 1200, 1);
    long[0] = 0xc3;
    let signalling = packet(ConnectionId::from_random_signalling([0x11; 8]), 60, 1);
    a.send_to(&long, lab.v4()).expect("long header");
    a.send_to(&signalling, lab.v4()).expect("signalling");
    lab.await_that(|counters| counters.signalling == 2);
    let from = (addr(&a), Some(Ipv4Addr::LOCALHOST.into()));
    let collected = std::mem::take(&mut *lab.sink.0.lock().expect("unpoisoned"));
    assert_eq!(collected, [(from.0, from.1, long), (from.0, from.1, signalling)]);

    a.send_to(&packet(data_cid(0x91), 100, 2), lab.v4()).expect("sent");
    assert_nothing_before(&b, &packet(data_cid(0x92), 100, 2));
    lab.await_that(|counters| counters.packets == 1);
}

#[test]
fn a_batch_of_several_legs_and_kinds_is_taken_apart() {
    let lab = Lab::new();
    let a = UdpPort::bind_to(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a");
    let (b, c) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv6Addr::LOCALHOST));
    let leg_to = |socket: &UdpSocket, real_cid| Leg::new(a.local_addr(), addr(socket), real_cid);
    lab.relay.insert(data_cid(0x91), leg_to(&b, data_cid(0xa1))).expect("bound");
    lab.relay.insert(data_cid(0x92), leg_to(&c, data_cid(0xa2))).expect("bound");

    // One system call, so the kernel may merge it: runs of both legs, strangers and signalling between them.
    let signalling = ConnectionId::from_random_signalling([0x11; 8]);
    let order = [
        data_cid(0x91),
        data_cid(0x91),
        data_cid(0x92),
        data_cid(0x99),
        data_cid(0x91),
        signalling,
        data_cid(0x92),
        data_cid(0x92),
    ];
    let mut burst: Vec<u8> =
        order.iter().enumerate().flat_map(|(i, cid)| packet(*cid, 200, i as u8)).collect();
    burst.truncate(burst.len() - 20);
    a.send(&Transmit { segment_size: Some(200), ..Transmit::new(lab.v4(), &burst) }).expect("sent");

    for (to, real, numbers) in [(&b, 0xa1, &[0, 1, 4][..]), (&c, 0xa2, &[2, 6, 7])] {
        for number in numbers {
            let len = if *number == 7 { 180 } else { 200 };
            assert_eq!(receive(to).0, packet(data_cid(real), len, *number));
        }
    }
    lab.await_drops(DropReason::UnknownConnectionId, 1);
    lab.await_that(|counters| counters.packets == 6 && counters.signalling == 1 && counters.bytes == 1180);
    assert_eq!(lab.relay.stats(data_cid(0x92)).map(|stats| (stats.packets, stats.bytes)), Some((3, 580)));
}

#[test]
fn a_leg_follows_its_ends_and_is_gone_when_removed() {
    let lab = Lab::new();
    let (a, b, moved) =
        (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST), socket(Ipv6Addr::LOCALHOST));
    let cid = data_cid(0x91);
    lab.relay.insert(cid, leg(&a, &b, data_cid(0x92))).expect("bound");
    a.send_to(&packet(cid, 100, 1), lab.v4()).expect("sent");
    assert_eq!(receive(&b).0, packet(data_cid(0x92), 100, 1));

    lab.relay.replace(cid, leg(&moved, &b, data_cid(0x92))).expect("bound");
    moved.send_to(&packet(cid, 100, 2), lab.v6()).expect("sent");
    assert_eq!(receive(&b).0, packet(data_cid(0x92), 100, 2));
    a.send_to(&packet(cid, 100, 3), lab.v4()).expect("sent");
    lab.await_drops(DropReason::UnboundSource, 1);
    lab.await_that(|counters| counters.packets == 2);

    assert_eq!(lab.relay.remove(cid).map(|stats| stats.packets), Some(2));
    assert_eq!((lab.relay.remove(cid), lab.relay.stats(cid), lab.relay.is_empty()), (None, None, true));
    moved.send_to(&packet(cid, 100, 4), lab.v6()).expect("sent");
    lab.await_drops(DropReason::UnknownConnectionId, 1);
}

#[test]
fn an_address_in_mapped_form_means_the_ipv4_one() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    let mapped =
        |socket: &UdpSocket| SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), addr(socket).port()));
    let bound = Leg::new(mapped(&a), mapped(&b), data_cid(0x92));
    lab.relay.insert(data_cid(0x91), bound).expect("bound");
    a.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    assert_eq!(receive(&b).0, packet(data_cid(0x92), 100, 1));
}

#[test]
fn a_packet_leaves_from_the_address_that_its_receiver_knows() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    let source = IpAddr::from(Ipv4Addr::new(127, 0, 0, 9));
    let bound = Leg { source: Some(source), ..leg(&a, &b, data_cid(0x92)) };
    lab.relay.insert(data_cid(0x91), bound).expect("bound");
    a.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    assert_eq!(receive(&b).1, SocketAddr::from((source, lab.port.local_port())));
}

#[test]
fn congestion_marks_pass() {
    let lab = Lab::new();
    let a = UdpPort::bind(0).expect("a");
    let b = UdpPort::bind(0).expect("b");
    let (from, to) =
        (SocketAddr::from((Ipv4Addr::LOCALHOST, a.local_port())), (Ipv6Addr::LOCALHOST, b.local_port()));
    let bound = Leg::new(from, to.into(), data_cid(0x92));
    lab.relay.insert(data_cid(0x91), bound).expect("bound");
    let sent = packet(data_cid(0x91), 100, 1);
    a.send(&Transmit { ecn: Some(0b11), ..Transmit::new(lab.v4(), &sent) }).expect("sent");
    assert!(b.wait(Some(PATIENCE)).expect("waited").readable);
    let mut batch = crate::udp::RecvBatch::new(1);
    b.recv_batch(&mut batch).expect("received");
    assert_eq!(batch.messages_mut().next().map(|message| message.ecn), Some(Some(0b11)));
}

#[test]
fn what_the_next_link_cannot_carry_or_reach_is_counted() {
    let lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv6Addr::LOCALHOST));
    lab.relay.insert(data_cid(0x91), leg(&a, &b, data_cid(0x92))).expect("bound");
    // Fits loopback's MTU over IPv4, not over IPv6.
    a.send_to(&packet(data_cid(0x91), 65_500, 1), lab.v4()).expect("sent");
    lab.await_drops(DropReason::TooBig, 1);
    // What follows it in one message does fit.
    let sender = UdpPort::bind_to(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("port");
    let together = Leg::new(sender.local_addr(), addr(&b), data_cid(0x92));
    lab.relay.insert(data_cid(0x94), together).expect("bound");
    let burst = [packet(data_cid(0x94), 65_490, 1), packet(data_cid(0x94), 17, 2)].concat();
    sender.send(&Transmit { segment_size: Some(65_490), ..Transmit::new(lab.v4(), &burst) }).expect("sent");
    assert_eq!(receive(&b).0, packet(data_cid(0x92), 17, 2));
    lab.await_drops(DropReason::TooBig, 2);
    // Nobody is a broadcast address, and sockets that were not made for it may not send there.
    let nowhere = Leg { to: "127.255.255.255:9".parse().expect("address"), ..leg(&a, &a, data_cid(0x92)) };
    lab.relay.insert(data_cid(0x93), nowhere).expect("bound");
    a.send_to(&packet(data_cid(0x93), 100, 1), lab.v4()).expect("sent");
    lab.await_drops(DropReason::SendFailed, 1);
    assert_eq!(lab.relay.stats(data_cid(0x93)), Some(LegStats::default()));
}

#[test]
fn a_second_worker_is_refused_and_a_later_one_finds_all_legs() {
    let mut lab = Lab::new();
    let (a, b) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    lab.relay.insert(data_cid(0x91), leg(&a, &b, data_cid(0xa1))).expect("bound");
    a.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    receive(&b);
    let stop = Arc::new(AtomicBool::new(true));
    let second = lab.relay.run(Arc::clone(&lab.port), Arc::clone(&lab.sink) as _, stop);
    assert_eq!(second.expect_err("busy").kind(), io::ErrorKind::ResourceBusy);

    lab.stop();
    lab.relay.insert(data_cid(0x92), leg(&a, &b, data_cid(0xa2))).expect("bound");
    lab.relay.remove(data_cid(0x91)).expect("was bound");
    lab.start();
    a.send_to(&packet(data_cid(0x91), 100, 1), lab.v4()).expect("sent");
    a.send_to(&packet(data_cid(0x92), 100, 2), lab.v4()).expect("sent");
    assert_nothing_before(&b, &packet(data_cid(0xa2), 100, 2));
}

#[test]
fn the_worker_waits_for_its_turn() {
    let witness = Arc::<Witness>::default();
    let mut lab = Lab::new();
    lab.stop();
    lab.start_with(Arc::clone(&witness) as _);
    let signalling = ConnectionId::from_random_signalling([1; 8]);
    socket(Ipv4Addr::LOCALHOST).send_to(&packet(signalling, 100, 1), lab.v4()).expect("sent");
    lab.await_that(|counters| counters.signalling == 1);
    assert_eq!(*witness.0.lock().expect("unpoisoned"), Some(libc::SCHED_BATCH));
}

#[test]
fn senseless_bindings_are_refused_and_change_nothing() {
    let relay = UserspaceRelay::new(2);
    let good: SocketAddr = "192.0.2.1:443".parse().expect("address");
    let (cid, real_cid) = (data_cid(0x91), data_cid(0x92));
    let leg = Leg::new(good, good, real_cid);
    let signalling = ConnectionId::from_random_signalling([1; 8]);
    assert_eq!(relay.insert(signalling, leg), Err(RelayMapError::NotDataId(signalling)));
    assert_eq!(
        relay.insert(cid, Leg { real_cid: signalling, ..leg }),
        Err(RelayMapError::NotDataId(signalling))
    );
    for bad in [
        "0.0.0.0:1",
        "[::]:1",
        "[::ffff:0.0.0.0]:1",
        "224.0.0.1:1",
        "[ff02::1]:1",
        "255.255.255.255:1",
        "192.0.2.1:0",
    ] {
        let bad: SocketAddr = bad.parse().expect("address");
        let refused = Err(RelayMapError::BadAddress(crate::udp::canonical(bad)));
        assert_eq!(relay.insert(cid, Leg { from: bad, ..leg }), refused);
        assert_eq!(relay.insert(cid, Leg { to: bad, ..leg }), refused);
    }
    assert!(relay.is_empty());
    relay.insert(cid, leg).expect("bound");
    assert_eq!(relay.insert(cid, leg), Err(RelayMapError::AlreadyBound(cid)));
    relay.insert(data_cid(0x93), leg).expect("bound");
    assert_eq!(relay.insert(data_cid(0x94), leg), Err(RelayMapError::Full { capacity: 2 }));
    assert_eq!(relay.replace(data_cid(0x94), leg), Err(RelayMapError::NotBound(data_cid(0x94))));
    let bad = "0.0.0.0:1".parse().expect("address");
    assert_eq!(relay.replace(cid, Leg { to: bad, ..leg }), Err(RelayMapError::BadAddress(bad)));
    assert_eq!(relay.len(), 2);
}
