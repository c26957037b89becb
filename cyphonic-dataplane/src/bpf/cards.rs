//! The network cards that the program on the underlay serves: each has a slot, so that its sockets stand in
//! places of their own.

use std::sync::{Arc, Mutex, MutexGuard};

use aya::maps::{HashMap, MapData};
use cyphonic_common::steer::{MAX_CARDS, name};

use super::error::BpfError;
use super::object::Object;
use crate::sync;

/// Which card has which slot, in the kernel's map as well.
#[derive(Debug)]
pub(super) struct CardSlots {
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    map: HashMap<MapData, u32, u32>,
    taken: [bool; MAX_CARDS as usize],
}

/// A card's slot. Free again when dropped: then the program leaves the card's packets to the stack.
#[derive(Debug)]
pub(super) struct CardSlot {
    all: Arc<CardSlots>,
    card: u32,
    number: u32,
}

impl CardSlots {
    pub(super) fn new(object: &mut Object) -> Result<Self, BpfError> {
        let slots = Slots { map: object.take_cards()?, taken: [false; MAX_CARDS as usize] };
        Ok(Self { slots: Mutex::new(slots) })
    }

    /// A slot for the card with this number, which has none yet.
    pub(super) fn take(self: &Arc<Self>, interface: &str, card: u32) -> Result<CardSlot, BpfError> {
        let mut slots = self.lock();
        let Slots { map, taken } = &mut *slots;
        let Some((number, taken)) = (0..).zip(taken).find(|(_, taken)| !**taken) else {
            return Err(BpfError::TooManyCards { interface: interface.to_owned(), most: MAX_CARDS });
        };
        map.insert(card, number, 0).map_err(|source| BpfError::Map { map: name::CARDS, source })?;
        *taken = true;
        Ok(CardSlot { all: Arc::clone(self), card, number })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        sync::lock(&self.slots)
    }
}

impl CardSlot {
    pub(super) const fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for CardSlot {
    fn drop(&mut self) {
        let mut slots = self.all.lock();
        if let Err(error) = slots.map.remove(&self.card) {
            tracing::warn!(map = name::CARDS, %error, "the eBPF programs do not learn of a change");
        }
        if let Some(taken) = slots.taken.get_mut(self.number as usize) {
            *taken = false;
        }
    }
}
