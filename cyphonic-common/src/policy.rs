//! Which peers may use which services, as a pure function over a table of permissions.
//!
//! Nothing is allowed unless the table says so. A [`PolicyKey`] permits one service (protocol and port)
//! between this node and one class of peers, in the direction in which conversations are opened; each of
//! class, protocol and port may be a wildcard. Answers are allowed by the same entry: what a client may open,
//! the server's packets back may pass.
//!
//! What an answer is:
//! - Of TCP, what comes from the service's port and does not open a connection (ACK or RST, and never SYN
//!   without ACK): without a connection, the receiver's stack refuses it. So connections outlive whoever
//!   enforces the policy, and also the permission that they were opened by.
//! - Of ICMPv6, the reply to an echo: it carries nothing where nobody asked.
//! - Of everything else, what comes from where a packet of an allowed conversation was sent lately: a packet
//!   of UDP does not say whether it asks or answers, so a table of [`Flow`]s remembers.
//!
//! Two kinds of packets pass whatever the table holds, because conversations that are allowed break without
//! them and they carry nothing by themselves:
//! - ICMPv6 errors (RFC 4890 §4.3.1): Packet Too Big, Destination Unreachable, Time Exceeded, Parameter
//!   Problem; from peers only those about packets that went to the peer itself;
//! - fragments but the first: they have no ports. From peers only those whose first has passed, which is judged
//!   and holds all headers (RFC 7112): others reassemble to nothing, and would fill the host's memory for
//!   fragments. A stack drops fragments that overlap the first (RFC 5722).
//!
//! For the same reason a first fragment is no answer by itself: TCP and errors are not sent in fragments, and
//! the reply to an echo is one where the echo was, which is remembered.
//!
//! The same function runs in the tc programs on both ways through the virtual interface, in the rings'
//! workers where no program is attached, and under property tests.

mod conversation;
mod flow;

use conversation::{Conversation, conversation, is_about};
pub(crate) use conversation::{Part, Upper, upper_layer};
use flow::Ports;
pub use flow::{Flow, FlowTable, Last, MAX_FLOWS, MAX_FRAGMENTED};

use crate::buffer::Buffer;
use crate::drop_reason::DropReason;

/// The class of a peer that was given none, and in a [`PolicyKey`]: every peer.
pub const EVERY_CLASS: u32 = 0;
/// Every protocol. (As a protocol it is the hop-by-hop header, after which another one follows.)
pub const EVERY_PROTOCOL: u8 = 0;
/// Every port. (As a port it is reserved: a packet that has it is allowed by wildcards only.)
pub const EVERY_PORT: u16 = 0;

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

/// [`PolicyKey::direction`] of the one that is for both.
const BOTH: u8 = 2;

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

    /// Allows everything, whoever opens it. While it is there, packets are not even looked at.
    pub const EVERYTHING: Self = Self {
        class: EVERY_CLASS,
        port: EVERY_PORT.to_be_bytes(),
        protocol: EVERY_PROTOCOL,
        direction: BOTH,
    };

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

/// The other end of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its virtual address, in network byte order.
    pub address: [u8; 16],
    /// `None`: nobody knows yet. What is sent there passes, and so will the answers that the policy allows.
    pub class: Option<u32>,
}

/// Decides whether a whole IPv6 packet may pass between this node and a peer. `direction` is the packet's:
/// [`Direction::Out`] for what leaves this node.
///
/// # Errors
/// [`DropReason::Denied`], or [`DropReason::Truncated`] where the headers that are judged are not all there.
#[inline(always)]
pub fn judge<B, T>(packet: &B, peer: &Peer, direction: Direction, tables: &T) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
    T: PolicyTable + FlowTable + ?Sized,
{
    // The common case costs one look-up and no parsing.
    if tables.holds(&PolicyKey::EVERYTHING) {
        return Ok(());
    }
    let upper = upper_layer(packet, 0)?;
    if let (Part::Later(number), Direction::In) = (upper.part, direction) {
        let known = tables.knows(&Flow::fragmented(peer.address, number));
        return if known { Ok(()) } else { Err(DropReason::Denied) };
    }
    if let Part::Later(_) = upper.part {
        return Ok(());
    }
    judge_first(packet, upper, peer, direction, tables)?;
    if let (Part::First(number), Direction::In) = (upper.part, direction) {
        tables.note(&Flow::fragmented(peer.address, number));
    }
    Ok(())
}

/// Decides on what is no later part of something.
#[inline(always)]
fn judge_first<B, T>(
    packet: &B,
    upper: Upper,
    peer: &Peer,
    direction: Direction,
    tables: &T,
) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
    T: PolicyTable + FlowTable + ?Sized,
{
    let Some(Conversation { protocol, opens, answers, ports }) = conversation(packet, upper)? else {
        let passes = direction == Direction::Out
            || (upper.part == Part::Whole && is_about(packet, upper.at, &peer.address)?);
        return if passes { Ok(()) } else { Err(DropReason::Denied) };
    };
    let ports = ports.or(if upper.part == Part::Whole { None } else { Some(Ports::NONE) });
    if let Some(port) = opens
        && peer.class.is_none_or(|class| service_is_allowed(tables, direction, class, protocol, port))
    {
        // What may pass the other way by itself, as the question to which this is the answer, is not asked
        // about: so what a peer asks does not fill the table either.
        let class = peer.class.unwrap_or(EVERY_CLASS);
        if let Some(ports) = ports
            && !service_is_allowed(tables, direction.opposite(), class, protocol, ports.source)
        {
            tables.note(&Flow::new(peer.address, protocol, ports.seen_from_here(direction), direction));
        }
        return Ok(());
    }
    let Some(class) = peer.class else { return Ok(()) };
    let opener = direction.opposite();
    if let Some(port) = answers
        && service_is_allowed(tables, opener, class, protocol, port)
        && ports.is_none_or(|ports| {
            tables.knows(&Flow::new(peer.address, protocol, ports.seen_from_here(direction), opener))
        })
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

const _: () = assert!(size_of::<PolicyKey>() == 8 && align_of::<PolicyKey>() == 4);

#[cfg(test)]
mod tests;
