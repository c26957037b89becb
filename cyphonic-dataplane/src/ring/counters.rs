//! What a ring counts: packets, system calls, and every drop by its name.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use cyphonic_common::DropReason;

/// Inner packets, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Their bytes, IPv6 headers included.
    pub bytes: u64,
}

/// What passed in one direction, by the route of the tunnel at that moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// While the tunnel's packets were sent straight to the peer.
    pub direct: Amount,
    /// While they were sent to a relay.
    pub relayed: Amount,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl Traffic {
    fn plus(self, other: Self) -> Self {
        Self { direct: self.direct.plus(other.direct), relayed: self.relayed.plus(other.relayed) }
    }
}

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
    /// What was sent on tunnels.
    pub sent: Traffic,
    /// What came by tunnels and was fit to be delivered.
    pub received: Traffic,
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
        self.sent = self.sent.plus(other.sent);
        self.received = self.received.plus(other.received);
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

/// How often the sending worker has sent, away from what the receiving one counts. One worker writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct LiveSends(AtomicU64);

impl LiveSends {
    #[inline]
    pub(super) fn count(&self) {
        self.0.store(self.0.load(Relaxed) + 1, Relaxed);
    }
}

/// One direction's live traffic. One worker writes it, so counting is a load and a store.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct LiveTraffic {
    direct: LiveAmount,
    relayed: LiveAmount,
}

#[derive(Debug, Default)]
struct LiveAmount {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl LiveTraffic {
    #[inline]
    pub(super) fn add(&self, relayed: bool, packets: u64, bytes: u64) {
        let amount = if relayed { &self.relayed } else { &self.direct };
        amount.packets.store(amount.packets.load(Relaxed) + packets, Relaxed);
        amount.bytes.store(amount.bytes.load(Relaxed) + bytes, Relaxed);
    }

    fn snapshot(&self) -> Traffic {
        Traffic { direct: self.direct.snapshot(), relayed: self.relayed.snapshot() }
    }
}

impl LiveAmount {
    fn snapshot(&self) -> Amount {
        Amount { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }
}

/// The live counters, written by both workers.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) tx_sends: LiveSends,
    pub(super) rx_packets: AtomicU64,
    pub(super) rx_writes: AtomicU64,
    pub(super) held: AtomicU64,
    pub(super) sent: LiveTraffic,
    pub(super) received: LiveTraffic,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            tx_sends: LiveSends::default(),
            rx_packets: AtomicU64::new(0),
            rx_writes: AtomicU64::new(0),
            held: AtomicU64::new(0),
            sent: LiveTraffic::default(),
            received: LiveTraffic::default(),
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
        let sent = self.sent.snapshot();
        RingCounters {
            tx_packets: sent.direct.plus(sent.relayed).packets,
            tx_sends: self.tx_sends.0.load(Relaxed),
            rx_packets: self.rx_packets.load(Relaxed),
            rx_writes: self.rx_writes.load(Relaxed),
            held: self.held.load(Relaxed),
            sent,
            received: self.received.snapshot(),
            drops: self.drops.iter().map(|counter| counter.load(Relaxed)).collect(),
        }
    }
}
