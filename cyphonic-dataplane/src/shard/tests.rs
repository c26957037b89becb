use std::net::SocketAddr;

use cyphonic_common::DropReason;
use cyphonic_common::policy::{Direction, EVERY_CLASS, PolicyKey};

use super::*;
use crate::protect::{Secret, Suite};

/// A ring that notes what it was told.
#[derive(Default)]
struct Fake {
    calls: Arc<Mutex<Vec<String>>>,
    refuses: bool,
}

impl Fake {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl EncapRing for Fake {
    fn kind(&self) -> RingKind {
        RingKind::Offload
    }

    fn install(&self, tunnel: TunnelInstall) -> Result<(), RingError> {
        if self.refuses {
            return Err(RingError::MtuTooSmall(tunnel.mtu));
        }
        self.note(format!("install {}", tunnel.id.0));
        Ok(())
    }

    fn expect(&self, cid: ConnectionId) {
        self.note(format!("expect {cid}"));
    }

    fn forget(&self, cid: ConnectionId) {
        self.note(format!("forget {cid}"));
    }

    fn remove(&self, id: TunnelId) {
        self.note(format!("remove {}", id.0));
    }

    fn set_path(&self, id: TunnelId, _: Path) {
        self.note(format!("path {}", id.0));
    }

    fn set_mtu(&self, id: TunnelId, mtu: PathMtu) {
        self.note(format!("mtu {} {}", id.0, mtu.inner));
    }

    fn send_control(&self, id: TunnelId, _: Control) {
        self.note(format!("control {}", id.0));
    }

    fn drop_held(&self, dst: Ipv6Addr, _: bool) {
        self.note(format!("drop {dst}"));
    }

    fn force_key_update(&self, id: TunnelId) {
        self.note(format!("update {}", id.0));
    }

    fn set_permissions(&self, permissions: Arc<Permissions>) -> Result<(), RingError> {
        self.note(format!("permissions {}", if permissions.are_all() { "all" } else { "some" }));
        Ok(())
    }

    fn set_class(&self, id: TunnelId, class: u32) {
        self.note(format!("class {} {class}", id.0));
    }

    fn tunnel_stats(&self, id: TunnelId) -> Option<TunnelStats> {
        self.note(format!("stats {}", id.0));
        None
    }

    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)> {
        Vec::new()
    }

    fn counters(&self) -> RingCounters {
        let mut counters = RingCounters::default();
        (counters.tx_packets, counters.held) = (1, 2);
        counters.add_drops(DropReason::Forged, 3);
        counters
    }
}

type Calls = Arc<Mutex<Vec<String>>>;

fn sharded(workers: usize) -> (ShardedRing, Vec<Calls>) {
    let fakes: Vec<Fake> = (0..workers).map(|_| Fake::default()).collect();
    let calls = fakes.iter().map(|fake| Arc::clone(&fake.calls)).collect();
    let rings = fakes.into_iter().map(|fake| Box::new(fake) as Box<dyn EncapRing>).collect();
    (ShardedRing::new(rings, None, None).unwrap(), calls)
}

fn peer(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)
}

fn cid(n: u8) -> ConnectionId {
    ConnectionId::from_random_data([n; 8])
}

fn tunnel(id: u64, peer: Ipv6Addr, local: u8) -> TunnelInstall {
    let remote = SocketAddr::from(([192, 0, 2, 1], 9));
    TunnelInstall {
        id: TunnelId(id),
        precedence: id.into(),
        peer,
        local_cid: cid(local),
        remote_cid: cid(99),
        path: Path { remote, wire_cid: cid(99) },
        suite: Suite::Aes128Gcm,
        send: Secret::new([1; 32]),
        recv: Secret::new([2; 32]),
        mtu: PathMtu::carrying(1420),
        class: EVERY_CLASS,
        confirmed: true,
    }
}

fn take(calls: &Calls) -> Vec<String> {
    std::mem::take(&mut calls.lock().unwrap())
}

#[test]
fn all_tunnels_of_a_peer_are_in_one_ring_and_calls_find_them() {
    let (ring, calls) = sharded(3);
    // The last word of the address, modulo three.
    for (id, n) in [(1, 3), (2, 4), (3, 4), (4, 8)] {
        ring.install(tunnel(id, peer(n), id as u8)).unwrap();
    }
    let installed: Vec<_> = calls.iter().map(take).collect();
    assert_eq!(installed, [vec!["install 1"], vec!["install 2", "install 3"], vec!["install 4"]]);
    let path = tunnel(1, peer(3), 1).path;
    for id in (1..=5).map(TunnelId) {
        ring.set_path(id, path);
        ring.send_control(id, Control::Ping);
        ring.force_key_update(id);
        assert!(ring.tunnel_stats(id).is_none());
    }
    let told: Vec<_> = calls.iter().map(take).collect();
    assert_eq!(told[0], ["path 1", "control 1", "update 1", "stats 1"]);
    assert_eq!((told[1].len(), told[2].len()), (8, 4), "nobody is told of tunnel 5");
    ring.drop_held(peer(5), true);
    assert_eq!(take(&calls[2]), [format!("drop {}", peer(5))]);
}

#[test]
fn what_one_ring_has_another_is_not_given() {
    let (ring, calls) = sharded(2);
    ring.install(tunnel(1, peer(2), 1)).unwrap();
    assert!(matches!(ring.install(tunnel(1, peer(3), 2)), Err(RingError::DuplicateTunnel(_))));
    assert!(matches!(ring.install(tunnel(2, peer(3), 1)), Err(RingError::DuplicateConnectionId(_))));
    ring.remove(TunnelId(1));
    ring.remove(TunnelId(1));
    ring.install(tunnel(2, peer(3), 1)).unwrap();
    assert_eq!(take(&calls[0]), ["install 1", "remove 1"]);
    assert_eq!(take(&calls[1]), ["install 2"]);
}

#[test]
fn a_refused_tunnel_leaves_nothing_behind() {
    let refusing = Fake { refuses: true, ..Fake::default() };
    let ring = ShardedRing::new(vec![Box::new(refusing)], None, None).unwrap();
    for _ in 0..2 {
        assert!(matches!(ring.install(tunnel(1, peer(2), 1)), Err(RingError::MtuTooSmall(_))));
    }
    assert!(ring.directory().tunnels.is_empty() && ring.directory().cids.is_empty());
    assert!(matches!(ShardedRing::new(Vec::new(), None, None), Err(RingError::Stopped(_))));
}

#[test]
fn without_programs_every_worker_is_told_of_the_policy() {
    let (ring, calls) = sharded(2);
    for keys in [PolicyKey::new(Direction::In, EVERY_CLASS, 6, 22), PolicyKey::EVERYTHING] {
        ring.set_permissions(Arc::new([keys].into_iter().collect())).unwrap();
    }
    for calls in &calls {
        assert_eq!(take(calls), ["permissions some", "permissions all"]);
    }
    ring.install(tunnel(1, peer(2), 1)).unwrap();
    for id in [1, 2] {
        ring.set_class(TunnelId(id), 7);
    }
    assert_eq!(calls.iter().map(take).collect::<Vec<_>>(), [vec!["install 1", "class 1 7"], vec![]]);
}

#[test]
fn counters_are_sums() {
    let (ring, _) = sharded(3);
    let counters = ring.counters();
    assert_eq!((counters.tx_packets, counters.held, counters.dropped(DropReason::Forged)), (3, 6, 9));
    assert_eq!((counters.dropped(DropReason::Replayed), ring.workers()), (0, 3));
}
