//! The way to the receiver, from the kernel's routing and neighbour tables.

use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
};
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash};
use aya_ebpf::programs::XdpContext;
use cyphonic_common::packet::protocol;
use cyphonic_common::relay::map::{MAX_EGRESS, ROUTING_INTERFACE};
use cyphonic_common::relay::watch::ticks;
use cyphonic_common::relay::{Departure, Entry as _, Family, Hop, PassReason, RelayWatch, Way};

use super::legs::KernelEntry;

/// `AF_INET`.
const IPV4: u8 = 2;
/// `AF_INET6`.
const IPV6: u8 = 10;
/// Bits below the DSCP, which no route depends on.
const ECN_BITS: u32 = 2;

/// Interfaces that frames may be redirected to, by index.
#[map]
static EGRESS: DevMapHash = DevMapHash::with_max_entries(MAX_EGRESS, 0);

/// Written by userspace while it watches the routing table.
#[map]
static RELAY_WATCH: Array<RelayWatch> = Array::with_max_entries(1, 0);

/// The next hop for a packet.
///
/// The length is checked against the MTU of the interface and of the route: an IPv4 route's only where it is
/// locked (or `net.ipv4.ip_forward_use_pmtu` is set), an IPv6 route's where it is locked or was learned.
///
/// The answer stands beside the leg and is used again for a time: see
/// [`watch`](cyphonic_common::relay::watch). The question is the same for all packets of a leg, but for
/// length and DSCP; of a leg without a source it is not, so that asks for every packet. So does one whose
/// packets the kernel must send itself.
#[inline(always)]
pub(crate) fn route(
    ctx: &XdpContext,
    always_redirects: bool,
    entry: &KernelEntry,
    departure: &Departure,
    now_ns: u64,
) -> Result<Hop, PassReason> {
    let (mut way, now) = (entry.way(), ticks(now_ns));
    let known = way.interface != 0
        && departure.ip_len <= way.mtu
        && (departure.traffic_class ^ way.traffic_class) >> ECN_BITS == 0
        && RELAY_WATCH.get(0).is_some_and(|watch| watch.is_fresh(way.asked, now));
    if !known {
        way = ask(ctx, departure, now)?;
        if entry.leg().source() != 0 {
            entry.set_way(way);
        }
    }
    if !always_redirects && way.interface == ctx.ingress_ifindex() as u32 {
        return Ok(Hop::from_source_first(way.links, None));
    }
    // If the frame does not leave after all, nobody asks where it would have gone.
    if EGRESS.redirect(way.interface, 0).is_err() {
        return Err(PassReason::OtherInterface);
    }
    Ok(Hop::from_source_first(way.links, Some(way.interface)))
}

/// Asks the routing table.
#[inline(always)]
fn ask(ctx: &XdpContext, departure: &Departure, asked: u32) -> Result<Way, PassReason> {
    let mut lookup = parameters(departure);
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is the program's own, and the parameters are a live `bpf_fib_lookup` of the size
    // given, which the helper reads and writes.
    let result = unsafe { fib_lookup(ctx.as_ptr(), &raw mut lookup, size, 0) };
    match u32::try_from(result) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {}
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => return Err(PassReason::NoNeighbour),
        Ok(BPF_FIB_LKUP_RET_FRAG_NEEDED) => return Err(PassReason::TooBig),
        Ok(BPF_FIB_LKUP_RET_FWD_DISABLED) => return Err(PassReason::RoutingOff),
        _ => return Err(PassReason::NoRoute),
    }
    // SAFETY: an integer in a union of integers. With a length asked about, the kernel answers with the MTU.
    let mtu = unsafe { lookup.__bindgen_anon_1.mtu_result };
    let (links, traffic_class) = (link_addresses(&lookup), departure.traffic_class);
    Ok(Way { links, interface: lookup.ifindex, asked, mtu, traffic_class, reserved: 0 })
}

/// The answer's two link addresses, which are its last twelve bytes.
#[inline(always)]
fn link_addresses(lookup: &bpf_fib_lookup) -> [u32; 3] {
    const AT: usize = offset_of!(bpf_fib_lookup, smac);
    const _: () = assert!(AT.is_multiple_of(4) && align_of::<bpf_fib_lookup>() == 4);
    const _: () =
        assert!(offset_of!(bpf_fib_lookup, dmac) == AT + 6 && size_of::<bpf_fib_lookup>() == AT + 12);
    let words = (&raw const *lookup).cast::<u32>();
    // SAFETY: the three words are inside the structure and aligned, as asserted above. Volatile, since longer
    // words would not be aligned on the stack, which the verifier refuses there and only there.
    [0, 1, 2].map(|word| unsafe { words.add(AT / 4 + word).read_volatile() })
}

/// The question to the routing table: as for a packet that this host sends.
#[inline(always)]
fn parameters(departure: &Departure) -> bpf_fib_lookup {
    // SAFETY: it consists of integers and unions of integers, for which zeros are valid.
    let mut lookup: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    lookup.l4_protocol = protocol::UDP;
    lookup.sport = departure.source_port;
    lookup.dport = departure.destination_port;
    lookup.__bindgen_anon_1.tot_len = departure.ip_len;
    lookup.ifindex = ROUTING_INTERFACE;
    match departure.family {
        Family::V4 => {
            lookup.family = IPV4;
            lookup.__bindgen_anon_2.tos = departure.traffic_class;
            lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(departure.source.to_v4());
            lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(departure.destination.to_v4());
        }
        Family::V6 => {
            lookup.family = IPV6;
            lookup.__bindgen_anon_2.flowinfo = (u32::from(departure.traffic_class) << 20).to_be();
            lookup.__bindgen_anon_3.ipv6_src = departure.source.to_words();
            lookup.__bindgen_anon_4.ipv6_dst = departure.destination.to_words();
        }
    }
    lookup
}
