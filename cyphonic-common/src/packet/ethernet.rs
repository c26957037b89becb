//! Ethernet II with at most one VLAN tag.

use super::PacketError;
use crate::buffer::{Buffer, Cursor};

/// Bytes of a header without a tag.
pub const ETHERNET_LEN: usize = 14;
/// The type of IPv4, as it lies in a frame.
pub const ETHERNET_IPV4: [u8; 2] = [0x08, 0x00];
/// The type of IPv6, as it lies in a frame.
pub const ETHERNET_IPV6: [u8; 2] = [0x86, 0xdd];
/// The type of a VLAN's tag (IEEE 802.1Q), likewise.
pub const ETHERNET_VLAN: [u8; 2] = [0x81, 0x00];
/// The type of the tag of a provider's VLAN (IEEE 802.1ad), likewise.
pub const ETHERNET_SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];

const IPV4: u16 = u16::from_be_bytes(ETHERNET_IPV4);
const IPV6: u16 = u16::from_be_bytes(ETHERNET_IPV6);
const VLAN: u16 = u16::from_be_bytes(ETHERNET_VLAN);
const SERVICE_VLAN: u16 = u16::from_be_bytes(ETHERNET_SERVICE_VLAN);

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Anything else, a second VLAN tag included.
    Other(u16),
}

impl From<u16> for EtherType {
    #[inline(always)]
    fn from(value: u16) -> Self {
        match value {
            IPV4 => Self::Ipv4,
            IPV6 => Self::Ipv6,
            other => Self::Other(other),
        }
    }
}

/// An Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// Tag control information of the VLAN tag, where there is one.
    pub vlan: Option<u16>,
    /// What follows.
    pub ether_type: EtherType,
}

impl Ethernet {
    /// Parses a header and moves past it.
    ///
    /// # Errors
    /// [`PacketError::Truncated`] where the frame is shorter.
    #[inline(always)]
    pub fn parse<B: Buffer + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, PacketError> {
        let destination = cursor.read()?;
        let source = cursor.read()?;
        let mut ether_type = u16::from_be_bytes(cursor.read()?);
        let mut vlan = None;
        if ether_type == VLAN || ether_type == SERVICE_VLAN {
            vlan = Some(u16::from_be_bytes(cursor.read()?));
            ether_type = u16::from_be_bytes(cursor.read()?);
        }
        Ok(Self { destination, source, vlan, ether_type: ether_type.into() })
    }
}
