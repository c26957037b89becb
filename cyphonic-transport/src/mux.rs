//! The socket that quinn believes it owns.
//!
//! Arriving signalling packets come from the data plane's receive worker ([`SignallingSink`]) or, for
//! handshakes that a TRS relays, from DATAGRAMs ([`Mux::deliver_relayed`]). Leaving packets go out of the
//! node's UDP port, or into the connection to the TRS when their destination is a [`RelayedAddress`].
//!
//! Invariants: the queue is bounded and drops when full, as a socket buffer would; a packet that cannot be
//! sent at once is dropped, because QUIC repairs loss and a signalling packet must not wait behind bulk data.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use cyphonic_dataplane::relay::RESET_TOKEN_LEN;
use cyphonic_dataplane::sync;
use cyphonic_dataplane::udp::{self, SignallingSink, StunSink, UdpPort};
use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::{TunnelId, relayed};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit};

use crate::legs::{Legs, RelayedAddress};
use crate::resets::{ResetSink, Resets};
use crate::{Connection, carry};

/// Packets held for quinn. 2,048 of 1,400 bytes are 3 MiB: more than a burst of handshakes, less than a
/// flood.
const QUEUE_PACKETS: usize = 2_048;

struct Packet {
    from: SocketAddr,
    local_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    payload: Bytes,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Packet>,
    waker: Option<Waker>,
}

/// The socket behind quinn's endpoint.
pub struct Mux {
    port: Arc<UdpPort>,
    queue: Mutex<Queue>,
    legs: RwLock<Legs<quinn::Connection>>,
    resets: Resets,
    stun: OnceLock<Arc<dyn StunSink>>,
    dropped: AtomicU64,
}

impl Mux {
    /// A socket over the node's port.
    pub fn new(port: Arc<UdpPort>) -> Arc<Self> {
        Arc::new(Self {
            port,
            queue: Mutex::default(),
            legs: RwLock::default(),
            resets: Resets::default(),
            stun: OnceLock::new(),
            dropped: AtomicU64::new(0),
        })
    }

    /// The port's number.
    pub fn local_port(&self) -> u16 {
        self.port.local_port()
    }

    /// The address that sockets of this host send to for `remote`: see [`UdpPort::outward`].
    pub fn outward(&self, remote: SocketAddr) -> SocketAddr {
        self.port.outward(remote)
    }

    /// The address by which packets from `remote` are known here: see [`UdpPort::inward`].
    pub fn inward(&self, remote: SocketAddr) -> SocketAddr {
        self.port.inward(remote)
    }

    /// Signalling packets dropped because quinn lagged or the port was busy.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Gives the port's STUN messages to `sink`. The first one told stays.
    pub fn deliver_stun_to(&self, sink: Arc<dyn StunSink>) {
        // A second sink is a caller's mistake without consequence: the first one goes on.
        let _ = self.stun.set(sink);
    }

    /// Tells `sink` of stateless resets of relays, for the tunnels named with [`Self::expect_reset`].
    pub fn report_resets(&self, sink: ResetSink) {
        self.resets.report_to(sink);
    }

    /// The relay at `from` says with this token that it has lost the leg that a tunnel sends to.
    pub fn expect_reset(&self, tunnel: TunnelId, from: SocketAddr, token: [u8; RESET_TOKEN_LEN]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.resets.expect(tunnel, from, token);
    }

