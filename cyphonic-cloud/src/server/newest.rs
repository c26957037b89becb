//! Of what each device has, the newest few. Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Of one device: as many connections as it dials at once.
pub(super) const OF_ONE: usize = 8;

/// Things of devices, by what these are told apart by.
#[derive(Debug)]
pub(super) struct Newest<K, T> {
    /// Of each, oldest first.
    of: HashMap<K, VecDeque<T>>,
}

impl<K, T> Default for Newest<K, T> {
    fn default() -> Self {
        Self { of: HashMap::new() }
    }
}

impl<K: Eq + Hash, T> Newest<K, T> {
    /// Adds one, and gives back the oldest of this device where it has too many.
    pub(super) fn insert(&mut self, device: K, item: T) -> Option<T> {
        let own = self.of.entry(device).or_default();
        own.push_back(item);
        if own.len() > OF_ONE { own.pop_front() } else { None }
    }

    /// Takes those of a device out that are meant.
    pub(super) fn remove(&mut self, device: &K, is_meant: impl Fn(&T) -> bool) {
        if let Some(own) = self.of.get_mut(device) {
            own.retain(|item| !is_meant(item));
            if own.is_empty() {
                self.of.remove(device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_keeps_its_newest_and_leaves_nothing_behind() {
        let mut newest = Newest::default();
        let all = 3 * OF_ONE;
        let superseded: Vec<_> = (0..all).filter_map(|n| newest.insert("a.lab", n)).collect();
        assert_eq!(superseded, (0..all - OF_ONE).collect::<Vec<_>>(), "the oldest first");
        assert_eq!(newest.insert("b.lab", 0), None, "another device has places of its own");
        newest.remove(&"a.lab", |n| *n == all - 1);
        assert_eq!(newest.insert("a.lab", all), None, "a place is free again");
        assert_eq!(newest.insert("a.lab", all + 1), Some(all - OF_ONE));
        newest.remove(&"c.lab", |_| true);
        newest.remove(&"a.lab", |_| true);
        newest.remove(&"b.lab", |_| true);
        assert!(newest.of.is_empty());
    }
}
