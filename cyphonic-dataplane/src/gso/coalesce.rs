//! Joining consecutive packets of a flow into super-packets, without copying their payloads.
//!
//! The rules are those of the kernel's own receive offload, so that what an application sees is what it would
//! see behind a network card: the same addresses, traffic class, flow label, hop limit, ports,
//! acknowledgement, window and options; consecutive sequence numbers; equal sizes, a shorter one ends the
//! super-packet, as do FIN and PSH; CWR starts one. Packets that do not fit end what their flow has begun, so
//! that a flow never reorders.

use std::io::IoSlice;
use std::ops::Range;

use cyphonic_common::packet::ip::{IPV6_HEADER_LEN, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LEN, IPV6_SOURCE};
use cyphonic_common::packet::protocol::{
    AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING, TCP, UDP,
};
use cyphonic_common::packet::tcp;
use cyphonic_common::packet::udp::{self, UDP_HEADER_LEN};

use super::vnet::{GsoKind, VnetHeader};
use super::{Sum, be16, be32, put};

/// The most packets one super-packet joins: the kernel's own limit for UDP, and 64 KiB of full TCP segments.
const MAX_PARTS: usize = 64;
/// Flows being joined at a time; the oldest is finished when one more begins.
const MAX_OPEN: usize = 16;
/// IPv6, TCP and all its options.
const MAX_HEADERS: usize = IPV6_HEADER_LEN + 60;
/// The largest IPv6 payload length.
const MAX_IP_PAYLOAD: usize = 65_535;

/// Next headers that may stand before a flow's own: options of hops, routing, authentication, options of the
/// destination (RFC 8200 §4.1).
const EXTENSIONS: [u8; 4] = [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS];
/// Addresses of a packet.
const ADDRESSES: Range<usize> = IPV6_SOURCE..IPV6_HEADER_LEN;
/// Addresses and ports of a packet whose transport header follows IPv6's at once.
const KEY: Range<usize> = IPV6_SOURCE..IPV6_HEADER_LEN + 4;

const NONE: u32 = u32::MAX;

/// Where a packet lies: in which of the caller's buffers, and which bytes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) buffer: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// A packet and the one behind it in its group.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: Slot,
    next: u32,
}

/// A packet that may be joined to others: what of it decides.
#[derive(Clone, Copy, Debug)]
struct Segment<'p> {
    protocol: u8,
    headers: &'p [u8],
    payload: usize,
    /// TCP: the sequence number of its first byte.
    sequence: u32,
    /// TCP.
    flags: u8,
}

/// What the packets of a group have in common.
#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: u8,
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// Payload of every part but the last.
    size: usize,
    /// Payload so far.
    payload: usize,
    /// TCP: the sequence number that continues the flow.
    next_sequence: u32,
    /// TCP: the flags of all parts so far.
    flags: u8,
}

/// Packets that are written as one.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: u32,
    last: u32,
    parts: usize,
    /// `None`: one packet that joins nothing.
    flow: Option<Flow>,
}

/// What a packet is to the coalescer.
enum Candidate<'p> {
    /// Starts or continues a super-packet.
    Joins(Segment<'p>),
    /// Belongs to a flow of this protocol that may be open, but joins nothing.
    Alone(u8),
    /// Belongs to some flow of this protocol: a fragment, which has ports only where it is the first.
    Fragment(u8),
    /// Belongs to some flow: its ports, if it has any, are behind more headers.
    Extended,
    /// No flow of ours.
    Stranger,
}

/// Collects the packets of one receive batch, then writes them. Reused; allocates only while it grows.
#[derive(Debug)]
pub(crate) struct Coalescer {
    tcp: bool,
    udp: bool,
    parts: Vec<Part>,
    groups: Vec<Group>,
    open: Vec<u32>,
}

impl Coalescer {
    /// Joins what the device takes joined.
    pub(crate) fn new(tcp: bool, udp: bool) -> Self {
        Self { tcp, udp, parts: Vec::new(), groups: Vec::new(), open: Vec::with_capacity(MAX_OPEN) }
    }

