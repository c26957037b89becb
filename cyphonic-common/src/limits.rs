//! Numbers that both halves, and both ends of a tunnel, rely on.

use crate::cid::CID_LEN;
use crate::packet::ip::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IPV6_MIN_MTU};
use crate::packet::udp::UDP_HEADER_LEN;

/// Bytes of a packet number: always four, because not every packet is acknowledged (RFC 9000 §17.1).
pub const PACKET_NUMBER_LEN: usize = 4;

/// Bytes of the authentication tag of every AEAD in RFC 9001 §5.3.
pub const TAG_LEN: usize = 16;

/// Bytes of a data packet's header: the first byte, the connection ID, the packet number.
pub const HEADER_LEN: usize = 1 + CID_LEN + PACKET_NUMBER_LEN;

/// Bytes of a stateless reset token (RFC 9000 §10.3), which a relay gives the owner of a leg.
pub const RESET_TOKEN_LEN: usize = 16;

/// Bytes a tunnel adds to an inner packet inside the UDP payload: the header, the type of a DATAGRAM frame that
/// runs to the end of the packet, and the tag.
pub const TUNNEL_OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// Outer IPv6 and UDP headers.
pub const OUTER_IPV6_LEN: usize = IPV6_HEADER_LEN + UDP_HEADER_LEN;

/// Outer IPv4 (without options) and UDP headers.
pub const OUTER_IPV4_LEN: usize = IPV4_HEADER_LEN + UDP_HEADER_LEN;

/// The least MTU an IPv6 interface may have, and so the least a tunnel must carry (RFC 9484 §10.1).
pub const MIN_INNER_MTU: usize = IPV6_MIN_MTU;

/// The virtual interface's MTU until the path is probed: what an outer IPv6 path of 1500 bytes carries,
/// 1500 − 40 − 8 − 30 = 1422, rounded down so that a few bytes are left for a frame's length field.
pub const DEFAULT_INNER_MTU: usize = 1420;

/// The largest inner MTU that a path is probed for: what 9,000 bytes carry over IPv4 outside, 9000 − 20 − 8 −
/// 30.
pub const MAX_INNER_MTU: usize = 8942;

/// The largest UDP payload (RFC 9000 §18.2, `max_udp_payload_size`).
pub const MAX_DATAGRAM: usize = 65_527;

/// The largest UDP payload over IPv4 (RFC 768, RFC 791), and so the most bytes of one segmented send over
/// either family.
pub const MAX_UDP4_PAYLOAD: usize = 65_535 - OUTER_IPV4_LEN;

/// Padded size of datagrams that carry PATH_CHALLENGE or PATH_RESPONSE (RFC 9000 §8.2.1).
pub const MIN_PROBE_DATAGRAM: usize = 1200;

/// Longest reason phrase kept from a CONNECTION_CLOSE frame; the rest of the packet bounds it otherwise.
pub const MAX_REASON: usize = 256;

const _: () = assert!(TUNNEL_OVERHEAD == 30);
const _: () = assert!(DEFAULT_INNER_MTU + TUNNEL_OVERHEAD + OUTER_IPV6_LEN <= 1500);
const _: () = assert!(MIN_INNER_MTU + TUNNEL_OVERHEAD + OUTER_IPV6_LEN <= 1500);
const _: () = assert!(crate::quic::MIN_DATA_PACKET == TUNNEL_OVERHEAD - 1);
const _: () = assert!(MAX_INNER_MTU + TUNNEL_OVERHEAD + OUTER_IPV4_LEN == 9000);
