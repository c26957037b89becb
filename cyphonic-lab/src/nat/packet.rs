//! IP packets as a translator sees them: a header of either version, and what follows it.
//!
//! Everything is read through slices that may be too short: damaged packets are `None`, never a panic.
//! Fragments and extension headers are not translated (the lab's own traffic has none), nor are IPv4 options
//! kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER: usize = 40;

/// What both versions of the header say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// What follows, as IPv4 or IPv6 numbers it.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Type of service or traffic class.
    pub class: u8,
    /// Whether routers may fragment it; never so with IPv6.
    pub dont_fragment: bool,
    /// IPv4's identification.
    pub id: u16,
    /// Bytes that follow, as the header claims: more than there are in what an ICMP error quotes.
    pub length: u16,
}

/// Reads a header, and returns what follows it: all of it where `whole`, as much as there is otherwise.
pub fn decode(packet: &[u8], whole: bool) -> Option<(Header, &[u8])> {
    let (header, rest) = match packet.first()? >> 4 {
        4 => decode_v4(packet)?,
        6 => decode_v6(packet)?,
        _ => return None,
    };
    let length = usize::from(header.length);
    if whole && rest.len() < length {
        return None;
    }
    Some((header, rest.get(..length).unwrap_or(rest)))
}

fn decode_v4(packet: &[u8]) -> Option<(Header, &[u8])> {
    let fixed = packet.first_chunk::<IPV4_HEADER>()?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
    let more_or_offset = fragment & 0x3fff;
    if header_len < IPV4_HEADER || more_or_offset != 0 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]])).checked_sub(header_len)?;
    let header = Header {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        protocol: fixed[9],
        hops: fixed[8],
        class: fixed[1],
        dont_fragment: fragment & 0x4000 != 0,
        id: u16::from_be_bytes([fixed[4], fixed[5]]),
        length: u16::try_from(length).ok()?,
    };
    Some((header, packet.get(header_len..)?))
}

fn decode_v6(packet: &[u8]) -> Option<(Header, &[u8])> {
    let fixed = packet.first_chunk::<IPV6_HEADER>()?;
    let address = |bytes: Option<&[u8; 16]>| bytes.map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes)));
    let header = Header {
        source: address(fixed.get(8..)?.first_chunk())?,
        destination: address(fixed.get(24..)?.first_chunk())?,
        protocol: fixed[6],
        hops: fixed[7],
        class: (u16::from_be_bytes([fixed[0], fixed[1]]) >> 4) as u8,
        dont_fragment: true,
        id: 0,
        length: u16::from_be_bytes([fixed[4], fixed[5]]),
    };
    Some((header, packet.get(IPV6_HEADER..)?))
}

/// Appends a header to `out`, in the version of its addresses. `None` if they differ, or it would be too
/// long.
pub fn encode(header: &Header, out: &mut Vec<u8>) -> Option<()> {
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = header.length.checked_add(IPV4_HEADER as u16)?;
            let mut bytes = [0; IPV4_HEADER];
            (bytes[0], bytes[1]) = (0x45, header.class);
            [bytes[2], bytes[3]] = total.to_be_bytes();
            [bytes[4], bytes[5]] = header.id.to_be_bytes();
            bytes[6] = if header.dont_fragment { 0x40 } else { 0 };
            (bytes[8], bytes[9]) = (header.hops, header.protocol);
            [bytes[12], bytes[13], bytes[14], bytes[15]] = source.octets();
            [bytes[16], bytes[17], bytes[18], bytes[19]] = destination.octets();
            [bytes[10], bytes[11]] = (!folded(sum(&bytes))).to_be_bytes();
            out.extend_from_slice(&bytes);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let first = 0x6000_0000 | u32::from(header.class) << 20;
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&header.length.to_be_bytes());
            out.extend_from_slice(&[header.protocol, header.hops]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    Some(())
}

/// The sum of 16-bit words that Internet checksums are made of (RFC 1071), not folded yet.
pub fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    words.fold(0, |sum, word| sum.wrapping_add(word))
}

/// Folds a sum to 16 bits.
pub fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over an address.
pub fn address_sum(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// The pseudo-header's sum for a transport protocol (RFC 9293 §3.1, RFC 8200 §8.1).
pub fn pseudo_header_sum(header: &Header) -> u32 {
    address_sum(header.source)
        + address_sum(header.destination)
        + u32::from(header.protocol)
        + u32::from(header.length)
}

/// A checksum after the summed words changed from `old` to `new` (RFC 1624 eqn. 3): what was wrong stays
/// wrong.
pub fn adjusted(checksum: u16, old: u32, new: u32) -> u16 {
    let kept = u32::from(!checksum) + u32::from(!folded(old)) + u32::from(folded(new));
    !folded(kept)
}

/// Two bytes at an offset.
pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

/// Writes two bytes at an offset.
pub fn set_word(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}
