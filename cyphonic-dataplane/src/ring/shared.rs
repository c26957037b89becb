//! What the two workers and whoever asks for figures share of one tunnel.
//!
//! Each half has one writer, so counting is a load and a store; the halves lie on different cache lines.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use super::{Path, TunnelId, TunnelStats};
use crate::sync::lock;

/// Challenges whose answers are awaited; the oldest is forgotten when one more is sent.
/// As many as a round of probes to all of a peer's candidates has under way.
const MAX_CHALLENGES: usize = 64;

/// One direction's figures.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Figures {
    packets: AtomicU64,
    bytes: AtomicU64,
    large: AtomicU64,
    key_updates: AtomicU64,
    /// Nanoseconds since the tunnel was installed, plus one; 0 is never.
    last: AtomicU64,
    /// The same, of the first inner packet that was sent after the last that arrived.
    first_unanswered: AtomicU64,
}

impl Figures {
    /// Counts inner packets. Only the half's own worker calls this.
    pub(super) fn add(&self, packets: u64, bytes: u64) {
        self.packets.store(self.packets.load(Relaxed) + packets, Relaxed);
        self.bytes.store(self.bytes.load(Relaxed) + bytes, Relaxed);
    }

    /// Counts packets larger than any path carries for certain. As [`add`](Self::add).
    pub(super) fn add_large(&self, packets: u64) {
        self.large.store(self.large.load(Relaxed) + packets, Relaxed);
    }

    pub(super) fn set_key_updates(&self, updates: u64) {
        self.key_updates.store(updates, Relaxed);
    }

    fn touch(&self, since: Duration) {
        self.last.store(stamp(since), Relaxed);
    }

    fn last(&self, start: Instant) -> Option<Instant> {
        instant(self.last.load(Relaxed), start)
    }
}

fn stamp(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX - 1).saturating_add(1)
}

fn instant(stamp: u64, start: Instant) -> Option<Instant> {
    start.checked_add(Duration::from_nanos(stamp.checked_sub(1)?))
}

/// Why a challenge was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    /// The owner asked for it and learns of the answer.
    Owner,
    /// The ring's own greeting of a peer that has not been heard yet.
    Greeting,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: TunnelId,
    start: Instant,
    pub(super) tx: Figures,
    pub(super) rx: Figures,
    heard: AtomicBool,
    /// The peer's in the port policy.
    class: AtomicU32,
    /// Read and written at the pace of control, never per packet.
    path: Mutex<Path>,
    challenges: Mutex<VecDeque<([u8; 8], Challenge)>>,
}

impl Shared {
    pub(super) fn new(id: TunnelId, path: Path, class: u32, now: Instant) -> Self {
        Self {
            id,
            start: now,
            tx: Figures::default(),
            rx: Figures::default(),
            heard: AtomicBool::new(false),
            class: AtomicU32::new(class),
            path: Mutex::new(path),
            challenges: Mutex::default(),
        }
    }

    pub(super) fn touch_tx(&self, now: Instant) {
        self.tx.touch(now.saturating_duration_since(self.start));
    }

    /// Inner packets were sent.
    pub(super) fn touch_inner(&self, now: Instant) {
        self.touch_tx(now);
        if self.tx.first_unanswered.load(Relaxed) <= self.rx.last.load(Relaxed) {
            self.tx.first_unanswered.store(stamp(now.saturating_duration_since(self.start)), Relaxed);
        }
    }

    pub(super) fn touch_rx(&self, now: Instant) {
        self.rx.touch(now.saturating_duration_since(self.start));
    }

    /// The peer's class in the port policy.
    pub(super) fn class(&self) -> u32 {
        self.class.load(Relaxed)
    }

    pub(super) fn set_class(&self, class: u32) {
        self.class.store(class, Relaxed);
    }

    /// Whether an authenticated packet of the peer has arrived.
    pub(super) fn heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    pub(super) fn set_heard(&self) {
        self.heard.store(true, Relaxed);
    }

    pub(super) fn set_path(&self, path: Path) {
        *lock(&self.path) = path;
    }

    /// Remembers a challenge, so that only its answer is believed.
    pub(super) fn expect(&self, data: [u8; 8], challenge: Challenge) {
        let mut challenges = lock(&self.challenges);
        if challenges.len() >= MAX_CHALLENGES {
            challenges.pop_front();
        }
        challenges.push_back((data, challenge));
    }

    /// What an answer answers.
    pub(super) fn answered(&self, data: [u8; 8]) -> Option<Challenge> {
        let mut challenges = lock(&self.challenges);
        let at = challenges.iter().position(|(expected, _)| *expected == data)?;
        challenges.remove(at).map(|(_, challenge)| challenge)
    }

    pub(super) fn stats(&self) -> TunnelStats {
        let updates = self.tx.key_updates.load(Relaxed).max(self.rx.key_updates.load(Relaxed));
        let first = Some(self.tx.first_unanswered.load(Relaxed));
        let unanswered = first.filter(|first| *first > self.rx.last.load(Relaxed));
        TunnelStats {
            unanswered_since: unanswered.and_then(|first| instant(first, self.start)),
            tx_packets: self.tx.packets.load(Relaxed),
            tx_bytes: self.tx.bytes.load(Relaxed),
            tx_large: self.tx.large.load(Relaxed),
            rx_packets: self.rx.packets.load(Relaxed),
            rx_bytes: self.rx.bytes.load(Relaxed),
            last_rx: self.rx.last(self.start),
            last_tx: self.tx.last(self.start),
            key_updates: updates,
            heard: self.heard(),
            path: *lock(&self.path),
        }
    }
}
