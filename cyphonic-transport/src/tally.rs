//! How many of something there are, of each and in all. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// Counts by key, up to a number in all.
#[derive(Debug)]
pub struct Tally<K> {
    most: usize,
    total: usize,
    by_key: HashMap<K, usize>,
}

impl<K: Eq + Hash> Tally<K> {
    /// None yet, and `most` in all.
    pub fn new(most: usize) -> Self {
        Self { most, total: 0, by_key: HashMap::new() }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Those of this key.
    pub fn of(&self, key: &K) -> usize {
        self.by_key.get(key).copied().unwrap_or_default()
    }

    /// Whether there may be one more, where there are `most` of each key at most.
    pub fn has_room(&self, key: &K, most: usize) -> bool {
        self.total < self.most && self.of(key) < most
    }

    /// One more, for which there is room.
    pub fn add(&mut self, key: K) {
        self.total += 1;
        *self.by_key.entry(key).or_default() += 1;
    }

    /// Takes back one [`Self::add`] of this key.
    pub fn remove(&mut self, key: &K) {
        let Some(count) = self.by_key.get_mut(key) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.by_key.remove(key);
        }
        self.total = self.total.saturating_sub(1);
    }
}

/// Who has one of its addresses has them all: an IPv4 address, or the /64 in which an IPv6 host picks its own freely.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_for_each_and_for_all_and_comes_back() {
        let mut tally = Tally::new(3);
        for key in ["a", "a", "b"] {
            assert!(tally.has_room(&key, 2));
            tally.add(key);
        }
        assert_eq!((tally.total(), tally.of(&"a"), tally.of(&"b"), tally.of(&"c")), (3, 2, 1, 0));
        assert!(!tally.has_room(&"c", 2), "all together");
        tally.remove(&"b");
        assert!(tally.has_room(&"c", 2) && !tally.has_room(&"a", 2));
        tally.remove(&"b");
        assert_eq!(tally.total(), 2, "what was not added is not taken back");
        tally.remove(&"a");
        tally.remove(&"a");
        assert_eq!((tally.total(), tally.by_key.len()), (0, 0));
    }
}
