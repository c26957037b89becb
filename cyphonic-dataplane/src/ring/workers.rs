//! What every ring is: two workers (its sending and its receiving half), the channels to them, and the
//! tunnels they know. Which thread runs which of them is [`duty`]'s.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use cyphonic_common::map::MAX_PEERS;
use cyphonic_common::{ConnectionId, DropReason, InterfaceConfig};

use super::command::{RxCommand, RxTunnel, TxCommand, TxTunnel};
use super::counters::{Counters, RingCounters};
use super::device::{Delivery, Source};
use super::duty::{self, Division, Duty, First, Handover, Receiving, Sending};
use super::hold::Hold;
use super::permissions::Enforced;
use super::rx::{MESSAGES, RxParts, RxWorker};
use super::shared::Shared;
use super::tx::{TxParts, TxWorker};
use super::wake::Waker;
use super::{
    AwakeRequest, Control, EarlyPackets, EncapRing, EventSink, HoldLimits, Path, PathMtu, Permissions,
    RingError, RingEvent, RingKind, TunnelId, TunnelInstall, TunnelStats,
};
use crate::protect;
use crate::sync::lock;
use crate::thread::priority::outrank_applications;
use crate::udp::{RecvBatch, SignallingSink, UdpPort};

/// Tunnels of one ring: far beyond what a device talks to, near what memory is for.
const MAX_TUNNELS: usize = MAX_PEERS as usize;
/// Challenges of peers that wait for the sending worker.
const MAX_ANSWERS: usize = 256;

/// What every ring needs besides its virtual interface.
pub struct RingConfig {
    /// The node's port; the ring becomes its only reader.
    pub port: Arc<UdpPort>,
    /// Takes what arrives and is not tunnel data.
    pub sink: Arc<dyn SignallingSink>,
    /// The node's own virtual address.
    pub own: Ipv6Addr,
    /// The overlay's prefix and its length.
    pub prefix: (Ipv6Addr, u8),
    /// Takes events.
    pub events: EventSink,
    /// Bounds of what is held.
    pub hold: HoldLimits,
    /// What came before its tunnel: one for all rings of the node.
    pub early: Arc<EarlyPackets>,
    /// Where processors are to stay awake for a while after packets.
    pub awake: Option<AwakeRequest>,
}

/// What tells one ring from another: its kind, and what must live as long as its workers.
pub trait Side: Send + Sync {
    /// What the ring is built from.
    const KIND: RingKind;

    /// Packets that the kernel has dropped because a worker took them too slowly, where the kernel tells.
    fn dropped(&self) -> u64 {
        0
    }
}

/// A running ring. Dropping it stops and joins its workers.
pub struct Ring<S: Side> {
    own: InterfaceConfig,
    port: Arc<UdpPort>,
    tx: Sender<TxCommand>,
    rx: Sender<RxCommand>,
    tx_waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    duty: Arc<Duty>,
    counters: Arc<Counters>,
    early: Arc<EarlyPackets>,
    tunnels: Mutex<HashMap<TunnelId, (ConnectionId, Arc<Shared>)>>,
    /// What the workers were told to enforce; `None`: everything may pass.
    enforced: Mutex<Option<Arc<Enforced>>>,
    workers: Vec<JoinHandle<()>>,
    /// Goes after the workers.
    side: S,
}