    /// Adds a packet: a whole inner IPv6 packet whose length has been checked against its header.
    pub(crate) fn push(&mut self, slot: Slot, packet: &[u8]) {
        let segment = match self.classify(packet) {
            Candidate::Joins(segment) => {
                if let Some(open) = self.find(packet, segment.protocol) {
                    let joined = self.join(open, &segment, slot);
                    if !joined || self.is_complete(open) {
                        self.open.remove(open);
                    }
                    if joined {
                        return;
                    }
                }
                Some(segment)
            }
            Candidate::Alone(protocol) => {
                if let Some(open) = self.find(packet, protocol) {
                    self.open.remove(open);
                }
                None
            }
            Candidate::Fragment(protocol) => {
                self.end_flows_between(packet, |of| of == protocol);
                None
            }
            Candidate::Extended => {
                self.end_flows_between(packet, |_| true);
                None
            }
            Candidate::Stranger => None,
        };
        self.begin(slot, segment.and_then(|segment| Flow::begin(&segment)));
    }

    /// Hands every super-packet and every single packet to `write`, in order of their first packets, as the
    /// parts of one device write, with the number of packets in it; then forgets them.
    pub(crate) fn flush<'b>(
        &mut self,
        bytes: impl Fn(Slot) -> &'b [u8],
        mut write: impl FnMut(&[IoSlice<'_>], u64),
    ) {
        for group in &self.groups {
            match &group.flow {
                Some(flow) if group.parts > 1 => self.write_joined(group, flow, &bytes, &mut write),
                _ => {
                    let Some(part) = self.parts.get(group.first as usize) else { continue };
                    let header = VnetHeader::PLAIN.encode();
                    write(&[IoSlice::new(&header), IoSlice::new(bytes(part.slot))], 1);
                }
            }
        }
        self.groups.clear();
        self.parts.clear();
        self.open.clear();
    }

    fn classify<'p>(&self, packet: &'p [u8]) -> Candidate<'p> {
        match packet.get(IPV6_NEXT_HEADER) {
            Some(&TCP) if self.tcp => classify_tcp(packet),
            Some(&UDP) if self.udp => classify_udp(packet),
            // Its first byte says what was fragmented.
            Some(&FRAGMENT) => {
                packet.get(IPV6_HEADER_LEN).copied().map_or(Candidate::Stranger, Candidate::Fragment)
            }
            Some(extension) if EXTENSIONS.contains(extension) => Candidate::Extended,
            _ => Candidate::Stranger,
        }
    }

    /// The position in `open` of the group of this packet's flow.
    fn find(&self, packet: &[u8], protocol: u8) -> Option<usize> {
        let key = packet.get(KEY)?;
        self.open.iter().rposition(|&group| {
            self.groups
                .get(group as usize)
                .and_then(|group| group.flow.as_ref())
                .is_some_and(|flow| flow.protocol == protocol && flow.headers[KEY] == *key)
        })
    }

    /// Ends what flows of some protocols have begun between the addresses of a packet.
    #[cold]
    fn end_flows_between(&mut self, packet: &[u8], concerns: impl Fn(u8) -> bool) {
        let Some(addresses) = packet.get(ADDRESSES) else { return };
        let groups = &self.groups;
        self.open.retain(|&group| {
            let flow = groups.get(group as usize).and_then(|group| group.flow.as_ref());
            flow.is_some_and(|flow| !concerns(flow.protocol) || flow.headers[ADDRESSES] != *addresses)
        });
    }

    fn join(&mut self, open: usize, segment: &Segment<'_>, slot: Slot) -> bool {
        let Some(group) = self.open.get(open).and_then(|&group| self.groups.get_mut(group as usize)) else {
            return false;
        };
        let Some(flow) = group.flow.as_mut() else { return false };
        if group.parts >= MAX_PARTS || !flow.is_continued_by(segment) {
            return false;
        }
        flow.payload += segment.payload;
        flow.next_sequence = segment.next_sequence();
        flow.flags |= segment.flags;
        let index = self.parts.len() as u32;
        if let Some(last) = self.parts.get_mut(group.last as usize) {
            last.next = index;
        }
        group.last = index;
        group.parts += 1;
        self.parts.push(Part { slot, next: NONE });
        true
    }

    /// Whether nothing may be joined to a group any more.
    fn is_complete(&self, open: usize) -> bool {
        let group = self.open.get(open).and_then(|&group| self.groups.get(group as usize));
        group.and_then(|group| group.flow.as_ref()).is_none_or(Flow::is_complete)
    }

    fn begin(&mut self, slot: Slot, flow: Option<Flow>) {
        let part = self.parts.len() as u32;
        let group = self.groups.len() as u32;
        self.parts.push(Part { slot, next: NONE });
        let stays_open = flow.as_ref().is_some_and(|flow| !flow.is_complete());
        self.groups.push(Group { first: part, last: part, parts: 1, flow });
        if stays_open {
            if self.open.len() >= MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(group);
        }
    }

    fn write_joined<'b>(
        &self,
        group: &Group,
        flow: &Flow,
        bytes: &impl Fn(Slot) -> &'b [u8],
        write: &mut impl FnMut(&[IoSlice<'_>], u64),
    ) {
        let (vnet, headers) = flow.joined();
        let vnet = vnet.encode();
        let mut slices = [IoSlice::new(&[]); MAX_PARTS + 2];
        slices[0] = IoSlice::new(&vnet);
        slices[1] = IoSlice::new(headers.get(..flow.headers_len).unwrap_or_default());
        let mut used = 2;
        let mut at = group.first;
        while let Some(part) = self.parts.get(at as usize) {
            let Some(slice) = slices.get_mut(used) else { break };
            *slice = IoSlice::new(bytes(part.slot).get(flow.headers_len..).unwrap_or_default());
            used += 1;
            at = part.next;
        }
        write(slices.get(..used).unwrap_or_default(), group.parts as u64);
    }
}

