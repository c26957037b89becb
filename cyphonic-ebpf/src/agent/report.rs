//! What the programs tell the agent's log: one message a second on each CPU, however much is dropped.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_log_ebpf::info;
use cyphonic_common::map::InterfaceConfig;
use cyphonic_common::packet::ip::{IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_NEXT_HEADER, IPV6_SOURCE};
use cyphonic_common::packet::protocol::has_ports;
use cyphonic_common::{Buffer, DropReason};

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

/// What the log tells of a packet.
struct Told {
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    /// Where the protocol has ports, else 0.
    ports: (u16, u16),
}

impl Told {
    /// Of an IPv6 packet that begins at that offset; all 0 of anything else. Ports behind extension headers
    /// are not looked for.
    #[inline(always)]
    fn of<B: Buffer>(packet: &B, at: usize) -> Self {
        let header = packet.read::<IPV6_HEADER_LEN>(at).filter(|header| header[0] >> 4 == 6);
        let Some(header) = header else {
            return Self { source: [0; 16], destination: [0; 16], protocol: 0, ports: (0, 0) };
        };
        let (mut source, mut destination) = ([0; 16], [0; 16]);
        source.copy_from_slice(&header[IPV6_SOURCE..IPV6_DESTINATION]);
        destination.copy_from_slice(&header[IPV6_DESTINATION..]);
        let protocol = header[IPV6_NEXT_HEADER];
        let words = if has_ports(protocol) { packet.read::<4>(at + IPV6_HEADER_LEN) } else { None };
        let [s0, s1, d0, d1] = words.unwrap_or([0; 4]);
        let ports = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        Self { source, destination, protocol, ports }
    }
}

/// Tells of a drop, if userspace wants to hear of it and it is not one too many. The packet begins at that
/// offset. Userspace has words for the reason's number.
#[inline(always)]
pub(crate) fn report<C: EbpfContext, B: Buffer>(
    ctx: &C,
    packet: &B,
    at: usize,
    config: &InterfaceConfig,
    reason: DropReason,
) {
    if config.logs_drops()
        && !reason.is_noise()
        && let Some(silent) = may_speak()
    {
        let Told { source, destination, protocol, ports } = Told::of(packet, at);
        info!(
            ctx,
            "dropped for reason {}: from {:i} port {} to {:i} port {}, protocol {} ({} drops before it were not told)",
            reason.index(),
            source,
            ports.0,
            destination,
            ports.1,
            protocol,
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
