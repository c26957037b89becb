//! How many of something there may be, of each and in all. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use cyphonic_proto::identity::KeyHash;

/// Whose something is, where it is counted.
pub trait Key: Eq + Hash {
    /// Those it may share a holder with, if there are such.
    fn group(&self) -> Option<Self>
    where
        Self: Sized;

    /// How many all of its group have together, where each of them has `most`.
    fn most_of_group(&self, most: usize) -> usize {
        most * OF_GROUP
    }
}

/// A device's: nobody has several without being let in as several.
impl Key for KeyHash {
    fn group(&self) -> Option<Self> {
        None
    }
}

/// As many of its keys' room a group has, unless its key says otherwise.
const OF_GROUP: usize = 4;

/// Counts by key, up to a number in all.
#[derive(Debug)]
pub struct Quota<K> {
    most: usize,
    total: usize,
    by_key: HashMap<K, usize>,
    by_group: HashMap<K, usize>,
}

impl<K: Key> Quota<K> {
    /// None yet, and `most` in all.
    pub fn new(most: usize) -> Self {
        Self { most, total: 0, by_key: HashMap::new(), by_group: HashMap::new() }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Those of this key.
    pub fn of(&self, key: &K) -> usize {
        self.by_key.get(key).copied().unwrap_or_default()
    }

    /// Those of all keys of this one's group; none where it has no group.
    pub fn of_group(&self, key: &K) -> usize {
        key.group().and_then(|group| self.by_group.get(&group)).copied().unwrap_or_default()
    }

    /// Whether there may be one more, where there are `most` of each key at most, and [`Key::most_of_group`]
    /// of its group.
    pub fn has_room(&self, key: &K, most: usize) -> bool {
        self.total < self.most && self.of(key) < most && self.of_group(key) < key.most_of_group(most)
    }

    /// One more, for which there is room.
    pub fn add(&mut self, key: K) {
        self.total += 1;
        if let Some(group) = key.group() {
            *self.by_group.entry(group).or_default() += 1;
        }
        *self.by_key.entry(key).or_default() += 1;
    }

    /// Takes back one [`Self::add`] of this key.
    pub fn remove(&mut self, key: &K) {
        if !take_one(&mut self.by_key, key) {
            return;
        }
        if let Some(group) = key.group() {
            take_one(&mut self.by_group, &group);
        }
        self.total = self.total.saturating_sub(1);
    }
}

/// Whether there was one.
fn take_one<K: Key>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count = count.saturating_sub(1);
    if *count == 0 {
        counts.remove(key);
    }
    true
}

/// One line has many networks: providers give a /56 or a /48 (RFC 6177), and where they give a /64, as to
/// telephones, many of those are in one /48.
impl Key for IpAddr {
    fn group(&self) -> Option<Self> {
        match self {
            Self::V4(_) => None,
            Self::V6(v6) if v6.is_loopback() => None,
            Self::V6(v6) => {
                let [a, b, c, ..] = v6.segments();
                Some(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into())
            }
        }
    }
}

/// Who has one of its addresses has them all: an IPv4 address, or the /64 in which an IPv6 host picks its own
/// freely.
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
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([192, 0, 2, n]));
        let mut quota = Quota::new(3);
        for key in [a, a, b] {
            assert!(quota.has_room(&key, 2));
            quota.add(key);
        }
        assert_eq!((quota.total(), quota.of(&a), quota.of(&b), quota.of(&c)), (3, 2, 1, 0));
        assert!(!quota.has_room(&c, 2), "all together");
        quota.remove(&b);
        assert!(quota.has_room(&c, 2) && !quota.has_room(&a, 2));
        quota.remove(&b);
        assert_eq!(quota.total(), 2, "what was not added is not taken back");
        quota.remove(&a);
        quota.remove(&a);
        assert_eq!((quota.total(), quota.by_key.len()), (0, 0));
    }

    #[test]
    fn one_line_with_many_networks_cannot_take_all_the_room() {
        let network = |site: u16, n: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, site, n, 0, 0, 0, 0));
        let mut quota = Quota::new(1000);
        let mut admit = |site| {
            let all = (0..200).map(|n| network(site, n % 50));
            all.filter(|key| quota.has_room(key, 3).then(|| quota.add(*key)).is_some()).count()
        };
        assert_eq!((admit(1), admit(2)), (3 * OF_GROUP, 3 * OF_GROUP), "each");
        assert!(!quota.has_room(&network(1, 99), 3) && quota.has_room(&network(3, 99), 3));
        (0..50).for_each(|n| (0..3).for_each(|_| quota.remove(&network(1, n))));
        assert!(quota.has_room(&network(1, 99), 3));
        assert_eq!((quota.total(), quota.by_group.len()), (3 * OF_GROUP, 1));
    }
}
