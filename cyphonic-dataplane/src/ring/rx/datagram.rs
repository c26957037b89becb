//! One tunnel's receiving half: from a datagram to inner packets and events.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use cyphonic_common::frame::part::PART_HEADER;
use cyphonic_common::frame::{Candidates, Close, DATAGRAM, PROBING};
use cyphonic_common::limits::MIN_PROBE_DATAGRAM;
use cyphonic_common::packet::ip::{IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_SOURCE};
use cyphonic_common::policy::Direction;
use cyphonic_common::{ConnectionId, DropReason, Frame, Frames, Part};

use super::joiner::{Joined, Joiner, Joining};
use super::sources::{Sign, Sources};
use super::{JOINED, RxParts};
use crate::gso::Slot;
use crate::protect::{HEADER_LEN, OpenError, Opener};
use crate::ring::command::{Answer, RxTunnel};
use crate::ring::device::Delivery;
use crate::ring::shared::{Challenge, Shared};
use crate::ring::{CandidateSet, Path, RingEvent, ecn};

/// A datagram of a tunnel, as it came.
pub(in crate::ring) struct Arrived<'a> {
    pub(in crate::ring) datagram: &'a mut [u8],
    /// Where it lies.
    pub(in crate::ring) place: Slot,
    pub(in crate::ring) from: SocketAddr,
    /// The outer header's ECN field.
    pub(in crate::ring) ecn: u8,
    pub(in crate::ring) now: Instant,
}

/// What of the worker's a tunnel acts with.
pub(super) struct Out<'w, D> {
    pub(super) parts: &'w RxParts,
    pub(super) delivery: &'w mut D,
    /// Takes packets that came in pieces.
    pub(super) joined: &'w mut Vec<u8>,
    /// Empty: where the inner packets of a datagram are noted that has several frames.
    pub(super) found: &'w mut Vec<Range<usize>>,
}

/// See the module.
pub(super) struct Peer {
    pub(super) shared: Arc<Shared>,
    peer: Ipv6Addr,
    remote_cid: ConnectionId,
    /// Where this end sends.
    remote: SocketAddr,
    /// That is a relay.
    relayed: bool,
    pub(super) opener: Opener,
    joiner: Joiner,
    heard: bool,
    /// The batch in which a packet authenticated last, by its time.
    batch: Option<Instant>,
    sources: Sources,
    closed: bool,
    exhausted: bool,
}

impl Peer {
    pub(super) fn new(tunnel: RxTunnel) -> Self {
        Self {
            shared: tunnel.shared,
            peer: tunnel.peer,
            remote_cid: tunnel.remote_cid,
            remote: tunnel.path.remote,
            relayed: tunnel.path.is_relayed(tunnel.remote_cid),
            opener: tunnel.opener,
            joiner: Joiner::default(),
            heard: false,
            batch: None,
            sources: Sources::default(),
            closed: false,
            exhausted: false,
        }
    }

    /// This end sends on another path from now on.
    pub(super) fn set_path(&mut self, path: Path) {
        self.remote = path.remote;
        self.relayed = path.is_relayed(self.remote_cid);
    }

    /// Opens a datagram in place and acts on its frames. Inner packets are delivered, by where they lie; one
    /// that came in pieces lies in [`Out::joined`].
    #[inline]
    pub(super) fn open<D: Delivery>(
        &mut self,
        out: &mut Out<'_, D>,
        arrived: &mut Arrived<'_>,
    ) -> Result<(), DropReason> {
        let parts = out.parts;
        let (len, newest) = match self.opener.open(arrived.datagram) {
            Ok(opened) => (opened.payload.len(), opened.newest),
            Err(error) => return Err(self.not_opened(parts, error)),
        };
        if !self.heard {
            self.first_heard(parts);
        }
        // The clock is read per batch, so the first packet of it tells all.
        if self.batch != Some(arrived.now) {
            self.batch = Some(arrived.now);
            self.shared.touch_rx(arrived.now);
        }
        if newest && arrived.from != self.remote {
            self.elsewhere(parts, arrived);
        }
        let payload = HEADER_LEN..HEADER_LEN + len;
        if arrived.datagram.get(HEADER_LEN) == Some(&DATAGRAM) {
            let inner = payload.start + 1..payload.end;
            return self.deliver(parts, out.delivery, arrived, inner);
        }
        let mut piece = None;
        let frames = self.act_on_frames(parts, arrived, payload, out.found, &mut piece);
        for inner in out.found.drain(..) {
            if let Err(reason) = self.deliver(parts, out.delivery, arrived, inner) {
                parts.counters.count_drop(reason, 1);
            }
        }
        if let Some(piece) = piece
            && let Some(Joined { place: inner, ecn }) = self.join(parts, out.joined, arrived, piece)?
        {
            let place = Slot { buffer: JOINED, start: 0, len: 0 };
            let mut joined = Arrived { datagram: out.joined, place, ecn, ..*arrived };
            self.deliver(parts, out.delivery, &mut joined, inner)?;
        }
        frames
    }

