//! What conversation a packet would open, and what conversation it may be an answer in.

use super::EVERY_PORT;
use super::flow::Ports;
use crate::buffer::Buffer;
use crate::drop_reason::DropReason;
use crate::packet::ip::IPV6_HEADER_LEN;

/// TCP in IP headers.
pub const TCP: u8 = 6;
/// UDP in IP headers.
pub const UDP: u8 = 17;
const DCCP: u8 = 33;
/// ICMPv6 in IP headers.
pub const ICMPV6: u8 = 58;
/// SCTP in IP headers.
pub const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
pub(super) const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are followed: one of each kind that may stand there, as RFC 8200 §4.1 recommends.
const MAX_EXTENSIONS: usize = 4;
/// ICMPv6 types below this one are errors (RFC 4443 §2.1).
const ICMPV6_INFORMATIONAL: u8 = 128;
/// What a ping is: the type of the ICMPv6 message.
pub const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Whether a protocol's header begins with the sender's and the receiver's port.
#[inline(always)]
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | UDP_LITE | DCCP | SCTP)
}

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

/// `None` for what passes whatever the policy.
#[inline(always)]
pub(super) fn conversation<B: Buffer + ?Sized>(packet: &B) -> Result<Option<Conversation>, DropReason> {
    let Some((protocol, at)) = upper_layer(packet)? else { return Ok(None) };
    Ok(Some(match protocol {
        TCP => {
            // Ports, and the flags thirteen bytes in (RFC 9293 §3.1).
            let header: [u8; 14] = packet.read(at).ok_or(DropReason::Truncated)?;
            let flags = header[13];
            // Without ACK and RST a packet is of no connection, though stacks tell by their silence to it
            // which ports are open.
            let answering = flags & (SYN | ACK) != SYN && flags & (ACK | RST) != 0;
            let answers = if answering { Some(port(&header, 0)) } else { None };
            Conversation { protocol, opens: Some(port(&header, 2)), answers, ports: None }
        }
        UDP | UDP_LITE | DCCP | SCTP => {
            let header: [u8; 4] = packet.read(at).ok_or(DropReason::Truncated)?;
            let (source, destination) = (port(&header, 0), port(&header, 2));
            let ports = Some(Ports { source, destination });
            Conversation { protocol, opens: Some(destination), answers: Some(source), ports }
        }
        ICMPV6 => {
            let [kind] = packet.read::<1>(at).ok_or(DropReason::Truncated)?;
            let (opens, answers) = match kind {
                kind if kind < ICMPV6_INFORMATIONAL => return Ok(None),
                ECHO_REPLY => (None, Some(ECHO_REQUEST as u16)),
                kind => (Some(kind as u16), None),
            };
            Conversation { protocol, opens, answers, ports: None }
        }
        _ => Conversation {
            protocol,
            opens: Some(EVERY_PORT),
            answers: Some(EVERY_PORT),
            ports: Some(Ports { source: EVERY_PORT, destination: EVERY_PORT }),
        },
    }))
}

/// Follows the extension headers (RFC 8200 §4) to the protocol behind them and where it starts; `None` for a
/// fragment but the first. A chain longer than any sensible one ends at an extension header, which no entry
/// names.
#[inline(always)]
pub(super) fn upper_layer<B: Buffer + ?Sized>(packet: &B) -> Result<Option<(u8, usize)>, DropReason> {
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
