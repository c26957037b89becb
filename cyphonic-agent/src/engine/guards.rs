//! Keeps packets with the overlay's addresses out on other interfaces than its own: Linux would take them for
//! its virtual address whatever they come in by, and nobody has proved whose they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cyphonic_dataplane::bpf::{BpfError, GuardLink};

use super::datapath::Classifier;
use crate::netlink::NetworkCards;

/// Where packets are not kept out, by interface, and why.
#[derive(Clone, Debug, Default)]
pub struct Unguarded(Arc<Mutex<BTreeMap<String, String>>>);

impl Unguarded {
    /// All of them.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module. Interfaces are left as they were found when dropped.
pub(super) struct Guards {
    /// None where there are no programs, of which `status` tells by itself.
    classifier: Option<Arc<Classifier>>,
    /// By interface. One that refused is not asked again for as long as it exists.
    links: HashMap<u32, Result<GuardLink, (String, BpfError)>>,
    unguarded: Unguarded,
}

impl Guards {
    pub(super) fn new(classifier: Option<Arc<Classifier>>) -> Self {
        Self { classifier, links: HashMap::new(), unguarded: Unguarded::default() }
    }

    /// For `status`.
    pub(super) fn unguarded(&self) -> Unguarded {
        self.unguarded.clone()
    }

    /// Takes note of the interfaces that are there now.
    pub(super) fn update(&mut self, present: &NetworkCards) {
        let Some(classifier) = &self.classifier else { return };
        let entrances: HashMap<_, _> =
            present.entrances.iter().map(|card| (card.index, &card.name)).collect();
        self.links.retain(|index, _| entrances.contains_key(index));
        for (index, name) in entrances {
            self.links.entry(index).or_insert_with(|| {
                let link = classifier.lock().guard(name);
                link.map_err(|error| {
                    tracing::warn!(interface = name, %error, "packets with the overlay's addresses are not kept out");
                    (name.clone(), error)
                })
            });
        }
        let failed = self.links.values().filter_map(|link| link.as_ref().err());
        let failed = failed.map(|(name, error)| (name.clone(), error.to_string())).collect();
        *self.unguarded.0.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}
