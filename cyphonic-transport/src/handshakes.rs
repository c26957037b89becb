//! Who may begin a handshake: how many are under way, of one source and in all. Pure.
//!
//! One of peers is under way for as long as their connection, which lives for one exchange
//! ([`crate::ArrivingPeer`]).
//!
//! Devices that share a NAT, or one IPv6 network, share a source, so it has room for many. What stands for
//! one far end alone is a source of its own, with room for few: a relayed leg, and a loopback address with
//! its port. Behind such a port is a detour's client, which the door for TCP has let in ([`crate::detour`]),
//! or a program of this host. Legs are the relay's to make up, so those of one TRS have room together, over
//! all connections to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use cyphonic_dataplane::sync;

use crate::legs::RelayedAddress;
use crate::quota::{Key, Quota, network_of};

/// With this many under way, a client must prove its address first (Retry, RFC 9000 §8.1.2).
const BEFORE_RETRY: usize = 64;
/// With this many of its source: else whoever forges a device's address takes all its places.
const BEFORE_RETRY_OF_SOURCE: usize = 16;
/// With this many, further ones are refused.
const MOST: usize = 1_024;
/// Of one network. A handshake takes a few round trips, and 5 s at most; a peer that asks for nothing is
/// closed after as long.
const MOST_OF_NETWORK: usize = 64;
/// Of one far end, which dials each service on the port once or twice.
const MOST_OF_ONE: usize = 8;
/// Of all legs of one TRS.
const MOST_OF_TRS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Network(IpAddr),
    Loopback(SocketAddr),
    Leg(RelayedAddress),
    /// All legs of a TRS.
    Trs(u32),
}

impl Source {
    fn of(address: SocketAddr) -> Self {
        if let Some(leg) = RelayedAddress::from_socket_addr(address) {
            return Self::Leg(leg);
        }
        match address.ip().to_canonical() {
            ip if ip.is_loopback() => Self::Loopback(SocketAddr::new(ip, address.port())),
            ip => Self::Network(network_of(ip)),
        }
    }

    const fn most(&self) -> usize {
        match self {
            Self::Network(_) => MOST_OF_NETWORK,
            Self::Loopback(_) | Self::Leg(_) => MOST_OF_ONE,
            Self::Trs(_) => MOST_OF_TRS,
        }
    }
}

impl Key for Source {
    fn group(&self) -> Option<Self> {
        match self {
            Self::Network(network) => network.group().map(Self::Network),
            Self::Leg(leg) => Some(Self::Trs(leg.trs())),
            Self::Loopback(_) | Self::Trs(_) => None,
        }
    }

    fn most_of_group(&self, most: usize) -> usize {
        match self {
            Self::Network(network) => network.most_of_group(most),
            Self::Leg(_) | Self::Loopback(_) | Self::Trs(_) => MOST_OF_TRS,
        }
    }
}

/// The doorkeeper of a port. Clones keep the same door.
#[derive(Debug, Clone)]
pub(crate) struct Handshakes(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    under_way: Quota<Source>,
    /// Connections that stand without a certificate.
    strangers: Quota<Source>,
}

/// What becomes of a client's first packet.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Its handshake may go on.
    Enter(Place),
    /// It has to show first that it is where it says.
    Prove,
    /// There are too many already.
    Refuse,
}

/// One handshake's place; free again once this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    handshakes: Handshakes,
    source: Source,
    stranger: bool,
}

impl Handshakes {
    pub(crate) fn new() -> Self {
        let counts = Counts { under_way: Quota::new(MOST), strangers: Quota::new(MOST) };
        Self(Arc::new(Mutex::new(counts)))
    }

    /// Answers a client that may have `proved` already that it is at this address.
    pub(crate) fn begin(&self, from: SocketAddr, proved: bool) -> Answer {
        let source = Source::of(from);
        let mut counts = self.lock();
        let under_way = &mut counts.under_way;
        if !under_way.has_room(&source, source.most()) {
            return Answer::Refuse;
        }
        if !proved && (under_way.total() >= BEFORE_RETRY || under_way.of(&source) >= BEFORE_RETRY_OF_SOURCE) {
            return Answer::Prove;
        }
        under_way.add(source);
        drop(counts);
        Answer::Enter(Place { handshakes: self.clone(), source, stranger: false })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        sync::lock(&self.0)
    }
}