    /// Puts a PART to the others of its packet. The packet, where it is whole now.
    #[cold]
    fn join(
        &mut self,
        parts: &RxParts,
        joined: &mut Vec<u8>,
        arrived: &Arrived<'_>,
        piece: Range<usize>,
    ) -> Result<Option<Joined>, DropReason> {
        let frame = arrived.datagram.get(piece).unwrap_or_default();
        let Some(Ok(Frame::Part(piece))) = Frames::new(frame).next() else {
            return Err(DropReason::MalformedFrame);
        };
        let (joining, dropped) = self.joiner.push(&piece, arrived.ecn, arrived.now, joined);
        parts.counters.count_drop(DropReason::Incomplete, dropped);
        match joining {
            Joining::Waits => Ok(None),
            Joining::Done(whole) => Ok(Some(whole)),
            Joining::Bad => Err(DropReason::BadPart),
        }
    }

    /// Everything but the common case of one inner packet alone. Inner packets are noted in `found`, by where
    /// they lie, and so is a PART, which is always the last frame, in `piece`.
    #[cold]
    fn act_on_frames(
        &mut self,
        parts: &RxParts,
        arrived: &Arrived<'_>,
        payload: Range<usize>,
        found: &mut Vec<Range<usize>>,
        piece: &mut Option<Range<usize>>,
    ) -> Result<(), DropReason> {
        let (datagram, from, now) = (&*arrived.datagram, arrived.from, arrived.now);
        let padded = datagram.len() >= MIN_PROBE_DATAGRAM;
        let frames = datagram.get(payload).unwrap_or_default();
        // One answer a packet is enough, whatever a peer puts into it (RFC 9000 §21.9).
        let mut answered = false;
        for frame in Frames::new(frames) {
            match frame.map_err(|_| DropReason::MalformedFrame)? {
                Frame::Padding(_) | Frame::Ping => {}
                Frame::Datagram(packet) | Frame::DatagramWithLength(packet) => {
                    let start = packet.as_ptr().addr() - datagram.as_ptr().addr();
                    found.push(start..start + packet.len());
                }
                Frame::PathChallenge(data) if !answered => {
                    answered = true;
                    let answer = Answer { tunnel: self.shared.id, data, to: from, padded };
                    match parts.answers.try_send(answer) {
                        Ok(()) => parts.tx_waker.wake(),
                        Err(_) => parts.counters.count_drop(DropReason::QueueFull, 1),
                    }
                    if from != self.remote && self.sources.is_news(from, Sign::Probed, now) {
                        (parts.events)(RingEvent::Probed { tunnel: self.shared.id, from });
                    }
                }
                Frame::PathChallenge(_) => {}
                Frame::Part(Part { bytes, .. }) => {
                    let start = bytes.as_ptr().addr() - datagram.as_ptr().addr();
                    *piece = Some(start - PART_HEADER..start + bytes.len());
                }
                Frame::PathResponse(data) => self.path_response(parts, data),
                Frame::Candidates(candidates) if self.sources.takes_list(now) => {
                    let Candidates { sequence, heard, flags, endpoints } = candidates;
                    let set = CandidateSet { sequence, heard, flags, endpoints: endpoints.iter().collect() };
                    (parts.events)(RingEvent::Candidates { tunnel: self.shared.id, set });
                }
                Frame::Candidates(_) => {}
                Frame::Close(close) => self.peer_closed(parts, &close),
            }
        }
        Ok(())
    }

    fn path_response(&mut self, parts: &RxParts, data: [u8; 8]) {
        if self.opener.acknowledge(data) {
            // A second update may start now, if one is asked for.
            return parts.tx_waker.wake();
        }
        match self.shared.answered(data) {
            Some(Challenge::Owner) => {
                (parts.events)(RingEvent::PathResponse { tunnel: self.shared.id, data });
            }
            Some(Challenge::Greeting) | None => {}
        }
    }

