//! Relayed legs, and the addresses under which quinn reaches them.
//!
//! Every set-up through a TRS takes a new leg, and nobody says when quinn has sent its last packet to one: a
//! late answer is still sent after the handshake. So legs are not given back one by one; the oldest goes when
//! a new one needs its place, and all of a TRS connection go with it. What one TRS makes up takes no other's
//! place.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use cyphonic_proto::identity::KeyHash;

/// Legs of one TRS connection, a hundred bytes each. One is in use while its handshake is, which ends after
/// ten silent seconds: it would have to begin as many others at this TRS meanwhile to lose its own.
const MAX_LEGS: usize = 16_384;

/// TRSs whose numbers are remembered beyond their connections, of which a node has one or two at once.
const MAX_NUMBERS: usize = 64;

/// RFC 6666's discard prefix: never routed, so it can never be a real peer.
const RELAYED_PREFIX: [u16; 4] = [0x100, 0, 0, 0];
const RELAYED_PORT: u16 = 1;

/// Where quinn sends the packets of a handshake that travels through a TRS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayedAddress {
    /// Which TRS: it makes up as many legs as it likes.
    trs: u32,
    /// Which of its legs, on whichever connection.
    leg: u32,
}

impl RelayedAddress {
    /// The address to dial.
    pub fn socket_addr(self) -> SocketAddr {
        let [a, b, c, d] = RELAYED_PREFIX;
        let [t, u, v, w] = self.trs.to_be_bytes();
        let [l, m, n, o] = self.leg.to_be_bytes();
        let [e, f, g, h] = [[t, u], [v, w], [l, m], [n, o]].map(u16::from_be_bytes);
        SocketAddr::new(Ipv6Addr::new(a, b, c, d, e, f, g, h).into(), RELAYED_PORT)
    }

    /// The relayed leg behind an address, if it is one.
    pub fn from_socket_addr(address: SocketAddr) -> Option<Self> {
        let IpAddr::V6(ip) = address.ip() else { return None };
        if ip.segments()[..4] != RELAYED_PREFIX {
            return None;
        }
        let [.., t, u, v, w, l, m, n, o] = ip.octets();
        Some(Self { trs: u32::from_be_bytes([t, u, v, w]), leg: u32::from_be_bytes([l, m, n, o]) })
    }

    /// Which TRS it leads through.
    pub(crate) fn trs(self) -> u32 {
        self.trs
    }
}

/// The legs of all TRS connections, each of which its owner names by a number.
#[derive(Debug)]
pub(crate) struct Legs<C> {
    by_address: HashMap<RelayedAddress, (u64, u64)>,
    by_trs: HashMap<u64, OfOneTrs<C>>,
    numbers: Numbers,
}

#[derive(Debug)]
struct OfOneTrs<C> {
    connection: C,
    key: KeyHash,
    by_context: HashMap<u64, RelayedAddress>,
    /// Their contexts, the oldest first.
    by_age: VecDeque<u64>,
}

impl<C> Default for Legs<C> {
    fn default() -> Self {
        Self { by_address: HashMap::new(), by_trs: HashMap::new(), numbers: Numbers::default() }
    }
}

/// What stands for TRSs in addresses. A number is a TRS's and not a connection's: what it has made up on one
/// counts on the next.
#[derive(Debug, Default)]
struct Numbers {
    by_key: HashMap<KeyHash, Number>,
    last: u32,
}

#[derive(Debug)]
struct Number {
    number: u32,
    next_leg: u32,
    connections: usize,
}

impl Numbers {
    fn of(&mut self, key: KeyHash) -> &mut Number {
        self.by_key.entry(key).or_insert_with(|| {
            self.last = self.last.wrapping_add(1);
            Number { number: self.last, next_leg: 0, connections: 0 }
        })
    }

    /// A TRS has one more connection.
    fn enter(&mut self, key: KeyHash) {
        if self.by_key.len() >= MAX_NUMBERS {
            self.by_key.retain(|_, number| number.connections > 0);
        }
        self.of(key).connections += 1;
    }

    /// One of its connections has ended.
    fn leave(&mut self, key: KeyHash) {
        let number = self.of(key);
        number.connections = number.connections.saturating_sub(1);
    }

    /// An address for another leg. Round again, it meets none of the TRS's own: the oldest of those is
    /// thousands old.
    fn next(&mut self, key: KeyHash) -> RelayedAddress {
        let number = self.of(key);
        let leg = number.next_leg;
        number.next_leg = leg.wrapping_add(1);
        RelayedAddress { trs: number.number, leg }
    }
}

impl<C: Clone> Legs<C> {
    /// A TRS connection may have legs from now on, until they are all removed.
    pub(crate) fn enter(&mut self, trs: u64, connection: &C, key: KeyHash) {
        if self.by_trs.contains_key(&trs) {
            return;
        }
        self.numbers.enter(key);
        let (connection, by_context, by_age) = (connection.clone(), HashMap::new(), VecDeque::new());
        self.by_trs.insert(trs, OfOneTrs { connection, key, by_context, by_age });
    }

    /// The address of a leg: the one that it has, or else a new one. None for a connection that has not
    /// entered, or has ended: something of it may still be under way.
    pub(crate) fn add(&mut self, trs: u64, context: u64) -> Option<RelayedAddress> {
        let own = self.by_trs.get_mut(&trs)?;
        if let Some(address) = own.by_context.get(&context) {
            return Some(*address);
        }
        if own.by_age.len() >= MAX_LEGS {
            let oldest = own.by_age.pop_front().and_then(|oldest| own.by_context.remove(&oldest));
            oldest.and_then(|oldest| self.by_address.remove(&oldest));
        }
        let address = self.numbers.next(own.key);
        own.by_context.insert(context, address);
        own.by_age.push_back(context);
        self.by_address.insert(address, (trs, context));
        Some(address)
    }

