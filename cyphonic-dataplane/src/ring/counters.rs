//! What a ring counts: packets, system calls, and every drop by its name.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use cyphonic_common::DropReason;

/// A snapshot of a ring's counters since it started. Packets are inner ones.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingCounters {
    /// Packets sent on tunnels.
    pub tx_packets: u64,
    /// System calls they took: the ratio says what segmentation offload is worth.
    pub tx_sends: u64,
    /// Packets delivered to the virtual interface.
    pub rx_packets: u64,
    /// Device writes they took: the ratio says what joining is worth.
    pub rx_writes: u64,
    /// Packets held now, for tunnels that are being set up.
    pub held: u64,
    drops: Vec<u64>,
}

impl RingCounters {
    /// How many packets were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.index() as usize).copied().unwrap_or(0)
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.drops.iter().copied())
    }

    /// The sum of two rings' counters.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.tx_packets += other.tx_packets;
        self.tx_sends += other.tx_sends;
        self.rx_packets += other.rx_packets;
        self.rx_writes += other.rx_writes;
        self.held += other.held;
        other.drops().for_each(|(reason, packets)| self.add_drops(reason, packets));
        self
    }

    /// Counts packets that were dropped outside the ring's own workers.
    pub fn add_drops(&mut self, reason: DropReason, packets: u64) {
        self.drops.resize(DropReason::COUNT, 0);
        if let Some(drops) = self.drops.get_mut(reason.index() as usize) {
            *drops += packets;
        }
    }
}

/// The live counters, written by both workers.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) tx_packets: AtomicU64,
    pub(super) tx_sends: AtomicU64,
    pub(super) rx_packets: AtomicU64,
    pub(super) rx_writes: AtomicU64,
    pub(super) held: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            tx_packets: AtomicU64::new(0),
            tx_sends: AtomicU64::new(0),
            rx_packets: AtomicU64::new(0),
            rx_writes: AtomicU64::new(0),
            held: AtomicU64::new(0),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
    pub(super) fn count_drop(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.drops.get(reason.index() as usize) {
            counter.fetch_add(packets, Relaxed);
        }
    }

    pub(super) fn snapshot(&self) -> RingCounters {
        RingCounters {
            tx_packets: self.tx_packets.load(Relaxed),
            tx_sends: self.tx_sends.load(Relaxed),
            rx_packets: self.rx_packets.load(Relaxed),
            rx_writes: self.rx_writes.load(Relaxed),
            held: self.held.load(Relaxed),
            drops: self.drops.iter().map(|counter| counter.load(Relaxed)).collect(),
        }
    }
}
