//! The virtual interface where it is a veth pair: applications have its near end, AF_XDP sockets its far end.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::XskMap;
use aya_ebpf::programs::{TcContext, XdpContext};
use cyphonic_common::classify::Egress;
use cyphonic_common::map::CounterIndex;
use cyphonic_common::packet::ethernet::ETHERNET_LEN;
use cyphonic_common::steer::{MAX_QUEUES, judge_near_end, judge_virtual};
use cyphonic_common::{Buffer, DropReason};
use cyphonic_ebpf::xdp_frame::XdpFrame;

use crate::counters::count;
use crate::packet::Skb;
use crate::report::report;
use crate::tables::{self, Tables};

/// The rings' sockets by queue.
#[map]
static XSKS_VIRTUAL: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);

/// Judges what applications send, as `cyphonic_egress` does, and gives it to the queue's socket.
#[xdp]
pub fn cyphonic_veth(ctx: XdpContext) -> u32 {
    let frame = XdpFrame::new(&ctx);
    let bytes = frame.len().saturating_sub(ETHERNET_LEN);
    let Some(config) = tables::config() else {
        count(CounterIndex::Dropped(DropReason::NotConfigured), bytes);
        return XDP_DROP;
    };
    let drop = |reason| {
        count(CounterIndex::Dropped(reason), bytes);
        report(&ctx, &frame, ETHERNET_LEN, config, reason);
        XDP_DROP
    };
    match judge_virtual(&frame, config, &Tables) {
        Egress::Tunnel { .. } => {}
        Egress::Unknown => count(CounterIndex::TunnelUnknown, bytes),
        Egress::Dead => count(CounterIndex::TunnelDead, bytes),
        Egress::Drop(reason) => return drop(reason),
    }
    match XSKS_VIRTUAL.redirect(queue(&ctx), u64::from(XDP_DROP)) {
        Ok(action) => {
            count(CounterIndex::Tunnel, bytes);
            action
        }
        // No socket is there (yet).
        Err(_) => drop(DropReason::NotConfigured),
    }
}

/// Judges what comes out of tunnels at the near end, as `cyphonic_ingress` does where there is no link layer.
#[classifier]
pub fn cyphonic_near(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_SHOT };
    let frame = Skb::new(&ctx);
    match judge_near_end(&frame, config, &Tables) {
        Ok(()) => crate::pass(&ctx, CounterIndex::Ingress, CounterIndex::IngressSuper),
        Err(reason) => crate::drop(&ctx, &frame, ETHERNET_LEN, config, reason),
    }
}

/// The queue that a frame came in by.
#[inline(always)]
pub(crate) fn queue(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the one the kernel called the program with, and outlives the call.
    unsafe { (*ctx.ctx).rx_queue_index }
}
