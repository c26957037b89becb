//! The agent's eBPF programs.
//!
//! Each program is thin glue: it lets `cyphonic-common` decide on the packet, counts, and translates the
//! verdict into what the hook expects. Whatever can be decided without the kernel is decided (and tested)
//! over there.
//!
//! | Program | Hook | Does |
//! |---|---|---|
//! | `cyphonic_egress` | tc egress of the virtual interface | lets packets for tunnels pass, drops the rest with a reason |
//! | `cyphonic_ingress` | tc ingress of the virtual interface | lets pass what the policy allows of what comes out of tunnels |
//! | `cyphonic_queue` | queue selection of the virtual interface | chooses the worker for what applications send |
//! | `cyphonic_socket` | socket selection of the UDP port | chooses the worker for what arrives |
//! | `cyphonic_veth` | XDP on the far end of the virtual interface | gives packets for tunnels to AF_XDP sockets, drops the rest with a reason |
//! | `cyphonic_near` | tc ingress of a veth pair's near end | as `cyphonic_ingress`, behind an Ethernet header |
//! | `cyphonic_guard` | tc ingress of other interfaces | drops what has addresses of the overlay and came past the tunnels |
//! | `cyphonic_keep` | tc egress of other interfaces | drops what is for the overlay and would leave past the tunnels |
//! | `cyphonic_underlay` | XDP on a network card | gives tunnels' packets to AF_XDP sockets, leaves the rest to the stack |

#![no_std]
#![no_main]

mod counters;
mod guard;
mod packet;
mod report;
mod tables;
mod underlay;
mod veth;
mod workers;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use cyphonic_common::DropReason;
use cyphonic_common::classify::{Egress, judge_egress, judge_ingress};
use cyphonic_common::map::{CounterIndex, InterfaceConfig};
use packet::{Skb, is_super_packet};
use tables::Tables;

cyphonic_ebpf::license!();

/// Judges what applications send through the virtual interface.
#[classifier]
pub fn cyphonic_egress(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_SHOT };
    let packet = Skb::new(&ctx);
    match judge_egress(&packet, config, &Tables) {
        Egress::Tunnel { .. } => {}
        Egress::Unknown => counters::count(CounterIndex::TunnelUnknown, ctx.len() as usize),
        Egress::Dead => counters::count(CounterIndex::TunnelDead, ctx.len() as usize),
        Egress::Drop(reason) => return drop(&ctx, &packet, 0, config, reason),
    }
    pass(&ctx, CounterIndex::Tunnel, CounterIndex::TunnelSuper)
}

/// Judges what comes out of tunnels. Userspace has already checked its addresses.
#[classifier]
pub fn cyphonic_ingress(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_SHOT };
    let packet = Skb::new(&ctx);
    match judge_ingress(&packet, config, &Tables) {
        Ok(()) => pass(&ctx, CounterIndex::Ingress, CounterIndex::IngressSuper),
        Err(reason) => drop(&ctx, &packet, 0, config, reason),
    }
}

/// To the next program or filter on the hook, which may have something to say too; after the last, on its
/// way.
#[inline(always)]
fn pass(ctx: &TcContext, index: CounterIndex, super_index: CounterIndex) -> i32 {
    counters::count(index, ctx.len() as usize);
    if is_super_packet(ctx) {
        counters::count(super_index, ctx.len() as usize);
    }
    TC_ACT_UNSPEC
}

/// The packet begins at that offset.
#[inline(always)]
fn drop(ctx: &TcContext, packet: &Skb<'_>, at: usize, config: &InterfaceConfig, reason: DropReason) -> i32 {
    counters::count(CounterIndex::Dropped(reason), ctx.len() as usize);
    report::report(ctx, packet, at, config, reason);
    TC_ACT_SHOT
}
