//! Packets that arrive before their tunnel is installed.
//!
//! The listening end of a set-up offers its data connection ID before the dialling end has proved who it is.
//! The dialler may then send as soon as its own half stands, and its first packets can overtake the message
//! that completes the listener's. They are held, sealed as they came, until the tunnel is installed: nothing
//! is opened, believed or answered before that. Only connection IDs that were offered are held for, so a
//! stranger's packets cost a look at a table.
//!
//! All rings of a node share one [`EarlyPackets`], since nobody knows whose worker an offered tunnel will be.
//! It is asked for packets of unknown connection IDs only, so those of established tunnels never come here.
//!
//! An offer is also made to who has no certificate yet, so what is held for one is bounded in itself, and
//! where all is full the oldest goes: a set-up that comes to something takes a round trip, one that comes to
//! nothing waits for ever.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;

use super::rx::Arrived;
use crate::sync::lock;

/// Connection IDs that are offered at a time: as many as a node has set-ups at once, twice over.
const MAX_OFFERED: usize = 1_024;
/// Packets for one: what an application sends in the time of a one-way trip.
const MAX_PACKETS: usize = 16;
/// Bytes for one.
const MAX_OFFER_BYTES: usize = 16 * 1024;
/// Bytes in all.
const MAX_BYTES: usize = 256 * 1024;
/// How long a packet is worth holding.
const MAX_AGE: Duration = Duration::from_secs(2);
/// After this an offer that nobody took back makes room for another.
const STALE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct EarlyPackets {
    age: Duration,
    /// How many are offered: without any, nothing is looked up.
    offered: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    offers: HashMap<ConnectionId, Offer>,
    bytes: usize,
    /// Offers that packets are held for, by when the first came. An entry counts while its offer has the
    /// same turn.
    order: VecDeque<(ConnectionId, u64)>,
    turns: u64,
}

#[derive(Debug)]
struct Offer {
    since: Instant,
    packets: Vec<Early>,
    bytes: usize,
    /// Where it stands in the order; 0 while nothing is held.
    turn: u64,
}

impl Offer {
    fn new(since: Instant) -> Self {
        Self { since, packets: Vec::new(), bytes: 0, turn: 0 }
    }
}

/// A packet as it came.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) from: SocketAddr,
    pub(super) ecn: u8,
    pub(super) datagram: Box<[u8]>,
    at: Instant,
}

impl Default for EarlyPackets {
    fn default() -> Self {
        Self::with_age(MAX_AGE)
    }
}

impl EarlyPackets {
    /// Packets are worth holding for so long.
    pub fn with_age(age: Duration) -> Self {
        Self { age, offered: AtomicUsize::new(0), table: Mutex::default() }
    }

    /// Holds what comes for this connection ID from now on. Where too many are offered it is not held for,
    /// and what comes early is lost.
    pub fn expect(&self, cid: ConnectionId, now: Instant) {
        let mut table = lock(&self.table);
        if table.offers.len() >= MAX_OFFERED {
            table.bury(now);
        }
        if table.offers.len() < MAX_OFFERED {
            table.offers.entry(cid).or_insert_with(|| Offer::new(now));
        }
        self.offered.store(table.offers.len(), Relaxed);
    }

    /// Nothing is held for this connection ID any more. Returns how many packets are dropped by that.
    pub fn forget(&self, cid: ConnectionId) -> usize {
        self.remove(cid).len()
    }

    /// Takes the packets that came in time for a tunnel that is being installed, in their order, and says how
    /// many came too early.
    pub(super) fn take(&self, cid: ConnectionId, now: Instant) -> (Vec<Early>, u64) {
        if self.offered.load(Relaxed) == 0 {
            return (Vec::new(), 0);
        }
        let mut packets = self.remove(cid);
        let all = packets.len();
        packets.retain(|early| now.saturating_duration_since(early.at) < self.age);
        let old = all - packets.len();
        (packets, old as u64)
    }

    /// Holds a packet of an unknown connection ID, if that is offered and has not had its share. How many
    /// others are dropped by that; `None` if it is not held.
    pub(super) fn hold(&self, cid: ConnectionId, arrived: &Arrived<'_>) -> Option<u64> {
        if self.offered.load(Relaxed) == 0 {
            return None;
        }
        let mut table = lock(&self.table);
        let offer = table.offers.get(&cid)?;
        let Arrived { ref datagram, from, ecn, now: at, .. } = *arrived;
        if offer.packets.len() >= MAX_PACKETS || offer.bytes + datagram.len() > MAX_OFFER_BYTES {
            return None;
        }
        let dropped = table.make_room(datagram.len());
        table.add(cid, Early { from, ecn, datagram: Box::from(&**datagram), at });
        Some(dropped)
    }

    fn remove(&self, cid: ConnectionId) -> Vec<Early> {
        let mut table = lock(&self.table);
        let packets = table.remove(cid);
        self.offered.store(table.offers.len(), Relaxed);
        packets
    }
}

impl Table {
    fn remove(&mut self, cid: ConnectionId) -> Vec<Early> {
        let Some(offer) = self.offers.remove(&cid) else { return Vec::new() };
        self.bytes -= offer.bytes;
        offer.packets
    }

    fn add(&mut self, cid: ConnectionId, early: Early) {
        let Some(offer) = self.offers.get_mut(&cid) else { return };
        let is_first = offer.turn == 0;
        self.bytes += early.datagram.len();
        offer.bytes += early.datagram.len();
        offer.packets.push(early);
        if is_first {
            self.turns += 1;
            offer.turn = self.turns;
            self.order.push_back((cid, self.turns));
            if self.order.len() > 2 * MAX_OFFERED {
                let offers = &self.offers;
                self.order.retain(|(cid, turn)| offers.get(cid).is_some_and(|offer| offer.turn == *turn));
            }
        }
    }

