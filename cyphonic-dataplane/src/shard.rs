//! Several rings that look like one: a worker for each, and every peer at one of them.
//!
//! A peer's tunnels are all installed in the ring that [`worker_of`] chooses by its virtual address. The
//! programs ([`crate::bpf::Programs::steer`]) bring the peer's packets there from both sides: what
//! applications send to the ring's queue of the virtual interface, what arrives to the ring's socket of the
//! port. So rings share nothing, and a peer's packets stay in order. This composition keeps the programs'
//! tables and the port's group informed.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use cyphonic_common::map::worker_of;
use cyphonic_common::{ConnectionId, DropReason};

use crate::bpf::KernelTables;
use crate::ring::{
    Control, EncapRing, Path, PathMtu, Permissions, RingCounters, RingError, RingKind, TunnelId,
    TunnelInstall, TunnelStats,
};
use crate::sync;
use crate::udp::PortGroup;

/// See the module.
pub struct ShardedRing {
    rings: Vec<Box<dyn EncapRing>>,
    kind: RingKind,
    group: Option<Arc<PortGroup>>,
    tables: Option<Arc<KernelTables>>,
    directory: Mutex<Directory>,
}

/// Where tunnels are.
#[derive(Debug, Default)]
struct Directory {
    tunnels: HashMap<TunnelId, Place>,
    cids: HashMap<ConnectionId, TunnelId>,
    /// How many tunnels a peer has.
    peers: HashMap<Ipv6Addr, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    worker: usize,
    cid: ConnectionId,
    peer: Ipv6Addr,
}

impl ShardedRing {
    /// Composes rings, in the order of their queues and sockets. `group` is the port's, where it has several
    /// sockets; `tables` are the programs', where there are any.
    ///
    /// # Errors
    /// There is no ring.
    pub fn new(
        rings: Vec<Box<dyn EncapRing>>,
        group: Option<Arc<PortGroup>>,
        tables: Option<Arc<KernelTables>>,
    ) -> Result<Self, RingError> {
        let kind = rings.first().ok_or(RingError::Stopped("it was made of no rings"))?.kind();
        Ok(Self { rings, kind, group, tables, directory: Mutex::default() })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.rings.len()
    }

    fn worker_of(&self, peer: Ipv6Addr) -> usize {
        // Both fit: there are few workers.
        let workers = u32::try_from(self.rings.len()).unwrap_or(1);
        worker_of(&peer.octets(), workers) as usize
    }

    fn ring(&self, worker: usize) -> Option<&dyn EncapRing> {
        self.rings.get(worker).map(Box::as_ref)
    }

    /// The ring a tunnel is in.
    fn ring_of(&self, id: TunnelId) -> Option<&dyn EncapRing> {
        let place = self.directory().tunnels.get(&id).copied()?;
        self.ring(place.worker)
    }

    fn steer(&self, cid: ConnectionId, worker: usize) {
        if let Some(group) = &self.group {
            group.set_owner(cid, worker);
        }
        if let Some(tables) = &self.tables {
            tables.set_cid(cid, worker as u32);
        }
    }

    fn steer_no_more(&self, cid: ConnectionId) {
        if let Some(group) = &self.group {
            group.remove_owner(cid);
        }
        if let Some(tables) = &self.tables {
            tables.remove_cid(cid);
        }
    }

    fn set_live(&self, place: &Place, class: u32) {
        if let Some(tables) = &self.tables {
            tables.set_live(place.peer, place.worker as u32, class);
        }
    }

    fn set_gone(&self, peer: Ipv6Addr) {
        if let Some(tables) = &self.tables {
            tables.remove(peer);
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        sync::lock(&self.directory)
    }
}

impl EncapRing for ShardedRing {
    fn kind(&self) -> RingKind {
        self.kind
    }

