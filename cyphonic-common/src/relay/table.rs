//! Legs in a slice and routes from a function: the surroundings of tests and fuzzers. Nothing is allocated.

use core::cell::Cell;

use super::address::Address;
use super::departure::Departure;
use super::forward::{Entry, Hop, Relay};
use super::leg::{LegEntry, OwnAddresses, PackedLeg, RelayState};
use super::map::PassReason;

/// A leg that a [`Table`] holds.
#[derive(Debug)]
pub struct TableLeg {
    leg: PackedLeg,
    state: Cell<RelayState>,
}

impl TableLeg {
    /// An entry. Its way is not used.
    #[must_use]
    pub const fn new(entry: LegEntry) -> Self {
        let LegEntry { leg, state, .. } = entry;
        Self { leg, state: Cell::new(state) }
    }

    /// The entry as it is now.
    pub fn entry(&self) -> LegEntry {
        LegEntry { state: self.state.get(), ..LegEntry::new(self.leg) }
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
    /// The relay's own addresses.
    pub own: &'a OwnAddresses,
    /// The next hop for a packet.
    pub route: R,
    /// The time.
    pub now_ns: u64,
}

impl<'a, R: Fn(&Departure) -> Result<Hop, PassReason>> Relay for Table<'a, R> {
    type Entry = &'a TableLeg;
    type Place = ();

    fn locate(&self, _: u64) {}

    fn find(&self, (): (), cid: u64) -> Option<Self::Entry> {
        self.legs.iter().find(|leg| leg.leg.cid() == cid)
    }

    fn own(&self, number: u8) -> Address {
        Address::from_bytes(self.own.octets(number))
    }

    fn route(&self, _: &Self::Entry, departure: &Departure, _: u64) -> Result<Hop, PassReason> {
        (self.route)(departure)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

impl Entry for &TableLeg {
    fn leg(&self) -> &PackedLeg {
        &self.leg
    }

    fn update<R>(&self, change: impl FnOnce(&mut RelayState) -> R) -> R {
        let mut state = self.state.get();
        let result = change(&mut state);
        self.state.set(state);
        result
    }
}
