//! What is said at most once in a while, however often it happens. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use crate::register::UnixSeconds;

/// For refusals: who tries all the time, tries every few seconds.
pub(crate) const HOURLY: UnixSeconds = 3_600;

/// Different things remembered. What comes while there are so many is not said.
const MOST: usize = 1_024;

/// When things were said last.
#[derive(Debug)]
pub(crate) struct Seldom<K> {
    every: UnixSeconds,
    said: Mutex<HashMap<K, UnixSeconds>>,
}

impl<K: Eq + Hash> Seldom<K> {
    /// Each thing once in this time.
    pub(crate) fn new(every: UnixSeconds) -> Self {
        Self { every, said: Mutex::default() }
    }

    /// Whether this is to be said now.
    pub(crate) fn is_due(&self, thing: K, now: UnixSeconds) -> bool {
        // A clock that was set back makes nothing silent for long.
        let is_recent = |at: UnixSeconds| (at..at.saturating_add(self.every)).contains(&now);
        // The table is whole after every call.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(&thing).is_some_and(|at| is_recent(*at)) {
            return false;
        }
        if said.len() >= MOST {
            said.retain(|_, at| is_recent(*at));
        }
        let has_room = said.len() < MOST;
        if has_room {
            said.insert(thing, now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_said_once_in_a_while() {
        let seldom = Seldom::new(60);
        let said = |thing, now| seldom.is_due(thing, now);
        assert!(said("a", 1000) && !said("a", 1059) && said("b", 1001) && said("a", 1060));
        assert!(said("a", 500), "the clock was set back");
    }

    #[test]
    fn a_flood_of_different_things_is_bounded() {
        let seldom = Seldom::new(60);
        let said = |things: std::ops::Range<usize>, now| things.filter(|n| seldom.is_due(*n, now)).count();
        assert_eq!(said(0..5000, 1000), MOST);
        assert_eq!(said(5000..5010, 1059), 0);
        assert_eq!(said(5000..5010, 1060), 10);
        assert_eq!(seldom.said.lock().unwrap().len(), 10);
    }
}
