//! ICMPv6 (RFC 4443): its header and its types.

/// Type, code, checksum and four bytes of which the type decides (§2.1); behind them an error quotes.
pub const ICMPV6_HEADER_LEN: usize = 8;
/// Where the checksum stands.
pub const CHECKSUM: usize = 2;
/// Where the MTU stands in [`PACKET_TOO_BIG`].
pub const MTU: usize = 4;

/// Error: not to be had (§3.1).
pub const UNREACHABLE: u8 = 1;
/// Error: larger than the next link carries (§3.2).
pub const PACKET_TOO_BIG: u8 = 2;
/// Types below this one are errors (§2.1).
pub const INFORMATIONAL: u8 = 128;
/// What a ping is (§4.1).
pub const ECHO_REQUEST: u8 = 128;
/// The answer to it (§4.2).
pub const ECHO_REPLY: u8 = 129;
