//! Several workers behind one port, without programs that choose among them.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc::{Sender, channel, sync_channel};

use super::*;
use crate::protect::{self, HEADER_LEN, Opener, Sealer, Secret, Suite, TAG_LEN};
use crate::ring::command::RxTunnel;
use crate::ring::shared::Shared;
use crate::ring::{Path, TunnelId};
use crate::udp::Transmit;

/// What packets are sealed and opened with, at the end that sends with the first of two secrets.
fn pair(send: u8, receive: u8) -> (Sealer, Opener) {
    protect::pair(Suite::Aes128Gcm, &Secret::new([send; 32]), &Secret::new([receive; 32]))
}

struct Nowhere;

impl Delivery for Nowhere {
    fn push(&mut self, _: Slot, _: &[u8], _: &Counters) {}
    fn flush<'b>(&mut self, _: impl Fn(Slot) -> &'b [u8], _: &Counters) {}
    fn deliver(&mut self, _: &[u8], _: &Counters) {}
}

impl SignallingSink for Nowhere {
    fn deliver(&self, _: SocketAddr, _: Option<IpAddr>, _: Option<u8>, _: &[u8], _: usize) {}
}

fn worker(port: Arc<UdpPort>) -> (RxWorker<Nowhere>, Sender<RxCommand>) {
    let (tell, commands) = channel();
    let (answers, _) = sync_channel(1);
    let parts = RxParts {
        port,
        sink: Arc::new(Nowhere),
        own: Ipv6Addr::LOCALHOST,
        events: Arc::new(|_| {}),
        counters: Arc::default(),
        commands,
        answers,
        tx_waker: Arc::new(Waker::new().unwrap()),
        permissions: None,
        early: Arc::default(),
    };
    (RxWorker::new(parts, Nowhere), tell)
}

fn tunnel(cid: ConnectionId) -> RxTunnel {
    let remote = SocketAddr::from(([192, 0, 2, 1], 9));
    let (_, opener) = pair(1, 2);
    let path = Path { remote, wire_cid: cid };
    let shared = Arc::new(Shared::new(TunnelId(1), path, 0, Instant::now()));
    RxTunnel { shared, peer: Ipv6Addr::LOCALHOST, local_cid: cid, remote_cid: cid, path, opener }
}

/// The kernel chooses a socket by addresses and ports alone.
#[test]
fn a_packet_comes_to_its_tunnels_worker_from_whichever_had_it_first_and_nobodys_is_dropped_once() {
    const SENDERS: u64 = 32;
    let ports: Vec<_> = UdpPort::bind_group(0, 2).unwrap().into_iter().map(Arc::new).collect();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0].local_port()));
    let (known, gone, unknown) = (1, 2, 3);
    let cid = |n: u8| ConnectionId::from_random_data([n; 8]);
    let group = Arc::clone(ports[0].group().unwrap());
    // The second worker has a tunnel, and is said to have another that it has no more.
    group.set_owner(cid(known), 1);
    group.set_owner(cid(gone), 1);
    let (mut workers, tell): (Vec<_>, Vec<_>) = ports.into_iter().map(worker).unzip();
    tell[1].send(RxCommand::Install(Box::new(tunnel(cid(known))))).unwrap();
    let senders: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    for (n, sender) in [known, gone, unknown].into_iter().flat_map(|n| senders.iter().map(move |s| (n, s))) {
        // Garbage, which only who has the tunnel finds forged.
        sender.send_to(&[&[0x45][..], cid(n).as_bytes(), &[9; 40]].concat(), to).unwrap();
    }
    let dropped = |workers: &[RxWorker<Nowhere>], reason: DropReason| {
        workers.iter().map(|worker| worker.parts.counters.snapshot().dropped(reason)).collect::<Vec<_>>()
    };
    let (mut batch, end) = (RecvBatch::new(MESSAGES), Instant::now() + Duration::from_secs(20));
    let (forged, nobodys) = loop {
        for worker in &mut workers {
            worker.turn(&mut batch).unwrap();
        }
        let [forged, nobodys] =
            [DropReason::Forged, DropReason::UnknownConnectionId].map(|reason| dropped(&workers, reason));
        if forged.iter().chain(&nobodys).sum::<u64>() == 3 * SENDERS {
            break (forged, nobodys);
        }
        assert!(Instant::now() < end, "{forged:?} {nobodys:?}");
    };
    assert_eq!(forged, [0, SENDERS]);
    // All of those that the second worker is said to have, and the kernel's choice of the rest.
    assert!(nobodys[1] >= SENDERS, "{nobodys:?}");
    assert_eq!(group.lost(), 0);
}

/// A relay's datagrams of several tunnels come as one message, and what is in them may be refused.
#[test]
fn every_tunnel_of_a_message_is_heard_whatever_its_packets_carry() {
    let port = Arc::new(UdpPort::bind(0).unwrap());
    let (mut worker, tell) = worker(port);
    let cids = [1, 2, 3].map(|n| ConnectionId::from_random_data([n; 8]));
    let tunnels = cids.map(tunnel);
    let stats = tunnels.each_ref().map(|tunnel| Arc::clone(&tunnel.shared));
    for tunnel in tunnels {
        tell.send(RxCommand::Install(Box::new(tunnel))).unwrap();
    }
    worker.take_commands();
    let mut message = Vec::new();
    // A PING; a DATAGRAM with no packet in it.
    for (cid, frame) in [(cids[0], 0x01), (cids[1], 0x30)] {
        let (mut sealer, _) = pair(2, 1);
        let mut packet = [0; HEADER_LEN + 1 + TAG_LEN];
        packet[HEADER_LEN] = frame;
        let len = sealer.seal(cid, cid, &mut packet, 1).unwrap();
        message.extend_from_slice(&packet[..len]);
    }
    let stride = message.len() / 2;
    let from = SocketAddr::from(([192, 0, 2, 1], 9));
    let message =
        Message { from, local_ip: None, ecn: None, payload: &mut message, stride, handed_on: false };
    worker.receive(std::iter::once(message));
    assert_eq!(worker.parts.counters.snapshot().dropped(DropReason::MalformedInner), 1);
    assert_eq!(stats.map(|shared| shared.stats().last_rx.is_some()), [true, true, false]);
}

/// It is connected, as an unconnected one hears of no refusals.
#[test]
fn errors_that_pass_do_not_end_a_ring_however_many_they_are() {
    let port = Arc::new(UdpPort::bind(0).unwrap());
    let closed = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    rustix::net::connect(&*port, &closed).unwrap();
    let ((mut worker, _tell), mut batch) = (worker(Arc::clone(&port)), RecvBatch::new(MESSAGES));
    for _ in 0..=MAX_ERRORS {
        port.send(&Transmit::new(closed, b"anybody?")).unwrap();
        let turn = worker.turn(&mut batch).unwrap();
        assert_eq!(turn.done, 0);
    }
    assert_eq!(port.recv_batch(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock, "all were heard");
}
