//! What userspace tells the programs: who this node is, who its peers are, what the policy permits.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use cyphonic_common::classify::PeerTable;
use cyphonic_common::map::{InterfaceConfig, MAX_PEERS, MAX_POLICY, PeerEntry};
use cyphonic_common::policy::{PolicyKey, PolicyTable};

/// The interface's address and network. Userspace writes it before it attaches the programs.
#[map]
static CONFIG: Array<InterfaceConfig> = Array::with_max_entries(1, 0);

/// By virtual address.
#[map]
static PEERS: HashMap<[u8; 16], PeerEntry> = HashMap::with_max_entries(MAX_PEERS, BPF_F_NO_PREALLOC);

/// What may pass; the values say nothing.
#[map]
static POLICY: HashMap<PolicyKey, u32> = HashMap::with_max_entries(MAX_POLICY, BPF_F_NO_PREALLOC);

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
