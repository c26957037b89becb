//! The relay in a thread of this process.
//!
//! The worker owns a map of its own, without locks; the control plane's side is behind a mutex and sends each
//! change over a channel. The worker applies changes *after* a receive call and before it looks at what that
//! call brought: a packet that a binding's answer caused was sent after the change was queued, so it finds
//! the entry.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_common::{ConnectionId, DropReason};

use super::forward::Forwarder;
use super::leg::{LegCounters, Shared, checked};
use super::resets::Resets;
use super::{Leg, LegStats, RelayMap, RelayMapError};
use crate::sync::lock;
use crate::thread::scheduling::Scheduling;
use crate::udp::{self, RecvBatch, SignallingSink, UdpPort};

/// Messages per receive call.
const BATCH_MESSAGES: usize = 32;
/// How long the worker waits before it looks at its changes and its stop flag anyway.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// A change to the worker's map.
pub(super) enum Change {
    /// A new leg, or new addresses for one: the counters are shared with the control plane.
    Set(ConnectionId, Arc<Shared>),
    /// A leg less.
    Remove(ConnectionId),
}

/// Relays in userspace. Made once, shared by the control plane (as [`RelayMap`]) and the thread in
/// [`run`](Self::run).
pub struct UserspaceRelay {
    capacity: usize,
    start: Instant,
    control: Mutex<Control>,
    changes: Mutex<Option<Receiver<Change>>>,
    resets: Option<Arc<Resets>>,
    pub(super) counters: Counters,
}

struct Control {
    legs: HashMap<ConnectionId, Arc<Shared>>,
    changes: Sender<Change>,
}

/// What the worker counts, for all legs together.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) signalling: AtomicU64,
    pub(super) resets: AtomicU64,
    drops: DropCounters,
}

#[derive(Debug)]
struct DropCounters([AtomicU64; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    #[inline]
    pub(super) fn count_drop(&self, reason: DropReason, packets: u64) {
        self.drops.0[reason.index() as usize].fetch_add(packets, Relaxed);
    }
}

/// A copy of the worker's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayCounters {
    /// Datagrams forwarded, over all legs.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams given to the signalling sink.
    pub signalling: u64,
    /// Stateless resets sent for connection IDs that nobody has bound.
    pub resets: u64,
    /// Datagrams dropped, by reason; reasons that never occurred are left out.
    pub drops: Vec<(DropReason, u64)>,
}

impl RelayCounters {
    /// How many were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().find(|(named, _)| *named == reason).map_or(0, |(_, packets)| *packets)
    }
}

impl UserspaceRelay {
    /// A relay for at most `capacity` legs. A relayed tunnel has two.
    pub fn new(capacity: usize) -> Self {
        let (sender, receiver) = channel();
        Self {
            capacity,
            start: Instant::now(),
            control: Mutex::new(Control { legs: HashMap::new(), changes: sender }),
            changes: Mutex::new(Some(receiver)),
            resets: None,
            counters: Counters::default(),
        }
    }