impl Segment<'_> {
    fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(self.payload as u32)
    }
}

impl Flow {
    /// That of a first packet.
    fn begin(segment: &Segment<'_>) -> Option<Self> {
        let mut headers = [0; MAX_HEADERS];
        put(&mut headers, 0, segment.headers)?;
        Some(Self {
            protocol: segment.protocol,
            headers,
            headers_len: segment.headers.len(),
            size: segment.payload,
            payload: segment.payload,
            next_sequence: segment.next_sequence(),
            flags: segment.flags,
        })
    }

    /// Of a packet with the same addresses and ports.
    fn is_continued_by(&self, next: &Segment<'_>) -> bool {
        let (ours, theirs) = (self.headers.get(..self.headers_len), next.headers);
        let Some(ours) = ours.filter(|ours| ours.len() == theirs.len()) else { return false };
        let same = |range: Range<usize>| ours.get(range.clone()) == theirs.get(range);
        let fits = next.payload <= self.size
            && self.headers_len - IPV6_HEADER_LEN + self.payload + next.payload <= MAX_IP_PAYLOAD;
        // Version, traffic class and flow label; next header and hop limit.
        if !fits || !same(0..IPV6_PAYLOAD_LEN) || !same(IPV6_NEXT_HEADER..IPV6_SOURCE) {
            return false;
        }
        if self.protocol == UDP {
            return true;
        }
        const TCP_AT: usize = IPV6_HEADER_LEN;
        /// What one packet of several has. Whoever cuts them again gives the other flags to all.
        const MAY_DIFFER: u8 = tcp::CWR | tcp::FIN | tcp::PSH;
        next.sequence == self.next_sequence
            && next.flags & tcp::CWR == 0
            && (next.flags ^ self.flags) & !MAY_DIFFER == 0
            && same(TCP_AT + tcp::ACKNOWLEDGEMENT..TCP_AT + tcp::FLAGS)
            && same(TCP_AT + tcp::WINDOW..TCP_AT + tcp::CHECKSUM)
            && same(TCP_AT + tcp::URGENT..ours.len())
    }

    /// Whether nothing may follow: the last payload was short, or a flag asks for delivery.
    fn is_complete(&self) -> bool {
        !self.payload.is_multiple_of(self.size) || self.flags & (tcp::FIN | tcp::PSH) != 0
    }

