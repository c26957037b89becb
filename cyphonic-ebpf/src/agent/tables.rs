//! What userspace tells the programs: who this node is, who its peers are, what the policy permits. And what
//! the programs remember for each other: which conversations are under way.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use cyphonic_common::classify::PeerTable;
use cyphonic_common::map::{InterfaceConfig, MAX_PEERS, MAX_POLICY, PeerEntry};
use cyphonic_common::policy::{Flow, FlowTable, Last, MAX_FLOWS, MAX_FRAGMENTED, PolicyKey, PolicyTable};

/// The interface's address and network. Userspace writes it before it attaches the programs.
#[map]
static CONFIG: Array<InterfaceConfig> = Array::with_max_entries(1, 0);

/// By virtual address.
#[map]
static PEERS: HashMap<[u8; 16], PeerEntry> = HashMap::with_max_entries(MAX_PEERS, BPF_F_NO_PREALLOC);

/// What may pass; the values say nothing.
#[map]
static POLICY: HashMap<PolicyKey, u32> = HashMap::with_max_entries(MAX_POLICY, BPF_F_NO_PREALLOC);

/// When the last packet of a conversation was.
#[map]
static FLOWS: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

/// When the first fragment of a datagram was, or the last one.
#[map]
static FRAGMENTED: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);

/// The configuration, as the kernel made it where userspace has not written it.
#[inline(always)]
pub(crate) fn config() -> Option<&'static InterfaceConfig> {
    CONFIG.get(0)
}

/// The maps as the tables that `cyphonic-common` judges by.
pub(crate) struct Tables;

impl PeerTable for Tables {
    #[inline(always)]
    fn peer(&self, address: &[u8; 16]) -> Option<PeerEntry> {
        // SAFETY: the entry is copied at once. Userspace may replace it meanwhile: then single fields may be
        // of the new one, and each of them alone is as good as before or after.
        unsafe { PEERS.get(address) }.copied()
    }
}

impl PolicyTable for Tables {
    #[inline(always)]
    fn holds(&self, key: &PolicyKey) -> bool {
        POLICY.get_ptr(key).is_some()
    }
}

impl FlowTable for Tables {
    #[inline(always)]
    fn note(&self, flow: &Flow) {
        let now = now_ns();
        let table = table_of(flow);
        match table.get_ptr_mut(flow) {
            // SAFETY: a live map value of the size and alignment of a `u64`, or one that the kernel uses for
            // another conversation by now, which is then taken for one of this moment. Programs on several
            // processors may write at once, whole words of the same meaning.
            Some(last) => unsafe { touch(last, now) },
            // Where even the map has no room (its elements are all in the hands of other processors), the
            // next packet tries again.
            None => drop(table.insert(flow, now, 0)),
        }
    }

    #[inline(always)]
    fn knows(&self, flow: &Flow) -> bool {
        let Some(last) = table_of(flow).get_ptr_mut(flow) else { return false };
        let now = now_ns();
        // SAFETY: as above.
        let alive = Last(unsafe { last.read() }).is_alive(now);
        if alive {
            // SAFETY: as above.
            unsafe { touch(last, now) };
        }
        alive
    }
}

/// Where it is remembered.
#[inline(always)]
fn table_of(flow: &Flow) -> &'static LruHashMap<Flow, u64> {
    if flow.is_fragmented() { &FRAGMENTED } else { &FLOWS }
}

/// Writes down when the last packet of a conversation was, if that is news.
///
/// # Safety
/// `last` is valid for reads and writes, of which others may happen at the same time.
#[inline(always)]
unsafe fn touch(last: *mut u64, now: u64) {
    // SAFETY: the caller's.
    unsafe {
        if Last(last.read()).is_news(now) {
            last.write(now);
        }
    }
}

/// `CLOCK_MONOTONIC`, coarsely.
#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: it takes nothing and reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
