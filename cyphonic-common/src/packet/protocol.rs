//! What may follow an IP header: protocols and IPv6's extension headers (RFC 8200 §4), by their IANA numbers.

/// Options for every router on the way: an extension header.
pub const HOP_BY_HOP: u8 = 0;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// DCCP.
pub const DCCP: u8 = 33;
/// Source routes: an extension header.
pub const ROUTING: u8 = 43;
/// What makes a packet a fragment: an extension header.
pub const FRAGMENT: u8 = 44;
/// IPsec without encryption: an extension header.
pub const AUTHENTICATION: u8 = 51;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// Options for the receiver: an extension header.
pub const DESTINATION_OPTIONS: u8 = 60;
/// SCTP.
pub const SCTP: u8 = 132;
/// UDP with checksums of a part.
pub const UDP_LITE: u8 = 136;

/// Whether a protocol's header begins with the sender's and the receiver's port.
#[inline(always)]
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | UDP_LITE | DCCP | SCTP)
}
