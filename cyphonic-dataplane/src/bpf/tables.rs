//! The maps that userspace fills while the programs run: peers, connection IDs, policy.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::Ipv6Addr;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError};
use cyphonic_common::ConnectionId;
use cyphonic_common::map::{ALLOWED, PeerEntry, name};
use cyphonic_common::policy::{Direction, PolicyKey};

use super::error::BpfError;
use super::object::Object;
use super::pod::Value;
use crate::sync::lock;

/// Addresses without a node that are remembered. Applications cause them, so a scan of the prefix must not
/// fill the map: the oldest is forgotten, which costs it one more question to the agent.
const MAX_DEAD: usize = 1_024;

/// What the programs know. Calls change the kernel's maps at once.
///
/// That a map does not take an entry is logged and otherwise borne: a peer that the programs do not know is
/// carried by userspace as before, and a connection ID that they do not know is handed on between workers.
#[derive(Debug)]
pub struct KernelTables {
    peers: Mutex<Peers>,
    cids: Mutex<HashMap<MapData, [u8; 8], u32>>,
    policy: Mutex<HashMap<MapData, Value<PolicyKey>, u32>>,
}

#[derive(Debug)]
struct Peers {
    map: HashMap<MapData, [u8; 16], Value<PeerEntry>>,
    live: HashSet<Ipv6Addr>,
    dead: VecDeque<Ipv6Addr>,
}

impl KernelTables {
    pub(super) fn new(object: &mut Object) -> Result<Self, BpfError> {
        let peers = Peers { map: object.take_peers()?, live: HashSet::new(), dead: VecDeque::new() };
        let tables = Self {
            peers: Mutex::new(peers),
            cids: Mutex::new(object.take_cids()?),
            policy: Mutex::new(object.take_policy()?),
        };
        // Until there are policies to distribute, both ends of every tunnel trust each other with everything.
        tables.allow(PolicyKey::everything(Direction::Out))?;
        tables.allow(PolicyKey::everything(Direction::In))?;
        Ok(tables)
    }

    /// A tunnel to `peer` stands, in that worker; `class` is the peer's in the policy.
    pub fn set_live(&self, peer: Ipv6Addr, worker: u32, class: u32) {
        let mut peers = lock(&self.peers);
        peers.dead.retain(|dead| *dead != peer);
        let set = peers.map.insert(peer.octets(), Value(PeerEntry::live(worker, class)), 0);
        if note(name::PEERS, set) {
            peers.live.insert(peer);
        }
    }

    /// The last tunnel to `peer` is gone.
    pub fn remove(&self, peer: Ipv6Addr) {
        let mut peers = lock(&self.peers);
        if peers.live.remove(&peer) {
            let removed = peers.map.remove(&peer.octets());
            note(name::PEERS, removed);
        }
    }

    /// No tunnel to `address` could be had. Ignored while there is one.
    pub fn set_dead(&self, address: Ipv6Addr) {
        let mut peers = lock(&self.peers);
        if peers.live.contains(&address) || peers.dead.contains(&address) {
            return;
        }
        if peers.dead.len() >= MAX_DEAD
            && let Some(oldest) = peers.dead.pop_front()
        {
            let removed = peers.map.remove(&oldest.octets());
            note(name::PEERS, removed);
        }
        let set = peers.map.insert(address.octets(), Value(PeerEntry::dead()), 0);
        if note(name::PEERS, set) {
            peers.dead.push_back(address);
        }
    }

    /// Datagrams with this data connection ID belong to that worker.
    pub fn set_cid(&self, cid: ConnectionId, worker: u32) {
        note(name::CIDS, lock(&self.cids).insert(cid.as_bytes(), worker, 0));
    }

    /// Datagrams with this data connection ID belong to nobody any more.
    pub fn remove_cid(&self, cid: ConnectionId) {
        note(name::CIDS, lock(&self.cids).remove(cid.as_bytes()));
    }

    /// Adds a permission.
    ///
    /// # Errors
    /// The map is full, and nothing changed: what should be allowed is not.
    pub fn allow(&self, key: PolicyKey) -> Result<(), BpfError> {
        let set = lock(&self.policy).insert(Value(key), ALLOWED, 0);
        set.map_err(|source| BpfError::Map { map: name::POLICY, source })
    }

    /// Takes a permission back. One that was not given is ignored.
    ///
    /// # Errors
    /// The kernel refused, and nothing changed: what should be denied is still allowed.
    pub fn deny(&self, key: PolicyKey) -> Result<(), BpfError> {
        match lock(&self.policy).remove(&Value(key)) {
            Err(source) if !is_absent(&source) => Err(BpfError::Map { map: name::POLICY, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The map has no such key.
fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn note(map: &'static str, result: Result<(), MapError>) -> bool {
    if let Err(error) = &result {
        tracing::warn!(map, %error, "the eBPF programs do not learn of a change");
    }
    result.is_ok()
}
