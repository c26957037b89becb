//! The relay's eBPF program.
//!
//! `cyphonic_relay` forwards tunnel data between nodes that cannot meet, on the interfaces of a TRS, before
//! the kernel's stack sees it. What it does with a frame is decided and tested in `cyphonic_common::relay`;
//! here are the kernel's sides of it: the map of legs, the routing table, the clock, the counters.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod clock;
mod legs;
mod route;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use cyphonic_common::relay::address::Address;
use cyphonic_common::relay::{
    Departure, Hop, PassReason, Relay, RelayConfig, RelayCounterIndex, Verdict, relay,
};
use cyphonic_common::{Buffer, Counter};
use cyphonic_ebpf::xdp_frame::XdpFrame;
use legs::{Candidates, KernelEntry};

cyphonic_ebpf::license!();

/// Written by userspace before the program is attached.
#[map]
static RELAY_CONFIG: Array<RelayConfig> = Array::with_max_entries(1, 0);

/// Indexed by [`RelayCounterIndex::index`].
#[map]
static RELAY_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(RelayCounterIndex::COUNT, 0);

/// Forwards what the relay's legs say, and leaves everything else to the stack.
#[xdp]
pub fn cyphonic_relay(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(&ctx);
    let len = frame.len() as u64;
    let verdict = match RELAY_CONFIG.get(0) {
        Some(config) => {
            let always_redirects = config.always_redirects();
            relay(&mut frame, config, &Kernel { ctx: &ctx, pairs: config.pairs(), always_redirects })
        }
        None => Verdict::Pass(PassReason::NotConfigured),
    };
    count(verdict.counter(), len);
    match verdict {
        Verdict::Forward { redirect: None, .. } => XDP_TX,
        // `route` has said where to.
        Verdict::Forward { redirect: Some(_), .. } => XDP_REDIRECT,
        Verdict::Pass(_) => XDP_PASS,
        Verdict::Drop(_) => XDP_DROP,
    }
}

/// What the relay's code asks the kernel.
struct Kernel<'a> {
    ctx: &'a XdpContext,
    /// The size of the legs' table.
    pairs: u32,
    /// See [`RelayConfig::always_redirects`].
    always_redirects: bool,
}

impl Relay for Kernel<'_> {
    type Entry = KernelEntry;
    type Place = Candidates;

    #[inline(always)]
    fn locate(&self, cid: u64) -> Candidates {
        legs::locate(cid, self.pairs)
    }

    #[inline(always)]
    fn find(&self, candidates: Candidates, cid: u64) -> Option<KernelEntry> {
        legs::find(candidates, cid, self.pairs)
    }

    #[inline(always)]
    fn own(&self, number: u8) -> Address {
        legs::own(number)
    }

    #[inline(always)]
    fn route(&self, entry: &KernelEntry, departure: &Departure, now_ns: u64) -> Result<Hop, PassReason> {
        route::route(self.ctx, self.always_redirects, entry, departure, now_ns)
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }
}

#[inline(always)]
fn count(index: RelayCounterIndex, bytes: u64) {
    let Some(counter) = RELAY_COUNTERS.get_ptr_mut(index.index()) else { return };
    // SAFETY: the kernel returned a pointer to this CPU's copy of the entry, which has the size and alignment
    // of `Counter` (asserted beside its definition). XDP programs run to their end on a CPU before
    // another one does.
    unsafe { (*counter).add(bytes) }
}