impl Place {
    /// The handshake is complete, and the client has shown no certificate: the place is now that of a
    /// stranger's connection. None where its source, or all together, have too many of those.
    pub(crate) fn of_a_stranger(mut self) -> Option<Self> {
        let mut counts = self.handshakes.lock();
        if !counts.strangers.has_room(&self.source, self.source.most()) {
            return None;
        }
        counts.under_way.remove(&self.source);
        counts.strangers.add(self.source);
        drop(counts);
        self.stranger = true;
        Some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.handshakes.lock();
        let quota = if self.stranger { &mut counts.strangers } else { &mut counts.under_way };
        quota.remove(&self.source);
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::KeyHash;

    use super::*;
    use crate::legs::Legs;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn all_of(handshakes: &Handshakes, from: SocketAddr) -> Vec<Place> {
        let enter = |()| match handshakes.begin(from, true) {
            Answer::Enter(place) => Some(place),
            Answer::Prove => panic!("it has proved its address"),
            Answer::Refuse => None,
        };
        std::iter::repeat(()).map_while(enter).collect()
    }

    fn enters(handshakes: &Handshakes, from: SocketAddr) -> bool {
        matches!(handshakes.begin(from, true), Answer::Enter(_))
    }

    #[test]
    fn one_source_takes_its_own_places_only_and_gives_them_back() {
        let handshakes = Handshakes::new();
        let leg = Legs::default().entered(1, &(), KeyHash([1; 32]), 1).socket_addr();
        let mut held = all_of(&handshakes, at("192.0.2.1:1"));
        assert_eq!(held.len(), MOST_OF_NETWORK);
        for same in ["192.0.2.1:2", "[::ffff:192.0.2.1]:3"] {
            assert!(!enters(&handshakes, at(same)), "{same}");
        }
        for other in [at("192.0.2.2:1"), at("[2001:db8::1]:1"), at("127.0.0.1:1"), leg] {
            assert!(enters(&handshakes, other), "{other}");
        }
        held.pop();
        assert!(enters(&handshakes, at("192.0.2.1:1")));
        drop(held);
        assert_eq!(handshakes.lock().under_way.total(), 0);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let handshakes = Handshakes::new();
        let _held = all_of(&handshakes, at("[2001:db8::1]:1"));
        assert!(!enters(&handshakes, at("[2001:db8::2]:1")));
        assert!(enters(&handshakes, at("[2001:db8:0:1::2]:1")));
    }

    #[test]
    fn each_leg_and_each_local_socket_is_a_source_of_its_own() {
        let handshakes = Handshakes::new();
        let mut legs = Legs::default();
        let [one, two] = [1, 2].map(|context| legs.entered(1, &(), KeyHash([1; 32]), context).socket_addr());
        for (full, free) in
            [(one, two), (at("127.0.0.1:1"), at("127.0.0.1:2")), (at("[::1]:1"), at("[::1]:2"))]
        {
            let held = all_of(&handshakes, full);
            assert_eq!(held.len(), MOST_OF_ONE, "{full}");
            assert!(enters(&handshakes, free), "{free}");
        }
        let _held = all_of(&handshakes, at("127.0.0.1:1"));
        assert!(!enters(&handshakes, at("[::ffff:127.0.0.1]:1")), "the same socket, mapped");
    }

    #[test]
    fn a_relay_that_makes_up_legs_takes_its_own_places_only() {
        let handshakes = Handshakes::new();
        let mut legs = Legs::default();
        let enter = |answer| match answer {
            Answer::Enter(place) => Some(place),
            Answer::Prove | Answer::Refuse => None,
        };
        let begin = |legs: &mut Legs<()>, connection, relay: u8, context| {
            let leg = legs.entered(connection, &(), KeyHash([relay; 32]), context);
            enter(handshakes.begin(leg.socket_addr(), true))
        };
        let held: Vec<_> = (0..4_096).filter_map(|context| begin(&mut legs, 1, 1, context)).collect();
        assert_eq!(held.len(), MOST_OF_TRS);
        // Nor does it get others by another connection.
        assert!(begin(&mut legs, 2, 1, 1).is_none());
        legs.remove_all_of(1);
        legs.remove_all_of(2);
        assert!(begin(&mut legs, 3, 1, 1).is_none());
        assert!(begin(&mut legs, 4, 2, 1).is_some() && enters(&handshakes, at("192.0.2.1:1")));
        drop(held);
        assert!(begin(&mut legs, 3, 1, 1).is_some());
    }

    #[test]
    fn who_forges_an_address_leaves_places_to_its_owner() {
        let handshakes = Handshakes::new();
        let forged = || handshakes.begin(at("192.0.2.1:1"), false);
        let mut held = Vec::new();
        while let Answer::Enter(place) = forged() {
            held.push(place);
        }
        assert_eq!(held.len(), BEFORE_RETRY_OF_SOURCE);
        assert!(matches!(forged(), Answer::Prove));
        assert!(matches!(handshakes.begin(at("192.0.2.2:1"), false), Answer::Enter(_)));
        assert_eq!(all_of(&handshakes, at("192.0.2.1:1")).len(), MOST_OF_NETWORK - BEFORE_RETRY_OF_SOURCE);
    }

    #[test]
    fn many_sources_prove_their_addresses_and_are_bounded() {
        let handshakes = Handshakes::new();
        let from = |n: u32| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 1));
        let enter = |proved: bool, n: u32| match handshakes.begin(from(n), proved) {
            Answer::Enter(place) => Some(place),
            Answer::Prove | Answer::Refuse => None,
        };
        let mut held: Vec<_> = (0..2_000).map_while(|n| enter(false, n)).collect();
        assert_eq!(held.len(), BEFORE_RETRY);
        assert!(matches!(handshakes.begin(from(2_000), false), Answer::Prove));
        held.extend((2_000..4_000).map_while(|n| enter(true, n)));
        assert_eq!(held.len(), MOST);
        assert!(matches!(handshakes.begin(from(4_000), false), Answer::Refuse));
        drop(held);
        assert!(matches!(handshakes.begin(from(4_000), false), Answer::Enter(_)));
    }

    #[test]
    fn strangers_keep_a_place_until_they_end_but_not_that_of_a_handshake() {
        let handshakes = Handshakes::new();
        let from = at("192.0.2.1:1");
        let held: Vec<_> = std::iter::repeat_with(|| handshakes.begin(from, true))
            .map_while(|answer| match answer {
                Answer::Enter(place) => place.of_a_stranger(),
                Answer::Prove | Answer::Refuse => None,
            })
            .collect();
        assert_eq!(held.len(), MOST_OF_NETWORK);
        assert_eq!(
            all_of(&handshakes, from).len(),
            MOST_OF_NETWORK,
            "a device's handshake needs none of theirs"
        );
        drop(held);
        let counts = handshakes.lock();
        assert_eq!((counts.under_way.total(), counts.strangers.total()), (0, 0));
    }
}
