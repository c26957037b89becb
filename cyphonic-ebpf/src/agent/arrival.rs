//! Where the node's packets arrive: on which processor the kernel takes them in.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::{map, socket_filter};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::SkBuffContext;

/// The processor that took in the last datagram, and one more: 0 is none yet.
#[map]
static ARRIVAL: Array<u32> = Array::with_max_entries(1, 0);

/// What a socket filter says to keep all of a packet.
const ALL: i64 = 0xffff_ffff;

/// Notes the processor, and lets every datagram of the port pass.
#[socket_filter]
pub fn cyphonic_arrival(_: SkBuffContext) -> i64 {
    if let Some(place) = ARRIVAL.get_ptr_mut(0) {
        // SAFETY: it takes nothing.
        let here = unsafe { bpf_get_smp_processor_id() } + 1;
        // SAFETY: the kernel returned a pointer to the entry, which is an aligned `u32`. Written only when it changes, so
        // that processors do not take the cache line from each other for every packet; any of their answers will do.
        unsafe {
            if place.read_volatile() != here {
                place.write_volatile(here);
            }
        }
    }
    ALL
}
