//! The sending worker's tunnels: found by inner destination for packets, by name for control.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;

use crate::hash::WordHasher;
use crate::protect::Sealer;
use crate::ring::command::TxTunnel;
use crate::ring::shared::Shared;
use crate::ring::{Path, PathMtu, TunnelId};

/// Relays' paths that are remembered, so that a challenge that came through one is answered through it.
const MAX_PATHS: usize = 4;
/// The first repetition of a greeting; the interval doubles.
const FIRST_GREETING: Duration = Duration::from_millis(100);
/// Greetings before the ring leaves it to the owner to notice that the peer is silent: the last after 6 s.
const GREETINGS: u8 = 7;

/// One tunnel.
pub(super) struct Tunnel {
    pub(super) shared: Arc<Shared>,
    precedence: u128,
    pub(super) peer: Ipv6Addr,
    pub(super) remote_cid: ConnectionId,
    pub(super) path: Path,
    pub(super) sealer: Sealer,
    pub(super) mtu: PathMtu,
    /// The largest inner packet that is sent whole: what every packet is compared with.
    pub(super) whole: usize,
    /// Names the next packet that goes in pieces.
    pub(super) next_part: u16,
    /// Whether it may send at all.
    pub(super) confirmed: bool,
    /// The owner was told that the keys are used up.
    pub(super) exhausted: bool,
    pub(super) greeting: Option<Greeting>,
    /// It is on the watch list.
    watched: bool,
    paths: Vec<Path>,
}

/// Greets the peer until it is heard: a peer at the listening end may send only once it has heard us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeting {
    due: Instant,
    interval: Duration,
    left: u8,
}

impl Greeting {
    fn new(now: Instant) -> Self {
        Self { due: now, interval: FIRST_GREETING, left: GREETINGS }
    }
}

