//! What the relay is measured with and against. Loaded by `cargo xtask bench relay` only.
//!
//! | Program | Run by | Does |
//! |---|---|---|
//! | `bench_generate` | `BPF_PROG_TEST_RUN` with live frames | makes each frame a fresh packet of a random binding and transmits it |
//! | `bench_sink` | XDP at the other end of the relay's cable | counts what was relayed and drops it |
//! | `bench_forward` | XDP, in the relay's place | rewrites what a relay rewrites, without looking anything up |
//! | `bench_call` | `BPF_PROG_TEST_RUN` | makes a fresh packet, then calls another program: what that costs alone |
//! | `bench_nothing` | `bench_call` | nothing: what is to be subtracted |

#![no_std]
#![no_main]

mod forward;
mod frame;
mod traffic;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use frame::{read, write};
use traffic::{
    CHANNEL_HEADER_LEN, FIRST_SENDER, HEAD_LEN, MARK, PAYLOAD, Template, address_sum, fold, odd_sum,
    real_cid, udp_checksum, virtual_cid,
};

cyphonic_ebpf::license!();

/// How many bindings there are. Packets are spread evenly over them.
#[unsafe(no_mangle)]
static BINDINGS: Global<u32> = Global::new(1);

/// How many packets of one binding follow each other.
#[unsafe(no_mangle)]
static TRAIN: Global<u32> = Global::new(1);

/// Whether packets are for a TURN server: in a channel, with the connection ID that the receiver expects.
#[unsafe(no_mangle)]
static TURN: Global<u8> = Global::new(0);

/// One entry.
#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

/// Of the binding whose turn it is: its number, and how many of its packets are still to come.
#[map]
static TURN_OF: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Relayed packets, their bytes, and other frames.
#[map]
static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

/// The head of a relayed packet, for the measuring program to look at.
#[map]
static SAMPLE: Array<[u64; HEAD_LEN / 8]> = Array::with_max_entries(1, 0);

/// What `bench_call` calls.
#[map]
static CALLED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Makes the frame a packet and transmits it.
#[xdp]
pub fn bench_generate(ctx: XdpContext) -> u32 {
    if stamp(&ctx).is_some() { XDP_TX } else { XDP_ABORTED }
}

/// Makes the frame a packet and has another program process it.
#[xdp]
pub fn bench_call(ctx: XdpContext) -> u32 {
    if stamp(&ctx).is_some() {
        // SAFETY: nothing here has a destructor. The kernel checks that the other program takes the same
        // context.
        unsafe { CALLED.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Does nothing.
#[xdp]
pub fn bench_nothing(_: XdpContext) -> u32 {
    XDP_TX
}

/// Counts relayed packets. What else arrives is for the sockets behind it.
#[xdp]
pub fn bench_sink(ctx: XdpContext) -> u32 {
    let length = (ctx.data_end() - ctx.data()) as u64;
    if read::<[u8; 4]>(&ctx, PAYLOAD + 5) != Some(MARK) || read::<u8>(&ctx, 23) != Some(17) {
        count(2, 1);
        return XDP_PASS;
    }
    count(0, 1);
    count(1, length);
    if SAMPLE.get(0).is_some_and(|sample| sample[0] == 0) {
        keep(&ctx);
    }
    XDP_DROP
}

/// Forwards without looking anything up.
#[xdp]
pub fn bench_forward(ctx: XdpContext) -> u32 {
    if forward::forward(&ctx).is_some() { XDP_TX } else { XDP_PASS }
}

#[inline(always)]
fn stamp(ctx: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let turn = TURN.load() != 0;
    let binding = if TRAIN.load() == 1 { any_binding() } else { next_binding()? };
    let sender = FIRST_SENDER + binding;
    let cid = if turn { real_cid(binding) } else { virtual_cid(binding) };
    write(ctx, 0, template.head)?;
    let ip = !fold(template.ip_sum + address_sum(sender));
    write(ctx, 24, ip.to_be_bytes())?;
    write(ctx, 26, sender.to_be_bytes())?;
    let udp = udp_checksum(template.udp_sum + address_sum(sender) + odd_sum(&cid));
    write(ctx, 40, udp.to_be_bytes())?;
    write(ctx, if turn { PAYLOAD + CHANNEL_HEADER_LEN + 1 } else { PAYLOAD + 1 }, cid)
}

#[inline(always)]
fn any_binding() -> u32 {
    // SAFETY: the helper takes no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    ((u64::from(random) * u64::from(BINDINGS.load())) >> 32) as u32
}

/// The same as often as a train is long, then another.
#[inline(always)]
fn next_binding() -> Option<u32> {
    let turn = TURN_OF.get_ptr_mut(0)?;
    // SAFETY: the kernel returned this CPU's copy of the entry, which nobody else uses meanwhile.
    let [binding, left] = unsafe { &mut *turn };
    if *left == 0 {
        (*binding, *left) = (any_binding(), TRAIN.load());
    }
    *left -= 1;
    Some(*binding)
}

#[inline(always)]
fn count(index: u32, add: u64) {
    let Some(counter) = SUNK.get_ptr_mut(index) else { return };
    // SAFETY: the kernel returned this CPU's copy of the entry; programs at this hook do not preempt one
    // another.
    unsafe { *counter += add };
}

#[inline(always)]
fn keep(ctx: &XdpContext) {
    let (Some(head), Some(sample)) = (read::<[u64; HEAD_LEN / 8]>(ctx, 0), SAMPLE.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: the kernel returned a pointer to the entry. A reader may see two packets mixed; it reads when
    // none come.
    unsafe { *sample = head };
}
