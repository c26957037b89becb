//! Which peers may use which services, as a pure function over a table of permissions.
//!
//! Nothing is allowed unless the table says so. A [`PolicyKey`] permits one service (protocol and port)
//! between this node and one class of peers, in the direction in which conversations are opened; each of
//! class, protocol and port may be a wildcard. Answers are allowed by the same entry: what a client may open,
//! the server's packets back may pass. The kernel keeps no connections here, so an "answer" is what comes
//! from the service's port; of TCP, never the packet that opens a connection (SYN without ACK).
//!
//! Two kinds of packets pass whatever the table holds, because conversations that are allowed break without
//! them and they carry nothing by themselves:
//! - ICMPv6 errors (RFC 4890 §4.3.1): Packet Too Big, Destination Unreachable, Time Exceeded, Parameter
//!   Problem;
//! - fragments but the first: they have no ports, and reassemble to nothing without the first, which is
//!   judged. An IPv6 stack drops fragments that overlap it (RFC 5722), and the first holds all headers (RFC
//!   7112).
//!
//! The same function runs in the tc programs on both ways through the virtual interface, in the rings'
//! workers where no program is attached, and under property tests.

use crate::buffer::Buffer;
use crate::drop_reason::DropReason;
use crate::packet::ip::IPV6_HEADER_LEN;

/// The class of a peer that was given none, and in a [`PolicyKey`]: every peer.
pub const EVERY_CLASS: u32 = 0;
/// Every protocol. (As a protocol it is the hop-by-hop header, after which another one follows.)
pub const EVERY_PROTOCOL: u8 = 0;
/// Every port. (As a port it is reserved: a packet that has it is allowed by wildcards only.)
pub const EVERY_PORT: u16 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are followed: one of each kind that may stand there, as RFC 8200 §4.1 recommends.
const MAX_EXTENSIONS: usize = 4;
/// ICMPv6 types below this one are errors (RFC 4443 §2.1).
const ICMPV6_INFORMATIONAL: u8 = 128;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Who opens a conversation, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// This node does: the service is at the peer.
    Out = 0,
    /// The peer does: the service is here.
    In = 1,
}

impl Direction {
    /// The other one.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Out => Self::In,
            Self::In => Self::Out,
        }
    }
}

/// A permission: the key of an entry in the policy's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PolicyKey {
    class: u32,
    /// In network byte order.
    port: [u8; 2],
    protocol: u8,
    direction: u8,
}

impl PolicyKey {
    /// Lets peers of `class` be talked to ([`Direction::Out`]) or talk to this node ([`Direction::In`]) at a
    /// service. For ICMPv6, the port is the message's type; echo replies go with echo requests.
    #[inline(always)]
    #[must_use]
    pub const fn new(direction: Direction, class: u32, protocol: u8, port: u16) -> Self {
        Self { class, port: port.to_be_bytes(), protocol, direction: direction as u8 }
    }

    /// Allows everything in one direction.
    #[inline(always)]
    #[must_use]
    pub const fn everything(direction: Direction) -> Self {
        Self::new(direction, EVERY_CLASS, EVERY_PROTOCOL, EVERY_PORT)
    }
}

/// Where permissions are looked up.
pub trait PolicyTable {
    /// Whether the table holds this very entry.
    fn holds(&self, key: &PolicyKey) -> bool;
}

/// Decides whether a whole IPv6 packet may pass between this node and a peer of `class`. `direction` is the
/// packet's: [`Direction::Out`] for what leaves this node.
///
/// # Errors
/// [`DropReason::Denied`], or [`DropReason::Truncated`] where the headers that are judged are not all there.
#[inline(always)]
pub fn judge<B, P>(packet: &B, class: u32, direction: Direction, policy: &P) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
    P: PolicyTable + ?Sized,
{
    // The common case costs one look-up and no parsing.
    if policy.holds(&PolicyKey::everything(direction)) {
        return Ok(());
    }
    let Some(Conversation { protocol, opens, answers }) = conversation(packet)? else { return Ok(()) };
    if let Some(port) = opens
        && service_is_allowed(policy, direction, class, protocol, port)
    {
        return Ok(());
    }
    if let Some(port) = answers
        && service_is_allowed(policy, direction.opposite(), class, protocol, port)
    {
        return Ok(());
    }
    Err(DropReason::Denied)
}