impl Tunnel {
    fn new(tunnel: TxTunnel, now: Instant) -> Self {
        Self {
            greeting: tunnel.confirmed.then(|| Greeting::new(now)),
            shared: tunnel.shared,
            precedence: tunnel.precedence,
            peer: tunnel.peer,
            remote_cid: tunnel.remote_cid,
            path: tunnel.path,
            sealer: tunnel.sealer,
            mtu: tunnel.mtu,
            whole: tunnel.mtu.whole(),
            next_part: 0,
            confirmed: tunnel.confirmed,
            exhausted: false,
            watched: false,
            paths: Vec::from_iter(Some(tunnel.path).filter(|path| path.is_relayed(tunnel.remote_cid))),
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: PathMtu) {
        self.mtu = mtu;
        self.whole = mtu.whole();
    }

    pub(super) fn set_path(&mut self, path: Path) {
        if path != self.path {
            self.set_mtu(PathMtu::unknown(self.mtu.inner));
        }
        self.path = path;
        self.shared.set_path(path);
        self.learn(path);
    }

    /// Remembers how a relay's address is sent to. Any other address is sent to with the real connection ID.
    pub(super) fn learn(&mut self, path: Path) {
        self.paths.retain(|known| known.remote != path.remote);
        if !path.is_relayed(self.remote_cid) {
            return;
        }
        if self.paths.len() >= MAX_PATHS {
            self.paths.remove(0);
        }
        self.paths.push(path);
    }

    /// How to send to an address: through the relay that is there, or else directly.
    pub(super) fn path_to(&self, remote: SocketAddr) -> Path {
        let known = self.paths.iter().find(|path| path.remote == remote).copied();
        known.unwrap_or(Path { remote, wire_cid: self.remote_cid })
    }

    /// Whether a greeting is due now.
    pub(super) fn greets(&mut self, now: Instant) -> bool {
        if self.shared.heard() {
            self.greeting = None;
        }
        let Some(greeting) = self.greeting.as_mut().filter(|greeting| greeting.due <= now) else {
            return false;
        };
        greeting.due = now + greeting.interval;
        greeting.interval *= 2;
        greeting.left -= 1;
        if greeting.left == 0 {
            self.greeting = None;
        }
        true
    }

    /// Whether something of it is due later.
    pub(super) fn needs_watching(&self) -> bool {
        !self.confirmed || self.greeting.is_some() || self.sealer.is_key_update_pending()
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Tunnels {
    slots: Vec<Option<Tunnel>>,
    free: Vec<usize>,
    by_id: HashMap<TunnelId, usize>,
    /// Each peer's tunnels, by precedence.
    by_peer: HashMap<Ipv6Addr, Vec<usize>>,
    /// The confirmed tunnel of each peer that has the highest precedence.
    sending: HashMap<Ipv6Addr, usize, BuildHasherDefault<WordHasher>>,
    watched: Vec<usize>,
}

impl Tunnels {
    /// The tunnel that sends to a peer.
    #[inline]
    pub(super) fn sending(&self, peer: Ipv6Addr) -> Option<usize> {
        self.sending.get(&peer).copied()
    }

    /// Whether a peer has any tunnel, confirmed or not.
    pub(super) fn has(&self, peer: Ipv6Addr) -> bool {
        self.by_peer.contains_key(&peer)
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Tunnel> {
        self.slots.get(index)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Tunnel> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(super) fn index(&self, id: TunnelId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn by_id_mut(&mut self, id: TunnelId) -> Option<&mut Tunnel> {
        let index = self.index(id)?;
        self.get_mut(index)
    }

    pub(super) fn insert(&mut self, tunnel: TxTunnel, now: Instant) -> usize {
        let (id, peer, precedence) = (tunnel.shared.id, tunnel.peer, tunnel.precedence);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Tunnel::new(tunnel, now));
        }
        self.by_id.insert(id, index);
        let slots = &self.slots;
        let before = |other: &usize| {
            slots.get(*other).and_then(Option::as_ref).is_some_and(|other| other.precedence <= precedence)
        };
        let indices = self.by_peer.entry(peer).or_default();
        indices.insert(indices.partition_point(before), index);
        self.choose(peer);
        self.watch(index);
        index
    }

    pub(super) fn remove(&mut self, id: TunnelId) {
        let Some(index) = self.by_id.remove(&id) else { return };
        let Some(tunnel) = self.slots.get_mut(index).and_then(Option::take) else { return };
        if let Some(indices) = self.by_peer.get_mut(&tunnel.peer) {
            indices.retain(|other| *other != index);
            if indices.is_empty() {
                self.by_peer.remove(&tunnel.peer);
            }
        }
        self.watched.retain(|other| *other != index);
        self.free.push(index);
        self.choose(tunnel.peer);
    }

    /// Lets a tunnel send from now on.
    pub(super) fn confirm(&mut self, index: usize) {
        let Some(tunnel) = self.get_mut(index) else { return };
        tunnel.confirmed = true;
        let peer = tunnel.peer;
        self.choose(peer);
    }

    /// Has a tunnel looked at when the worker ticks.
    pub(super) fn watch(&mut self, index: usize) {
        if let Some(tunnel) = self.get_mut(index).filter(|tunnel| !tunnel.watched) {
            tunnel.watched = true;
            self.watched.push(index);
        }
    }

    pub(super) fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// A watched tunnel; the list is short and usually empty.
    pub(super) fn watched(&self, at: usize) -> Option<usize> {
        self.watched.get(at).copied()
    }

    /// Forgets those for which nothing is due any more.
    pub(super) fn prune_watched(&mut self) {
        let slots = &mut self.slots;
        self.watched.retain(|index| {
            let Some(tunnel) = slots.get_mut(*index).and_then(Option::as_mut) else { return false };
            tunnel.watched = tunnel.needs_watching();
            tunnel.watched
        });
    }

    fn choose(&mut self, peer: Ipv6Addr) {
        let indices = self.by_peer.get(&peer).map(Vec::as_slice).unwrap_or_default();
        let highest =
            indices.iter().rev().find(|index| self.get(**index).is_some_and(|tunnel| tunnel.confirmed));
        match highest.copied() {
            Some(index) => self.sending.insert(peer, index),
            None => self.sending.remove(&peer),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protect::{self, Secret, Suite};

    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);

    fn tunnel(id: u64, precedence: u128, confirmed: bool) -> TxTunnel {
        let cid = ConnectionId::from_random_data(id.to_be_bytes());
        let path = Path { remote: SocketAddr::from(([192, 0, 2, 1], 9)), wire_cid: cid };
        let secrets = [1, 2].map(|n| Secret::new([n; 32]));
        let (sealer, _) = protect::pair(Suite::Aes128Gcm, &secrets[0], &secrets[1]);
        let shared = Arc::new(Shared::new(TunnelId(id), path, 0, Instant::now()));
        let mtu = PathMtu::carrying(1420);
        TxTunnel { shared, precedence, peer: PEER, remote_cid: cid, path, sealer, mtu, confirmed }
    }

    /// Tunnels that were installed in this order; which one sends.
    fn sending(installed: &[(u64, u128, bool)]) -> (Tunnels, Option<TunnelId>) {
        let mut tunnels = Tunnels::default();
        for (id, precedence, confirmed) in installed {
            tunnels.insert(tunnel(*id, *precedence, *confirmed), Instant::now());
        }
        let id = sender(&tunnels);
        (tunnels, id)
    }

    fn sender(tunnels: &Tunnels) -> Option<TunnelId> {
        Some(tunnels.get(tunnels.sending(PEER)?)?.shared.id)
    }

    #[test]
    fn the_tunnel_of_the_highest_precedence_sends_whichever_was_installed_last() {
        let all = [(1, 10, true), (2, 30, true), (3, 20, true)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (mut tunnels, first) = sending(&order.map(|n| all[n]));
            assert_eq!(first, Some(TunnelId(2)), "{order:?}");
            for (goes, next) in [(2, Some(TunnelId(3))), (3, Some(TunnelId(1))), (1, None)] {
                tunnels.remove(TunnelId(goes));
                assert_eq!(sender(&tunnels), next, "{order:?}");
            }
            assert!(!tunnels.has(PEER));
        }
    }

    #[test]
    fn one_that_may_not_send_yet_leaves_it_to_the_next() {
        let (mut tunnels, first) = sending(&[(1, 30, false), (2, 20, true), (3, 10, true)]);
        assert_eq!(first, Some(TunnelId(2)));
        tunnels.confirm(tunnels.index(TunnelId(1)).unwrap());
        assert_eq!(sender(&tunnels), Some(TunnelId(1)));
    }
}
