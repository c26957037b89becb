//! UDP (RFC 768).

use super::PacketError;
use crate::buffer::{Buffer, Cursor};

/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;
/// Where it has the length of header and payload.
pub const LENGTH: usize = 4;
/// Where it has its checksum.
pub const CHECKSUM: usize = 6;

/// A UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload.
    pub length: u16,
    /// Checksum as it stands, 0 where IPv4's sender left it out.
    pub checksum: u16,
}

impl Udp {
    /// Parses a header, of which the IP header promised `available` bytes with payload, and moves past it.
    ///
    /// # Errors
    /// [`PacketError::Length`] where the length is below 8 or above `available`: a shorter one would let a
    /// tail be smuggled in or a longer one read past the packet, so a length that differs from IP's is
    /// fine only below it.
    #[inline(always)]
    pub fn parse<B: Buffer + ?Sized>(
        cursor: &mut Cursor<'_, B>,
        available: usize,
    ) -> Result<Self, PacketError> {
        if available < UDP_HEADER_LEN {
            return Err(PacketError::Truncated);
        }
        let [s0, s1, d0, d1, l0, l1, c0, c1] = cursor.read()?;
        let udp = Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
            length: u16::from_be_bytes([l0, l1]),
            checksum: u16::from_be_bytes([c0, c1]),
        };
        if usize::from(udp.length) < UDP_HEADER_LEN || usize::from(udp.length) > available {
            return Err(PacketError::Length);
        }
        Ok(udp)
    }

    /// Bytes after the header.
    #[inline(always)]
    pub const fn payload_len(&self) -> usize {
        (self.length as usize).saturating_sub(UDP_HEADER_LEN)
    }
}