#[inline(always)]
fn service_is_allowed<P: PolicyTable + ?Sized>(
    policy: &P,
    direction: Direction,
    class: u32,
    protocol: u8,
    port: u16,
) -> bool {
    services_of_class(policy, direction, EVERY_CLASS, protocol, port)
        || (class != EVERY_CLASS && services_of_class(policy, direction, class, protocol, port))
}

#[inline(always)]
fn services_of_class<P: PolicyTable + ?Sized>(
    policy: &P,
    direction: Direction,
    class: u32,
    protocol: u8,
    port: u16,
) -> bool {
    policy.holds(&PolicyKey::new(direction, class, EVERY_PROTOCOL, EVERY_PORT))
        || policy.holds(&PolicyKey::new(direction, class, protocol, EVERY_PORT))
        || policy.holds(&PolicyKey::new(direction, class, protocol, port))
}

/// What a packet is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversation {
    protocol: u8,
    /// The service it would be for, if it may be from a client.
    opens: Option<u16>,
    /// The service it would be from, if it may be an answer.
    answers: Option<u16>,
}

/// `None` for what passes whatever the policy.
#[inline(always)]
fn conversation<B: Buffer + ?Sized>(packet: &B) -> Result<Option<Conversation>, DropReason> {
    let Some((protocol, at)) = upper_layer(packet)? else { return Ok(None) };
    let (opens, answers) = match protocol {
        TCP => {
            // Ports, and the flags thirteen bytes in (RFC 9293 §3.1).
            let header: [u8; 14] = packet.read(at).ok_or(DropReason::Truncated)?;
            let opening = header[13] & (SYN | ACK) == SYN;
            (Some(port(&header, 2)), if opening { None } else { Some(port(&header, 0)) })
        }
        UDP | UDP_LITE | DCCP | SCTP => {
            let header: [u8; 4] = packet.read(at).ok_or(DropReason::Truncated)?;
            (Some(port(&header, 2)), Some(port(&header, 0)))
        }
        ICMPV6 => {
            let [kind] = packet.read::<1>(at).ok_or(DropReason::Truncated)?;
            match kind {
                kind if kind < ICMPV6_INFORMATIONAL => return Ok(None),
                ECHO_REPLY => (None, Some(ECHO_REQUEST as u16)),
                kind => (Some(kind as u16), None),
            }
        }
        // Nothing tells a client's packet from a server's.
        _ => (Some(EVERY_PORT), Some(EVERY_PORT)),
    };
    Ok(Some(Conversation { protocol, opens, answers }))
}

/// Follows the extension headers (RFC 8200 §4) to the protocol behind them and where it starts; `None` for a
/// fragment but the first. A chain longer than any sensible one ends at an extension header, which no entry
/// names.
#[inline(always)]
fn upper_layer<B: Buffer + ?Sized>(packet: &B) -> Result<Option<(u8, usize)>, DropReason> {
    let [mut next] = packet.read::<1>(6).ok_or(DropReason::Truncated)?;
    let mut at = IPV6_HEADER_LEN;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [following, len] = packet.read(at).ok_or(DropReason::Truncated)?;
                next = following;
                at += 8 + 8 * usize::from(len);
            }
            FRAGMENT => {
                let [following, _, high, low] = packet.read(at).ok_or(DropReason::Truncated)?;
                if u16::from_be_bytes([high, low]) >> 3 != 0 {
                    return Ok(None);
                }
                next = following;
                at += 8;
            }
            _ => return Ok(Some((next, at))),
        }
    }
    match next {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => Err(DropReason::Denied),
        _ => Ok(Some((next, at))),
    }
}

#[inline(always)]
fn port(header: &[u8], at: usize) -> u16 {
    match (header.get(at), header.get(at + 1)) {
        (Some(high), Some(low)) => u16::from_be_bytes([*high, *low]),
        _ => EVERY_PORT,
    }
}

const _: () = assert!(size_of::<PolicyKey>() == 8 && align_of::<PolicyKey>() == 4);

#[cfg(test)]
mod tests;
