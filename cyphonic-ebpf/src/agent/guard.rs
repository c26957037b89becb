//! What comes in by other interfaces than the overlay's, and leaves by them.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use cyphonic_common::DropReason;
use cyphonic_common::classify::{judge_elsewhere, judge_leaving};
use cyphonic_common::map::{CounterIndex, InterfaceConfig};

use crate::packet::NetworkLayer;
use crate::{counters, report, tables};

/// Drops what pretends to be of the overlay, and leaves everything else to whoever else is on the hook.
#[classifier]
pub fn cyphonic_guard(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_UNSPEC };
    let Some((packet, at)) = NetworkLayer::ipv6(&ctx) else { return TC_ACT_UNSPEC };
    packet.prepare_errors(&ctx, at);
    act(&ctx, &packet, at, config, judge_elsewhere(&packet, at, config))
}

/// Drops what is for the overlay, and must not leave in clear.
#[classifier]
pub fn cyphonic_keep(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_UNSPEC };
    let Some((packet, at)) = NetworkLayer::ipv6(&ctx) else { return TC_ACT_UNSPEC };
    act(&ctx, &packet, at, config, judge_leaving(&packet, at, config))
}

#[inline(always)]
fn act(
    ctx: &TcContext,
    packet: &NetworkLayer<'_>,
    at: usize,
    config: &InterfaceConfig,
    verdict: Result<(), DropReason>,
) -> i32 {
    match verdict {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => {
            counters::count(CounterIndex::Dropped(reason), ctx.len() as usize);
            report::report(ctx, packet, at, config, reason);
            TC_ACT_SHOT
        }
    }
}
