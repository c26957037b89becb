//! The time.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// What the clock said, and in which jiffy.
#[repr(C)]
struct Reading {
    jiffies: u64,
    ns: u64,
}

/// All processors'. They write the same.
#[map]
static RELAY_CLOCK: Array<Reading> = Array::with_max_entries(1, 0);

/// `CLOCK_MONOTONIC`, coarsely. It is asked once in a jiffy: a call of the kernel's costs as much as a third
/// of everything else that is done for a packet, while the verifier puts a load of a variable in the place of
/// the call for the jiffies.
///
/// The kernel's coarse clock moves a moment after the jiffies do, in steps of up to 10 ms. Who asks in
/// between has others told the time of a step before for as long as the jiffy lasts. So this clock is up to
/// 20 ms behind, and never ahead.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: it takes nothing and reads a variable of the kernel's.
    let jiffies = unsafe { bpf_jiffies64() };
    let Some(reading) = RELAY_CLOCK.get_ptr_mut(0) else { return ask() };
    // SAFETY: the pointer is to a live map value, which has the size and alignment of `Reading`. Programs on
    // other processors write whole words at the same time, the time first: who sees the new jiffy sees the
    // new time, or, on processors that reorder, one of a step before.
    unsafe {
        if (&raw const (*reading).jiffies).read_volatile() == jiffies {
            return (&raw const (*reading).ns).read_volatile();
        }
        let ns = ask();
        (&raw mut (*reading).ns).write_volatile(ns);
        (&raw mut (*reading).jiffies).write_volatile(jiffies);
        ns
    }
}

#[inline(always)]
fn ask() -> u64 {
    // SAFETY: it takes nothing and reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
