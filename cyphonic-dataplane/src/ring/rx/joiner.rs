//! Joining the pieces of inner packets that were too large for the path ([`cyphonic_common::frame::part`]).
//!
//! Only authenticated pieces come here, each once, since the replay window has been asked before. What waits
//! is bounded in packets, bytes and time; what cannot be completed is dropped whole and counted.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use cyphonic_common::frame::part::{MAX_PARTS, Part};

use crate::ring::ecn;

/// Incomplete packets of one tunnel.
const MAX_PACKETS: usize = 64;
/// Bytes of them: two packets of the largest size, or a hundred of 1,280 bytes.
const MAX_BYTES: usize = 128 * 1024;
/// How long a packet is waited for. Its pieces leave together, but a slow line sends other packets between
/// them: at 64 kbit/s each takes 0.2 s. IP waits for 60 s (RFC 8200 §4.5); memory is bounded without it.
const AGE: Duration = Duration::from_secs(2);
/// Nor is one waited for whose id is so far from what comes now: long before ids that start again would bring
/// pieces of another packet to it.
const MAX_IDS_AWAY: u16 = 1 << 14;
/// Packets whose buffers are used again.
const MAX_SPARE: usize = 4;
/// The largest of them: what does not pass whole where only IPv6's least MTU does is hardly larger, and every
/// tunnel keeps its own for good.
const MAX_SPARE_BYTES: usize = 4 * 1024;

/// The incomplete packets of one tunnel.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Packets that are done with, for their buffers.
    spare: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: u16,
    since: Instant,
    ecn: u8,
    packet: Vec<u8>,
    have: Vec<Range<usize>>,
    missing: usize,
}

/// A packet that is whole: where it was written, and the outer ECN field that stands for those of its pieces.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) place: Range<usize>,
    pub(super) ecn: u8,
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// More is to come.
    Waits,
    /// It was the last one.
    Done(Joined),
    /// It contradicts the others of its packet, which is given up.
    Bad,
}

impl Joiner {
    /// Takes a piece. A packet that it completes is appended to `out`. The number is of packets that were
    /// given up as incomplete.
    pub(super) fn push(
        &mut self,
        part: &Part<'_>,
        outer_ecn: u8,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> (Joining, u64) {
        let dropped = self.expire(part.id, now);
        let place = usize::from(part.offset)..usize::from(part.offset) + part.bytes.len();
        let Some(at) = self.waiting.iter().position(|waiting| waiting.id == part.id) else {
            let dropped = dropped + self.make_room(usize::from(part.total));
            self.begin(part, place, outer_ecn, now);
            return (Joining::Waits, dropped);
        };
        match self.waiting.get_mut(at).map(|waiting| waiting.add(part, place, outer_ecn)) {
            Some(Some(0)) => (self.finish(at, out), dropped),
            Some(Some(_)) => (Joining::Waits, dropped),
            Some(None) | None => {
                self.forget(at);
                (Joining::Bad, dropped)
            }
        }
    }

    fn begin(&mut self, part: &Part<'_>, place: Range<usize>, ecn: u8, now: Instant) {
        let waiting = Waiting::new(part, place, ecn, now, self.spare.pop());
        self.bytes += waiting.packet.len();
        self.waiting.push_back(waiting);
    }

    fn finish(&mut self, at: usize, out: &mut Vec<u8>) -> Joining {
        let Some(waiting) = self.waiting.remove(at) else { return Joining::Bad };
        let start = out.len();
        out.extend_from_slice(&waiting.packet);
        let ecn = waiting.ecn;
        self.put_away(waiting);
        Joining::Done(Joined { place: start..out.len(), ecn })
    }

    /// Gives up what has waited too long, with pieces of `id` coming now. The number of packets.
    fn expire(&mut self, id: u16, now: Instant) -> u64 {
        let is_over = |oldest: &Waiting| {
            let away = id.wrapping_sub(oldest.id).cast_signed().unsigned_abs();
            now.saturating_duration_since(oldest.since) >= AGE || away > MAX_IDS_AWAY
        };
        let mut dropped = 0;
        while self.waiting.front().is_some_and(is_over) {
            self.forget(0);
            dropped += 1;
        }
        dropped
    }

    /// Gives up the oldest until a packet of this size may wait. The number of packets.
    fn make_room(&mut self, total: usize) -> u64 {
        let mut dropped = 0;
        while !self.waiting.is_empty()
            && (self.waiting.len() >= MAX_PACKETS || self.bytes + total > MAX_BYTES)
        {
            self.forget(0);
            dropped += 1;
        }
        dropped
    }

    fn forget(&mut self, at: usize) {
        if let Some(waiting) = self.waiting.remove(at) {
            self.put_away(waiting);
        }
    }

    fn put_away(&mut self, waiting: Waiting) {
        self.bytes = self.bytes.saturating_sub(waiting.packet.len());
        if self.spare.len() < MAX_SPARE && waiting.packet.capacity() <= MAX_SPARE_BYTES {
            self.spare.push(waiting);
        }
    }
}

impl Waiting {
    /// A packet of which this piece came first, in the buffers of one that is done with.
    fn new(part: &Part<'_>, place: Range<usize>, ecn: u8, since: Instant, spare: Option<Self>) -> Self {
        let (mut packet, mut have) = spare.map(|spare| (spare.packet, spare.have)).unwrap_or_default();
        let total = usize::from(part.total);
        packet.clear();
        packet.resize(total, 0);
        if let Some(room) = packet.get_mut(place.clone()) {
            room.copy_from_slice(part.bytes);
        }
        let missing = total.saturating_sub(place.len());
        have.clear();
        have.push(place);
        Self { id: part.id, since, ecn, packet, have, missing }
    }

