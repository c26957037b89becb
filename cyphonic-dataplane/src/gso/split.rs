//! Cutting a super-packet into the packets that travel.

use cyphonic_common::packet::ip::{IPV6_HEADER_LEN, IPV6_PAYLOAD_LEN};
use cyphonic_common::packet::tcp;
use cyphonic_common::packet::udp::{self, UDP_HEADER_LEN};

use super::vnet::{GsoKind, VnetHeader};
use super::{Sum, be16, be32, put};

/// The most headers a packet may have before its payload: 60 bytes of TCP behind 40 of IPv6 and what the
/// kernel puts between.
const MAX_HEADERS: usize = 512;

/// How the parts of a packet are made from it.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// One packet, complete.
    Whole,
    /// One packet whose checksum must be completed.
    Complete { start: usize, field: usize },
    /// TCP segments.
    Tcp { transport: usize, sequence: u32 },
    /// UDP datagrams.
    Udp { transport: usize },
}

/// A packet as an application's kernel handed it over: to be cut into one or more packets that travel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuperPacket<'a> {
    packet: &'a [u8],
    cut: Cut,
    /// Bytes that every part begins with.
    headers: usize,
    /// Payload of every part but the last.
    size: usize,
    /// How many packets this is: a division, which is not repeated for each of them.
    parts: usize,
    /// The partial checksum the kernel left (the pseudo-header's sum), without the length in it.
    partial: Sum,
}

impl<'a> SuperPacket<'a> {
    /// Checks a packet against its virtio-net header. `None` if they contradict each other.
    pub(crate) fn parse(vnet: &VnetHeader, packet: &'a [u8]) -> Option<Self> {
        let ip_len = usize::from(be16(packet, IPV6_PAYLOAD_LEN)?);
        if packet.first()? >> 4 != 6 || IPV6_HEADER_LEN + ip_len != packet.len() {
            return None;
        }
        let transport = usize::from(vnet.csum_start);
        let field = transport + usize::from(vnet.csum_offset);
        let whole = Self {
            packet,
            cut: Cut::Whole,
            headers: packet.len(),
            size: 0,
            parts: 1,
            partial: Sum::default(),
        };
        match (vnet.kind, vnet.needs_csum) {
            (GsoKind::None, false) => Some(whole),
            (GsoKind::None, true) => {
                let fits = transport >= IPV6_HEADER_LEN && field + 2 <= packet.len();
                fits.then_some(Self { cut: Cut::Complete { start: transport, field }, ..whole })
            }
            (GsoKind::Tcp6, true) if field == transport + tcp::CHECKSUM => whole.tcp(vnet, transport),
            (GsoKind::Udp, true) if field == transport + udp::CHECKSUM => whole.udp(vnet, transport),
            _ => None,
        }
    }

    fn tcp(self, vnet: &VnetHeader, transport: usize) -> Option<Self> {
        let header = usize::from(self.packet.get(transport + tcp::DATA_OFFSET)? >> 4) * 4;
        let sequence = be32(self.packet, transport + tcp::SEQUENCE)?;
        let fits = header >= tcp::MIN_HEADER;
        let cut = Cut::Tcp { transport, sequence };
        fits.then(|| self.cut(vnet, cut, transport, header, tcp::CHECKSUM)).flatten()
    }

    fn udp(self, vnet: &VnetHeader, transport: usize) -> Option<Self> {
        self.cut(vnet, Cut::Udp { transport }, transport, UDP_HEADER_LEN, udp::CHECKSUM)
    }

    fn cut(
        self,
        vnet: &VnetHeader,
        cut: Cut,
        transport: usize,
        header: usize,
        checksum: usize,
    ) -> Option<Self> {
        let headers = transport + header;
        let size = usize::from(vnet.gso_size);
        let fits = transport >= IPV6_HEADER_LEN && headers <= MAX_HEADERS && headers < self.packet.len();
        if !fits || size == 0 {
            return None;
        }
        let field = transport + checksum;
        // The kernel's partial sum counts the super-packet's length; each part has its own.
        let partial = Sum::default()
            .add(self.packet.get(field..field + 2)?)
            .sub_be32((self.packet.len() - transport) as u32);
        let parts = (self.packet.len() - headers).div_ceil(size);
        Some(Self { cut, headers, size, parts, partial, ..self })
    }

