//! Datagrams that come as frames, out of AF_XDP sockets on network cards, past the host's stack.
//!
//! What a card's program takes out for a socket is a tunnel's data packet to the node's port. It becomes the
//! same [`Message`] that the UDP port would have made of it, so everything behind this is one path. Cards
//! come and go by command while the worker runs; the port receives what they do not give.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use cyphonic_common::Nat64Prefix;
use cyphonic_common::buffer::Cursor;
use cyphonic_common::packet::{Ip, Transport, parse_ethernet};
use rustix::event::epoll;

use crate::udp::Message;
use crate::xsk::{Frame, FramePool, XskRx};

/// Frames taken at a time: what the delivery into a veth pair takes with one system call.
pub(super) const BATCH: usize = 32;

/// A queue of a card, as the worker gets it.
pub(in crate::ring) struct CardQueue {
    /// The card's number.
    pub(in crate::ring) card: u32,
    pub(in crate::ring) rx: XskRx,
    /// The frames that are not in the kernel's hands.
    pub(in crate::ring) pool: FramePool,
    /// Where the queue has been added.
    pub(in crate::ring) any: AnyQueue,
}

/// Ready when any queue is that was added.
#[derive(Debug, Clone)]
pub(in crate::ring) struct AnyQueue(Arc<OwnedFd>);

impl AnyQueue {
    pub(in crate::ring) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?)))
    }

    pub(in crate::ring) fn add(&self, socket: &XskRx) -> io::Result<()> {
        Ok(epoll::add(&self.0, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    fn remove(&self, socket: &XskRx) {
        // Fails only for one that is not there, and then there is nothing to do.
        let _ = epoll::delete(&self.0, socket);
    }
}

/// All queues of all cards. See the module.
#[derive(Default)]
pub(super) struct CardQueues {
    queues: Vec<Queue>,
    /// The queue that is looked at first.
    next: usize,
    /// What came last, all of the queue `of`.
    batch: Vec<Frame>,
    of: usize,
    malformed: u64,
}

struct Queue {
    parts: CardQueue,
    /// Set when its card is given up: it goes once it is empty, and tells by dropping this.
    leaving: Option<Sender<()>>,
}

impl CardQueues {
    pub(super) fn add(&mut self, parts: CardQueue) {
        self.batch.reserve(BATCH);
        self.queues.push(Queue { parts, leaving: None });
    }

    /// Gives a card up, whose program sends nothing more. `done` is dropped when the last of its queues is
    /// empty.
    pub(super) fn remove(&mut self, card: u32, done: &Sender<()>) {
        for queue in self.queues.iter_mut().filter(|queue| queue.parts.card == card) {
            queue.leaving = Some(done.clone());
        }
    }

    /// Takes the next frames, all of one queue. Returns how many.
    #[inline]
    pub(super) fn receive(&mut self) -> usize {
        for _ in 0..self.queues.len() {
            if self.next >= self.queues.len() {
                self.next = 0;
            }
            let Some(queue) = self.queues.get_mut(self.next) else { return 0 };
            let received = queue.parts.rx.recv(&mut self.batch);
            if received > 0 {
                self.of = self.next;
                self.next += 1;
                return received;
            }
            if queue.leaving.is_some() {
                self.forget(self.next);
            } else {
                self.next += 1;
            }
        }
        0
    }

    /// What [`receive`](Self::receive) took; from within the prefix it comes from IPv4.
    #[inline]
    pub(super) fn messages_mut(
        &mut self,
        translation: Option<Nat64Prefix>,
    ) -> impl Iterator<Item = Message<'_>> {
        let Self { queues, batch, of, malformed, .. } = self;
        let queue = queues.get(*of).map(|queue| (queue.parts.rx.umem(), queue.parts.card));
        batch.iter_mut().filter_map(move |frame| {
            let (umem, card) = queue?;
            let mut message = datagram(umem.packet_mut(frame), card);
            match &mut message {
                Some(message) => {
                    if let Some(prefix) = translation {
                        message.from = prefix.inward(message.from);
                    }
                }
                None => *malformed += 1,
            }
            message
        })
    }

    /// Gives the frames back, to be filled again. Returns how many were no datagrams.
    #[inline]
    pub(super) fn give_back(&mut self) -> u64 {
        if let Some(Queue { parts, .. }) = self.queues.get_mut(self.of) {
            self.batch.drain(..).for_each(|frame| parts.pool.put(frame));
            parts.rx.refill(&mut parts.pool, 0);
            if parts.rx.needs_wakeup()
                && let Err(error) = parts.rx.wake()
            {
                tracing::debug!(%error, "a network card does not take free frames");
            }
        }
        std::mem::take(&mut self.malformed)
    }

    /// What to wait on, if there is anything: readable when frames are there.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self.queues.as_slice() {
            [] => None,
            [only] => Some(only.parts.rx.as_fd()),
            [one, ..] => Some(one.parts.any.0.as_fd()),
        }
    }

    #[cold]
    fn forget(&mut self, at: usize) {
        let queue = self.queues.swap_remove(at);
        queue.parts.any.remove(&queue.parts.rx);
    }
}

