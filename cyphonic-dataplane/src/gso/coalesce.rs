//! Joining consecutive packets of a flow into super-packets, without copying their payloads.
//!
//! The rules are those of the kernel's own receive offload, so that what an application sees is what it would
//! see behind a network card: the same addresses, traffic class, flow label, hop limit, ports, acknowledgement,
//! window and options; consecutive sequence numbers; equal sizes, a shorter one ends the super-packet, as do FIN
//! and PSH; CWR starts one. Packets that do not fit end what their flow has begun, so that a flow never reorders.

use std::io::IoSlice;

use super::vnet::{GsoKind, VnetHeader};
use super::{IPV6_HEADER, Sum, TCP, UDP, be16, be32, put, tcp, udp};

/// The most packets one super-packet joins: the kernel's own limit for UDP, and 64 KiB of full TCP segments.
const MAX_PARTS: usize = 64;
/// Flows being joined at a time; the oldest is finished when one more begins.
const MAX_OPEN: usize = 16;
/// IPv6, TCP and all its options.
const MAX_HEADERS: usize = IPV6_HEADER + 60;
/// The largest IPv6 payload length.
const MAX_IP_PAYLOAD: usize = 65_535;

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
    /// TCP: flags of later parts that the whole inherits.
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
enum Candidate {
    /// Starts or continues a super-packet.
    Joins(Flow),
    /// Belongs to a flow that may be open, but joins nothing.
    Alone([u8; 36], u8),
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
        let candidate = self.classify(packet);
        let joined = match &candidate {
            Candidate::Joins(flow) => self.find(&flow.key(), flow.protocol).is_some_and(|open| {
                let joined = self.join(open, flow, slot);
                if !joined || self.is_complete(open) {
                    self.open.swap_remove(open);
                }
                joined
            }),
            Candidate::Alone(key, protocol) => {
                if let Some(open) = self.find(key, *protocol) {
                    self.open.swap_remove(open);
                }
                false
            }
            Candidate::Stranger => false,
        };
        if !joined {
            self.begin(slot, if let Candidate::Joins(flow) = candidate { Some(flow) } else { None });
        }
    }

    /// Hands every super-packet and every single packet to `write`, in order of their first packets, as the parts
    /// of one device write, with the number of packets in it; then forgets them.
    pub(crate) fn flush<'b>(
        &mut self,
        bytes: impl Fn(Slot) -> &'b [u8],
        mut write: impl FnMut(&[IoSlice<'_>], u64),
    ) {
        for group in &self.groups {
            match group.flow {
                Some(flow) if group.parts > 1 => self.write_joined(group, &flow, &bytes, &mut write),
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

    fn classify(&self, packet: &[u8]) -> Candidate {
        match packet.get(6) {
            Some(&TCP) if self.tcp => classify_tcp(packet),
            Some(&UDP) if self.udp => classify_udp(packet),
            _ => Candidate::Stranger,
        }
    }

    /// The position in `open` of the group of this flow.
    fn find(&self, key: &[u8; 36], protocol: u8) -> Option<usize> {
        self.open.iter().rposition(|&group| {
            self.groups
                .get(group as usize)
                .and_then(|group| group.flow.as_ref())
                .is_some_and(|flow| flow.protocol == protocol && flow.key() == *key)
        })
    }

    fn join(&mut self, open: usize, flow: &Flow, slot: Slot) -> bool {
        let Some(group) = self.open.get(open).and_then(|&group| self.groups.get_mut(group as usize)) else {
            return false;
        };
        let Some(head) = group.flow.as_mut() else { return false };
        if group.parts >= MAX_PARTS || !head.is_continued_by(flow) {
            return false;
        }
        head.payload += flow.payload;
        head.next_sequence = flow.next_sequence;
        head.flags |= flow.flags;
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

impl Flow {
    /// Addresses and ports.
    fn key(&self) -> [u8; 36] {
        let mut key = [0; 36];
        key.copy_from_slice(&self.headers[8..IPV6_HEADER + 4]);
        key
    }

    fn is_continued_by(&self, next: &Self) -> bool {
        let same_ip = self.headers[..4] == next.headers[..4] && self.headers[6..8] == next.headers[6..8];
        let fits = next.payload <= self.size
            && self.headers_len - IPV6_HEADER + self.payload + next.payload <= MAX_IP_PAYLOAD;
        if !same_ip || !fits || self.headers_len != next.headers_len {
            return false;
        }
        if self.protocol == UDP {
            return true;
        }
        const TCP_AT: usize = IPV6_HEADER;
        let ours = &self.headers[TCP_AT..self.headers_len];
        let theirs = &next.headers[TCP_AT..self.headers_len];
        next.sequence() == self.next_sequence
            && next.headers[TCP_AT + tcp::FLAGS] & tcp::CWR == 0
            && ours[8..13] == theirs[8..13]
            && ours[14..16] == theirs[14..16]
            && ours[18..] == theirs[18..]
    }

    /// Whether nothing may follow: the last payload was short, or a flag asks for delivery.
    fn is_complete(&self) -> bool {
        !self.payload.is_multiple_of(self.size) || self.flags & (tcp::FIN | tcp::PSH) != 0
    }

    fn sequence(&self) -> u32 {
        be32(&self.headers, IPV6_HEADER + tcp::SEQUENCE).unwrap_or_default()
    }

    /// The super-packet's headers: the first packet's with the whole's length and flags and a partial checksum.
    fn joined(&self) -> (VnetHeader, [u8; MAX_HEADERS]) {
        let mut headers = self.headers;
        let len = self.headers_len - IPV6_HEADER + self.payload;
        headers[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        let field = if self.protocol == TCP {
            headers[IPV6_HEADER + tcp::FLAGS] |= self.flags & (tcp::FIN | tcp::PSH);
            tcp::CHECKSUM
        } else {
            let at = IPV6_HEADER + udp::LENGTH;
            headers[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            udp::CHECKSUM
        };
        let partial = pseudo_header(&headers, self.protocol, len).map_or([0, 0], Sum::fold);
        headers[IPV6_HEADER + field..IPV6_HEADER + field + 2].copy_from_slice(&partial);
        let vnet = VnetHeader {
            needs_csum: true,
            kind: if self.protocol == TCP { GsoKind::Tcp6 } else { GsoKind::Udp },
            ecn: self.protocol == TCP && headers[IPV6_HEADER + tcp::FLAGS] & tcp::CWR != 0,
            header_len: self.headers_len as u16,
            gso_size: self.size as u16,
            csum_start: IPV6_HEADER as u16,
            csum_offset: field as u16,
        };
        (vnet, headers)
    }
}

fn classify_tcp(packet: &[u8]) -> Candidate {
    let Some(key) = key(packet) else { return Candidate::Stranger };
    let alone = Candidate::Alone(key, TCP);
    let Some(segment) = packet.get(IPV6_HEADER..) else { return alone };
    let (Some(offset), Some(flags)) = (segment.get(tcp::DATA_OFFSET), segment.get(tcp::FLAGS)) else {
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
    let Some(sequence) = be32(segment, tcp::SEQUENCE) else { return alone };
    let next_sequence = sequence.wrapping_add(payload as u32);
    flow(packet, TCP, header, payload, next_sequence, *flags).map_or(alone, Candidate::Joins)
}

fn classify_udp(packet: &[u8]) -> Candidate {
    let Some(key) = key(packet) else { return Candidate::Stranger };
    let alone = Candidate::Alone(key, UDP);
    let Some(datagram) = packet.get(IPV6_HEADER..) else { return alone };
    let Some(payload) = datagram.len().checked_sub(udp::HEADER) else { return alone };
    let whole = be16(datagram, udp::LENGTH).map(usize::from) == Some(datagram.len());
    let summed = be16(datagram, udp::CHECKSUM) != Some(0);
    if !whole || !summed || payload == 0 || !verifies(packet, UDP) {
        return alone;
    }
    flow(packet, UDP, udp::HEADER, payload, 0, 0).map_or(alone, Candidate::Joins)
}

/// Addresses and ports of a packet whose transport header follows IPv6's at once.
fn key(packet: &[u8]) -> Option<[u8; 36]> {
    packet.get(8..IPV6_HEADER + 4)?.try_into().ok()
}

fn flow(
    packet: &[u8],
    protocol: u8,
    header: usize,
    payload: usize,
    next_sequence: u32,
    flags: u8,
) -> Option<Flow> {
    let headers_len = IPV6_HEADER + header;
    let mut headers = [0; MAX_HEADERS];
    put(&mut headers, 0, packet.get(..headers_len)?)?;
    Some(Flow { protocol, headers, headers_len, size: payload, payload, next_sequence, flags })
}

fn verifies(packet: &[u8], protocol: u8) -> bool {
    let Some(segment) = packet.get(IPV6_HEADER..) else { return false };
    pseudo_header(packet, protocol, segment.len()).is_some_and(|sum| sum.add(segment).verifies())
}

fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> Option<Sum> {
    let ipv6 = packet.first_chunk::<IPV6_HEADER>()?;
    Some(Sum::default().add_pseudo_header(ipv6, protocol, len as u32))
}

#[cfg(test)]
mod tests;
