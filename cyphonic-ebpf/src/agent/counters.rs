//! Packets and bytes per verdict, on each CPU for itself.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use cyphonic_common::map::{Counter, CounterIndex};

/// Indexed by [`CounterIndex::index`].
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(CounterIndex::COUNT, 0);

/// Counts one packet of that many bytes.
#[inline(always)]
pub(crate) fn count(index: CounterIndex, bytes: usize) {
    let Some(counter) = COUNTERS.get_ptr_mut(index.index()) else { return };
    // SAFETY: the kernel returned a pointer to this CPU's copy of the entry, which has the size and alignment
    // of `Counter` (asserted beside its definition). Programs do not migrate or preempt one another on a
    // CPU at the same hook level; a program nested in a softirq could at worst lose one count.
    unsafe { (*counter).add(bytes as u64) }
}
