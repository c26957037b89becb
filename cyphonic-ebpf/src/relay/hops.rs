//! Answers of the routing table that are new enough to be used again.
//!
//! Asking the kernel's tables costs more than all else that the program does for a packet. An answer is used for
//! [`LIFETIME_NS`] and for exactly the same question, so a route or neighbour that changes is noticed within that time:
//! until then packets go where they went before. What the kernel must do itself is asked for every packet.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use cyphonic_common::relay::address::Address;
use cyphonic_common::relay::{Departure, Family};

/// For how long an answer is used, by a clock that moves in steps of up to 10 ms.
const LIFETIME_NS: u64 = 100_000_000;
/// Answers per CPU, in pages: each a power of two. They stay in a processor's own caches, and side by side, where one
/// entry a slot would be an allocation a slot.
const PAGES: u32 = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 3;
/// Answers in a page, which then has 16 KiB. The kernel allocates at most 32 KiB per CPU in one piece.
const SLOTS: usize = 256;
/// Knuth's multiplier (2⁶⁴ divided by the golden ratio): the upper bits of the product depend on all bits.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// One slot for many connection IDs.
#[map]
static HOPS: PerCpuArray<[Slot; SLOTS]> = PerCpuArray::with_max_entries(PAGES, 0);

/// The way to a next hop.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// See [`Hop::from_source_first`](cyphonic_common::relay::Hop::from_source_first).
    pub(crate) links: [u32; 3],
    /// The outgoing interface.
    pub(crate) interface: u32,
    /// The longest IP packet it carries. 0: not told.
    pub(crate) mtu: u32,
}

/// A question, when it was asked, and its answer. All zero as the kernel makes it, which carries nothing.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slot {
    destination: Address,
    source: Address,
    asked_ns: u64,
    rest: u32,
    way: Way,
}

/// The way for a packet: known, or asked for, and kept where the slot has nothing that is still new. So slots for which
/// too many compete serve the one that has them, and the others do not write.
#[inline(always)]
pub(crate) fn way<E>(
    departure: &Departure,
    now_ns: u64,
    ask: impl FnOnce() -> Result<Way, E>,
) -> Result<Way, E> {
    let hash = departure.cid.wrapping_mul(MIX) >> 32;
    let Some(page) = HOPS.get_ptr_mut(hash as u32 >> (u32::BITS - PAGE_BITS)) else { return ask() };
    // SAFETY: the kernel returned a pointer to this CPU's copy of the entry, which has the size and alignment of a page.
    // Programs run to their end on a CPU before another one does, so nobody else has it.
    let slot = unsafe { &mut (*page)[hash as usize % SLOTS] };
    let rest = rest(departure);
    let fresh = now_ns.wrapping_sub(slot.asked_ns) < LIFETIME_NS;
    if fresh
        && slot.destination == departure.destination
        && slot.source == departure.source
        && slot.rest == rest
        && u32::from(departure.ip_len) <= slot.way.mtu
    {
        return Ok(slot.way);
    }
    let way = ask()?;
    if !fresh {
        let (destination, source) = (departure.destination, departure.source);
        *slot = Slot { destination, source, asked_ns: now_ns, rest, way };
    }
    Ok(way)
}

/// What routes may depend on besides addresses. The source port is the relay's, always.
#[inline(always)]
fn rest(departure: &Departure) -> u32 {
    let family = match departure.family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    u32::from(departure.destination_port) | u32::from(departure.traffic_class) << 16 | family << 24
}

const _: () = assert!(size_of::<Slot>() == 64 && align_of::<Slot>() == 8 && SLOTS.is_power_of_two());