    fn install(&self, tunnel: TunnelInstall) -> Result<(), RingError> {
        let place = Place { worker: self.worker_of(tunnel.peer), cid: tunnel.local_cid, peer: tunnel.peer };
        let (id, class) = (tunnel.id, tunnel.class);
        let mut directory = self.directory();
        // A ring knows of its own tunnels only.
        if directory.tunnels.contains_key(&id) {
            return Err(RingError::DuplicateTunnel(id));
        }
        if directory.cids.contains_key(&place.cid) {
            return Err(RingError::DuplicateConnectionId(place.cid));
        }
        let ring = self.ring(place.worker).ok_or(RingError::Stopped("it has no such worker"))?;
        // Steering and class first: the peer may answer the first packet at once.
        self.steer(place.cid, place.worker);
        self.set_live(&place, class);
        if let Err(error) = ring.install(tunnel) {
            self.steer_no_more(place.cid);
            if !directory.peers.contains_key(&place.peer) {
                self.set_gone(place.peer);
            }
            return Err(error);
        }
        directory.tunnels.insert(id, place);
        directory.cids.insert(place.cid, id);
        *directory.peers.entry(place.peer).or_default() += 1;
        Ok(())
    }

    /// Any ring will do: all share what is held.
    fn expect(&self, cid: ConnectionId) {
        if let Some(ring) = self.ring(0) {
            ring.expect(cid);
        }
    }

    fn forget(&self, cid: ConnectionId) {
        if let Some(ring) = self.ring(0) {
            ring.forget(cid);
        }
    }

    fn remove(&self, id: TunnelId) {
        let mut directory = self.directory();
        let Some(place) = directory.tunnels.remove(&id) else { return };
        directory.cids.remove(&place.cid);
        let left = directory.peers.get_mut(&place.peer).map_or(0, |tunnels| {
            *tunnels -= 1;
            *tunnels
        });
        if left == 0 {
            directory.peers.remove(&place.peer);
            self.set_gone(place.peer);
        }
        self.steer_no_more(place.cid);
        if let Some(ring) = self.ring(place.worker) {
            ring.remove(id);
        }
    }

    fn set_path(&self, id: TunnelId, path: Path) {
        if let Some(ring) = self.ring_of(id) {
            ring.set_path(id, path);
        }
    }

    fn set_mtu(&self, id: TunnelId, mtu: PathMtu) {
        if let Some(ring) = self.ring_of(id) {
            ring.set_mtu(id, mtu);
        }
    }

    fn send_control(&self, id: TunnelId, control: Control) {
        if let Some(ring) = self.ring_of(id) {
            ring.send_control(id, control);
        }
    }

    fn drop_held(&self, dst: Ipv6Addr, unreachable: bool) {
        if unreachable && let Some(tables) = &self.tables {
            tables.set_dead(dst);
        }
        if let Some(ring) = self.ring(self.worker_of(dst)) {
            ring.drop_held(dst, unreachable);
        }
    }

    fn force_key_update(&self, id: TunnelId) {
        if let Some(ring) = self.ring_of(id) {
            ring.force_key_update(id);
        }
    }

    fn set_permissions(&self, permissions: Arc<Permissions>) -> Result<(), RingError> {
        match &self.tables {
            Some(tables) => Ok(tables.set_permissions(&permissions)?),
            None => self.rings.iter().try_for_each(|ring| ring.set_permissions(Arc::clone(&permissions))),
        }
    }

    fn set_class(&self, id: TunnelId, class: u32) {
        let directory = self.directory();
        let Some(place) = directory.tunnels.get(&id) else { return };
        self.set_live(place, class);
        if let Some(ring) = self.ring(place.worker) {
            ring.set_class(id, class);
        }
    }

    fn tunnel_stats(&self, id: TunnelId) -> Option<TunnelStats> {
        self.ring_of(id)?.tunnel_stats(id)
    }

    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)> {
        let mut stats: Vec<_> = self.rings.iter().flat_map(|ring| ring.all_stats()).collect();
        stats.sort_unstable_by_key(|(id, _)| *id);
        stats
    }

    fn counters(&self) -> RingCounters {
        let mut sum = self.rings.iter().fold(RingCounters::default(), |sum, ring| sum.plus(&ring.counters()));
        if let Some(group) = &self.group {
            sum.add_drops(DropReason::QueueFull, group.lost());
        }
        sum
    }
}

#[cfg(test)]
mod tests;