    fn peer_closed(&mut self, parts: &RxParts, close: &Close<'_>) {
        if !self.closed {
            self.closed = true;
            let reason = String::from_utf8_lossy(close.reason).into_owned();
            let code = close.error_code;
            (parts.events)(RingEvent::PeerClosed { tunnel: self.shared.id, code, reason });
        }
    }

    #[cold]
    fn first_heard(&mut self, parts: &RxParts) {
        self.heard = true;
        self.shared.set_heard();
        parts.tx_waker.wake();
    }

    /// The newest packet did not come on the path that this end sends on.
    #[cold]
    fn elsewhere(&mut self, parts: &RxParts, arrived: &Arrived<'_>) {
        let (first_frame, from) = (arrived.datagram.get(HEADER_LEN), arrived.from);
        let probing = first_frame.is_some_and(|kind| PROBING.contains(kind));
        if !probing && self.sources.is_news(from, Sign::Moved, arrived.now) {
            (parts.events)(RingEvent::PeerMoved { tunnel: self.shared.id, from });
        }
    }

    #[cold]
    fn not_opened(&mut self, parts: &RxParts, error: OpenError) -> DropReason {
        if error == OpenError::KeysExhausted && !self.exhausted {
            self.exhausted = true;
            (parts.events)(RingEvent::KeysExhausted { tunnel: self.shared.id });
        }
        error.drop_reason()
    }

    /// Checks an inner packet and hands it on.
    #[inline]
    fn deliver(
        &self,
        parts: &RxParts,
        delivery: &mut impl Delivery,
        arrived: &mut Arrived<'_>,
        inner: Range<usize>,
    ) -> Result<(), DropReason> {
        let (start, len) = (inner.start as u32, inner.len() as u32);
        let packet = arrived.datagram.get_mut(inner).ok_or(DropReason::MalformedInner)?;
        check_inner(packet, self.peer, parts.own)?;
        if let Some(permissions) = &parts.permissions {
            permissions.judge(packet, (self.peer, self.shared.class()), Direction::In, arrived.now)?;
        }
        let inner_ecn = ecn::of_ipv6(packet);
        let combined = ecn::combine(inner_ecn, arrived.ecn).ok_or(DropReason::CongestionUnheard)?;
        if combined != inner_ecn {
            ecn::set_ipv6(packet, combined);
        }
        self.shared.rx.add(1, u64::from(len));
        parts.counters.received.add(self.relayed, 1, u64::from(len));
        let place = Slot { start: arrived.place.start + start, len, ..arrived.place };
        delivery.push(place, packet, &parts.counters);
        Ok(())
    }
}

/// An inner packet must be whole, from the tunnel's peer, and to this node: nothing else has any business
/// here.
#[inline]
fn check_inner(packet: &[u8], peer: Ipv6Addr, own: Ipv6Addr) -> Result<(), DropReason> {
    let header = packet.first_chunk::<IPV6_HEADER_LEN>().ok_or(DropReason::MalformedInner)?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || IPV6_HEADER_LEN + len != packet.len() {
        return Err(DropReason::MalformedInner);
    }
    if header[IPV6_SOURCE..IPV6_DESTINATION] != peer.octets() {
        return Err(DropReason::SpoofedSource);
    }
    if header[IPV6_DESTINATION..] != own.octets() {
        return Err(DropReason::WrongDestination);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn packet(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 64).udp(1, 2);
        builder.write(&mut packet, b"hello").unwrap();
        packet
    }

    #[test]
    fn only_whole_packets_of_the_peer_to_this_node_pass() {
        let good = packet(PEER, OWN);
        assert_eq!(check_inner(&good, PEER, OWN), Ok(()));
        assert_eq!(check_inner(&packet(OWN, OWN), PEER, OWN), Err(DropReason::SpoofedSource));
        assert_eq!(check_inner(&packet(PEER, PEER), PEER, OWN), Err(DropReason::WrongDestination));
        assert_eq!(check_inner(&good[..good.len() - 1], PEER, OWN), Err(DropReason::MalformedInner));
        let mut v4 = good.clone();
        v4[0] = 0x45;
        assert_eq!(check_inner(&v4, PEER, OWN), Err(DropReason::MalformedInner));
    }

    proptest! {
        #[test]
        fn random_bytes_never_pass(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(check_inner(&bytes, PEER, OWN).is_err());
        }
    }
}
