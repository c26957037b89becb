//! A device that moves, and one whose packets somebody writes another's address on.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_cloud::server::{Cloud, unix_now};
use cyphonic_dataplane::udp::StunSink;
use cyphonic_proto::message::{Message, ObservationRequest, endpoint};
use cyphonic_proto::stun;
use cyphonic_transport::Connection;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::common::Overlay;
use crate::node::{Node, SOON, data_packet};

const HOME: usize = 0;
const ELSEWHERE: usize = 1;

/// Between a device and the cloud: what the device sends leaves from one of two addresses.
struct Way {
    address: SocketAddr,
    outside: [Arc<UdpSocket>; 2],
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    leaves_from: AtomicUsize,
    /// Whether what is sent to the second address comes back to the device. Otherwise it is somebody else's.
    is_its: AtomicBool,
    device: Mutex<Option<SocketAddr>>,
    /// Packets of the tunnel that came to each.
    packets: [AtomicUsize; 2],
    ended: AtomicBool,
}

impl Way {
    fn to(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let open = |at: &str| {
            let socket = UdpSocket::bind(at).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            Arc::new(socket)
        };
        let (inside, outside) = (open("127.0.0.1:0"), [open("127.0.0.1:0"), open("127.0.0.9:0")]);
        for at in [HOME, ELSEWHERE] {
            let (socket, inside, shared) = (outside[at].clone(), inside.clone(), shared.clone());
            std::thread::spawn(move || {
                shared.take_all(&socket, |packet, _| {
                    // A short header, a connection ID of the tunnels' half, and longer than a stateless reset.
                    if packet[0] & 0xc0 == 0x40 && packet[1] & 0x80 != 0 && packet.len() > 1_000 {
                        shared.packets[at].fetch_add(1, Ordering::SeqCst);
                    } else if let Some(device) = *shared.device.lock().unwrap()
                        && (at == HOME || shared.is_its.load(Ordering::SeqCst))
                    {
                        inside.send_to(packet, device).unwrap();
                    }
                });
            });
        }
        let (address, sockets, all) = (inside.local_addr().unwrap(), outside.clone(), shared.clone());
        std::thread::spawn(move || {
            all.take_all(&inside, |packet, from| {
                *all.device.lock().unwrap() = Some(from);
                sockets[all.leaves_from.load(Ordering::SeqCst)].send_to(packet, server).unwrap();
            });
        });
        Self { address, outside, shared }
    }

    fn leave_from(&self, at: usize) {
        self.shared.leaves_from.store(at, Ordering::SeqCst);
    }

    fn move_to_elsewhere(&self) {
        self.shared.is_its.store(true, Ordering::SeqCst);
        self.leave_from(ELSEWHERE);
    }

    fn packets(&self, at: usize) -> usize {
        self.shared.packets[at].load(Ordering::SeqCst)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn take_all(&self, socket: &UdpSocket, mut take: impl FnMut(&[u8], SocketAddr)) {
        let mut buffer = [0; 2048];
        while !self.ended.load(Ordering::SeqCst) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                take(&buffer[..length], from);
            }
        }
    }
}

/// Answers calls, as nodes do.
struct Answering(Handle, Connection);

impl StunSink for Answering {
    fn deliver(&self, _from: SocketAddr, _local_ip: Option<IpAddr>, datagram: &[u8]) {
        if let Ok(stun::Message::Indication(number)) = stun::Message::decode(datagram) {
            let connection = self.1.clone();
            self.0.spawn(async move { ask_with(&connection, number.to_vec()).await });
        }
    }
}

/// Tells of calls.
struct Hearing(mpsc::UnboundedSender<Vec<u8>>);

impl StunSink for Hearing {
    fn deliver(&self, _from: SocketAddr, _local_ip: Option<IpAddr>, datagram: &[u8]) {
        if let Ok(stun::Message::Indication(number)) = stun::Message::decode(datagram) {
            self.0.send(number.to_vec()).unwrap();
        }
    }
}

/// Where the TRS sees the device; nothing where the connection ends.
async fn ask_with(connection: &Connection, proof: Vec<u8>) -> Option<SocketAddr> {
    let request = Message::ObservationRequest(ObservationRequest { proof });
    match connection.open_exchange(&request).await.ok()? {
        Message::ObservationResponse(response) => endpoint::from_wire(&response.observed?),
        other => panic!("{other:?}"),
    }
}

async fn ask(connection: &Connection) -> Option<SocketAddr> {
    ask_with(connection, Vec::new()).await
}

