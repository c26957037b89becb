//! The relay's maps besides its legs: configuration, counters, and the version of the layout.

use core::mem::offset_of;
use core::net::IpAddr;

use super::leg::{LegEntry, PackedLeg, RelayState};
use crate::drop_reason::{DropReason, reasons};

/// Names in the object file.
pub mod name {
    /// The XDP program.
    pub const PROGRAM: &str = "cyphonic_relay";
    /// Array of pairs of [`LegEntry`](super::LegEntry): see [`place`](crate::relay::place). The loader
    /// sets how many.
    pub const LEGS: &str = "LEGS";
    /// Hash from a [`ConnectionId`](crate::ConnectionId)'s eight bytes to a
    /// [`LegEntry`](super::LegEntry), for legs that the array has no room for. The loader sets how
    /// many entries it has; they are allocated when they are made.
    pub const OVERFLOW: &str = "OVERFLOW";
    /// Array of the relay's own addresses by number: see [`OwnAddresses`](crate::relay::OwnAddresses).
    pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
    /// Array with one [`RelayWatch`](crate::relay::RelayWatch).
    pub const WATCH: &str = "RELAY_WATCH";
    /// Array with one [`RelayConfig`](super::RelayConfig).
    pub const CONFIG: &str = "RELAY_CONFIG";
    /// Per-CPU array of [`Counter`](crate::Counter), indexed by
    /// [`RelayCounterIndex`](super::RelayCounterIndex).
    pub const COUNTERS: &str = "RELAY_COUNTERS";
    /// Device hash from an interface's index to itself: where packets may be redirected to. An interface that
    /// cannot transmit XDP frames would lose them silently, so the loader lists only those that can, as
    /// far as the kernel tells (Linux 6.3). The interface a packet came in by need not be in it, but for
    /// [`always_redirects`](super::RelayConfig::always_redirects).
    pub const EGRESS: &str = "EGRESS";
}

/// Entries in the legs' map unless the loader says otherwise.
pub const DEFAULT_LEGS: u32 = 65_536;
/// Entries in the devices' map.
pub const MAX_EGRESS: u32 = 64;

/// The interface in whose name routes are looked up: loopback, the first one of every network namespace. That
/// is how the kernel writes "a packet that this host sends". Asking as for a packet that came in by the
/// network card would need forwarding enabled on the card, for everyone's packets; this needs it on loopback
/// only, where nothing comes in that could be forwarded: the loader sets `net.ipv4.conf.lo.forwarding` and
/// `net.ipv6.conf.lo.forwarding` to 1. Where they are not, packets pass with [`PassReason::RoutingOff`].
pub const ROUTING_INTERFACE: u32 = 1;

/// Changes whenever key or value of the legs' map change in a way that their sizes do not show.
const REVISION: u64 = 2;

/// Identifies the layout of the legs' map. A map that outlived its process may be used by another program
/// only where this is the same.
pub const LAYOUT: u64 = layout();