impl<S: Side> Ring<S> {
    /// Starts the workers. On an error nothing runs.
    pub(super) fn with(
        config: RingConfig,
        source: impl Source,
        delivery: impl Delivery,
        side: S,
    ) -> Result<Self, RingError> {
        let (prefix, prefix_len) = config.prefix;
        let own = InterfaceConfig::new(config.own.octets(), prefix.octets(), prefix_len)
            .map_err(|error| RingError::Io { doing: "use these virtual addresses", source: other(error) })?;
        let waker = Waker::new().map_err(|source| RingError::Io { doing: "make an eventfd", source })?;
        let (tx, tx_commands) = channel();
        let (rx, rx_commands) = channel();
        let (answer, answers) = sync_channel(MAX_ANSWERS);
        let (waker, stop, counters) = (Arc::new(waker), Arc::new(AtomicBool::new(false)), Arc::default());
        let sending = TxWorker::new(TxParts {
            port: Arc::clone(&config.port),
            config: own,
            own: config.own,
            events: Arc::clone(&config.events),
            counters: Arc::clone(&counters),
            commands: tx_commands,
            answers,
            deliver: rx.clone(),
            waker: Arc::clone(&waker),
            hold: Hold::new(config.hold),
        });
        let receiving = RxParts {
            port: Arc::clone(&config.port),
            sink: config.sink,
            own: config.own,
            events: Arc::clone(&config.events),
            counters: Arc::clone(&counters),
            commands: rx_commands,
            answers: answer,
            tx_waker: Arc::clone(&waker),
            permissions: None,
            early: Arc::clone(&config.early),
        };
        let receiving = RxWorker::new(receiving, delivery);
        let duty = Duty::new(Arc::clone(&config.port), Arc::clone(&waker), Arc::clone(&stop));
        let mut ring = Self {
            own,
            port: config.port,
            tx,
            rx,
            tx_waker: waker,
            stop,
            duty: Arc::new(duty),
            counters,
            early: config.early,
            tunnels: Mutex::default(),
            enforced: Mutex::default(),
            workers: Vec::with_capacity(2),
            side,
        };
        let (sending, batch) = (Sending { worker: sending, source }, RecvBatch::new(MESSAGES));
        let receiving = Receiving { worker: receiving, batch };
        let handover = Arc::new(Handover::default());
        // If the second thread is refused, dropping the ring stops the first.
        let (duty, half) = (Arc::clone(&ring.duty), Arc::clone(&handover));
        let second = ring.spawn("ring-2", &config.events, move || duty::run_second(&duty, &half))?;
        let (duty, awake) = (Arc::clone(&ring.duty), config.awake);
        ring.spawn("ring-1", &config.events, move || {
            First::new(&duty, &handover, &second, sending, receiving, awake).run()
        })?;
        Ok(ring)
    }

    /// Says when the second thread is to take a half. It is not asked for packets, so the next ones bring it
    /// about.
    pub fn divide(&self, division: Division) {
        self.duty.divide(division);
    }

    fn spawn(
        &mut self,
        name: &'static str,
        events: &EventSink,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Thread, RingError> {
        let obituary = Obituary { worker: name, events: Arc::clone(events), reason: None };
        let body = move || {
            let mut obituary = obituary;
            outrank_applications();
            obituary.reason = Some(run().err().map(|error| format!("{name}: {error}")));
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|source| RingError::Io { doing: "start a worker thread", source })?;
        let handle = thread.thread().clone();
        self.workers.push(thread);
        Ok(handle)
    }

    fn send_tx(&self, command: TxCommand) -> Result<(), RingError> {
        self.tx.send(command).map_err(|_| RingError::Stopped("its sending worker has ended"))?;
        self.tx_waker.wake();
        Ok(())
    }

    fn send_rx(&self, command: RxCommand) -> Result<(), RingError> {
        self.rx.send(command).map_err(|_| RingError::Stopped("its receiving worker has ended"))?;
        self.port.wake();
        Ok(())
    }

    /// What reaches the receiving worker: commands, and the port that ends its wait.
    pub(super) fn receiving(&self) -> (Sender<RxCommand>, Arc<UdpPort>) {
        (self.rx.clone(), Arc::clone(&self.port))
    }

    pub(super) const fn side(&self) -> &S {
        &self.side
    }

    fn check(&self, tunnel: &TunnelInstall) -> Result<(), RingError> {
        let peer = tunnel.peer.octets();
        if !self.own.is_inside(&peer) || self.own.is_own(&peer) {
            return Err(RingError::BadPeer(tunnel.peer));
        }
        for cid in [tunnel.local_cid, tunnel.remote_cid, tunnel.path.wire_cid] {
            if !cid.is_data() {
                return Err(RingError::NotData(cid));
            }
        }
        if !tunnel.mtu.is_possible() {
            return Err(RingError::MtuTooSmall(tunnel.mtu));
        }
        Ok(())
    }
}

impl<S: Side> EncapRing for Ring<S> {
    fn kind(&self) -> RingKind {
        S::KIND
    }