    /// The same, cut into packets of at most `largest` bytes. TCP does not mind, as it numbers bytes; `None`
    /// for anything else, whose packets mean something as they are.
    pub(crate) fn cut_to(&self, largest: usize) -> Option<Self> {
        let size = largest.checked_sub(self.headers).filter(|size| *size > 0)?;
        if !matches!(self.cut, Cut::Tcp { .. }) {
            return None;
        }
        let size = size.min(self.size);
        Some(Self { size, parts: (self.packet.len() - self.headers).div_ceil(size), ..*self })
    }

    /// How many packets this is.
    pub(crate) fn count(&self) -> usize {
        self.parts
    }

    /// The largest of them.
    pub(crate) fn largest(&self) -> usize {
        (self.headers + self.size).min(self.packet.len())
    }

    /// The length of packet `index`.
    pub(crate) fn part_len(&self, index: usize) -> usize {
        match self.cut {
            Cut::Whole | Cut::Complete { .. } => self.packet.len(),
            Cut::Tcp { .. } | Cut::Udp { .. } => {
                let left = (self.packet.len() - self.headers).saturating_sub(index * self.size);
                self.headers + left.min(self.size)
            }
        }
    }

    /// Writes packet `index` to the start of `out` and returns its length; `None` if there is no such packet
    /// or it does not fit.
    pub(crate) fn write_part(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        if index >= self.count() {
            return None;
        }
        let out = out.get_mut(..self.part_len(index))?;
        match self.cut {
            Cut::Whole => out.copy_from_slice(self.packet),
            Cut::Complete { start, field } => self.write_completed(start, field, out)?,
            Cut::Tcp { transport, sequence } => self.write_tcp(index, transport, sequence, out)?,
            Cut::Udp { transport } => self.write_udp(index, transport, out)?,
        }
        Some(out.len())
    }

    fn write_completed(&self, start: usize, field: usize, out: &mut [u8]) -> Option<()> {
        out.copy_from_slice(self.packet);
        // The field holds the pseudo-header's sum and is itself summed (virtio 1.2 §5.1.6.2).
        let sum = Sum::default().add(out.get(start..)?);
        let is_udp = field - start == udp::CHECKSUM;
        put(out, field, &if is_udp { sum.finish_udp() } else { sum.finish() })
    }

    fn write_tcp(&self, index: usize, transport: usize, sequence: u32, out: &mut [u8]) -> Option<()> {
        let payload = self.write_common(index, out)?;
        let last = index + 1 == self.count();
        let sequence = sequence.wrapping_add((index * self.size) as u32);
        put(out, transport + tcp::SEQUENCE, &sequence.to_be_bytes())?;
        let flags = out.get_mut(transport + tcp::FLAGS)?;
        if index > 0 {
            *flags &= !tcp::CWR;
        }
        if !last {
            *flags &= !(tcp::FIN | tcp::PSH);
        }
        let sum = self.sum(transport, tcp::CHECKSUM, out, payload)?;
        put(out, transport + tcp::CHECKSUM, &sum.finish())
    }

    fn write_udp(&self, index: usize, transport: usize, out: &mut [u8]) -> Option<()> {
        let payload = self.write_common(index, out)?;
        let len = (out.len() - transport) as u16;
        put(out, transport + udp::LENGTH, &len.to_be_bytes())?;
        let sum = self.sum(transport, udp::CHECKSUM, out, payload)?;
        put(out, transport + udp::CHECKSUM, &sum.finish_udp())
    }

    /// Headers, this part's payload, and the IPv6 length. Returns the payload's sum: summing while copying
    /// reads it once.
    fn write_common(&self, index: usize, out: &mut [u8]) -> Option<Sum> {
        let (headers, payload) = out.split_at_mut_checked(self.headers)?;
        headers.copy_from_slice(self.packet.get(..self.headers)?);
        let from = self.headers + index * self.size;
        let sum = Sum::default().add_copying(self.packet.get(from..from + payload.len())?, payload)?;
        let ip_len = (out.len() - IPV6_HEADER_LEN) as u16;
        put(out, IPV6_PAYLOAD_LEN, &ip_len.to_be_bytes())?;
        Some(sum)
    }