    /// Answers packets of unknown connection IDs with stateless resets, instead of dropping them in silence.
    pub fn with_resets(self, resets: Arc<Resets>) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// The worker's loop: receives, forwards, hands signalling to `sink`. Returns once `stop` is set; call
    /// [`UdpPort::wake`] after setting it. Only one call at a time.
    ///
    /// # Errors
    /// The port failed, or another call is running.
    pub fn run(
        &self,
        port: Arc<UdpPort>,
        sink: Arc<dyn SignallingSink>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<()> {
        let changes = lock(&self.changes).take().ok_or_else(|| {
            io::Error::new(io::ErrorKind::ResourceBusy, "this relay has a worker already: make another relay")
        })?;
        let mut forwarder = Forwarder::new(&port, &*sink, &self.counters, self.start, self.resets.as_deref());
        self.resume(&mut forwarder, &changes);
        let result = work(&port, &stop, &changes, &mut forwarder);
        *lock(&self.changes) = Some(changes);
        result
    }

    /// A bound leg.
    pub fn leg(&self, cid: ConnectionId) -> Option<Leg> {
        lock(&self.control).legs.get(&cid).map(|shared| shared.leg)
    }

    /// Adds what was counted elsewhere to what a bound leg has carried.
    pub(super) fn count_carried(&self, cid: ConnectionId, carried: LegStats) {
        if let Some(shared) = lock(&self.control).legs.get(&cid) {
            shared.counters.carry(carried, self.start);
        }
    }

    /// What the worker counted so far.
    pub fn counters(&self) -> RelayCounters {
        let counters = &self.counters;
        let drops = DropReason::ALL.iter().zip(&counters.drops.0);
        RelayCounters {
            packets: counters.packets.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            signalling: counters.signalling.load(Relaxed),
            resets: counters.resets.load(Relaxed),
            drops: drops.map(|(reason, n)| (*reason, n.load(Relaxed))).filter(|(_, n)| *n > 0).collect(),
        }
    }

    /// A worker starts with all legs there are; the changes up to now are among them.
    fn resume(&self, forwarder: &mut Forwarder<'_>, changes: &Receiver<Change>) {
        let control = lock(&self.control);
        while changes.try_recv().is_ok() {}
        for (cid, shared) in &control.legs {
            forwarder.apply(Change::Set(*cid, Arc::clone(shared)));
        }
    }
}

fn work(
    port: &UdpPort,
    stop: &AtomicBool,
    changes: &Receiver<Change>,
    forwarder: &mut Forwarder<'_>,
) -> io::Result<()> {
    let (mut batch, mut scheduling) = (RecvBatch::new(BATCH_MESSAGES), Scheduling::of_this_thread());
    while !stop.load(Relaxed) {
        let received = port.recv_batch(&mut batch);
        while let Ok(change) = changes.try_recv() {
            forwarder.apply(change);
        }
        match received {
            Ok(_) => forwarder.forward(&mut batch),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                scheduling.rest();
                port.wait(Some(IDLE_WAIT))?;
            }
            Err(error) if udp::is_passing(&error) => {
                tracing::debug!(%error, "receiving from the relay's port")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl RelayMap for UserspaceRelay {
    fn insert(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        let leg = checked(cid, &leg)?;
        let mut control = lock(&self.control);
        if control.legs.contains_key(&cid) {
            return Err(RelayMapError::AlreadyBound(cid));
        }
        if control.legs.len() >= self.capacity {
            return Err(RelayMapError::Full { capacity: self.capacity });
        }
        control.set(cid, leg, Arc::default());
        Ok(())
    }

    fn remove(&self, cid: ConnectionId) -> Option<LegStats> {
        let mut control = lock(&self.control);
        let shared = control.legs.remove(&cid)?;
        control.tell(Change::Remove(cid));
        Some(shared.counters.snapshot(self.start))
    }

    fn replace(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        let leg = checked(cid, &leg)?;
        let mut control = lock(&self.control);
        let bound = control.legs.get(&cid).ok_or(RelayMapError::NotBound(cid))?;
        let counters = Arc::clone(&bound.counters);
        control.set(cid, leg, counters);
        Ok(())
    }

    fn stats(&self, cid: ConnectionId) -> Option<LegStats> {
        lock(&self.control).legs.get(&cid).map(|shared| shared.counters.snapshot(self.start))
    }

    fn len(&self) -> usize {
        lock(&self.control).legs.len()
    }
}

impl Control {
    fn set(&mut self, cid: ConnectionId, leg: Leg, counters: Arc<LegCounters>) {
        let shared = Arc::new(Shared::new(leg, counters));
        self.legs.insert(cid, Arc::clone(&shared));
        self.tell(Change::Set(cid, shared));
    }

    fn tell(&self, change: Change) {
        // The receiver lives as long as the relay, between runs too: sending cannot fail.
        let _ = self.changes.send(change);
    }
}
