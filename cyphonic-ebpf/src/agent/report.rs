//! What the programs tell the agent's log: one message a second on each CPU, however much is dropped.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_log_ebpf::info;
use cyphonic_common::DropReason;
use cyphonic_common::map::InterfaceConfig;

/// Between two messages of one CPU.
const INTERVAL_NS: u64 = 1_000_000_000;

/// A CPU's budget for messages.
#[repr(C)]
struct Budget {
    /// When it last said something; 0 before it did.
    last_ns: u64,
    /// What it has kept to itself since.
    silent: u64,
}

#[map]
static LOG_BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);

/// Tells of a drop, if userspace wants to hear of it and it is not one too many.
#[inline(always)]
pub(crate) fn report<C: EbpfContext>(ctx: &C, config: &InterfaceConfig, reason: DropReason) {
    if config.logs_drops()
        && !reason.is_noise()
        && let Some(silent) = may_speak()
    {
        info!(
            ctx,
            "dropped a packet for reason {} ({} drops before it were not told)",
            reason.index(),
            silent
        );
    }
}

/// Whether one more message may be written now, and then how many were not since the last.
#[inline(always)]
fn may_speak() -> Option<u64> {
    let budget = LOG_BUDGET.get_ptr_mut(0)?;
    // SAFETY: the helper takes nothing and reads the monotonic clock.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the kernel returned a pointer to this CPU's copy of the entry, which only programs on this CPU
    // touch; one that is nested in another could at worst let one more message through.
    let budget = unsafe { &mut *budget };
    if budget.last_ns != 0 && now.wrapping_sub(budget.last_ns) < INTERVAL_NS {
        budget.silent = budget.silent.wrapping_add(1);
        return None;
    }
    let silent = budget.silent;
    budget.last_ns = now;
    budget.silent = 0;
    Some(silent)
}