    /// Drops what is held for the offers that have waited longest, until so many bytes more may be held. How
    /// many packets.
    fn make_room(&mut self, bytes: usize) -> u64 {
        let mut dropped = 0;
        while self.bytes + bytes > MAX_BYTES {
            let Some((cid, turn)) = self.order.pop_front() else { break };
            if let Some(offer) = self.offers.get_mut(&cid).filter(|offer| offer.turn == turn) {
                dropped += offer.packets.len() as u64;
                self.bytes -= offer.bytes;
                *offer = Offer::new(offer.since);
            }
        }
        dropped
    }

    /// Drops offers that nobody took back.
    #[cold]
    fn bury(&mut self, now: Instant) {
        let stale = |offer: &Offer| now.saturating_duration_since(offer.since) >= STALE;
        let cids: Vec<_> =
            self.offers.iter().filter(|(_, offer)| stale(offer)).map(|(cid, _)| *cid).collect();
        for cid in cids {
            self.remove(cid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gso::Slot;

    fn cid(n: u64) -> ConnectionId {
        ConnectionId::from_random_data(n.to_be_bytes())
    }

    fn from() -> SocketAddr {
        "192.0.2.1:7000".parse().unwrap()
    }

    fn hold(early: &EarlyPackets, cid: ConnectionId, datagram: &[u8], ecn: u8, now: Instant) -> Option<u64> {
        let place = Slot { buffer: 0, start: 0, len: datagram.len() as u32 };
        early.hold(cid, &Arrived { datagram: &mut datagram.to_vec(), place, from: from(), ecn, now })
    }

    fn bytes(packets: &[Early]) -> Vec<u8> {
        packets.iter().map(|early| early.datagram[0]).collect()
    }

    #[test]
    fn what_was_offered_is_held_in_order_and_nothing_else() {
        let (early, now) = (EarlyPackets::default(), Instant::now());
        assert_eq!(hold(&early, cid(1), &[0], 0, now), None);
        early.expect(cid(1), now);
        assert_eq!(hold(&early, cid(1), &[1], 2, now), Some(0));
        assert_eq!(hold(&early, cid(1), &[2], 0, now), Some(0));
        assert_eq!(hold(&early, cid(2), &[3], 0, now), None, "nobody offered it");
        let (packets, old) = early.take(cid(1), now);
        assert_eq!((bytes(&packets), packets[0].ecn, packets[0].from, old), (vec![1, 2], 2, from(), 0));
        assert_eq!(hold(&early, cid(1), &[4], 0, now), None, "it is installed now");
        assert_eq!(lock(&early.table).bytes, 0);
    }

    #[test]
    fn packets_and_bytes_are_bounded_for_one() {
        let (early, now) = (EarlyPackets::default(), Instant::now());
        let held = |n: u64, len: usize| {
            early.expect(cid(n), now);
            (0..100).filter(|_| hold(&early, cid(n), &vec![0; len], 0, now).is_some()).count()
        };
        assert_eq!(held(1, 1), MAX_PACKETS);
        assert_eq!(held(2, 1_500), MAX_OFFER_BYTES / 1_500);
    }

    #[test]
    fn where_all_is_full_the_oldest_makes_room_and_is_counted() {
        const LARGE: usize = 1_500;
        let (early, now) = (EarlyPackets::default(), Instant::now());
        let (mut held, mut dropped) = (0, 0);
        let each = MAX_OFFER_BYTES / LARGE;
        for n in 0..5_000 {
            early.expect(cid(n), now);
            for _ in 0..each {
                dropped += hold(&early, cid(n), &[0; LARGE], 0, now).expect("the newest is held");
                held += 1;
            }
            let table = lock(&early.table);
            let bytes: usize = table.offers.values().map(|offer| offer.bytes).sum();
            assert!(
                table.bytes == bytes && bytes <= MAX_BYTES && bytes as u64 == (held - dropped) * LARGE as u64
            );
            assert!(table.order.len() <= 2 * MAX_OFFERED);
            drop(table);
            // Some come to something, most do not.
            if n % 3 == 0 {
                let (packets, old) = early.take(cid(n), now);
                assert_eq!((packets.len(), old), (each, 0));
                held -= each as u64;
            }
            if n >= 500 {
                held -= early.forget(cid(n - 500)) as u64;
            }
        }
        assert!(dropped > 1_000);
        assert_eq!(early.forget(cid(4_999)), each, "the newest is whole");
    }

    #[test]
    fn what_is_too_old_is_not_opened_and_stale_offers_make_room() {
        let (early, start) = (EarlyPackets::default(), Instant::now());
        early.expect(cid(0), start);
        hold(&early, cid(0), &[1], 0, start);
        hold(&early, cid(0), &[2], 0, start + Duration::from_secs(1));
        let (packets, old) = early.take(cid(0), start + MAX_AGE);
        assert_eq!((bytes(&packets), old), (vec![2], 1));
        for n in 0..=MAX_OFFERED as u64 {
            early.expect(cid(n), start);
        }
        assert_eq!(hold(&early, cid(MAX_OFFERED as u64), &[0], 0, start), None, "one too many");
        early.expect(cid(5_000), start + STALE);
        assert_eq!(hold(&early, cid(5_000), &[0], 0, start + STALE), Some(0));
        assert_eq!(lock(&early.table).offers.len(), 1);
    }
}