    /// Forgets a TRS connection, with all its legs.
    pub(crate) fn remove_all_of(&mut self, trs: u64) {
        let Some(own) = self.by_trs.remove(&trs) else { return };
        self.numbers.leave(own.key);
        for address in own.by_context.into_values() {
            self.by_address.remove(&address);
        }
    }

    /// The TRS connection's number, and the leg's context there.
    pub(crate) fn get(&self, address: RelayedAddress) -> Option<(u64, u64)> {
        self.by_address.get(&address).copied()
    }

    /// The TRS connection, and the leg's context there.
    pub(crate) fn way(&self, address: RelayedAddress) -> Option<(&C, u64)> {
        let (trs, context) = self.get(address)?;
        Some((&self.by_trs.get(&trs)?.connection, context))
    }
}

#[cfg(test)]
impl<C: Clone> Legs<C> {
    /// A leg of a connection that has entered, at the latest now.
    pub(crate) fn entered(&mut self, trs: u64, connection: &C, key: KeyHash, context: u64) -> RelayedAddress {
        self.enter(trs, connection, key);
        self.add(trs, context).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    #[test]
    fn a_relayed_address_is_its_own_inverse() {
        for (trs, leg) in [(0, 1), (0x0123_4567, 0x89ab_cdef), (u32::MAX, u32::MAX)] {
            let address = RelayedAddress { trs, leg };
            assert_eq!(RelayedAddress::from_socket_addr(address.socket_addr()), Some(address));
        }
    }

    #[test]
    fn a_real_address_is_never_taken_for_a_relayed_one() {
        for real in ["192.0.2.1:443", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:1", "[::1]:1"] {
            let real: SocketAddr = real.parse().unwrap();
            assert_eq!(RelayedAddress::from_socket_addr(real), None);
        }
    }

    #[test]
    fn a_leg_keeps_its_address_and_its_way_until_its_connection_ends() {
        let mut legs = Legs::default();
        let (a, b) = (legs.entered(1, &"one", key(1), 7), legs.entered(2, &"two", key(2), 7));
        assert_ne!(a, b);
        assert_eq!((legs.entered(1, &"one", key(1), 7), legs.entered(2, &"two", key(2), 7)), (a, b));
        assert_eq!((legs.get(a), legs.way(b)), (Some((1, 7)), Some((&"two", 7))));
        legs.remove_all_of(1);
        assert_eq!((legs.get(a), legs.way(a), legs.way(b)), (None, None, Some((&"two", 7))));
        assert_eq!(legs.add(1, 8), None, "what was under way when it ended");
        assert_eq!(legs.by_trs.len(), 1);
        assert_ne!(legs.entered(1, &"one", key(1), 7), a, "an address is not used again");
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_leg_goes() {
        let mut legs = Legs::default();
        let addresses: Vec<_> =
            (0..=MAX_LEGS as u64).map(|context| legs.entered(1, &(), key(1), context)).collect();
        assert_eq!(legs.get(addresses[0]), None);
        for (context, address) in (0..).zip(&addresses).skip(1) {
            assert_eq!(legs.get(*address), Some((1, context)));
            assert_eq!(legs.entered(1, &(), key(1), context), *address);
        }
        // Who comes back has an address again, at the expense of the next.
        let again = legs.entered(1, &(), key(1), 0);
        assert_eq!((legs.get(again), legs.get(addresses[1])), (Some((1, 0)), None));
        assert_eq!((legs.by_address.len(), legs.by_trs[&1].by_age.len()), (MAX_LEGS, MAX_LEGS));
    }

    #[test]
    fn what_one_trs_makes_up_takes_no_place_of_another() {
        let mut legs = Legs::default();
        let own: Vec<_> = (0..10).map(|context| legs.entered(1, &(), key(1), context)).collect();
        for context in 0..3 * MAX_LEGS as u64 {
            legs.entered(2, &(), key(2), context);
        }
        for (context, address) in (0..).zip(own) {
            assert_eq!(legs.get(address), Some((1, context)));
        }
        legs.remove_all_of(2);
        assert_eq!((legs.by_address.len(), legs.by_trs.len()), (10, 1));
    }

    #[test]
    fn a_trs_keeps_its_number_over_its_connections_and_no_address_is_used_twice() {
        let mut legs = Legs::default();
        let first = legs.entered(1, &(), key(1), 7);
        let (beside, other) = (legs.entered(2, &(), key(1), 7), legs.entered(3, &(), key(2), 7));
        assert!(first.trs() == beside.trs() && first != beside && first.trs() != other.trs());
        legs.remove_all_of(1);
        legs.remove_all_of(2);
        let later = legs.entered(4, &(), key(1), 7);
        assert_eq!(later.trs(), first.trs());
        assert!(later != first && later != beside);
    }

    #[test]
    fn few_trss_without_a_connection_are_remembered() {
        let mut legs = Legs::default();
        let stays = legs.entered(1_000, &(), key(255), 7);
        for n in 0..=200 {
            legs.entered(n.into(), &(), key(n), 7);
            legs.remove_all_of(n.into());
        }
        assert!(legs.numbers.by_key.len() <= MAX_NUMBERS);
        assert_eq!(legs.entered(1_001, &(), key(255), 7).trs(), stays.trs());
    }
}
