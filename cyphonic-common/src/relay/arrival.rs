//! What an arriving frame is: everything about it that must be known before it is touched.

use super::address::{Address, Sum};
use super::map::{Family, PassReason, RelayConfig};
use super::origin::Origin;
use crate::buffer::Buffer;
use crate::packet::ethernet::{ETHERNET_IPV4, ETHERNET_IPV6, ETHERNET_LEN};
use crate::packet::ip::{
    IPV4_FRAGMENT, IPV4_HEADER_LEN, IPV4_PLAIN, IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_SOURCE,
};
use crate::packet::protocol;
use crate::packet::udp::UDP_HEADER_LEN;
use crate::quic::{DatagramKind, classify_datagram_at};

/// UDP's protocol number as it stands in a pseudo header.
const PSEUDO_PROTOCOL: u16 = u16::from_ne_bytes([0, protocol::UDP]);

/// A data packet for the relay's port. Sixteen-bit words are as they lie in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Where it comes from, and where to.
    pub origin: Origin,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// IPv4's identification, or IPv6's flow label.
    pub label: u32,
    /// Length of UDP header and payload.
    pub udp_len: u16,
    /// UDP checksum.
    pub checksum: u16,
    /// The sum of both addresses, which is a part of it.
    pub addresses: Sum,
    /// The virtual connection ID, as it lies in the frame.
    pub cid: u64,
}

/// An IP header's part of an [`Arrival`].
struct IpHeader {
    family: Family,
    source: Address,
    destination: Address,
    addresses: Sum,
    traffic_class: u8,
    hop_limit: u8,
    label: u32,
    /// Offset of the payload in the frame.
    payload: usize,
    /// Bytes of the payload.
    payload_len: usize,
}

impl Arrival {
    /// Reads a frame's headers, and refuses what is not a plain data packet to the relay's port.
    ///
    /// # Errors
    /// Why it is not the relay's.
    #[inline(always)]
    pub fn read<B: Buffer + ?Sized>(frame: &B, config: &RelayConfig) -> Result<Self, PassReason> {
        match ether_type(frame).ok_or(PassReason::Malformed)? {
            IPV4 => Self::read_udp(frame, config, read_ipv4(frame)?),
            IPV6 => Self::read_udp(frame, config, read_ipv6(frame)?),
            _ => Err(PassReason::NotIp),
        }
    }

    #[inline(always)]
    fn read_udp<B: Buffer + ?Sized>(
        frame: &B,
        config: &RelayConfig,
        ip: IpHeader,
    ) -> Result<Self, PassReason> {
        let [l0, l1, c0, c1] = word(frame, ip.payload + 4)?.to_ne_bytes();
        let [s0, s1, d0, d1] = word(frame, ip.payload)?.to_ne_bytes();
        if [d0, d1] != config.port() {
            return Err(PassReason::OtherPort);
        }
        // A shorter UDP datagram would have a tail that no checksum covers; the stack cuts it off.
        if usize::from(u16::from_be_bytes([l0, l1])) != ip.payload_len {
            return Err(PassReason::Malformed);
        }
        if frame.len() < ip.payload + ip.payload_len {
            return Err(PassReason::Malformed);
        }
        let cid = read_cid(frame, ip.payload + UDP_HEADER_LEN, ip.payload_len)?;
        Ok(Self {
            origin: Origin {
                family: ip.family,
                source: ip.source,
                source_port: u16::from_ne_bytes([s0, s1]),
                destination: ip.destination,
            },
            traffic_class: ip.traffic_class,
            hop_limit: ip.hop_limit,
            label: ip.label,
            udp_len: u16::from_ne_bytes([l0, l1]),
            checksum: u16::from_ne_bytes([c0, c1]),
            addresses: ip.addresses,
            cid,
        })
    }

    /// Whether the checksum covers no more than the pseudo header. So it is in frames made on this machine,
    /// where the network card was to complete it, and in frames merged from several datagrams. One in
    /// 65,536 complete checksums looks like that too: userspace forwards those packets as well.
    #[inline(always)]
    pub const fn has_partial_checksum(&self) -> bool {
        self.addresses.plus_word(PSEUDO_PROTOCOL).plus_word(self.udp_len).fold() == self.checksum
    }

    /// Bytes of the UDP payload. One that was read has the length of a header at least.
    #[inline(always)]
    pub const fn payload_len(&self) -> usize {
        u16::from_be(self.udp_len).wrapping_sub(UDP_HEADER_LEN as u16) as usize
    }
}

/// [`ETHERNET_IPV4`] as a word in memory: two bytes would be compared one by one.
const IPV4: u16 = u16::from_ne_bytes(ETHERNET_IPV4);
/// [`ETHERNET_IPV6`], likewise.
const IPV6: u16 = u16::from_ne_bytes(ETHERNET_IPV6);

#[inline(always)]
fn ether_type<B: Buffer + ?Sized>(frame: &B) -> Option<u16> {
    frame.read(ETHERNET_LEN - 2).map(u16::from_ne_bytes)
}

