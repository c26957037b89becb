//! What comes in by other interfaces than the overlay's.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use cyphonic_common::classify::judge_elsewhere;
use cyphonic_common::map::CounterIndex;

use crate::packet::NetworkLayer;
use crate::{counters, report, tables};

/// Drops what pretends to be of the overlay, and leaves everything else to whoever else is on the hook.
#[classifier]
pub fn cyphonic_guard(ctx: TcContext) -> i32 {
    let Some(config) = tables::config() else { return TC_ACT_UNSPEC };
    let Some((packet, at)) = NetworkLayer::ipv6(&ctx) else { return TC_ACT_UNSPEC };
    match judge_elsewhere(&packet, at, config) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => {
            counters::count(CounterIndex::Dropped(reason), ctx.len() as usize);
            report::report(&ctx, &packet, at, config, reason);
            TC_ACT_SHOT
        }
    }
}
