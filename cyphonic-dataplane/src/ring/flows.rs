//! The conversations that are under way, where no program of the kernel's remembers them.
//!
//! The sending and the receiving worker share the table without a lock. A conversation has four places, found
//! by a hash of it that nobody can foresee; of more than four, the one goes that was used longest ago. Both
//! workers may write at once: then one of two conversations may not be remembered until its next packet, or
//! one lasts as long as the one whose place it had.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use cyphonic_common::policy::{Flow, Last};

/// Places of one conversation: a cache line.
const WAYS: usize = 4;

/// One conversation.
#[derive(Debug, Default)]
struct Place {
    /// A hash of it; 0 is none.
    tag: AtomicU64,
    /// When its last packet was.
    last: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flows {
    start: Instant,
    hash: RandomState,
    sets: Box<[[Place; WAYS]]>,
}

impl Flows {
    /// A table of so many places.
    pub(super) fn with_places(most: u32) -> Self {
        let sets = (0..most as usize / WAYS).map(|_| Default::default()).collect();
        Self { start: Instant::now(), hash: RandomState::new(), sets }
    }

    /// See [`FlowTable::note`](cyphonic_common::policy::FlowTable::note).
    pub(super) fn note(&self, flow: &Flow, now: Instant) {
        let (tag, now) = (self.tag(flow), self.stamp(now));
        let Some(set) = self.set(tag) else { return };
        let found = set.iter().find(|place| place.tag.load(Relaxed) == tag);
        let place = match found {
            Some(place) if !Last(place.last.load(Relaxed)).is_news(now) => return,
            Some(place) => Some(place),
            None => set.iter().min_by_key(|place| place.last.load(Relaxed)),
        };
        let Some(place) = place else { return };
        place.last.store(now, Relaxed);
        place.tag.store(tag, Relaxed);
    }

    /// See [`FlowTable::knows`](cyphonic_common::policy::FlowTable::knows).
    pub(super) fn knows(&self, flow: &Flow, now: Instant) -> bool {
        let (tag, now) = (self.tag(flow), self.stamp(now));
        let mut places = self.set(tag).into_iter().flatten();
        let Some(place) = places.find(|place| place.tag.load(Relaxed) == tag) else { return false };
        let last = Last(place.last.load(Relaxed));
        if last.is_alive(now) && last.is_news(now) {
            place.last.store(now, Relaxed);
        }
        last.is_alive(now)
    }

    fn tag(&self, flow: &Flow) -> u64 {
        self.hash.hash_one(flow).max(1)
    }

    fn set(&self, tag: u64) -> Option<&[Place; WAYS]> {
        let sets = self.sets.len() as u64;
        self.sets.get(usize::try_from(tag.checked_rem(sets)?).ok()?)
    }

    /// Nanoseconds since the table was made, and one: 0 is the age of an empty place.
    fn stamp(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cyphonic_common::policy::{Direction, MAX_FLOWS};

    use super::*;

    fn flow(near: u16, far: u16) -> Flow {
        Flow::new([1; 16], 17, (near, far), Direction::Out)
    }

    #[test]
    fn a_conversation_lasts_five_minutes_beyond_its_last_packet() {
        let (flows, start) = (Flows::with_places(MAX_FLOWS), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!(!flows.knows(&flow(1, 2), at(0)));
        flows.note(&flow(1, 2), at(0));
        assert!(!flows.knows(&flow(2, 1), at(0)) && !flows.knows(&flow(1, 3), at(0)));
        assert!(flows.knows(&flow(1, 2), at(299)), "the answer keeps it, too");
        assert!(flows.knows(&flow(1, 2), at(299 + 299)));
        assert!(!flows.knows(&flow(1, 2), at(299 + 299 + 301)));
        flows.note(&flow(1, 2), at(1000));
        assert!(flows.knows(&flow(1, 2), at(1299)));
    }

    #[test]
    fn the_table_is_bounded_and_the_latest_stay() {
        let (flows, start) = (Flows::with_places(MAX_FLOWS), Instant::now());
        for n in 0..u16::MAX {
            flows.note(&flow(n, 7), start + Duration::from_millis(n.into()));
        }
        let end = start + Duration::from_secs(66);
        let known = |range: std::ops::Range<u16>| range.filter(|n| flows.knows(&flow(*n, 7), end)).count();
        let (last, all) = (known(u16::MAX - 1000..u16::MAX), known(0..u16::MAX));
        assert!(last > 990, "{last} of the last 1,000");
        assert!((8_000..=MAX_FLOWS as usize).contains(&all), "{all}");
    }
}