/// The connection ID of what looks like a data packet to the relay's port: nothing else is checked.
#[inline(always)]
pub(super) fn glimpse<B: Buffer + ?Sized>(frame: &B, config: &RelayConfig) -> Option<u64> {
    let udp = match ether_type(frame)? {
        IPV4 => ETHERNET_LEN + IPV4_HEADER_LEN,
        IPV6 => ETHERNET_LEN + IPV6_HEADER_LEN,
        _ => return None,
    };
    let cid = frame.read(udp + UDP_HEADER_LEN + 1)?;
    (frame.read::<2>(udp + 2)? == config.port()).then(|| u64::from_ne_bytes(cid))
}

#[inline(always)]
fn read_ipv4<B: Buffer + ?Sized>(frame: &B) -> Result<IpHeader, PassReason> {
    // The last word first: if it is there, all are.
    let destination = word(frame, ETHERNET_LEN + 16)?;
    let words = [
        word(frame, ETHERNET_LEN)?,
        word(frame, ETHERNET_LEN + 4)?,
        word(frame, ETHERNET_LEN + 8)?,
        word(frame, ETHERNET_LEN + 12)?,
    ];
    let [version, tos, l0, l1] = words[0].to_ne_bytes();
    let [i0, i1, f0, f1] = words[1].to_ne_bytes();
    let [ttl, protocol, _, _] = words[2].to_ne_bytes();
    if version != IPV4_PLAIN {
        let options = version >> 4 == 4 && version & 0x0f > 5;
        return Err(if options { PassReason::Options } else { PassReason::Malformed });
    }
    if protocol != protocol::UDP {
        return Err(PassReason::NotUdp);
    }
    if u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0 {
        return Err(PassReason::Fragment);
    }
    // The checksum of a header with its checksum is all ones (RFC 1071 §1).
    let [w0, w1, w2, source] = words;
    let sum = Sum::of_word(0).plus_u32(w0).plus_u32(w1).plus_u32(w2).plus_u32(source).plus_u32(destination);
    if sum.fold() != 0xffff {
        return Err(PassReason::Malformed);
    }
    Ok(IpHeader {
        family: Family::V4,
        source: Address::from_v4(source.to_ne_bytes()),
        destination: Address::from_v4(destination.to_ne_bytes()),
        addresses: Sum::of_word(0).plus_u32(source).plus_u32(destination),
        traffic_class: tos,
        hop_limit: ttl,
        label: u32::from(u16::from_be_bytes([i0, i1])),
        payload: ETHERNET_LEN + IPV4_HEADER_LEN,
        payload_len: usize::from(u16::from_be_bytes([l0, l1])).saturating_sub(IPV4_HEADER_LEN),
    })
}

#[inline(always)]
fn read_ipv6<B: Buffer + ?Sized>(frame: &B) -> Result<IpHeader, PassReason> {
    let destination = frame.read::<16>(ETHERNET_LEN + IPV6_DESTINATION).ok_or(PassReason::Malformed)?;
    let source = frame.read::<16>(ETHERNET_LEN + IPV6_SOURCE).ok_or(PassReason::Malformed)?;
    let flow = u32::from_be(word(frame, ETHERNET_LEN)?);
    let [l0, l1, next_header, hop_limit] = word(frame, ETHERNET_LEN + 4)?.to_ne_bytes();
    if flow >> 28 != 6 {
        return Err(PassReason::Malformed);
    }
    if next_header != protocol::UDP {
        return Err(PassReason::NotUdp);
    }
    let (source, destination) = (Address::from_bytes(&source), Address::from_bytes(&destination));
    Ok(IpHeader {
        family: Family::V6,
        source,
        destination,
        addresses: Sum::of_word(0).plus_address(source).plus_address(destination),
        traffic_class: (flow >> 20) as u8,
        hop_limit,
        label: flow & 0x000f_ffff,
        payload: ETHERNET_LEN + IPV6_HEADER_LEN,
        payload_len: usize::from(u16::from_be_bytes([l0, l1])),
    })
}

/// Four bytes, as they lie in the frame.
#[inline(always)]
fn word<B: Buffer + ?Sized>(frame: &B, offset: usize) -> Result<u32, PassReason> {
    frame.read(offset).map(u32::from_ne_bytes).ok_or(PassReason::Malformed)
}

/// The connection ID of a data packet of `udp_len` bytes with header, whose payload starts at `offset`. Bytes
/// behind the payload are padding of the frame and no part of the packet.
#[inline(always)]
fn read_cid<B: Buffer + ?Sized>(frame: &B, offset: usize, udp_len: usize) -> Result<u64, PassReason> {
    match classify_datagram_at(frame, offset) {
        DatagramKind::Signalling => Err(PassReason::Signalling),
        DatagramKind::NotQuic => Err(PassReason::NotQuic),
        DatagramKind::Data(_) if udp_len < UDP_HEADER_LEN + crate::quic::SHORT_HEADER_LEN => {
            Err(PassReason::NotQuic)
        }
        DatagramKind::Data(cid) => Ok(u64::from_ne_bytes(*cid.as_bytes())),
    }
}
