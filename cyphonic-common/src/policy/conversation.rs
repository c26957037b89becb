//! What conversation a packet would open, and what conversation it may be an answer in.

use super::EVERY_PORT;
use super::flow::Ports;
use crate::buffer::Buffer;
use crate::drop_reason::DropReason;
use crate::packet::icmpv6::{ECHO_REPLY, ECHO_REQUEST, ICMPV6_HEADER_LEN, INFORMATIONAL};
use crate::packet::ip::{IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_NEXT_HEADER};
use crate::packet::protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMPV6, ROUTING, TCP, has_ports};
use crate::packet::tcp::{self, ACK, RST, SYN};

/// In a fragment header's word of offset and flags.
const MORE_FRAGMENTS: u16 = 1;
/// Extension headers that are followed: one of each kind that may stand there, as RFC 8200 §4.1 recommends.
const MAX_EXTENSIONS: usize = 4;

/// What a packet is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) protocol: u8,
    /// The service it would be for, if it may be from a client.
    pub(super) opens: Option<u16>,
    /// The service it would be from, if it may be an answer.
    pub(super) answers: Option<u16>,
    /// What must be remembered of it, for who is to tell an answer; `None` where the packet itself tells.
    pub(super) ports: Option<Ports>,
}

/// A packet's upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Upper {
    /// Of a fragment but the first, what its header says: nobody may rely on that.
    pub(crate) protocol: u8,
    /// Where it begins.
    pub(crate) at: usize,
    pub(crate) part: Part,
}

/// What of a datagram a packet is (RFC 8200 §4.5), and by what number its parts belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    First([u8; 4]),
    Later([u8; 4]),
}

/// `None` for errors.
#[inline(always)]
pub(super) fn conversation<B: Buffer + ?Sized>(
    packet: &B,
    Upper { protocol, at, .. }: Upper,
) -> Result<Option<Conversation>, DropReason> {
    Ok(Some(match protocol {
        TCP => {
            // As far as is looked at: ports, and the flags.
            let header: [u8; tcp::FLAGS + 1] = packet.read(at).ok_or(DropReason::Truncated)?;
            let flags = header[tcp::FLAGS];
            // Without ACK and RST a packet is of no connection, though stacks tell by their silence to it
            // which ports are open.
            let answering = flags & (SYN | ACK) != SYN && flags & (ACK | RST) != 0;
            let answers = if answering { Some(port(&header, 0)) } else { None };
            Conversation { protocol, opens: Some(port(&header, 2)), answers, ports: None }
        }
        _ if has_ports(protocol) => {
            let header: [u8; 4] = packet.read(at).ok_or(DropReason::Truncated)?;
            let (source, destination) = (port(&header, 0), port(&header, 2));
            let ports = Some(Ports { source, destination });
            Conversation { protocol, opens: Some(destination), answers: Some(source), ports }
        }
        ICMPV6 => {
            let [kind] = packet.read::<1>(at).ok_or(DropReason::Truncated)?;
            let (opens, answers) = match kind {
                kind if kind < INFORMATIONAL => return Ok(None),
                ECHO_REPLY => (None, Some(ECHO_REQUEST as u16)),
                kind => (Some(kind as u16), None),
            };
            Conversation { protocol, opens, answers, ports: None }
        }
        _ => Conversation {
            protocol,
            opens: Some(EVERY_PORT),
            answers: Some(EVERY_PORT),
            ports: Some(Ports::NONE),
        },
    }))
}

/// Whether an ICMPv6 error that begins there is about a packet that went to this peer: whoever else it quotes a
/// packet to is none of its affair, since nobody forwards packets in the overlay. An error quotes at least the
/// packet's header (RFC 4443 §2.4), whose destination is what the stack finds the conversation by.
#[inline(always)]
pub(super) fn is_about<B: Buffer + ?Sized>(
    packet: &B,
    at: usize,
    peer: &[u8; 16],
) -> Result<bool, DropReason> {
    let to: [u8; 16] = packet.read(at + ICMPV6_HEADER_LEN + IPV6_DESTINATION).ok_or(DropReason::Truncated)?;
    Ok(to == *peer)
}

/// Follows the extension headers (RFC 8200 §4) to the protocol behind them and where it starts. A chain longer
/// than any sensible one ends at an extension header, which no entry names. A fragment but the first ends the
/// chain. `from` is where the IPv6 header stands.
#[inline(always)]
pub(crate) fn upper_layer<B: Buffer + ?Sized>(packet: &B, from: usize) -> Result<Upper, DropReason> {
    let [mut next] = packet.read::<1>(from + IPV6_NEXT_HEADER).ok_or(DropReason::Truncated)?;
    let mut at = from + IPV6_HEADER_LEN;
    let mut part = Part::Whole;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [following, len] = packet.read(at).ok_or(DropReason::Truncated)?;
                next = following;
                at += 8 + 8 * usize::from(len);
            }
            FRAGMENT => {
                let [following, _, high, low, a, b, c, d] = packet.read(at).ok_or(DropReason::Truncated)?;
                let place = u16::from_be_bytes([high, low]);
                if place >> 3 != 0 {
                    return Ok(Upper { protocol: following, at, part: Part::Later([a, b, c, d]) });
                }
                if place & MORE_FRAGMENTS != 0 {
                    part = Part::First([a, b, c, d]);
                }
                next = following;
                at += 8;
            }
            _ => return Ok(Upper { protocol: next, at, part }),
        }
    }
    match next {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => Err(DropReason::Denied),
        _ => Ok(Upper { protocol: next, at, part }),
    }
}

#[inline(always)]
fn port(header: &[u8], at: usize) -> u16 {
    match (header.get(at), header.get(at + 1)) {
        (Some(high), Some(low)) => u16::from_be_bytes([*high, *low]),
        _ => EVERY_PORT,
    }
}
