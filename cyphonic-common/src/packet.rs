//! Headers of the packets around and inside a tunnel.
//!
//! One parser per header, each reading through a [`Cursor`] so that it runs unchanged over an XDP frame, a
//! socket buffer or a slice. They check what must hold for the next header to be found, and no more: whether
//! a packet is *wanted* is the business of [`crate::classify`].
//!
//! [`parse_ip`] goes from an IP header to UDP; [`parse_ethernet`] starts one layer further out.
//!
//! Here, too, are the places and numbers of headers that others read: [`tcp`], [`icmpv6`], [`protocol`].

pub mod ethernet;
pub mod icmpv6;
pub mod ip;
pub mod protocol;
pub mod tcp;
pub mod udp;

use core::fmt;

pub use ethernet::{EtherType, Ethernet};
pub use ip::{Ip, Ipv4, Ipv6};
pub use udp::Udp;

use crate::buffer::{Buffer, Cursor, Truncated};

/// What is wrong with a packet's headers. Its sender erred, or it was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketError {
    /// The packet ends before its headers do, or before the length they promise.
    Truncated,
    /// The IP version is neither 4 nor 6, or not the one that the Ethernet type says.
    Version(u8),
    /// An IPv4 header length below 20 bytes, or beyond the packet's total length.
    HeaderLength,
    /// A total or UDP length smaller than its own header, or a UDP length beyond the IP payload.
    Length,
    /// More than [`ip::MAX_EXTENSION_HEADERS`] IPv6 extension headers.
    TooManyExtensions,
}

impl From<Truncated> for PacketError {
    #[inline(always)]
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("packet ends before its headers do"),
            Self::Version(version) => write!(f, "IP version {version} does not belong here"),
            Self::HeaderLength => f.write_str("IPv4 header length is impossible"),
            Self::Length => f.write_str("a length field contradicts the headers"),
            Self::TooManyExtensions => f.write_str("too many IPv6 extension headers"),
        }
    }
}

impl core::error::Error for PacketError {}

/// What follows the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP, with its header.
    Udp(Udp),
    /// A fragment other than an unfragmented packet: its transport header is absent or incomplete.
    Fragment,
    /// Another protocol, by its IANA number.
    Other(u8),
}

/// An IP packet's headers, and where its payload starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPacket {
    /// The IP header.
    pub ip: Ip,
    /// What it carries.
    pub transport: Transport,
    /// Offset of the transport's payload (for UDP) or of the transport header (otherwise), from where the
    /// packet's buffer starts.
    pub payload_offset: usize,
    /// Bytes of that payload.
    pub payload_len: usize,
}

/// Parses from an IP header at the cursor to the end of a UDP header.
///
/// # Errors
/// [`PacketError`] where a header is cut or contradicts itself.
#[inline(always)]
pub fn parse_ip<B: Buffer + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<IpPacket, PacketError> {
    let ip = Ip::parse(cursor)?;
    let available = ip.payload_len();
    if available > cursor.remaining() {
        return Err(PacketError::Truncated);
    }
    if ip.is_fragment() {
        return Ok(packet(ip, Transport::Fragment, cursor.offset(), available));
    }
    if ip.protocol() != protocol::UDP {
        return Ok(packet(ip, Transport::Other(ip.protocol()), cursor.offset(), available));
    }
    let header = Udp::parse(cursor, available)?;
    Ok(packet(ip, Transport::Udp(header), cursor.offset(), header.payload_len()))
}

/// Parses an Ethernet frame down to UDP. `None` where it carries neither IPv4 nor IPv6.
///
/// # Errors
/// [`PacketError`] where a header is cut or contradicts itself or the frame's type.
#[inline(always)]
pub fn parse_ethernet<B: Buffer + ?Sized>(
    cursor: &mut Cursor<'_, B>,
) -> Result<(Ethernet, Option<IpPacket>), PacketError> {
    let ethernet = Ethernet::parse(cursor)?;
    let expected = match ethernet.ether_type {
        EtherType::Ipv4 => 4,
        EtherType::Ipv6 => 6,
        EtherType::Other(_) => return Ok((ethernet, None)),
    };
    let [first] = cursor.peek::<1>()?;
    if first >> 4 != expected {
        return Err(PacketError::Version(first >> 4));
    }
    Ok((ethernet, Some(parse_ip(cursor)?)))
}

#[inline(always)]
const fn packet(ip: Ip, transport: Transport, payload_offset: usize, payload_len: usize) -> IpPacket {
    IpPacket { ip, transport, payload_offset, payload_len }
}

#[cfg(test)]
mod tests;