    /// The bytes still missing; `None` if the piece does not belong.
    fn add(&mut self, part: &Part<'_>, place: Range<usize>, outer_ecn: u8) -> Option<usize> {
        let overlaps = self.have.iter().any(|have| have.start < place.end && place.start < have.end);
        if usize::from(part.total) != self.packet.len() || overlaps || self.have.len() >= MAX_PARTS {
            return None;
        }
        self.packet.get_mut(place.clone())?.copy_from_slice(part.bytes);
        self.missing = self.missing.saturating_sub(place.len());
        self.have.push(place);
        // A router that marked any of them has marked the packet (RFC 3168 §5.3).
        if outer_ecn == ecn::CE {
            self.ecn = outer_ecn;
        }
        Some(self.missing)
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_common::frame::part::Pieces;
    use proptest::prelude::*;

    use super::*;

    fn packet(seed: u16, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at as u16).wrapping_mul(31).wrapping_add(seed) as u8).collect()
    }

    fn pieces(id: u16, packet: &[u8], room: usize) -> Vec<Part<'_>> {
        let cut = Pieces::of(packet.len(), room).unwrap();
        let piece = |(offset, len): (usize, usize)| Part {
            id,
            offset: offset as u16,
            total: packet.len() as u16,
            bytes: &packet[offset..offset + len],
        };
        cut.iter().map(piece).collect()
    }

    proptest! {
        #[test]
        fn pieces_of_several_packets_in_any_order_become_the_packets(
            sizes in proptest::collection::vec(300usize..3000, 1..20), room in 100usize..280, seed: u64,
        ) {
            let packets: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(id, len)| packet(id as u16, *len)).collect();
            let mut all: Vec<_> =
                packets.iter().enumerate().flat_map(|(id, packet)| pieces(id as u16, packet, room)).collect();
            let mut state = seed;
            for at in (1..all.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                all.swap(at, (state >> 33) as usize % (at + 1));
            }
            let (now, mut joiner, mut out, mut whole) = (Instant::now(), Joiner::default(), Vec::new(), 0);
            for part in &all {
                let (joining, dropped) = joiner.push(part, 0, now, &mut out);
                prop_assert_eq!(dropped, 0);
                if let Joining::Done(joined) = joining {
                    prop_assert_eq!(&out[joined.place], packets[usize::from(part.id)].as_slice());
                    whole += 1;
                }
            }
            prop_assert_eq!((whole, joiner.bytes, joiner.waiting.len()), (packets.len(), 0, 0));
        }

        #[test]
        fn whatever_comes_memory_is_bounded(
            parts in proptest::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 1usize..1200), 0..300),
        ) {
            let (now, mut joiner, bytes) = (Instant::now(), Joiner::default(), [7; 1200]);
            for (id, offset, total, len) in parts {
                let (offset, total) = (offset % 2000, total.max(3200));
                let part = Part { id: id % 100, offset, total, bytes: &bytes[..len] };
                let mut out = Vec::new();
                joiner.push(&part, 0, now, &mut out);
                prop_assert!(joiner.waiting.len() <= MAX_PACKETS && joiner.bytes <= MAX_BYTES);
                let held: usize = joiner.waiting.iter().map(|waiting| waiting.packet.len()).sum();
                prop_assert_eq!(held, joiner.bytes);
            }
        }
    }

    #[test]
    fn a_piece_that_contradicts_takes_its_packet_with_it() {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        let packet = packet(0, 900);
        let all = pieces(5, &packet, 400);
        for bad in [Part { total: 901, ..all[1] }, Part { offset: all[1].offset - 1, ..all[1] }] {
            assert_eq!(joiner.push(&all[0], 0, now, &mut out), (Joining::Waits, 0));
            assert_eq!(joiner.push(&bad, 0, now, &mut out), (Joining::Bad, 0));
            assert_eq!((joiner.waiting.len(), joiner.bytes), (0, 0));
        }
    }

    #[test]
    fn what_stays_incomplete_is_given_up_and_counted() {
        let (start, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        let packet = packet(0, 900);
        let all = pieces(5, &packet, 500);
        assert_eq!(joiner.push(&all[0], 0, start, &mut out), (Joining::Waits, 0));
        // Its second half begins a packet that will not be completed either.
        assert_eq!(joiner.push(&all[1], 0, start + AGE, &mut out), (Joining::Waits, 1));
        for id in 6..6 + MAX_PACKETS as u16 {
            let part = Part { id, ..all[0] };
            let expected = u64::from(id == 5 + MAX_PACKETS as u16);
            assert_eq!(joiner.push(&part, 0, start + AGE, &mut out), (Joining::Waits, expected), "{id}");
        }
    }

    #[test]
    fn pieces_between_which_a_slow_line_sent_other_packets_are_joined() {
        let (start, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        let packet = packet(0, 1280);
        let all = pieces(5, &packet, 700);
        assert_eq!(joiner.push(&all[0], 0, start, &mut out), (Joining::Waits, 0));
        let last = joiner.push(&all[1], 0, start + Duration::from_secs(1), &mut out);
        assert_eq!(last, (Joining::Done(Joined { place: 0..1280, ecn: 0 }), 0));
        assert_eq!(out, packet);
    }

    #[test]
    fn what_is_incomplete_gets_no_pieces_of_a_packet_after_ids_have_started_again() {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        let packet = packet(0, 900);
        let all = pieces(5, &packet, 500);
        assert_eq!(joiner.push(&all[0], 0, now, &mut out), (Joining::Waits, 0));
        let mut dropped = 0;
        for id in (6..=u16::MAX).chain(0..5) {
            for part in &all {
                dropped += joiner.push(&Part { id, ..*part }, 0, now, &mut out).1;
            }
            out.clear();
        }
        assert_eq!((joiner.push(&all[1], 0, now, &mut out), dropped), ((Joining::Waits, 0), 1));
    }

    #[test]
    fn only_small_buffers_are_kept() {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        for (id, len) in [(1, 60_000), (2, 1_400), (3, 9_000), (4, 1_400)] {
            let packet = packet(id, len);
            for part in pieces(id, &packet, len.div_ceil(2) + 20) {
                joiner.push(&part, 0, now, &mut out);
            }
        }
        let kept: Vec<_> = joiner.spare.iter().map(|spare| spare.packet.capacity()).collect();
        assert!(!kept.is_empty() && kept.iter().all(|bytes| *bytes <= MAX_SPARE_BYTES), "{kept:?}");
    }

    #[test]
    fn packets_of_pieces_that_follow_each_other_share_their_buffers() {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::default(), Vec::new());
        let mut buffers = Vec::new();
        for id in 0..100 {
            let packet = packet(id, 1_280);
            out.clear();
            for part in pieces(id, &packet, 700) {
                joiner.push(&part, 0, now, &mut out);
            }
            assert_eq!(out, packet, "nothing of the one before is left");
            let [spare] = joiner.spare.as_slice() else { panic!("one is done with") };
            buffers.push((spare.packet.as_ptr(), spare.have.as_ptr()));
        }
        assert!(buffers.iter().all(|buffer| *buffer == buffers[0]));
    }

    #[test]
    fn one_marked_piece_marks_the_packet() {
        let (now, mut out) = (Instant::now(), Vec::new());
        let packet = packet(0, 900);
        for (first, second, expected) in [(2, ecn::CE, ecn::CE), (ecn::CE, 2, ecn::CE), (2, 2, 2)] {
            let (mut joiner, all) = (Joiner::default(), pieces(1, &packet, 500));
            joiner.push(&all[0], first, now, &mut out);
            let (Joining::Done(joined), 0) = joiner.push(&all[1], second, now, &mut out) else { panic!() };
            assert_eq!(joined.ecn, expected);
        }
    }
}