    /// The super-packet's headers: the first packet's with the whole's length and flags and a partial
    /// checksum.
    fn joined(&self) -> (VnetHeader, [u8; MAX_HEADERS]) {
        let mut headers = self.headers;
        let len = self.headers_len - IPV6_HEADER_LEN + self.payload;
        headers[IPV6_PAYLOAD_LEN..IPV6_NEXT_HEADER].copy_from_slice(&(len as u16).to_be_bytes());
        let field = if self.protocol == TCP {
            headers[IPV6_HEADER_LEN + tcp::FLAGS] |= self.flags & (tcp::FIN | tcp::PSH);
            tcp::CHECKSUM
        } else {
            let at = IPV6_HEADER_LEN + udp::LENGTH;
            headers[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            udp::CHECKSUM
        };
        let partial = pseudo_header(&headers, self.protocol, len).map_or([0, 0], Sum::fold);
        headers[IPV6_HEADER_LEN + field..IPV6_HEADER_LEN + field + 2].copy_from_slice(&partial);
        let vnet = VnetHeader {
            needs_csum: true,
            kind: if self.protocol == TCP { GsoKind::Tcp6 } else { GsoKind::Udp },
            ecn: self.protocol == TCP && headers[IPV6_HEADER_LEN + tcp::FLAGS] & tcp::CWR != 0,
            header_len: self.headers_len as u16,
            gso_size: self.size as u16,
            csum_start: IPV6_HEADER_LEN as u16,
            csum_offset: field as u16,
        };
        (vnet, headers)
    }
}

fn classify_tcp(packet: &[u8]) -> Candidate<'_> {
    let alone = Candidate::Alone(TCP);
    let Some(segment) = packet.get(IPV6_HEADER_LEN..) else { return alone };
    let (Some(offset), Some(&flags)) = (segment.get(tcp::DATA_OFFSET), segment.get(tcp::FLAGS)) else {
        return alone;
    };
    let header = usize::from(offset >> 4) * 4;
    let Some(payload) = segment.len().checked_sub(header).filter(|_| header >= tcp::MIN_HEADER) else {
        return alone;
    };
    let joinable = flags & (tcp::SYN | tcp::RST | tcp::URG | tcp::ACK) == tcp::ACK && payload > 0;
    if !joinable || !verifies(packet, TCP) {
        return alone;
    }
    match (packet.get(..IPV6_HEADER_LEN + header), be32(segment, tcp::SEQUENCE)) {
        (Some(headers), Some(sequence)) => {
            Candidate::Joins(Segment { protocol: TCP, headers, payload, sequence, flags })
        }
        _ => alone,
    }
}

fn classify_udp(packet: &[u8]) -> Candidate<'_> {
    let alone = Candidate::Alone(UDP);
    let Some(datagram) = packet.get(IPV6_HEADER_LEN..) else { return alone };
    let Some(payload) = datagram.len().checked_sub(UDP_HEADER_LEN) else { return alone };
    let whole = be16(datagram, udp::LENGTH).map(usize::from) == Some(datagram.len());
    let summed = be16(datagram, udp::CHECKSUM) != Some(0);
    if !whole || !summed || payload == 0 || !verifies(packet, UDP) {
        return alone;
    }
    match packet.get(..IPV6_HEADER_LEN + UDP_HEADER_LEN) {
        Some(headers) => Candidate::Joins(Segment { protocol: UDP, headers, payload, sequence: 0, flags: 0 }),
        None => alone,
    }
}

fn verifies(packet: &[u8], protocol: u8) -> bool {
    let Some(segment) = packet.get(IPV6_HEADER_LEN..) else { return false };
    pseudo_header(packet, protocol, segment.len()).is_some_and(|sum| sum.add(segment).verifies())
}

fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> Option<Sum> {
    let ipv6 = packet.first_chunk::<IPV6_HEADER_LEN>()?;
    Some(Sum::default().add_pseudo_header(ipv6, protocol, len as u32))
}

#[cfg(test)]
mod tests;