    /// The sum of a segment whose headers are complete but for the checksum. They end at an even offset.
    fn sum(&self, transport: usize, checksum: usize, out: &mut [u8], payload: Sum) -> Option<Sum> {
        put(out, transport + checksum, &[0, 0])?;
        let len = out.len() - transport;
        Some(self.partial.add_be32(len as u32).add(out.get(transport..self.headers)?).plus(payload))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use cyphonic_common::packet::protocol::{TCP, UDP};

    const SEQUENCE: u32 = u32::MAX - 1_000;

    /// A super-packet with this payload, as the kernel hands it over: to be cut into segments with `size`
    /// bytes each.
    fn super_packet(kind: GsoKind, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let (protocol, header, checksum) = match kind {
            GsoKind::Tcp6 => (TCP, tcp::MIN_HEADER, tcp::CHECKSUM),
            _ => (UDP, UDP_HEADER_LEN, udp::CHECKSUM),
        };
        let len = header + payload.len();
        let mut packet = vec![0; IPV6_HEADER_LEN + header];
        (packet[0], packet[6], packet[7], packet[8], packet[24]) = (0x60, protocol, 64, 0xfd, 0xfd);
        packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        if kind == GsoKind::Tcp6 {
            put(&mut packet, IPV6_HEADER_LEN + tcp::SEQUENCE, &SEQUENCE.to_be_bytes());
            packet[IPV6_HEADER_LEN + tcp::DATA_OFFSET] = (tcp::MIN_HEADER as u8 / 4) << 4;
            packet[IPV6_HEADER_LEN + tcp::FLAGS] = tcp::FIN | tcp::PSH | tcp::CWR;
        }
        let ipv6 = packet.first_chunk().unwrap();
        let sum = Sum::default().add_pseudo_header(ipv6, protocol, len as u32);
        put(&mut packet, IPV6_HEADER_LEN + checksum, &sum.fold());
        packet.extend_from_slice(payload);
        let vnet = VnetHeader {
            needs_csum: true,
            kind,
            gso_size: size,
            csum_start: IPV6_HEADER_LEN as u16,
            csum_offset: checksum as u16,
            ..VnetHeader::PLAIN
        };
        (vnet, packet)
    }

    proptest! {
        #[test]
        fn tcp_cut_smaller_is_the_same_stream_in_right_packets(
            payload in proptest::collection::vec(any::<u8>(), 2..20_000), size in 1u16..9_000, largest in 61usize..9_000,
        ) {
            let (vnet, packet) = super_packet(GsoKind::Tcp6, &payload, size);
            let whole = SuperPacket::parse(&vnet, &packet).unwrap();
            let smaller = whole.cut_to(largest).unwrap();
            prop_assert!(smaller.largest() <= largest.min(whole.largest()));
            let mut joined = Vec::new();
            for part in 0..smaller.count() {
                let mut out = vec![0; smaller.part_len(part)];
                prop_assert_eq!(smaller.write_part(part, &mut out), Some(out.len()));
                let (ip, segment) = out.split_first_chunk::<IPV6_HEADER_LEN>().unwrap();
                prop_assert_eq!(usize::from(be16(ip, 4).unwrap()), segment.len());
                let sum = Sum::default().add_pseudo_header(ip, TCP, segment.len() as u32).add(segment);
                prop_assert!(sum.verifies(), "part {}", part);
                let sequence = SEQUENCE.wrapping_add(joined.len() as u32);
                prop_assert_eq!(be32(segment, tcp::SEQUENCE), Some(sequence));
                let (first, last) = (part == 0, part + 1 == smaller.count());
                let flags = segment[tcp::FLAGS];
                prop_assert_eq!((flags & tcp::CWR != 0, flags & tcp::FIN != 0), (first, last));
                joined.extend_from_slice(&segment[tcp::MIN_HEADER..]);
            }
            prop_assert_eq!(joined, payload);
        }
    }

    #[test]
    fn datagrams_mean_something_as_they_are() {
        let (vnet, packet) = super_packet(GsoKind::Udp, &[7; 4_000], 1_300);
        assert!(SuperPacket::parse(&vnet, &packet).unwrap().cut_to(1_000).is_none());
        let (vnet, packet) = super_packet(GsoKind::Tcp6, &[7; 4_000], 1_300);
        assert!(SuperPacket::parse(&vnet, &packet).unwrap().cut_to(60).is_none(), "no room for any payload");
    }
}
