//! Several workers behind one interface and one port: each packet comes to the one it is for.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;
use cyphonic_common::map::worker_of;

use super::super::{Options, Programs};
use super::on_tun::{INTERFACE, PATIENCE, configure, in_namespace, send, socket};
use super::{OWN, PEER, address, config};
use crate::tun::{MAX_READ, TunDevice};
use crate::udp::{RecvBatch, Transmit, UdpPort};

const WORKERS: usize = 3;
/// A virtio-net header's length.
const VNET: usize = 10;

fn ports() -> Vec<Arc<UdpPort>> {
    UdpPort::bind_group(0, WORKERS).unwrap().into_iter().map(Arc::new).collect()
}

/// The worker whose socket has a datagram, and its payload.
fn next_datagram(ports: &[Arc<UdpPort>]) -> (usize, Vec<u8>) {
    let mut batch = RecvBatch::new(1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        for (worker, port) in ports.iter().enumerate() {
            if port.recv_batch(&mut batch).is_ok()
                && let Some(message) = batch.messages_mut().next()
            {
                return (worker, message.payload.to_vec());
            }
        }
        assert!(Instant::now() < deadline, "no datagram arrived");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn datagram(cid: ConnectionId) -> Vec<u8> {
    [&[0x40], &cid.as_bytes()[..], &[0; 20]].concat()
}

#[test]
fn datagrams_come_to_the_worker_of_their_connection_id_and_all_else_to_the_first() {
    in_namespace(|| {
        let ports = ports();
        let mut programs = Programs::load(config(), Options::default()).unwrap();
        programs.steer(&[], &ports).unwrap();
        let tables = programs.tables();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0].local_port()));
        let cid = |n: u8| ConnectionId::from_random_data([n; 8]);
        for n in 0..30 {
            tables.set_cid(cid(n), u32::from(n) % 3);
        }
        // Each from a port of its own, so that the kernel's own choice would be another.
        let arrives_at = |payload: &[u8]| {
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            sender.send_to(payload, to).unwrap();
            let (worker, received) = next_datagram(&ports);
            assert_eq!(received, payload);
            worker
        };
        for n in 0..30 {
            assert_eq!(arrives_at(&datagram(cid(n))), usize::from(n) % 3);
            assert_eq!(arrives_at(&datagram(ConnectionId::from_random_signalling([n; 8]))), 0);
            assert_eq!(arrives_at(&datagram(cid(100 + n))), 0, "unknown");
            assert_eq!(arrives_at(&[0xc0, 0, 0, 0, 1, n, 7]), 0, "long header");
            assert_eq!(arrives_at(&[n]), 0, "too short");
        }
        tables.remove_cid(cid(2));
        assert_eq!(arrives_at(&datagram(cid(2))), 0);
        // A worker that is not there: the kernel chooses some socket, and nothing is lost.
        tables.set_cid(cid(1), 15);
        arrives_at(&datagram(cid(1)));
    });
}

#[test]
fn what_applications_send_comes_to_the_queue_of_its_destinations_worker() {
    in_namespace(|| {
        let queues = TunDevice::create_queues(INTERFACE, 1420, WORKERS).unwrap();
        configure();
        let mut programs = Programs::load(config(), Options::default()).unwrap();
        programs.steer(&queues, &[]).unwrap();
        let tables = programs.tables();
        let classifier = programs.attach(INTERFACE).unwrap();
        let own = socket(OWN);
        let arrives_at = |payload: &[u8]| {
            send(&own, payload);
            let mut read = vec![0; MAX_READ];
            let deadline = Instant::now() + PATIENCE;
            loop {
                for (worker, queue) in queues.iter().enumerate() {
                    while let Ok(len) = queue.read(&mut read) {
                        let packet = &read[VNET..len];
                        if packet[24..40] == address(PEER).octets() && packet.ends_with(payload) {
                            return worker as u32;
                        }
                    }
                }
                assert!(Instant::now() < deadline, "the packet did not arrive");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let unknown = worker_of(&address(PEER).octets(), WORKERS as u32);
        assert_eq!(arrives_at(b"unknown"), unknown);
        for worker in [2, 0, 1] {
            tables.set_live(address(PEER), worker, 0);
            for n in 0..10u8 {
                assert_eq!(arrives_at(&[n; 100]), worker);
            }
        }
        tables.remove(address(PEER));
        assert_eq!(arrives_at(b"unknown again"), unknown);
        assert_eq!(classifier.counters().unwrap().unknown.packets, 2);
    });
}

#[test]
fn datagrams_that_the_kernel_joined_come_apart_again() {
    in_namespace(|| {
        let ports = ports();
        let mut programs = Programs::load(config(), Options::default()).unwrap();
        programs.steer(&[], &ports).unwrap();
        let tables = programs.tables();
        let cid = |n: u8| ConnectionId::from_random_data([n; 8]);
        for n in 0..3 {
            tables.set_cid(cid(n), u32::from(n));
            ports[0].group().unwrap().set_owner(cid(n), usize::from(n));
        }
        // What a relay sends for three tunnels at once, of which the kernel makes one message.
        let sender = UdpPort::bind(0).unwrap();
        let burst: Vec<u8> = [2, 0, 1, 1, 2, 0, 0, 1, 2].into_iter().flat_map(|n| datagram(cid(n))).collect();
        let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0].local_port()));
        let each = datagram(cid(0)).len();
        let transmit = Transmit { segment_size: Some(each), ..Transmit::new(dest, &burst) };
        const BURSTS: usize = 20;
        let mut batch = RecvBatch::new(4);
        let mut received = [0; WORKERS];
        let mut largest = 0;
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        while received.iter().sum::<usize>() < 9 * BURSTS {
            if sent < BURSTS {
                sender.send(&transmit).unwrap();
                sent += 1;
            }
            for (worker, port) in ports.iter().enumerate() {
                // As a worker does: what was handed on wakes it.
                let woken = port.wait(Some(Duration::ZERO)).unwrap();
                if !(woken.readable || woken.called) || port.recv_batch(&mut batch).is_err() {
                    continue;
                }
                for message in batch.messages_mut() {
                    largest = largest.max(message.payload.len() / message.stride);
                    for datagram in message.payload.chunks(message.stride) {
                        assert_eq!(datagram, super::steering::datagram(cid(worker as u8)));
                        received[worker] += 1;
                    }
                    assert_eq!(message.from.port(), sender.local_port());
                }
            }
            assert!(Instant::now() < deadline, "{received:?} of {sent} bursts arrived");
        }
        assert_eq!(received, [3 * BURSTS; WORKERS]);
        assert!(largest > 1, "the kernel joined something");
        assert_eq!(ports[0].group().unwrap().lost(), 0);
    });
}
