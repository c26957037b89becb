//! Which worker gets a packet: chosen before the packet is queued, so that workers share nothing.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::macros::{map, sk_reuseport, socket_filter};
use aya_ebpf::maps::{HashMap, ReusePortSockArray};
use aya_ebpf::programs::{SkBuffContext, SkReuseportContext};
use cyphonic_common::classify::PeerTable;
use cyphonic_common::map::{MAX_CIDS, MAX_WORKERS, spread_of};
use cyphonic_common::packet::ip::IPV6_DESTINATION;
use cyphonic_common::packet::udp::UDP_HEADER_LEN;
use cyphonic_common::quic::{DatagramKind, classify_datagram_at};
use cyphonic_common::{Buffer, ConnectionId};

use crate::packet::Skb;
use crate::tables::Tables;

/// Workers by the data connection IDs that reach them.
#[map]
static CIDS: HashMap<[u8; 8], u32> = HashMap::with_max_entries(MAX_CIDS, BPF_F_NO_PREALLOC);

/// The workers' UDP sockets, all of one port.
#[map]
static SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(MAX_WORKERS, 0);

/// Chooses the queue of the virtual interface, and so the worker, for what applications send: by destination,
/// so that a peer's packets stay in order. The kernel takes the result's low 16 bits modulo the number of
/// queues, as [`cyphonic_common::map::worker_of`] does.
#[socket_filter]
pub fn cyphonic_queue(ctx: SkBuffContext) -> i64 {
    let Some(destination) = Skb::of_device(&ctx).read::<16>(IPV6_DESTINATION) else { return 0 };
    let worker = match Tables.peer(&destination) {
        Some(peer) if peer.is_live() => peer.worker(),
        _ => spread_of(&destination),
    };
    i64::from(worker)
}

/// Chooses the socket, and so the worker, for what arrives on the node's UDP port: tunnel data by its
/// connection ID, everything else to the first.
#[sk_reuseport]
pub fn cyphonic_socket(ctx: SkReuseportContext) -> u32 {
    let worker = match classify_datagram_at(&Skb::of_socket(&ctx), UDP_HEADER_LEN) {
        DatagramKind::Data(cid) => worker_of(&cid).unwrap_or(0),
        DatagramKind::Signalling | DatagramKind::NotQuic => 0,
    };
    // Where there is no such socket the kernel chooses one, and the worker that finds a stranger hands it on.
    let _ = SOCKETS.select_reuseport(&ctx, worker);
    SK_PASS
}

/// The worker that data packets with this connection ID belong to, if one of the node's tunnels is reached by
/// it.
#[inline(always)]
pub(crate) fn worker_of(cid: &ConnectionId) -> Option<u32> {
    // SAFETY: a number is copied out of the entry at once.
    unsafe { CIDS.get(cid.as_bytes()) }.copied()
}