/// Whether no host sends from an address, so that nothing may be answered there. The host's stack drops such
/// packets, but does not see these frames.
#[inline]
fn is_martian(from: SocketAddr) -> bool {
    from.port() == 0
        || match from.ip() {
            IpAddr::V4(ip) => {
                ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()
            }
            IpAddr::V6(ip) => {
                ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.to_ipv4_mapped().is_some()
            }
        }
}

/// The datagram in a frame. The program has judged the same bytes; nothing here relies on it.
#[inline]
fn datagram(frame: &mut [u8], card: u32) -> Option<Message<'_>> {
    let (_, packet) = parse_ethernet(&mut Cursor::new(&*frame)).ok()?;
    let packet = packet?;
    let Transport::Udp(udp) = packet.transport else { return None };
    let (from, local_ip, traffic_class) = match packet.ip {
        Ip::V4(ip) => {
            let from = SocketAddr::from((Ipv4Addr::from(ip.source), udp.source));
            (from, IpAddr::from(ip.destination), ip.traffic_class)
        }
        Ip::V6(ip) => {
            let source = Ipv6Addr::from(ip.source);
            // As the UDP port reports it.
            let scope = if source.is_unicast_link_local() { card } else { 0 };
            let from = SocketAddr::from(SocketAddrV6::new(source, udp.source, 0, scope));
            (from, IpAddr::from(ip.destination), ip.traffic_class)
        }
    };
    if is_martian(from) {
        return None;
    }
    let payload = frame.get_mut(packet.payload_offset..packet.payload_offset + packet.payload_len)?;
    let stride = payload.len();
    let ecn = Some(traffic_class & 0b11).filter(|ecn| *ecn != 0);
    let local_ip = Some(local_ip);
    (stride > 0).then_some(Message { from, local_ip, ecn, payload, stride, handed_on: false })
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    fn v6(source: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6(source.octets(), [2; 16], 64);
        builder.udp(7, 9).write(&mut frame, payload).unwrap();
        frame
    }

    #[test]
    fn a_frame_becomes_what_the_port_would_have_received() {
        let mut ip = Ipv4Header::new(0, 64, 17.into(), [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        ip.ecn = 3.try_into().unwrap();
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let builder = builder.ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()));
        builder.udp(7, 9).write(&mut frame, b"hello").unwrap();
        // Ethernet pads.
        frame.extend_from_slice(&[0; 9]);
        let message = datagram(&mut frame, 3).unwrap();
        assert_eq!(message.from, "10.0.0.1:7".parse().unwrap());
        assert_eq!(message.local_ip, Some("10.0.0.2".parse().unwrap()));
        assert_eq!((message.ecn, &*message.payload, message.stride), (Some(3), &b"hello"[..], 5));
    }

    #[test]
    fn only_link_local_addresses_have_a_scope() {
        let far: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let near: Ipv6Addr = "fe80::1".parse().unwrap();
        assert_eq!(datagram(&mut v6(far, b"x"), 3).unwrap().from, SocketAddr::from((far, 7)));
        let from = SocketAddr::from(SocketAddrV6::new(near, 7, 0, 3));
        let mut frame = v6(near, b"x");
        let message = datagram(&mut frame, 3).unwrap();
        assert_eq!((message.from, message.ecn), (from, None));
    }

    #[test]
    fn a_source_that_no_host_sends_from_is_malformed() {
        for (source, port) in [
            ("0.0.0.0", 7),
            ("0.1.2.3", 7),
            ("127.0.0.1", 7),
            ("224.0.0.1", 7),
            ("255.255.255.255", 7),
            ("192.0.2.1", 0),
        ] {
            let mut frame = Vec::new();
            let source: Ipv4Addr = source.parse().unwrap();
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(source.octets(), [10, 0, 0, 2], 64);
            builder.udp(port, 9).write(&mut frame, b"hello").unwrap();
            assert!(datagram(&mut frame, 3).is_none(), "{source}:{port}");
        }
        for source in ["::", "::1", "ff02::1", "::ffff:192.0.2.1"] {
            assert!(datagram(&mut v6(source.parse().unwrap(), b"hello"), 3).is_none(), "{source}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic_and_no_payload_is_empty(
            damage in proptest::collection::vec((0usize..80, any::<u8>()), 0..4), cut in 0usize..80,
        ) {
            let mut frame = v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), b"payload");
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) { *byte = value; }
            }
            frame.truncate(cut);
            let whole = frame.len();
            if let Some(message) = datagram(&mut frame, 0) {
                prop_assert!(!message.payload.is_empty() && message.payload.len() <= whole);
                prop_assert_eq!(message.stride, message.payload.len());
            }
        }
    }
}
