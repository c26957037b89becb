//! Legs in a slice and routes from a function: the surroundings of tests and fuzzers. Nothing is allocated.

use core::cell::Cell;

use super::departure::Departure;
use super::forward::{Entry, Hop, Relay};
use super::leg::{RelayEntry, RelayLeg, RelayState};
use super::map::PassReason;
use crate::cid::ConnectionId;

/// A leg that a [`Table`] holds.
#[derive(Debug)]
pub struct TableLeg {
    cid: u64,
    leg: RelayLeg,
    state: Cell<RelayState>,
}

impl TableLeg {
    /// An entry under its virtual connection ID.
    #[must_use]
    pub const fn new(cid: ConnectionId, entry: RelayEntry) -> Self {
        let RelayEntry { leg, state } = entry;
        Self { cid: u64::from_ne_bytes(*cid.as_bytes()), leg, state: Cell::new(state) }
    }

    /// The entry as it is now.
    pub fn entry(&self) -> RelayEntry {
        RelayEntry { leg: self.leg, state: self.state.get() }
    }

    /// What it has carried.
    pub fn state(&self) -> RelayState {
        self.state.get()
    }
}

/// What [`relay`](super::relay) asks, answered without a kernel.
#[derive(Debug)]
pub struct Table<'a, R> {
    /// The legs. They are searched one by one.
    pub legs: &'a [TableLeg],
    /// The next hop for a packet.
    pub route: R,
    /// The time.
    pub now_ns: u64,
}

impl<'a, R: Fn(&Departure) -> Result<Hop, PassReason>> Relay for Table<'a, R> {
    type Entry = &'a TableLeg;

    fn find(&self, cid: u64) -> Option<Self::Entry> {
        self.legs.iter().find(|leg| leg.cid == cid)
    }

    fn route(&self, departure: &Departure) -> Result<Hop, PassReason> {
        (self.route)(departure)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

impl Entry for &TableLeg {
    fn leg(&self) -> &RelayLeg {
        &self.leg
    }

    fn update<R>(&self, change: impl FnOnce(&mut RelayState) -> R) -> R {
        let mut state = self.state.get();
        let result = change(&mut state);
        self.state.set(state);
        result
    }
}