    /// The relay of a tunnel named with [`Self::expect_reset`] is reached at another address.
    pub fn follow_reset(&self, tunnel: TunnelId, from: SocketAddr) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.resets.follow(tunnel, from);
    }

    /// The tunnel is gone.
    pub fn forget_reset(&self, tunnel: TunnelId) {
        self.resets.forget(tunnel);
    }

    /// Packets that this TRS relays are taken from now on, until [`remove_legs`](Self::remove_legs).
    pub fn enter(&self, trs: &Connection) {
        sync::write(&self.legs).enter(trs.id(), trs.quinn(), key_of(trs));
    }

    /// The address under which quinn reaches a leg of a TRS connection that has entered: the same one for as
    /// long as the leg is among the newest thousands of that connection.
    pub fn add_leg(&self, trs: &Connection, context: u64) -> Option<RelayedAddress> {
        sync::write(&self.legs).add(trs.id(), context)
    }

    /// Forgets a TRS connection that ended, with every leg.
    pub fn remove_legs(&self, trs: &Connection) {
        sync::write(&self.legs).remove_all_of(trs.id());
    }

    /// The leg behind an address: its connection's [`id`](Connection::id) and its context.
    pub fn leg(&self, address: RelayedAddress) -> Option<(u64, u64)> {
        sync::read(&self.legs).get(address)
    }

    /// A relayed packet from a TRS: hands the packet in it to quinn. The TRS forwards only between bound
    /// legs, so a context that was not seen before is a leg whose peer was faster than our own
    /// bookkeeping.
    pub fn deliver_relayed(&self, trs: &Connection, datagram: &Bytes) {
        let Some((context, packet)) = relayed::decode(datagram) else { return self.count_drop() };
        let Some(address) = self.add_leg(trs, context) else { return self.count_drop() };
        let payload = datagram.slice_ref(packet);
        self.enqueue([Packet { from: address.socket_addr(), local_ip: None, ecn: None, payload }]);
    }

    fn send_relayed(&self, address: RelayedAddress, transmit: &Transmit<'_>) {
        let leg = {
            let legs = sync::read(&self.legs);
            legs.way(address).map(|(trs, context)| (trs.clone(), context))
        };
        let Some((trs, context)) = leg else { return self.count_drop() };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(segment) {
            let framed = relayed::encode(context, packet);
            if !framed.is_some_and(|framed| carry::send(&trs, framed)) {
                self.count_drop();
            }
        }
    }

    fn enqueue(&self, packets: impl IntoIterator<Item = Packet>) {
        let mut queue = self.queue();
        for packet in packets {
            if queue.packets.len() < QUEUE_PACKETS {
                queue.packets.push_back(packet);
            } else {
                self.count_drop();
            }
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        sync::lock(&self.queue)
    }

    fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl SignallingSink for Mux {
    fn deliver(
        &self,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<u8>,
        payload: &[u8],
        stride: usize,
    ) {
        if !can_be_answered(from) {
            return self.count_drop();
        }
        let source = to_v6(from);
        let ecn = ecn.and_then(EcnCodepoint::from_bits);
        let batch = Bytes::copy_from_slice(payload);
        let stride = if stride == 0 { payload.len().max(1) } else { stride };
        let packets = (0..payload.len()).step_by(stride).filter_map(|start| {
            let payload = batch.slice(start..batch.len().min(start + stride));
            let ours = self.resets.take(from, &payload);
            (!ours).then_some(Packet { from: source, local_ip, ecn, payload })
        });
        self.enqueue(packets);
    }

    fn deliver_stun(&self, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) -> bool {
        let Some(sink) = self.stun.get().filter(|_| can_be_answered(from)) else { return false };
        sink.deliver(from, local_ip, datagram);
        true
    }
}

impl AsyncUdpSocket for Mux {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(address) = RelayedAddress::from_socket_addr(transmit.destination) {
            self.send_relayed(address, transmit);
            return Ok(());
        }
        let canonical = udp::Transmit {
            dest: SocketAddr::new(transmit.destination.ip().to_canonical(), transmit.destination.port()),
            ecn: transmit.ecn.map(|ecn| ecn as u8),
            payload: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip.map(|ip| ip.to_canonical()),
        };
        // An unreachable or refused destination is a lost packet to QUIC: the connection's time-out names it.
        if self.port.send(&canonical).is_err() {
            self.count_drop();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.queue();
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            let Some(packet) = queue.packets.pop_front() else { break };
            let len = packet.payload.len();
            // Larger than any packet we offered to receive: not for us.
            if len > buf.len() {
                self.count_drop();
                *meta = RecvMeta { addr: packet.from, len: 0, stride: 0, ecn: None, dst_ip: None };
            } else {
                buf[..len].copy_from_slice(&packet.payload);
                *meta = RecvMeta {
                    addr: packet.from,
                    len,
                    stride: len,
                    ecn: packet.ecn,
                    dst_ip: packet.local_ip,
                };
            }
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// IPv6 always: quinn then hands every destination over as IPv6, relayed addresses among them.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), self.port.local_port()))
    }

    fn max_transmit_segments(&self) -> usize {
        self.port.max_gso_segments()
    }

    fn may_fragment(&self) -> bool {
        self.port.may_fragment()
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The key that a TRS has proved to have. Without one there would be no connection to it; all such would be
/// one TRS.
fn key_of(trs: &Connection) -> KeyHash {
    trs.identity().map_or(KeyHash([0; 32]), |identity| identity.spki_sha256)
}

/// Whether what comes from the network can come from there: no port has the number 0, and a relayed leg's
/// address is nobody's.
fn can_be_answered(from: SocketAddr) -> bool {
    from.port() != 0 && RelayedAddress::from_socket_addr(from).is_none()
}

/// quinn compares addresses byte by byte, so each peer must have one spelling: IPv6, mapped if it is IPv4.
fn to_v6(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quinn_hears_of_no_sender_that_there_cannot_be() {
        let mux = Mux::new(Arc::new(UdpPort::bind_to("127.0.0.1:0".parse().unwrap()).unwrap()));
        let leg = Legs::default().entered(1, &(), KeyHash([1; 32]), 7).socket_addr();
        for (dropped, from) in
            (1..).zip(["192.0.2.1:0".parse().unwrap(), "[2001:db8::1]:0".parse().unwrap(), leg])
        {
            mux.deliver(from, None, None, b"packet", 0);
            assert!(!mux.deliver_stun(from, None, b"message"));
            assert_eq!((mux.dropped(), mux.queue().packets.len()), (dropped, 0), "{from}");
        }
        mux.deliver("192.0.2.1:1".parse().unwrap(), None, None, b"packet", 0);
        assert_eq!(mux.queue().packets.len(), 1);
    }

    #[test]
    fn quinn_sees_one_spelling_of_each_peer() {
        let plain: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:443".parse().unwrap();
        assert_eq!(to_v6(plain), to_v6(mapped));
    }
}
