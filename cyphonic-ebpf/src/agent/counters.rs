//! Packets and bytes per verdict, on each CPU for itself.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use cyphonic_common::Buffer;
use cyphonic_common::map::{Counter, CounterIndex};

use crate::packet::Skb;

/// Indexed by [`CounterIndex::index`].
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(CounterIndex::COUNT, 0);

/// Counts a packet, and once more in `super_index` if it is a super-packet and that is another entry.
#[inline(always)]
pub(crate) fn count(skb: &Skb<'_>, index: CounterIndex, super_index: CounterIndex) {
    let bytes = skb.len() as u64;
    add(index.index(), bytes);
    if super_index.index() != index.index() && skb.is_super_packet() {
        add(super_index.index(), bytes);
    }
}

#[inline(always)]
fn add(index: u32, bytes: u64) {
    let Some(counter) = COUNTERS.get_ptr_mut(index) else { return };
    // SAFETY: the kernel returned a pointer to this CPU's copy of the entry, which has the size and alignment of
    // `Counter` (asserted beside its definition). Programs do not migrate or preempt one another on a CPU at the same
    // hook level; a program nested in a softirq could at worst lose one count.
    unsafe { (*counter).add(bytes) }
}
