//! The agent's eBPF programs.
//!
//! Each program is thin glue: it lets `cyphonic-common` decide on the packet, counts, and translates the verdict into
//! what the hook expects. Whatever can be decided without the kernel is decided (and tested) over there.
//!
//! | Program | Hook | Does |
//! |---|---|---|
//! | `cyphonic_egress` | tc egress of the virtual interface | lets packets for tunnels pass, drops the rest with a reason |
//! | `cyphonic_ingress` | tc ingress of the virtual interface | counts packets that come out of tunnels |

#![no_std]
#![no_main]

mod counters;
mod packet;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::trace;
use cyphonic_common::classify::{Verdict, classify_egress};
use cyphonic_common::map::{CounterIndex, InterfaceConfig};

use packet::Skb;

cyphonic_ebpf::license!();

/// The interface's address and network. Userspace writes it before it attaches the programs.
#[map]
static CONFIG: Array<InterfaceConfig> = Array::with_max_entries(1, 0);

/// Judges what applications send through the virtual interface.
#[classifier]
pub fn cyphonic_egress(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let verdict = match CONFIG.get(0) {
        Some(config) => classify_egress(&skb, config),
        None => Verdict::Drop(cyphonic_common::DropReason::NotConfigured),
    };
    match verdict {
        Verdict::Tunnel { .. } => {
            counters::count(&skb, CounterIndex::Tunnel, CounterIndex::TunnelSuper);
            TC_ACT_OK
        }
        Verdict::Drop(reason) => {
            let index = CounterIndex::Dropped(reason);
            counters::count(&skb, index, index);
            if !reason.is_noise() {
                trace!(&ctx, "dropped on the way to a tunnel: reason {}", reason.index());
            }
            TC_ACT_SHOT
        }
    }
}

/// Counts what comes out of tunnels. Userspace has already checked it, so it passes.
#[classifier]
pub fn cyphonic_ingress(ctx: TcContext) -> i32 {
    counters::count(&Skb::new(&ctx), CounterIndex::Ingress, CounterIndex::IngressSuper);
    TC_ACT_OK
}
