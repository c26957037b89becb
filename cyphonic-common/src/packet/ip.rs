//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use super::PacketError;
use super::protocol::{AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
use crate::buffer::{Buffer, Cursor};

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// The first byte of one without options: the version, and the length in words.
pub const IPV4_PLAIN: u8 = 0x45;
/// In the word of flags and fragment offset: Don't Fragment.
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;
/// In the same: More Fragments, or an offset, which only fragments have.
pub const IPV4_FRAGMENT: u16 = 0x3fff;
/// Bytes of the fixed IPv6 header.
pub const IPV6_HEADER_LEN: usize = 40;
/// Where it has the length of what follows it.
pub const IPV6_PAYLOAD_LEN: usize = 4;
/// Where it has the protocol of what follows it.
pub const IPV6_NEXT_HEADER: usize = 6;
/// Where it has its source.
pub const IPV6_SOURCE: usize = 8;
/// Where it has its destination.
pub const IPV6_DESTINATION: usize = 24;
/// The least MTU of an IPv6 link (RFC 8200 §5).
pub const IPV6_MIN_MTU: usize = 1280;
/// Extension headers followed before a packet is given up. Real packets have at most a few, and the verifier
/// wants a bound.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// An IP header of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// Version 4.
    V4(Ipv4),
    /// Version 6.
    V6(Ipv6),
}

/// An IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// Bytes of the header with its options, a multiple of 4 from 20 to 60.
    pub header_len: usize,
    /// Bytes of the packet by its header.
    pub total_len: u16,
    /// DSCP and, in the two low bits, ECN.
    pub traffic_class: u8,
    /// Don't Fragment.
    pub dont_fragment: bool,
    /// Whether it is a fragment, the first one included.
    pub fragment: bool,
    /// Time to live.
    pub hop_limit: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// An IPv6 header with what its extension headers lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6 {
    /// Bytes after the fixed header, by the fixed header.
    pub payload_len: u16,
    /// DSCP and, in the two low bits, ECN.
    pub traffic_class: u8,
    /// Flow label.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Bytes of extension headers between the fixed header and the payload.
    pub extensions_len: usize,
    /// Whether a Fragment header makes it a fragment. An "atomic" one (RFC 6946) does not.
    pub fragment: bool,
    /// Protocol of the payload, behind the extension headers.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Ip {
    /// Parses the header at the cursor, with options or extension headers, and moves past it.
    ///
    /// # Errors
    /// [`PacketError`] where it is cut or contradicts itself.
    #[inline(always)]
    pub fn parse<B: Buffer + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, PacketError> {
        let [first] = cursor.peek::<1>()?;
        match first >> 4 {
            4 => Ipv4::parse(cursor).map(Self::V4),
            6 => Ipv6::parse(cursor).map(Self::V6),
            other => Err(PacketError::Version(other)),
        }
    }

    /// Protocol of the payload.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::V4(header) => header.protocol,
            Self::V6(header) => header.protocol,
        }
    }

    /// Whether it is a fragment.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        match self {
            Self::V4(header) => header.fragment,
            Self::V6(header) => header.fragment,
        }
    }

    /// Bytes after the header and its options or extension headers.
    #[inline(always)]
    pub const fn payload_len(&self) -> usize {
        match self {
            Self::V4(header) => (header.total_len as usize).saturating_sub(header.header_len),
            Self::V6(header) => (header.payload_len as usize).saturating_sub(header.extensions_len),
        }
    }
}

impl Ipv4 {
    /// Parses a header with its options and moves past it.
    ///
    /// # Errors
    /// [`PacketError`] where it is cut or contradicts itself.
    #[inline(always)]
    pub fn parse<B: Buffer + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, PacketError> {
        let header: [u8; IPV4_HEADER_LEN] = cursor.read()?;
        if header[0] >> 4 != 4 {
            return Err(PacketError::Version(header[0] >> 4));
        }
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = u16::from_be_bytes([header[2], header[3]]);
        if header_len < IPV4_HEADER_LEN || header_len > usize::from(total_len) {
            return Err(PacketError::HeaderLength);
        }
        cursor.skip(header_len - IPV4_HEADER_LEN)?;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Ok(Self {
            header_len,
            total_len,
            traffic_class: header[1],
            dont_fragment: fragment & IPV4_DONT_FRAGMENT != 0,
            fragment: fragment & IPV4_FRAGMENT != 0,
            hop_limit: header[8],
            protocol: header[9],
            source: [header[12], header[13], header[14], header[15]],
            destination: [header[16], header[17], header[18], header[19]],
        })
    }
}

impl Ipv6 {
    /// Parses the fixed header and the extension headers behind it, and moves past them.
    ///
    /// # Errors
    /// [`PacketError`] where they are cut, reach beyond the payload length, or are too many.
    #[inline(always)]
    pub fn parse<B: Buffer + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, PacketError> {
        let [a, b, c, d] = cursor.read()?;
        let flow = u32::from_be_bytes([a, b, c, d]);
        if flow >> 28 != 6 {
            return Err(PacketError::Version(a >> 4));
        }
        let [l0, l1, next_header, hop_limit] = cursor.read()?;
        let mut ip = Self {
            payload_len: u16::from_be_bytes([l0, l1]),
            traffic_class: (flow >> 20 & 0xff) as u8,
            flow_label: flow & 0x000f_ffff,
            hop_limit,
            extensions_len: 0,
            fragment: false,
            protocol: next_header,
            source: cursor.read()?,
            destination: cursor.read()?,
        };
        ip.follow_extensions(cursor)?;
        Ok(ip)
    }

    #[inline(always)]
    fn follow_extensions<B: Buffer + ?Sized>(
        &mut self,
        cursor: &mut Cursor<'_, B>,
    ) -> Result<(), PacketError> {
        for _ in 0..MAX_EXTENSION_HEADERS {
            if self.fragment || !is_extension(self.protocol) {
                return Ok(());
            }
            self.follow_one(cursor)?;
        }
        if !self.fragment && is_extension(self.protocol) {
            return Err(PacketError::TooManyExtensions);
        }
        Ok(())
    }

    /// Steps over one extension header (RFC 8200 §4; RFC 4302 §2.2 for the odd unit of the authentication
    /// header).
    #[inline(always)]
    fn follow_one<B: Buffer + ?Sized>(&mut self, cursor: &mut Cursor<'_, B>) -> Result<(), PacketError> {
        let [next_header, len, o0, o1] = cursor.peek()?;
        let len = match self.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if self.protocol == FRAGMENT {
            // A fragment offset, or More Fragments; the two bits between them are reserved.
            self.fragment = u16::from_be_bytes([o0, o1]) & 0xfff9 != 0;
        }
        cursor.skip(len)?;
        self.extensions_len += len;
        self.protocol = next_header;
        if self.extensions_len > usize::from(self.payload_len) {
            return Err(PacketError::Length);
        }
        Ok(())
    }
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}
