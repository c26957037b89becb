//! Two NMSs of one overlay: one that stands in follows the overlay's own.
//!
//! ```text
//! the overlay's own                                   the standby
//!   register ──┐                                        ┌─► its register (a copy) ── watch ─► NMS
//!   facts ─────┼─ followers ◄── QUIC, asked each ── follower ─► facts, kept in a file ─────────► NMS
//!   set-ups ───┘                second              └─► stance: whether the NMS serves
//! ```

mod copy;
mod follower;
mod followers;
mod kept_facts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cyphonic_proto::standby::Facts;
use tokio::sync::watch;

pub use self::follower::Following;
pub(super) use self::follower::{Follower, Places};
pub(super) use self::followers::Followers;
pub(super) use self::kept_facts::KeptFacts;

/// What an NMS and whatever speaks with the other one know of each other.
#[derive(Clone)]
pub(super) struct Shared {
    /// What the NMS knows of the overlay besides devices.
    pub(super) facts: watch::Sender<Facts>,
    /// Whether the NMS serves nodes; that of a standby does not always.
    pub(super) serves: watch::Sender<bool>,
    pub(super) numbers: Numbers,
}

impl Shared {
    pub(super) fn new(facts: Facts, serves: bool, next: u64) -> Self {
        let (facts, _) = watch::channel(facts);
        let (serves, _) = watch::channel(serves);
        Self { facts, serves, numbers: Numbers::from(next) }
    }
}

/// The numbers of set-ups, which both NMSs count on.
#[derive(Clone)]
pub(super) struct Numbers {
    next: Arc<AtomicU64>,
    elsewhere: watch::Sender<u64>,
}

impl Numbers {
    fn from(next: u64) -> Self {
        let (elsewhere, _) = watch::channel(next);
        Self { next: Arc::new(AtomicU64::new(next)), elsewhere }
    }

    /// The NMS's next.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// The NMS has got so far.
    pub(super) fn note(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
    }

    /// The other one has got so far: this one goes on from there.
    pub(super) fn raise(&self, next: u64) {
        self.elsewhere.send_if_modified(|before| {
            let is_news = next > *before;
            *before = next.max(*before);
            is_news
        });
    }

    /// How far others have got.
    pub(super) fn elsewhere(&self) -> watch::Receiver<u64> {
        self.elsewhere.subscribe()
    }
}
