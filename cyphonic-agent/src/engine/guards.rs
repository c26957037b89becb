//! Keeps packets with the overlay's addresses out on other interfaces than its own: Linux would take them for
//! its virtual address whatever they come in by, and nobody has proved whose they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cyphonic_dataplane::bpf::GuardLink;

use super::datapath::Classifier;
use crate::netlink::{NetworkCard, NetworkCards};

/// Where packets are not kept out, by interface, and why.
#[derive(Clone, Debug, Default)]
pub struct Unguarded(Arc<Mutex<BTreeMap<String, String>>>);

impl Unguarded {
    /// All of them.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module. The programs go when it is dropped.
pub(super) struct Guards {
    /// None where there are no programs, of which `status` tells by itself.
    classifier: Option<Arc<Classifier>>,
    /// The overlay's own interfaces, whatever they are called by now.
    own: Vec<u32>,
    links: HashMap<u32, GuardLink>,
    unguarded: Unguarded,
}

impl Guards {
    pub(super) fn new(classifier: Option<Arc<Classifier>>) -> Self {
        Self { classifier, own: Vec::new(), links: HashMap::new(), unguarded: Unguarded::default() }
    }

    /// These are the overlay's own.
    pub(super) fn leave_out(&mut self, own: &[u32]) {
        self.own = own.to_vec();
    }

    /// For `status`.
    pub(super) fn unguarded(&self) -> Unguarded {
        self.unguarded.clone()
    }

    /// Takes note of the interfaces that are there now. One that refuses is tried again whenever something
    /// changes: it may have been renamed in this moment.
    pub(super) fn update(&mut self, present: &NetworkCards) {
        let Some(classifier) = &self.classifier else { return };
        self.links.retain(|index, _| present.entrances.iter().any(|card| card.index == *index));
        let before = self.unguarded.all();
        let mut unguarded = BTreeMap::new();
        for NetworkCard { index, name } in &present.entrances {
            if self.own.contains(index) || self.links.contains_key(index) {
                continue;
            }
            match classifier.lock().guard(name, *index) {
                Ok(link) => drop(self.links.insert(*index, link)),
                Err(error) => {
                    let why = error.to_string();
                    if before.get(name) != Some(&why) {
                        tracing::warn!(
                            interface = name,
                            why,
                            "packets with the overlay's addresses are not kept out"
                        );
                    }
                    unguarded.insert(name.clone(), why);
                }
            }
        }
        *self.unguarded.0.lock().unwrap_or_else(PoisonError::into_inner) = unguarded;
    }
}