    fn install(&self, tunnel: TunnelInstall) -> Result<(), RingError> {
        self.check(&tunnel)?;
        let mut tunnels = lock(&self.tunnels);
        if tunnels.len() >= MAX_TUNNELS {
            return Err(RingError::TooManyTunnels(tunnels.len()));
        }
        if tunnels.contains_key(&tunnel.id) {
            return Err(RingError::DuplicateTunnel(tunnel.id));
        }
        if tunnels.values().any(|(cid, _)| *cid == tunnel.local_cid) {
            return Err(RingError::DuplicateConnectionId(tunnel.local_cid));
        }
        let (sealer, opener) = protect::pair(tunnel.suite, &tunnel.send, &tunnel.recv);
        let shared = Arc::new(Shared::new(tunnel.id, tunnel.path, tunnel.class, Instant::now()));
        // Receiving first: the peer may answer the first packet at once.
        self.send_rx(RxCommand::Install(Box::new(RxTunnel {
            shared: Arc::clone(&shared),
            peer: tunnel.peer,
            local_cid: tunnel.local_cid,
            remote_cid: tunnel.remote_cid,
            path: tunnel.path,
            opener,
        })))?;
        self.send_tx(TxCommand::Install(Box::new(TxTunnel {
            shared: Arc::clone(&shared),
            precedence: tunnel.precedence,
            peer: tunnel.peer,
            remote_cid: tunnel.remote_cid,
            path: tunnel.path,
            sealer,
            mtu: tunnel.mtu,
            confirmed: tunnel.confirmed,
        })))?;
        tunnels.insert(tunnel.id, (tunnel.local_cid, shared));
        Ok(())
    }

    fn expect(&self, cid: ConnectionId) {
        self.early.expect(cid, Instant::now());
    }

    fn forget(&self, cid: ConnectionId) {
        let dropped = self.early.forget(cid) as u64;
        self.counters.count_drop(DropReason::UnknownConnectionId, dropped);
    }

    fn remove(&self, id: TunnelId) {
        let removed = lock(&self.tunnels).remove(&id);
        if let Some((cid, _)) = removed {
            // A worker that has ended needs no telling.
            let _ = self.send_tx(TxCommand::Remove(id));
            let _ = self.send_rx(RxCommand::Remove(cid));
        }
    }

    fn set_path(&self, id: TunnelId, path: Path) {
        let cid = lock(&self.tunnels).get(&id).map(|(cid, _)| *cid);
        if let Some(cid) = cid {
            let _ = self.send_rx(RxCommand::SetPath(cid, path));
            let _ = self.send_tx(TxCommand::SetPath(id, path));
        }
    }

    fn set_mtu(&self, id: TunnelId, mtu: PathMtu) {
        if mtu.is_possible() {
            let _ = self.send_tx(TxCommand::SetMtu(id, mtu));
        }
    }

    fn send_control(&self, id: TunnelId, control: Control) {
        let _ = self.send_tx(TxCommand::Control(id, control));
    }

    fn drop_held(&self, dst: Ipv6Addr, unreachable: bool) {
        let _ = self.send_tx(TxCommand::DropHeld(dst, unreachable));
    }

    fn force_key_update(&self, id: TunnelId) {
        let _ = self.send_tx(TxCommand::UpdateKeys(id));
    }

    fn set_permissions(&self, permissions: Arc<Permissions>) -> Result<(), RingError> {
        let mut enforced = lock(&self.enforced);
        let new =
            (!permissions.are_all()).then(|| Arc::new(Enforced::after(enforced.as_deref(), permissions)));
        // Still locked, so that both workers hear of changes in the same order.
        self.send_rx(RxCommand::SetPermissions(new.clone()))?;
        self.send_tx(TxCommand::SetPermissions(new.clone()))?;
        *enforced = new;
        Ok(())
    }

    fn set_class(&self, id: TunnelId, class: u32) {
        if let Some((_, shared)) = lock(&self.tunnels).get(&id) {
            shared.set_class(class);
        }
    }

    fn tunnel_stats(&self, id: TunnelId) -> Option<TunnelStats> {
        lock(&self.tunnels).get(&id).map(|(_, shared)| shared.stats())
    }

    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)> {
        let mut stats: Vec<_> =
            lock(&self.tunnels).iter().map(|(id, (_, shared))| (*id, shared.stats())).collect();
        stats.sort_unstable_by_key(|(id, _)| *id);
        stats
    }

    fn counters(&self) -> RingCounters {
        let mut counters = self.counters.snapshot();
        counters.add_drops(DropReason::QueueFull, self.side.dropped());
        counters
    }
}

impl<S: Side> Drop for Ring<S> {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.tx_waker.wake();
        self.port.wake();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has told so by its obituary.
            let _ = worker.join();
        }
    }
}

/// Tells the owner that a worker has ended, however it did, unless it was told to.
struct Obituary {
    worker: &'static str,
    events: EventSink,
    /// `None` while it runs; then why it failed, if it did.
    reason: Option<Option<String>>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let reason = match self.reason.take() {
            Some(None) => return,
            Some(Some(reason)) => reason,
            None => format!("{}: panicked", self.worker),
        };
        (self.events)(RingEvent::Failed { reason });
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}
