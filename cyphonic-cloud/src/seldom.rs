//! What is said at most once in a while, however often it happens. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use cyphonic_dataplane::sync;

use crate::register::UnixSeconds;

/// For refusals: who tries all the time, tries every few seconds.
pub(crate) const HOURLY: UnixSeconds = 3_600;

/// For our own failures, which go on until somebody acts: this long after the first time they are said again.
const MINUTE: UnixSeconds = 60;

/// Different things remembered: a restored register may know none of a large overlay's devices. What comes while
/// there are so many is not said.
const MOST: usize = 16_384;

/// When things were said last.
#[derive(Debug)]
pub(crate) struct Seldom<K> {
    /// A thing is said again after so long,
    least: UnixSeconds,
    /// and after twice as long each time, up to this.
    most: UnixSeconds,
    said: Mutex<HashMap<K, Said>>,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: UnixSeconds,
    silent_for: UnixSeconds,
}

impl Said {
    /// A clock that was set back makes nothing silent for long.
    fn is_recent(self, now: UnixSeconds) -> bool {
        (self.at..self.at.saturating_add(self.silent_for)).contains(&now)
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Each thing once in this time.
    pub(crate) fn new(every: UnixSeconds) -> Self {
        Self { least: every, most: every, said: Mutex::default() }
    }

    /// Each thing at once, a minute later, and then ever more rarely while it goes on: every hour in the end.
    pub(crate) fn ever_more_rarely() -> Self {
        Self { least: MINUTE, most: HOURLY, said: Mutex::default() }
    }

    /// Whether this is to be said now.
    pub(crate) fn is_due(&self, thing: K, now: UnixSeconds) -> bool {
        let mut said = sync::lock(&self.said);
        let before = said.get(&thing).copied();
        if before.is_some_and(|before| before.is_recent(now)) {
            return false;
        }
        if said.len() >= MOST {
            said.retain(|_, said| said.is_recent(now));
        }
        let has_room = said.len() < MOST;
        if has_room {
            // What was over for so long is new.
            let goes_on = |before: &Said| now.saturating_sub(before.at) < before.silent_for + self.most;
            let silent_for = before.filter(goes_on).map_or(self.least, |said| 2 * said.silent_for);
            said.insert(thing, Said { at: now, silent_for: silent_for.min(self.most) });
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
    fn a_failure_that_goes_on_is_said_ever_more_rarely() {
        let seldom = Seldom::ever_more_rarely();
        let said = |times: std::ops::Range<UnixSeconds>| -> Vec<_> {
            times.filter(|now| seldom.is_due("disk full", *now)).collect()
        };
        assert_eq!(said(0..3_600), [0, 60, 180, 420, 900, 1_860]);
        assert_eq!(said(3_600..86_400).len(), 23, "hourly");
        assert_eq!(said(100_000..100_100), [100_000, 100_060], "it was over meanwhile");
    }

    #[test]
    fn a_flood_of_different_things_is_bounded() {
        let seldom = Seldom::new(60);
        let said = |things: std::ops::Range<usize>, now| things.filter(|n| seldom.is_due(*n, now)).count();
        assert_eq!(said(0..50_000, 1000), MOST);
        assert_eq!(said(50_000..50_010, 1059), 0);
        assert_eq!(said(50_000..50_010, 1060), 10);
        assert_eq!(seldom.said.lock().unwrap().len(), 10);
    }
}