/// A device behind a way, and a peer, with a leg for each.
struct Bound {
    overlay: Overlay,
    cloud: Cloud,
    way: Way,
    device: Node,
    peer: Node,
    leg: Vec<u8>,
}

impl Bound {
    async fn found() -> Self {
        Self::after(async |_, _| {}).await
    }

    async fn after(before: impl AsyncFnOnce(&Way, &Node)) -> Self {
        let overlay = Overlay::found(unix_now());
        let cloud = Cloud::start(&overlay.config).await.unwrap();
        let way = Way::to(overlay.address);
        let peer = Node::join(&overlay, "b.lab", 0xab).await;
        let device = Node::join_by(&overlay, "a.lab", 0x9a, way.address).await;
        before(&way, &device).await;
        peer.bind(&device).await;
        let leg = device.bind(&peer).await;
        assert!(leg.bound);
        Self { overlay, cloud, way, device, peer, leg: leg.connection_id }
    }

    /// The peer sends. How many packets have come to each of the two addresses.
    async fn flood(&self) -> [usize; 2] {
        let before = [HOME, ELSEWHERE].map(|at| self.way.packets(at));
        for _ in 0..20 {
            self.peer.client.send(self.overlay.address, &data_packet(&self.leg, &[0xc5; 1000]));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        [HOME, ELSEWHERE].map(|at| self.way.packets(at) - before[at])
    }

    /// Until what the peer sends comes to this address alone.
    async fn until_all_come_to(&self, at: usize) {
        let deadline = Instant::now() + SOON;
        loop {
            let came = self.flood().await;
            if came[at] > 0 && came[1 - at] == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{came:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_legs_of_a_device_follow_to_where_it_answers_calls() {
    let bound = Bound::found().await;
    let connection = bound.device.connection.clone();
    let answering = Answering(Handle::current(), connection.clone());
    bound.device.client.transport.mux().deliver_stun_to(Arc::new(answering));
    bound.until_all_come_to(HOME).await;
    bound.way.move_to_elsewhere();
    assert_eq!(ask(&connection).await, Some(bound.way.outside[ELSEWHERE].local_addr().unwrap()));
    bound.until_all_come_to(ELSEWHERE).await;
    // And back, which is a move like any other.
    bound.way.leave_from(HOME);
    ask(&connection).await.unwrap();
    bound.until_all_come_to(HOME).await;
    assert!(connection.quinn().close_reason().is_none());
    bound.cloud.shutdown().await;
}

/// What is sent on the connection is repeated at home, where the device is: only what goes to the other address
/// alone proves that somebody receives there.
#[tokio::test(flavor = "multi_thread")]
async fn legs_do_not_follow_to_an_address_that_is_only_written_on_packets() {
    let bound = Bound::found().await;
    let connection = bound.device.connection.clone();
    let (heard, mut calls) = mpsc::unbounded_channel();
    bound.device.client.transport.mux().deliver_stun_to(Arc::new(Hearing(heard)));
    let ask = || {
        let connection = connection.clone();
        tokio::spawn(async move { ask(&connection).await })
    };
    for _ in 0..3 {
        bound.way.leave_from(ELSEWHERE);
        let asked = ask();
        tokio::time::sleep(Duration::from_millis(100)).await;
        bound.way.leave_from(HOME);
        tokio::time::timeout(SOON, asked).await.unwrap().unwrap();
        bound.way.leave_from(ELSEWHERE);
        ask();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bound.flood().await[ELSEWHERE], 0);
        bound.way.leave_from(HOME);
        ask();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(calls.try_recv().is_err(), "nobody calls where the device has proved to be");
    // Whoever goes on like this is to dial anew.
    bound.way.leave_from(ELSEWHERE);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        ask();
        assert_eq!(bound.flood().await[ELSEWHERE], 0);
    }
    bound.way.leave_from(HOME);
    assert_eq!(tokio::time::timeout(SOON, ask()).await.unwrap().unwrap(), None, "its connection is closed");
    assert_eq!(bound.flood().await[ELSEWHERE], 0);
    bound.cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_from_elsewhere_right_after_the_handshake_is_no_part_of_it() {
    let bound = Bound::after(async |way, device| {
        way.leave_from(ELSEWHERE);
        let early = device.connection.clone();
        tokio::spawn(async move { ask(&early).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        way.leave_from(HOME);
    })
    .await;
    for _ in 0..3 {
        assert_eq!(bound.flood().await[ELSEWHERE], 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bound.until_all_come_to(HOME).await;
    bound.cloud.shutdown().await;
}
