//! The table of legs.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use cyphonic_common::relay::address::Address;
use cyphonic_common::relay::leg::MAX_OWN_ADDRESSES;
use cyphonic_common::relay::map::DEFAULT_LEGS;
use cyphonic_common::relay::{Entry, LegEntry, PackedLeg, Place, RelayState, Way};

/// See [`cyphonic_common::relay::place`]. Userspace writes it as memory of its own, with the rules that stand
/// there.
#[map]
static LEGS: Array<[LegEntry; 2]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Legs without a place in the table. Memory is taken when one is made.
#[map]
static OVERFLOW: HashMap<u64, LegEntry> = HashMap::with_max_entries(DEFAULT_LEGS, BPF_F_NO_PREALLOC);

/// See [`cyphonic_common::relay::OwnAddresses`].
#[map]
static OWN_ADDRESSES: Array<[u8; 16]> = Array::with_max_entries(MAX_OWN_ADDRESSES as u32, 0);

/// The two entries where a leg mostly stands: its home, and the one beside it.
pub(crate) struct Candidates(Option<[*mut LegEntry; 2]>);

/// The entries of a place.
#[inline(always)]
fn entries(place: Place) -> Option<[*mut LegEntry; 2]> {
    let Place { pair, home } = place;
    let entries = LEGS.get_ptr_mut(pair)?.cast::<LegEntry>();
    // SAFETY: `home` is 0 or 1, and a pair has two entries.
    Some(unsafe { [entries.add(home), entries.add(home ^ 1)] })
}

#[inline(always)]
pub(crate) fn locate(cid: u64, pairs: u32) -> Candidates {
    let candidates = entries(Place::first(cid, pairs));
    if let Some([home, beside]) = candidates {
        // With a million legs no line of an entry is in the processor's caches. A write, unlike a read, does
        // not hold up what follows it: all lines are fetched at once, and while the frame's headers
        // are read. SAFETY: the pointers are to live map values. The bytes are 0, nobody reads them,
        // and they stay as they are.
        unsafe {
            (&raw mut (*home).leg).cast::<u8>().add(PackedLeg::SPARE).write_volatile(0);
            (&raw mut (*home).way.reserved).write_volatile(0);
            (&raw mut (*beside).leg).cast::<u8>().add(PackedLeg::SPARE).write_volatile(0);
        }
    }
    Candidates(candidates)
}

#[inline(always)]
pub(crate) fn find(candidates: Candidates, cid: u64, pairs: u32) -> Option<KernelEntry> {
    if let Some(entry) = candidates.0.and_then(|entries| KernelEntry::among(entries, cid)) {
        return Some(entry);
    }
    let second = entries(Place::second(cid, pairs));
    if let Some(entry) = second.and_then(|entries| KernelEntry::among(entries, cid)) {
        return Some(entry);
    }
    OVERFLOW.get_ptr_mut(cid).and_then(|entry| KernelEntry::of(entry, cid))
}

#[inline(always)]
pub(crate) fn own(number: u8) -> Address {
    OWN_ADDRESSES.get(u32::from(number)).map_or(Address::UNSPECIFIED, Address::from_bytes)
}

/// A leg's entry. What it says stays as it is until the program ends, even where userspace removes it.
pub(crate) struct KernelEntry {
    /// Depends on the ID that was read.
    entry: *mut LegEntry,
}

impl KernelEntry {
    #[inline(always)]
    fn among([home, beside]: [*mut LegEntry; 2], cid: u64) -> Option<Self> {
        Self::of(home, cid).or_else(|| Self::of(beside, cid))
    }

    /// The entry, if it is that leg's.
    #[inline(always)]
    fn of(entry: *mut LegEntry, cid: u64) -> Option<Self> {
        // SAFETY: the pointer is to a live map value, which has the size of `LegEntry` and at least its
        // alignment.
        let found = unsafe { (&raw const (*entry).leg).cast::<u64>().read_volatile() };
        let mut nothing = found;
        // SAFETY: it makes the register 0, which the verifier learns and the compiler does not. It stays in
        // its place (not `pure`): behind the comparison the compiler would take the ID that was
        // looked for instead of the one that was read.
        unsafe { asm!("{0} &= 0", inout(reg) nothing, options(nomem, nostack)) };
        if found != cid {
            return None;
        }
        // SAFETY: 0 bytes further. Userspace writes the ID last. That other words are not read before it is
        // guaranteed by their address, which depends on it: on processors that reorder reads, nothing
        // else that a program has does that.
        Some(Self { entry: unsafe { entry.byte_add(nothing as usize) } })
    }

    #[inline(always)]
    pub(crate) fn way(&self) -> Way {
        // SAFETY: as in `of`; integers, of which a program on another processor may be writing some: see
        // `Way`.
        unsafe { (&raw const (*self.entry).way).read() }
    }

    #[inline(always)]
    pub(crate) fn set_way(&self, way: Way) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.entry).way).write(way) };
    }
}

impl Entry for KernelEntry {
    #[inline(always)]
    fn leg(&self) -> &PackedLeg {
        // SAFETY: as in `of`. Nobody writes to a leg that a program has found: userspace uses its entry again
        // only after all programs that ran when it was removed have ended.
        unsafe { &(*self.entry).leg }
    }

    #[inline(always)]
    fn update<R>(&self, change: impl FnOnce(&mut RelayState) -> R) -> R {
        // SAFETY: as in `of`. The state is copied out and back, so no reference to shared memory exists.
        // Another CPU may do the same at the same time, in whole words; what is lost then is said at
        // `RelayState`.
        let mut state = unsafe { (&raw const (*self.entry).state).read() };
        let result = change(&mut state);
        // SAFETY: as above.
        unsafe { (&raw mut (*self.entry).state).write(state) };
        result
    }
}
