//! The network card, where the node's tunnels are carried by AF_XDP sockets on both sides.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, XskMap};
use aya_ebpf::programs::XdpContext;
use cyphonic_common::steer::{MAX_CARDS, UNDERLAY_SOCKETS, UnderlayConfig, socket_index, steer_underlay};
use cyphonic_ebpf::xdp_frame::XdpFrame;

use crate::veth::queue;
use crate::workers;

/// Written by userspace when it attaches the program.
#[map]
static UNDERLAY: Array<UnderlayConfig> = Array::with_max_entries(1, 0);

/// Slots of the cards that have sockets, by the cards' numbers.
#[map]
static CARDS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_CARDS, BPF_F_NO_PREALLOC);

/// The rings' sockets by their card's slot, queue and worker.
#[map]
static XSKS_UNDERLAY: XskMap = XskMap::with_max_entries(UNDERLAY_SOCKETS, 0);

/// Gives the tunnels' data packets to their worker's socket, and leaves everything else to the stack,
/// untouched.
#[xdp]
pub fn cyphonic_underlay(ctx: XdpContext) -> u32 {
    socket(&ctx).and_then(|index| XSKS_UNDERLAY.redirect(index, u64::from(XDP_PASS)).ok()).unwrap_or(XDP_PASS)
}

/// The place of the socket that a frame is for.
#[inline(always)]
fn socket(ctx: &XdpContext) -> Option<u32> {
    let cid = steer_underlay(&XdpFrame::new(ctx), UNDERLAY.get(0)?)?;
    // A data packet that no tunnel of this node is reached by is answered or counted by who reads the UDP
    // port.
    socket_index(slot(ctx)?, queue(ctx), workers::worker_of(&cid)?)
}

/// The slot of the card that a frame came in by.
#[inline(always)]
fn slot(ctx: &XdpContext) -> Option<u32> {
    // SAFETY: the context is the one the kernel called the program with, and outlives the call.
    let card = unsafe { (*ctx.ctx).ingress_ifindex };
    // SAFETY: a number is copied out of the entry at once.
    unsafe { CARDS.get(card) }.copied()
}
