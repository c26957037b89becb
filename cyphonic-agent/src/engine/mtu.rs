//! Tunnels' inner MTUs, known to the engine and told to whoever follows (`interface`).

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use cyphonic_proto::{SetupId, TunnelId};
use tokio::sync::watch;

/// The inner MTU of each peer with a tunnel.
pub type PeerMtus = BTreeMap<Ipv6Addr, u16>;

/// What the engine knows, and tells whenever it changes.
pub(super) struct InnerMtus {
    tunnels: BTreeMap<TunnelId, Known>,
    tell: watch::Sender<PeerMtus>,
}

struct Known {
    peer: Ipv6Addr,
    setup: SetupId,
    inner: u16,
}

impl InnerMtus {
    pub(super) const fn new(tell: watch::Sender<PeerMtus>) -> Self {
        Self { tunnels: BTreeMap::new(), tell }
    }

    pub(super) fn installed(&mut self, id: TunnelId, setup: SetupId, peer: Ipv6Addr, inner: u16) {
        self.tunnels.insert(id, Known { peer, setup, inner });
        self.tell();
    }

    pub(super) fn set(&mut self, id: TunnelId, inner: u16) {
        if let Some(known) = self.tunnels.get_mut(&id) {
            known.inner = inner;
            self.tell();
        }
    }

    pub(super) fn removed(&mut self, id: TunnelId) {
        if self.tunnels.remove(&id).is_some() {
            self.tell();
        }
    }

    /// The largest of any tunnel; 0 without one.
    pub(super) fn largest(&self) -> u16 {
        self.tunnels.values().map(|known| known.inner).max().unwrap_or(0)
    }

    /// Of a peer's tunnels that of the latest set-up sends, whichever was installed last.
    fn tell(&self) {
        let mut tunnels: Vec<_> = self.tunnels.values().collect();
        tunnels.sort_by_key(|known| known.setup);
        let peers: PeerMtus = tunnels.into_iter().map(|known| (known.peer, known.inner)).collect();
        self.tell.send_if_modified(|told| {
            let changed = *told != peers;
            *told = peers;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn setup(number: u8) -> SetupId {
        SetupId([number; 16])
    }

    #[test]
    fn of_two_set_ups_that_overlapped_the_tunnel_of_the_later_one_counts() {
        let (tell, told) = watch::channel(PeerMtus::new());
        let (mut mtus, peer) = (InnerMtus::new(tell), Ipv6Addr::LOCALHOST);
        mtus.installed(TunnelId(1), setup(2), peer, 1420);
        mtus.installed(TunnelId(2), setup(1), peer, 1300);
        assert_eq!(told.borrow().get(&peer), Some(&1420));
        mtus.removed(TunnelId(1));
        assert_eq!(told.borrow().get(&peer), Some(&1300));
    }

    #[test]
    fn the_newest_tunnel_of_a_peer_counts_and_only_changes_are_told() {
        let (tell, mut told) = watch::channel(PeerMtus::new());
        let (mut mtus, peer) = (InnerMtus::new(tell), Ipv6Addr::LOCALHOST);
        mtus.installed(TunnelId(1), setup(1), peer, 1420);
        assert_eq!(told.borrow_and_update().get(&peer), Some(&1420));
        mtus.set(TunnelId(1), 1420);
        mtus.set(TunnelId(9), 1300);
        assert!(!told.has_changed().unwrap());
        mtus.installed(TunnelId(2), setup(2), peer, 1300);
        assert_eq!(told.borrow_and_update().get(&peer), Some(&1300));
        mtus.removed(TunnelId(2));
        assert_eq!(told.borrow_and_update().get(&peer), Some(&1420));
        mtus.removed(TunnelId(1));
        assert!(told.borrow_and_update().is_empty());
    }
}
