//! The time.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// What the clock said last, and in which jiffy, in one word, so that no processor sees halves of two: the time
/// in steps of 2²⁰ ns (a millisecond; enough for 36 years) below [`TIME_BITS`], the jiffy's last bits above. 0
/// before it was asked.
///
/// A jiffy whose last 24 bits are those of another one is taken for it: that is hours away, and lasts a jiffy.
#[map]
static RELAY_CLOCK: Array<u64> = Array::with_max_entries(1, 0);

const TIME_BITS: u32 = 40;
const STEP_BITS: u32 = 20;

/// `CLOCK_MONOTONIC`, coarsely. It is asked once in a jiffy: a call of the kernel's costs as much as a third of
/// everything else that is done for a packet, while the verifier puts a load of a variable in the place of the
/// call for the jiffies.
///
/// The kernel's coarse clock moves a moment after the jiffies do, in steps of up to 10 ms where its timer is
/// on time. Who asks in between has others told the time of a step before for as long as the jiffy lasts. So
/// this clock is up to two steps and a millisecond behind, and never ahead.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: it takes nothing and reads a variable of the kernel's.
    let jiffy = unsafe { bpf_jiffies64() } << TIME_BITS;
    let Some(last) = RELAY_CLOCK.get_ptr_mut(0) else { return ask() };
    // SAFETY: the pointer is to a live map value of the size and alignment of a word. Programs on other
    // processors write it at the same time, as a whole.
    let known = unsafe { last.read_volatile() };
    if known != 0 && (known ^ jiffy) >> TIME_BITS == 0 {
        return known << (u64::BITS - TIME_BITS) >> (u64::BITS - TIME_BITS - STEP_BITS);
    }
    let now = ask();
    let told = now >> STEP_BITS << (u64::BITS - TIME_BITS) >> (u64::BITS - TIME_BITS);
    // SAFETY: as above.
    unsafe { last.write_volatile(jiffy | told) };
    now
}

#[inline(always)]
fn ask() -> u64 {
    // SAFETY: it takes nothing and reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
