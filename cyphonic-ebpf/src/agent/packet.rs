//! A socket buffer as a [`Buffer`].

use core::marker::PhantomData;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, bpf_hdr_start_off};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::programs::{SkBuffContext, SkReuseportContext, TcContext};
use cyphonic_common::Buffer;
use cyphonic_common::classify::is_upper_layer;
use cyphonic_common::packet::ethernet::{ETHERNET_IPV6, ETHERNET_LEN, ETHERNET_SERVICE_VLAN, ETHERNET_VLAN};
use cyphonic_common::packet::ip::{IPV6_HEADER_LEN, IPV6_MIN_MTU, IPV6_NEXT_HEADER};

/// The packet a program was called for. On the virtual interface, which has no link layer, it starts with its
/// IP header; for a program that chooses a socket, with its UDP header.
///
/// Bytes are copied by `bpf_skb_load_bytes` rather than read through the packet pointers: a super-packet's
/// payload, and sometimes its headers, are not in linear memory.
pub(crate) struct Skb<'a> {
    ctx: *mut c_void,
    len: usize,
    lives: PhantomData<&'a ()>,
}

/// Bytes on the stack where the compiler may load whole words of them: addresses are compared as two words
/// instead of sixteen bytes.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

/// The bytes that `copy` writes to where it is told to; `None` where it says that it failed.
///
/// # Safety
/// It writes all `N` bytes there, and no more, or returns something else than 0.
#[inline(always)]
unsafe fn copied<const N: usize>(copy: impl FnOnce(*mut c_void) -> i64) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<Aligned<N>>::uninit();
    if copy(bytes.as_mut_ptr().cast()) != 0 {
        return None;
    }
    // SAFETY: all `N` bytes are written, as the caller promises; padding behind them needs no value.
    Some(unsafe { bytes.assume_init() }.0)
}

impl<'a> Skb<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self { ctx: ctx.as_ptr(), len: ctx.len() as usize, lives: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn of_device(ctx: &'a SkBuffContext) -> Self {
        Self { ctx: ctx.as_ptr(), len: ctx.len() as usize, lives: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn of_socket(ctx: &'a SkReuseportContext) -> Self {
        Self { ctx: ctx.as_ptr(), len: ctx.len(), lives: PhantomData }
    }
}

/// Whether the kernel (or userspace, on the way in) still has to cut a packet into segments.
#[inline(always)]
pub(crate) fn is_super_packet(ctx: &TcContext) -> bool {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context of a tc program is a `__sk_buff` that lives for the whole call; the verifier
    // rewrites this load to the field of the kernel's own structure.
    unsafe { (*skb).gso_size != 0 }
}

impl Buffer for Skb<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let offset = u32::try_from(offset).ok()?;
        // SAFETY: the helper writes exactly `N` bytes to a pointer to at least as many, or fails; the verifier
        // checks both. It only reads the context.
        unsafe { copied(|to| bpf_skb_load_bytes(self.ctx, offset, to, N as u32)) }
    }
}

/// A packet on an interface with whatever link layer, from the first byte behind the link layer's header on.
pub(crate) struct NetworkLayer<'a> {
    ctx: *mut c_void,
    len: usize,
    lives: PhantomData<&'a ()>,
}

/// Ethertypes, and the mask of a tag's number, in network byte order as the kernel has them.
const IPV6: u16 = u16::from_ne_bytes(ETHERNET_IPV6);
const VLAN: u16 = u16::from_ne_bytes(ETHERNET_VLAN);
const SERVICE_VLAN: u16 = u16::from_ne_bytes(ETHERNET_SERVICE_VLAN);
const TAG_NUMBER: u16 = 0x0fff_u16.to_be();
/// Tags that are looked behind. The kernel looks behind any number of tags of no VLAN (number 0, which are for
/// priorities alone) on the interface that they came in by, and has taken one off already.
const MAX_TAGS: usize = 4;
/// No packet is so long.
const NOWHERE: usize = 1 << 20;
/// As much as [`NetworkLayer::ipv6`] reads: a link layer's header, tags, an IPv6 header.
const HEADERS_LEN: usize = ETHERNET_LEN + 4 * MAX_TAGS + IPV6_HEADER_LEN;
/// As much as the judgement reads of what is ICMPv6 or has extension headers: all that an ICMPv6 error has
/// (RFC 4443 §2.4).
const ERROR_LEN: usize = ETHERNET_LEN + 4 * MAX_TAGS + IPV6_MIN_MTU;

impl<'a> NetworkLayer<'a> {
    /// An IPv6 packet, and where it begins; `None` where it is something else.
    #[inline(always)]
    pub(crate) fn ipv6(ctx: &'a TcContext) -> Option<(Self, usize)> {
        let skb = ctx.as_ptr().cast::<__sk_buff>();
        // SAFETY: as in `is_super_packet`.
        let mut protocol = unsafe { (*skb).protocol } as u16;
        if !matches!(protocol, IPV6 | VLAN | SERVICE_VLAN) {
            return None;
        }
        let packet = Self { ctx: ctx.as_ptr(), len: ctx.len() as usize, lives: PhantomData };
        // The helper below reads linear memory alone, where some drivers and senders put nothing of a packet.
        // Without memory for that nothing can be read, and what cannot be read is dropped.
        if packet.read::<IPV6_HEADER_LEN>(0).is_none() {
            let _ = ctx.pull_data(packet.len.min(HEADERS_LEN) as u32);
        }
        let mut at = 0;
        for _ in 0..=MAX_TAGS {
            if protocol == IPV6 {
                return Some((packet, at));
            }
            let Some([a, b, c, d]) = packet.read::<4>(at) else { return Some((packet, NOWHERE)) };
            if !matches!(protocol, VLAN | SERVICE_VLAN) || u16::from_ne_bytes([a, b]) & TAG_NUMBER != 0 {
                // Of a VLAN, whose own interface is guarded, or nothing that the stack takes for IPv6.
                return None;
            }
            protocol = u16::from_ne_bytes([c, d]);
            at += 4;
        }
        // With more tags than anybody has a use for it is not looked through, but dropped: nothing is there.
        Some((packet, NOWHERE))
    }

    /// Has more of it read where that is judged: of most packets the IPv6 header is enough, and all that some drivers
    /// put into linear memory.
    #[inline(always)]
    pub(crate) fn prepare_errors(&self, ctx: &TcContext, at: usize) {
        if self.read::<1>(at + IPV6_NEXT_HEADER).is_some_and(|[next]| !is_upper_layer(next)) {
            let _ = ctx.pull_data(self.len.min(ERROR_LEN) as u32);
        }
    }
}

impl Buffer for NetworkLayer<'_> {
    /// With the link layer's header.
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let offset = u32::try_from(offset).ok()?;
        let from = bpf_hdr_start_off::BPF_HDR_START_NET;
        // SAFETY: as in `Skb::read`.
        unsafe { copied(|to| bpf_skb_load_bytes_relative(self.ctx, offset, to, N as u32, from)) }
    }
}
