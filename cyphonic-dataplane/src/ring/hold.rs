//! Packets held while their tunnel is being set up, so that an application's first packet is not lost.
//!
//! Bounded per destination, in total and in time. When a bound is reached the newest packet goes: the first
//! one is what opens a connection, and its sender repeats the rest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::HoldLimits;
use crate::gso::VnetHeader;

/// How often a destination is reported while packets for it are held, or turned away.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Destinations that are reported in this time though nothing of theirs is held. A scan has more.
const MAX_TURNED_AWAY: usize = 256;

/// A packet as it came from the virtual interface.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) vnet: VnetHeader,
    pub(super) packet: Box<[u8]>,
}

#[derive(Debug)]
struct Queue {
    packets: VecDeque<(Instant, Held)>,
    bytes: usize,
    reported: Option<Instant>,
}

/// Destinations that were reported lately though nothing of theirs was held.
#[derive(Debug, Default)]
struct TurnedAway {
    since: Option<Instant>,
    destinations: HashSet<Ipv6Addr>,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holding {
    /// It is held.
    Held,
    /// It is held, and its destination is due to be reported.
    Report,
    /// There is no room, and its destination is due to be reported again.
    FullReport,
    /// There is no room.
    Full,
}

/// All that is held.
#[derive(Debug)]
pub(super) struct Hold {
    limits: HoldLimits,
    queues: HashMap<Ipv6Addr, Queue>,
    turned_away: TurnedAway,
    bytes: usize,
    packets: usize,
    /// No packet is too old before this: the queues need not be looked through for each turn of the ring.
    due_from: Option<Instant>,
}

impl Hold {
    pub(super) fn new(limits: HoldLimits) -> Self {
        let turned_away = TurnedAway::default();
        Self { limits, queues: HashMap::new(), turned_away, bytes: 0, packets: 0, due_from: None }
    }

    /// Holds a packet if there is room. `report` says whether the destination needs a tunnel at all, or only
    /// waits for one to be confirmed.
    pub(super) fn push(
        &mut self,
        dst: Ipv6Addr,
        vnet: VnetHeader,
        packet: &[u8],
        report: bool,
        now: Instant,
    ) -> Holding {
        let known = self.queues.get(&dst);
        let (packets, bytes) = known.map_or((0, 0), |queue| (queue.packets.len(), queue.bytes));
        let fits = (known.is_some() || self.queues.len() < self.limits.destinations)
            && packets < self.limits.packets
            && bytes + packet.len() <= self.limits.bytes
            && self.bytes + packet.len() <= self.limits.total_bytes;
        if fits {
            let queue = self.queues.entry(dst).or_insert_with(Queue::new);
            queue.packets.push_back((now, Held { vnet, packet: packet.into() }));
            queue.bytes += packet.len();
            self.bytes += packet.len();
            self.packets += 1;
            self.due_from.get_or_insert(now + self.limits.age);
        }
        let due = report
            && match self.queues.get_mut(&dst) {
                Some(queue) => queue.report(now),
                None => self.turned_away.report(dst, now),
            };
        match (fits, due) {
            (true, true) => Holding::Report,
            (false, true) => Holding::FullReport,
            (true, false) => Holding::Held,
            (false, false) => Holding::Full,
        }
    }

    /// Takes all that is held for a destination, oldest first.
    pub(super) fn take(&mut self, dst: Ipv6Addr) -> impl Iterator<Item = Held> + use<> {
        let queue = self.queues.remove(&dst).unwrap_or_else(Queue::new);
        self.bytes -= queue.bytes;
        self.packets -= queue.packets.len();
        queue.packets.into_iter().map(|(_, packet)| packet)
    }

    /// Drops what is too old and returns how many packets that were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        if self.due_from.is_none_or(|due| now < due) {
            return 0;
        }
        let age = self.limits.age;
        let before = self.packets;
        for queue in self.queues.values_mut() {
            while queue.packets.front().is_some_and(|(since, _)| now.duration_since(*since) >= age) {
                if let Some((_, held)) = queue.packets.pop_front() {
                    queue.bytes -= held.packet.len();
                    self.bytes -= held.packet.len();
                    self.packets -= 1;
                }
            }
        }
        self.queues.retain(|_, queue| !queue.packets.is_empty());
        let oldest = self.queues.values().filter_map(|queue| queue.packets.front()).map(|(since, _)| *since);
        self.due_from = oldest.min().map(|since| since + age);
        (before - self.packets) as u64
    }

    /// When to look for packets that are too old.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due_from.filter(|_| self.packets > 0)
    }

    /// Packets held now.
    pub(super) fn len(&self) -> usize {
        self.packets
    }
}

