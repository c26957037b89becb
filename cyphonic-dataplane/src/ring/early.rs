//! Packets that arrive before their tunnel is installed.
//!
//! The listening end of a set-up offers its data connection ID before the dialling end has proved who it is. The dialler
//! may then send as soon as its own half stands, and its first packets can overtake the message that completes the
//! listener's. They are held, sealed as they came, until the tunnel is installed: nothing is opened, believed or
//! answered before that. Only connection IDs that were offered are held for, so a stranger's packets cost a look at a
//! table.
//!
//! All rings of a node share one [`EarlyPackets`], since nobody knows whose worker an offered tunnel will be. It is
//! asked for packets of unknown connection IDs only, so those of established tunnels never come here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;

use super::shared::lock;

/// Connection IDs that are offered at a time: as many as a node has set-ups at once, twice over.
const MAX_OFFERED: usize = 1_024;
/// Packets for one: what an application sends in the time of a one-way trip.
const MAX_PACKETS: usize = 16;
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
}

#[derive(Debug)]
struct Offer {
    since: Instant,
    packets: Vec<Early>,
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

    /// Holds what comes for this connection ID from now on. Where too many are offered it is not held for, and what
    /// comes early is lost.
    pub fn expect(&self, cid: ConnectionId, now: Instant) {
        let mut table = lock(&self.table);
        if table.offers.len() >= MAX_OFFERED {
            table.bury(now);
        }
        if table.offers.len() < MAX_OFFERED {
            table.offers.entry(cid).or_insert_with(|| Offer { since: now, packets: Vec::new() });
        }
        self.offered.store(table.offers.len(), Relaxed);
    }

    /// Nothing is held for this connection ID any more. Returns how many packets are dropped by that.
    pub fn forget(&self, cid: ConnectionId) -> usize {
        self.remove(cid).len()
    }

    /// Takes the packets that came in time for a tunnel that is being installed, in their order, and says how many came
    /// too early.
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

    /// Holds a packet of an unknown connection ID, if that is offered and there is room.
    pub(super) fn hold(
        &self,
        cid: ConnectionId,
        datagram: &[u8],
        from: SocketAddr,
        ecn: u8,
        now: Instant,
    ) -> bool {
        if self.offered.load(Relaxed) == 0 {
            return false;
        }
        let mut table = lock(&self.table);
        let room = table.bytes + datagram.len() <= MAX_BYTES;
        let Some(offer) = table.offers.get_mut(&cid) else { return false };
        if !room || offer.packets.len() >= MAX_PACKETS {
            return false;
        }
        offer.packets.push(Early { from, ecn, datagram: datagram.into(), at: now });
        table.bytes += datagram.len();
        true
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
        let packets = self.offers.remove(&cid).map(|offer| offer.packets).unwrap_or_default();
        self.bytes -= packets.iter().map(|early| early.datagram.len()).sum::<usize>();
        packets
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

    fn cid(n: u64) -> ConnectionId {
        ConnectionId::from_random_data(n.to_be_bytes())
    }

    fn from() -> SocketAddr {
        "192.0.2.1:7000".parse().unwrap()
    }

    fn bytes(packets: &[Early]) -> Vec<u8> {
        packets.iter().map(|early| early.datagram[0]).collect()
    }

    #[test]
    fn what_was_offered_is_held_in_order_and_nothing_else() {
        let (early, now) = (EarlyPackets::default(), Instant::now());
        assert!(!early.hold(cid(1), &[0], from(), 0, now));
        early.expect(cid(1), now);
        assert!(early.hold(cid(1), &[1], from(), 2, now));
        assert!(early.hold(cid(1), &[2], from(), 0, now));
        assert!(!early.hold(cid(2), &[3], from(), 0, now), "nobody offered it");
        let (packets, old) = early.take(cid(1), now);
        assert_eq!((bytes(&packets), packets[0].ecn, packets[0].from, old), (vec![1, 2], 2, from(), 0));
        assert!(!early.hold(cid(1), &[4], from(), 0, now), "it is installed now");
        assert_eq!(lock(&early.table).bytes, 0);
    }

    #[test]
    fn packets_are_bounded_for_one_and_bytes_for_all() {
        let (early, now) = (EarlyPackets::default(), Instant::now());
        early.expect(cid(1), now);
        let held = (0..100).filter(|_| early.hold(cid(1), &[0], from(), 0, now)).count();
        assert_eq!(held, MAX_PACKETS);
        let large = [0; 1_500];
        let mut bytes = MAX_PACKETS;
        for n in 2..200 {
            early.expect(cid(n), now);
            bytes += (0..MAX_PACKETS).filter(|_| early.hold(cid(n), &large, from(), 0, now)).count() * 1_500;
        }
        assert!(bytes <= MAX_BYTES && bytes > MAX_BYTES - 1_500, "{bytes}");
        assert_eq!(early.forget(cid(2)), MAX_PACKETS);
        assert!(early.hold(cid(199), &large, from(), 0, now), "there is room again");
    }

    #[test]
    fn what_is_too_old_is_not_opened_and_stale_offers_make_room() {
        let (early, start) = (EarlyPackets::default(), Instant::now());
        early.expect(cid(0), start);
        early.hold(cid(0), &[1], from(), 0, start);
        early.hold(cid(0), &[2], from(), 0, start + Duration::from_secs(1));
        let (packets, old) = early.take(cid(0), start + MAX_AGE);
        assert_eq!((bytes(&packets), old), (vec![2], 1));
        for n in 0..=MAX_OFFERED as u64 {
            early.expect(cid(n), start);
        }
        assert!(!early.hold(cid(MAX_OFFERED as u64), &[0], from(), 0, start), "one too many");
        early.expect(cid(5_000), start + STALE);
        assert!(early.hold(cid(5_000), &[0], from(), 0, start + STALE));
        assert_eq!(lock(&early.table).offers.len(), 1);
    }
}
