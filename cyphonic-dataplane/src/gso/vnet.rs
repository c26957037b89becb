//! The virtio-net header in front of every packet of the TUN device (virtio 1.2 §5.1.6, legacy layout).

/// Length of the legacy header, without `num_buffers`.
pub(crate) const VNET_HEADER_LEN: usize = 10;

/// The checksum is partial: sum from `csum_start`, store at `csum_start + csum_offset`.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The segments carry ECN-capable transport's CWR on the first one.
const GSO_ECN: u8 = 0x80;

/// What the packet behind the header is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GsoKind {
    /// One packet.
    None,
    /// TCP over IPv6 to be cut.
    Tcp6,
    /// UDP to be cut.
    Udp,
    /// IPv4, or a kind this side never asked for.
    Other,
}

/// A parsed header. Fields are in the host's byte order, as TUN hands them over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VnetHeader {
    pub(crate) needs_csum: bool,
    pub(crate) kind: GsoKind,
    pub(crate) ecn: bool,
    pub(crate) header_len: u16,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// A packet that is complete as it is.
    pub(crate) const PLAIN: Self = Self {
        needs_csum: false,
        kind: GsoKind::None,
        ecn: false,
        header_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Splits what was read from the device into header and packet.
    pub(crate) fn parse(read: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = read.split_first_chunk::<VNET_HEADER_LEN>()?;
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *header;
        let header = Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            kind: match gso_type & !GSO_ECN {
                0 => GsoKind::None,
                GSO_TCPV6 => GsoKind::Tcp6,
                GSO_UDP_L4 => GsoKind::Udp,
                _ => GsoKind::Other,
            },
            ecn: gso_type & GSO_ECN != 0,
            header_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some((header, packet))
    }

    /// The header as the device takes it. [`GsoKind::Other`] is never written and encodes as no offload.
    pub(crate) fn encode(&self) -> [u8; VNET_HEADER_LEN] {
        let kind = match self.kind {
            GsoKind::None | GsoKind::Other => 0,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        };
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let flags = if self.needs_csum { NEEDS_CSUM } else { 0 };
        [flags, kind | if self.ecn { GSO_ECN } else { 0 }, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding() {
        let header = VnetHeader {
            needs_csum: true,
            kind: GsoKind::Tcp6,
            ecn: true,
            header_len: 72,
            gso_size: 1348,
            csum_start: 40,
            csum_offset: 16,
        };
        let mut read = header.encode().to_vec();
        read.extend_from_slice(b"rest");
        assert_eq!(VnetHeader::parse(&read), Some((header, &b"rest"[..])));
        assert_eq!(VnetHeader::parse(&read[..9]), None);
    }
}
