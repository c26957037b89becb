//! The maps that userspace fills while the programs run: peers, connection IDs, policy.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::Ipv6Addr;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError};
use cyphonic_common::ConnectionId;
use cyphonic_common::map::{ALLOWED, PeerEntry, name};
use cyphonic_common::policy::PolicyKey;

use super::error::BpfError;
use super::object::Object;
use super::pod::Value;
use crate::ring::Permissions;
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
    policy: Mutex<Policy>,
}

#[derive(Debug)]
struct Policy {
    map: HashMap<MapData, Value<PolicyKey>, u32>,
    /// What the map holds.
    held: Permissions,
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
            policy: Mutex::new(Policy { map: object.take_policy()?, held: Permissions::from_iter([]) }),
        };
        tables.set_permissions(&Permissions::default())?;
        Ok(tables)
    }

    /// A tunnel to `peer` stands, in that worker; `class` is the peer's in the policy.
    pub fn set_live(&self, peer: Ipv6Addr, worker: u32, class: u32) {
        let mut peers = lock(&self.peers);
        let set = peers.map.insert(peer.octets(), Value(PeerEntry::live(worker, class)), 0);
        if note(name::PEERS, set) {
            peers.dead.retain(|dead| *dead != peer);
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

    /// Puts a policy in place of the one before. What both permit passes all the time.
    ///
    /// # Errors
    /// The kernel refused, and the policy before is still in force.
    pub fn set_permissions(&self, permissions: &Permissions) -> Result<(), BpfError> {
        lock(&self.policy).replace(permissions)
    }
}

impl Policy {
    fn replace(&mut self, permissions: &Permissions) -> Result<(), BpfError> {
        let (added, removed): (Vec<_>, Vec<_>) =
            (permissions.beyond(&self.held).collect(), self.held.beyond(permissions).collect());
        let changed = self.insert(&added).and_then(|()| self.remove(&removed));
        if let Err(source) = changed {
            // What was there has had room before, and what was not is taken back where that is possible.
            let undone = self.insert(&removed).and_then(|()| self.remove(&added));
            note(name::POLICY, undone);
            return Err(BpfError::Map { map: name::POLICY, source });
        }
        self.held = permissions.clone();
        Ok(())
    }

    fn insert(&mut self, keys: &[PolicyKey]) -> Result<(), MapError> {
        keys.iter().try_for_each(|key| self.map.insert(Value(*key), ALLOWED, 0))
    }

    fn remove(&mut self, keys: &[PolicyKey]) -> Result<(), MapError> {
        keys.iter().try_for_each(|key| match self.map.remove(&Value(*key)) {
            Err(error) if !is_absent(&error) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
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
