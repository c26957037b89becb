//! Which conversations are under way, of the protocols whose packets do not tell an answer from a question,
//! and of which datagrams the first fragment has passed.

use super::Direction;
use crate::packet::protocol::FRAGMENT;

/// How long a conversation lasts without a packet, in nanoseconds: what RFC 4787 §4.3 (REQ-5) recommends to
/// NATs, which applications expect of whoever stands in their way.
const LIFETIME_NS: u64 = 300_000_000_000;
/// A packet of a conversation whose last one is no older than this is not written down, in nanoseconds: so
/// memory that processors share is written once a second, and conversations last that much less.
const NOTED_AGAIN_NS: u64 = 1_000_000_000;
/// Conversations that are remembered at a time; of more, those go that were used longest ago. Their next
/// packet from the end that opened them makes them known again.
pub const MAX_FLOWS: u32 = 8_192;

/// Datagrams whose later fragments may come, at a time: apart from conversations, so that who may send some
/// ends none of those.
pub const MAX_FRAGMENTED: u32 = 1_024;

/// A packet's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) source: u16,
    pub(super) destination: u16,
}

impl Ports {
    /// Of what has none.
    pub(super) const NONE: Self = Self { source: 0, destination: 0 };

    /// The near end's and the far end's port of a packet of that direction.
    #[inline(always)]
    pub(super) const fn seen_from_here(self, direction: Direction) -> (u16, u16) {
        match direction {
            Direction::Out => (self.source, self.destination),
            Direction::In => (self.destination, self.source),
        }
    }
}

/// A conversation between this node and a peer: the key of the table that remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Flow {
    /// The peer's virtual address.
    peer: [u8; 16],
    /// In network byte order, as the other.
    near_port: [u8; 2],
    far_port: [u8; 2],
    protocol: u8,
    opener: u8,
    reserved: [u8; 2],
}

impl Flow {
    /// `ports` are this node's and the peer's, 0 of protocols that have none. `opener` is the direction of
    /// the packets that the policy allowed by themselves.
    #[inline(always)]
    #[must_use]
    pub const fn new(peer: [u8; 16], protocol: u8, ports: (u16, u16), opener: Direction) -> Self {
        let (near_port, far_port) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
        Self { peer, near_port, far_port, protocol, opener: opener as u8, reserved: [0; 2] }
    }

    /// A datagram that a peer sends in fragments of this number.
    #[inline(always)]
    #[must_use]
    pub(super) const fn fragmented(peer: [u8; 16], [a, b, c, d]: [u8; 4]) -> Self {
        let opener = Direction::In as u8;
        Self { peer, near_port: [a, b], far_port: [c, d], protocol: FRAGMENT, opener, reserved: [0; 2] }
    }

    /// Whether it is that, and one of [`MAX_FRAGMENTED`] instead of [`MAX_FLOWS`].
    #[inline(always)]
    #[must_use]
    pub const fn is_fragmented(&self) -> bool {
        self.protocol == FRAGMENT
    }
}

/// When the last packet of a conversation was, in nanoseconds of any clock that only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last(pub u64);

impl Last {
    /// Whether the conversation still lasts. A packet that another processor saw later than now counts.
    #[inline(always)]
    #[must_use]
    pub const fn is_alive(self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.0) < LIFETIME_NS
    }

    /// Whether a packet now is worth being written down.
    #[inline(always)]
    #[must_use]
    pub const fn is_news(self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.0) >= NOTED_AGAIN_NS
    }
}

/// Where conversations are remembered.
pub trait FlowTable {
    /// A packet of a conversation passed that the policy allows by itself.
    fn note(&self, flow: &Flow);

    /// Whether the conversation is remembered. If so, it lasts longer by the packet that asks.
    fn knows(&self, flow: &Flow) -> bool;
}

const _: () = assert!(size_of::<Flow>() == 24 && align_of::<Flow>() == 1);