impl TurnedAway {
    fn report(&mut self, dst: Ipv6Addr, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= REPORT_INTERVAL) {
            self.since = Some(now);
            self.destinations.clear();
        }
        self.destinations.len() < MAX_TURNED_AWAY && self.destinations.insert(dst)
    }
}

impl Queue {
    fn new() -> Self {
        Self { packets: VecDeque::new(), bytes: 0, reported: None }
    }

    fn report(&mut self, now: Instant) -> bool {
        let due = self.reported.is_none_or(|last| now.duration_since(last) >= REPORT_INTERVAL);
        if due {
            self.reported = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn limits() -> HoldLimits {
        HoldLimits { packets: 3, bytes: 100, total_bytes: 150, destinations: 2, age: Duration::from_secs(5) }
    }

    #[test]
    fn the_first_packets_stay_and_come_back_in_order() {
        let (mut hold, now) = (Hold::new(limits()), Instant::now());
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[1], true, now), Holding::Report);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[2], true, now), Holding::Held);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[3], true, now), Holding::Held);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[4], true, now), Holding::Full);
        assert_eq!(hold.take(A).map(|held| held.packet[0]).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((hold.len(), hold.bytes, hold.take(A).count()), (0, 0, 0));
    }

    #[test]
    fn bytes_are_bounded_for_one_and_for_all() {
        let (mut hold, now) = (Hold::new(limits()), Instant::now());
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 101], false, now), Holding::Full);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 100], false, now), Holding::Held);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 1], false, now), Holding::Full);
        assert_eq!(hold.push(B, VnetHeader::PLAIN, &[0; 51], false, now), Holding::Full);
        assert_eq!(hold.push(B, VnetHeader::PLAIN, &[0; 50], false, now), Holding::Held);
    }

    #[test]
    fn destinations_are_bounded() {
        let (mut hold, now) = (Hold::new(limits()), Instant::now());
        hold.push(A, VnetHeader::PLAIN, &[1], true, now);
        hold.push(B, VnetHeader::PLAIN, &[1], true, now);
        assert_eq!(hold.push(Ipv6Addr::LOCALHOST, VnetHeader::PLAIN, &[1], true, now), Holding::FullReport);
        assert_eq!(hold.queues.len(), 2);
    }

    #[test]
    fn a_destination_for_which_there_is_no_room_gets_its_tunnel() {
        let (mut hold, start) = (Hold::new(limits()), Instant::now());
        for full in [A, B] {
            hold.push(full, VnetHeader::PLAIN, &[0; 75], true, start);
        }
        let mut turned_away = |dst, report, ms| {
            hold.push(dst, VnetHeader::PLAIN, &[1], report, start + Duration::from_millis(ms))
        };
        let other = |n: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n);
        assert_eq!(turned_away(other(0), false, 0), Holding::Full, "its tunnel is being confirmed");
        assert_eq!(turned_away(other(0), true, 0), Holding::FullReport);
        assert_eq!(turned_away(other(0), true, 999), Holding::Full);
        assert_eq!(turned_away(other(0), true, 1000), Holding::FullReport);
        // A scan is bounded.
        let reports = (0..1000).filter(|n| turned_away(other(*n), true, 1001) == Holding::FullReport);
        assert_eq!(reports.count(), MAX_TURNED_AWAY - 1);
        assert_eq!(turned_away(other(999), true, 2000), Holding::FullReport);
    }

    #[test]
    fn a_destination_is_reported_once_a_second_even_when_full() {
        let (mut hold, start) = (Hold::new(limits()), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 100], true, at(0)), Holding::Report);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 100], true, at(999)), Holding::Full);
        assert_eq!(hold.push(A, VnetHeader::PLAIN, &[0; 100], true, at(1000)), Holding::FullReport);
    }

    #[test]
    fn what_is_too_old_goes() {
        let (mut hold, start) = (Hold::new(limits()), Instant::now());
        hold.push(A, VnetHeader::PLAIN, &[1], false, start);
        hold.push(A, VnetHeader::PLAIN, &[2], false, start + Duration::from_secs(2));
        assert_eq!(hold.deadline(), Some(start + Duration::from_secs(5)));
        assert_eq!(hold.expire(start + Duration::from_secs(5)), 1);
        assert_eq!(hold.expire(start + Duration::from_secs(7)), 1);
        assert_eq!((hold.deadline(), hold.len(), hold.bytes, hold.queues.len()), (None, 0, 0, 0));
    }
}