/// FNV-1a over what the layout consists of.
const fn layout() -> u64 {
    let parts = [
        REVISION,
        size_of::<LegEntry>() as u64,
        size_of::<PackedLeg>() as u64,
        offset_of!(LegEntry, state) as u64,
        offset_of!(RelayState, packets) as u64,
        offset_of!(RelayState, bytes) as u64,
        offset_of!(RelayState, last_seen_ns) as u64,
        offset_of!(RelayState, over_rate) as u64,
        offset_of!(RelayState, paid_until_ns) as u64,
        offset_of!(LegEntry, way) as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < parts.len() {
        hash = (hash ^ parts[at]).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// The version an address is sent by: an IPv4-mapped one by IPv4.
    #[must_use]
    pub const fn of(ip: &IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What the program must know. All zero (as the kernel makes it) is "not configured": everything then passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayConfig {
    layout: u64,
    flags: u32,
    pairs: u32,
    port: [u8; 2],
    reserved: [u8; 6],
}

/// [`RelayConfig::flags`]: see [`RelayConfig::new`].
const MERGED: u32 = 1;

/// [`RelayConfig::flags`]: see [`RelayConfig::over_virtual_cables`].
const VIRTUAL_CABLES: u32 = 2;

impl RelayConfig {
    /// For the relay's UDP port. `merged` where frames may have been merged by the kernel (GRO) before the
    /// program sees them, as in generic mode: a frame without UDP checksum, whose checksum cannot tell,
    /// then goes to userspace.
    #[must_use]
    pub const fn new(port: u16, merged: bool) -> Self {
        let flags = if merged { MERGED } else { 0 };
        Self { layout: LAYOUT, flags, pairs: 1, port: port.to_be_bytes(), reserved: [0; 6] }
    }

    /// See [`new`](Self::new).
    #[must_use]
    pub const fn with_merged(mut self, merged: bool) -> Self {
        self.flags = if merged { self.flags | MERGED } else { self.flags & !MERGED };
        self
    }

    /// For a table of so many pairs of legs.
    #[must_use]
    pub const fn with_pairs(mut self, pairs: u32) -> Self {
        self.pairs = pairs;
        self
    }

    /// How many pairs the legs' table has.
    #[inline(always)]
    pub const fn pairs(&self) -> u32 {
        self.pairs
    }

    /// For interfaces that are one end of a virtual cable (veth). Such an end takes what is redirected to it
    /// as soon as its far end merges packets (GRO), but what goes back where it came from (XDP_TX) only
    /// if there is an XDP program at the far end, and loses it silently otherwise: so everything is
    /// redirected.
    #[must_use]
    pub const fn over_virtual_cables(mut self) -> Self {
        self.flags |= VIRTUAL_CABLES;
        self
    }

    /// Whether frames are redirected even to the interface they came by.
    #[inline(always)]
    pub const fn always_redirects(&self) -> bool {
        self.flags & VIRTUAL_CABLES != 0
    }

    /// Whether userspace has written it, and for this layout.
    #[inline(always)]
    pub const fn is_configured(&self) -> bool {
        self.layout == LAYOUT
    }

    /// The layout it was written for.
    #[must_use]
    pub const fn layout(&self) -> u64 {
        self.layout
    }

    /// The relay's UDP port, as it stands in packets.
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    /// Whether frames may have been merged.
    #[inline(always)]
    pub const fn merged(&self) -> bool {
        self.flags & MERGED != 0
    }
}

reasons! {
    /// Why a frame went on to the kernel's stack, untouched. New reasons are added at the end.
    PassReason;

    // Not the relay's.

    /// The program is attached but not configured.
    NotConfigured = "not_configured",
    /// Neither IPv4 nor IPv6, or behind a VLAN tag.
    NotIp = "not_ip",
    /// The frame ends before its headers, a length contradicts another, or IPv4's header checksum is wrong.
    Malformed = "malformed",
    /// IPv4 options.
    Options = "options",
    /// A fragment of an IPv4 packet.
    Fragment = "fragment",
    /// Another protocol than UDP, IPv6 extension headers included.
    NotUdp = "not_udp",
    /// Another UDP port.
    OtherPort = "other_port",
    /// A packet of a QUIC connection: long headers, and short ones with a signalling ID.
    Signalling = "signalling",
    /// Not a QUIC packet.
    NotQuic = "not_quic",
    /// No leg has this connection ID.
    UnknownConnectionId = "unknown_connection_id",

    // The relay's, but for userspace, which forwards by the same legs.

    /// There is no UDP checksum, and the packet needs one on its way out.
    NoChecksum = "no_checksum",
    /// The UDP checksum is not complete: the frame was made on this machine, or merged from several.
    PartialChecksum = "partial_checksum",
    /// The leg does not say which of the relay's addresses the receiver knows.
    NoSource = "no_source",
    /// The routing table has no unicast route to the receiver, or needs the kernel for it.
    NoRoute = "no_route",
    /// The next hop's link address is not known yet.
    NoNeighbour = "no_neighbour",
    /// The packet is longer than the way out carries.
    TooBig = "too_big",
    /// The way out is an interface that frames cannot be redirected to.
    OtherInterface = "other_interface",
    /// The driver leaves no room for a longer header.
    NoHeadroom = "no_headroom",
    /// The kernel may not look routes up: forwarding is off on the loopback interface (see the program).
    RoutingOff = "routing_off",
    /// It does not come from the leg's sender, or not to the relay's address that the leg is for, unless the host
    /// translates addresses: userspace sees what it makes of them, and drops what is nobody's.
    UnboundSource = "unbound_source",
}

/// What one entry of the counters' map counts. Bytes are those of whole frames as they arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayCounterIndex {
    /// Forwarded packets, by how they came, how they left, and whether by another interface.
    Forwarded {
        /// How they came.
        from: Family,
        /// How they left.
        to: Family,
        /// Whether they were redirected: to another interface than they came by, or over virtual cables.
        redirected: bool,
    },
    /// Frames left to the kernel's stack.
    Passed(PassReason),
    /// Frames dropped.
    Dropped(DropReason),
}

impl RelayCounterIndex {
    const FORWARDED: u32 = 8;
    const PASSED: u32 = PassReason::COUNT as u32;

    /// Entries in the counters' map.
    pub const COUNT: u32 = Self::FORWARDED + Self::PASSED + DropReason::COUNT as u32;

    /// All of [`Self::Forwarded`].
    pub fn forwarded() -> impl Iterator<Item = Self> {
        const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
        let pairs = FAMILIES.into_iter().flat_map(|from| FAMILIES.map(|to| (from, to)));
        pairs.flat_map(|(from, to)| [false, true].map(|redirected| Self::Forwarded { from, to, redirected }))
    }

    /// The entry's number.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Forwarded { from, to, redirected } => from as u32 * 4 + to as u32 * 2 + redirected as u32,
            Self::Passed(reason) => Self::FORWARDED + reason.index(),
            Self::Dropped(reason) => Self::FORWARDED + Self::PASSED + reason.index(),
        }
    }
}

const _: () = assert!(size_of::<RelayConfig>() == 8 + 4 + 4 + 2 + 6 && align_of::<RelayConfig>() == 8);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_has_an_entry_of_its_own() {
        let families = [Family::V4, Family::V6];
        let forwarded = families.into_iter().flat_map(|from| {
            families.into_iter().flat_map(move |to| {
                [false, true].map(|redirected| RelayCounterIndex::Forwarded { from, to, redirected })
            })
        });
        let passed = PassReason::ALL.iter().map(|reason| RelayCounterIndex::Passed(*reason));
        let dropped = DropReason::ALL.iter().map(|reason| RelayCounterIndex::Dropped(*reason));
        let indices: BTreeSet<_> =
            forwarded.chain(passed).chain(dropped).map(RelayCounterIndex::index).collect();
        assert_eq!(indices, (0..RelayCounterIndex::COUNT).collect());
        let names: BTreeSet<_> = PassReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), PassReason::COUNT);
    }

    #[test]
    fn zeros_are_no_configuration() {
        assert!(!RelayConfig::default().is_configured());
        let config = RelayConfig::new(4242, true);
        assert!(config.is_configured() && config.merged() && config.port() == [0x10, 0x92]);
        assert!(!RelayConfig::new(1, false).merged());
    }
}
