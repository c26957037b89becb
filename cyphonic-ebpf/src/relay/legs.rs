//! The map of legs.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use cyphonic_common::relay::map::DEFAULT_LEGS;
use cyphonic_common::relay::{Entry, RelayEntry, RelayLeg, RelayState};

/// From virtual connection IDs, as they lie in frames, to legs. Memory is taken when a leg is made.
#[map]
static LEGS: HashMap<u64, RelayEntry> = HashMap::with_max_entries(DEFAULT_LEGS, BPF_F_NO_PREALLOC);

/// A leg's entry in the map. The kernel keeps it alive until the program ends, even where userspace removes it.
pub(crate) struct KernelEntry(*mut RelayEntry);

#[inline(always)]
pub(crate) fn find(cid: u64) -> Option<KernelEntry> {
    LEGS.get_ptr_mut(cid).map(KernelEntry)
}

impl Entry for KernelEntry {
    #[inline(always)]
    fn leg(&self) -> &RelayLeg {
        // SAFETY: the pointer is to a live map value, which has the size and alignment of `RelayEntry` (asserted beside
        // its definition). Nobody writes to the leg: userspace replaces the whole entry by a new one elsewhere.
        unsafe { &(*self.0).leg }
    }

    /// With a million legs, neither line of an entry is in the processor's caches. The leg is read next: both are then
    /// fetched at once.
    #[inline(always)]
    fn expect_update(&self) {
        // SAFETY: as above; the word is not used.
        unsafe { (&raw const (*self.0).state.packets).read_volatile() };
    }

    #[inline(always)]
    fn update<R>(&self, change: impl FnOnce(&mut RelayState) -> R) -> R {
        // SAFETY: as above. The state is copied out and back, so no reference to shared memory exists. Another CPU may
        // do the same at the same time, in whole words; what is lost then is said at `RelayState`.
        let mut state = unsafe { (&raw const (*self.0).state).read() };
        let result = change(&mut state);
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).state).write(state) };
        result
    }
}
