//! What happens to a frame on its way along a wire, without sockets or clock: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Impairment;

/// A limited link buffers this much of its own time, then drops: a common size of router buffers, and enough
/// for one congestion window at a round trip of as much.
pub(crate) const BUFFER: Duration = Duration::from_millis(100);
/// Bound on frames in flight, so that a flood meets a drop, not the end of memory: 100 ms at ~650,000
/// frames/s.
pub(crate) const MAX_FRAMES: usize = 65_536;

/// One direction of a wire. Times count from any fixed moment.
///
/// Frames leave in the order they came: whatever jitter says, no frame is due before the one ahead of it,
/// unless it is one of those that skip the delay.
#[derive(Debug)]
pub struct Queue {
    impairment: Impairment,
    random: SmallRng,
    frames: VecDeque<(Duration, Vec<u8>)>,
    wire_free: Duration,
    last_due: Duration,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will arrive.
    Queued,
    /// The link lost it.
    Lost,
    /// The buffer was full.
    Overflowed,
}

impl Queue {
    /// An empty wire; equal seeds give equal losses and jitter.
    pub fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment,
            random: SmallRng::seed_from_u64(seed),
            frames: VecDeque::new(),
            wire_free: Duration::ZERO,
            last_due: Duration::ZERO,
        }
    }

    /// Takes a frame that was sent at `now`.
    pub fn push(&mut self, now: Duration, frame: Vec<u8>) -> Fate {
        let start = self.wire_free.max(now);
        if start - now > BUFFER || self.frames.len() >= MAX_FRAMES {
            return Fate::Overflowed;
        }
        // A lost frame has used its time on the wire all the same.
        let sent = start + self.transmission_time(frame.len());
        self.wire_free = sent;
        if self.impairment.loss > 0.0 && self.random.random_bool(self.impairment.loss.min(1.0)) {
            return Fate::Lost;
        }
        if self.impairment.reorder > 0.0 && self.random.random_bool(self.impairment.reorder.min(1.0)) {
            let ahead = self.frames.partition_point(|(due, _)| *due <= sent);
            self.frames.insert(ahead, (sent, frame));
            return Fate::Queued;
        }
        let due = (sent + self.latency()).max(self.last_due);
        self.last_due = due;
        self.frames.push_back((due, frame));
        Fate::Queued
    }

    /// The next frame that has arrived by `now`.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next_due().filter(|due| *due <= now)?;
        self.frames.pop_front().map(|(_, frame)| frame)
    }

    /// When the next frame arrives.
    pub fn next_due(&self) -> Option<Duration> {
        self.frames.front().map(|(due, _)| *due)
    }

    fn transmission_time(&self, bytes: usize) -> Duration {
        let rate = self.impairment.rate.and_then(crate::topology::BitRate::from_bits_per_second);
        rate.map_or(Duration::ZERO, |rate| rate.transmission_time(bytes))
    }

    fn latency(&mut self) -> Duration {
        let Impairment { delay, jitter, .. } = self.impairment;
        if jitter.is_zero() {
            return delay;
        }
        let earliest = delay.saturating_sub(jitter);
        earliest + (delay + jitter - earliest).mul_f64(self.random.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn drain(queue: &mut Queue) -> Vec<(Duration, Vec<u8>)> {
        std::iter::from_fn(|| {
            let due = queue.next_due()?;
            queue.pop(due).map(|frame| (due, frame))
        })
        .collect()
    }

    #[test]
    fn a_frame_arrives_after_the_delay_and_not_before() {
        let mut queue = Queue::new(Impairment { delay: 5 * MS, ..Impairment::default() }, 1);
        assert_eq!(queue.push(MS, vec![1]), Fate::Queued);
        assert_eq!(queue.pop(6 * MS - Duration::from_nanos(1)), None);
        assert_eq!(queue.pop(6 * MS), Some(vec![1]));
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn a_rate_spaces_frames_and_its_buffer_ends() {
        // 1500 bytes at 12 Mbit/s take 1 ms.
        let mut queue = Queue::new(Impairment { rate: Some(12_000_000), ..Impairment::default() }, 1);
        let fates: Vec<Fate> = (0..150).map(|_| queue.push(Duration::ZERO, vec![0; 1500])).collect();
        let queued = fates.iter().filter(|fate| **fate == Fate::Queued).count();
        assert_eq!(queued, 101);
        assert_eq!(fates.last(), Some(&Fate::Overflowed));
        let times: Vec<Duration> = drain(&mut queue).into_iter().map(|(due, _)| due).collect();
        assert_eq!(times[..3], [MS, 2 * MS, 3 * MS]);
    }

    #[test]
    fn loss_takes_its_share() {
        let mut queue = Queue::new(Impairment { loss: 0.1, ..Impairment::default() }, 7);
        let lost = (0..10_000).filter(|_| queue.push(Duration::ZERO, Vec::new()) == Fate::Lost).count();
        assert!((800..1200).contains(&lost), "{lost}");
    }

    #[test]
    fn the_share_that_is_reordered_overtakes_what_is_on_its_way() {
        let impairment = Impairment { delay: 20 * MS, reorder: 0.1, ..Impairment::default() };
        let mut queue = Queue::new(impairment, 5);
        for number in 0..1_000_u32 {
            queue.push(number * MS, number.to_be_bytes().to_vec());
        }
        let arrived = drain(&mut queue);
        assert_eq!(arrived.len(), 1_000);
        assert!(arrived.is_sorted_by_key(|(due, _)| *due));
        let early = arrived.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
        assert!((60..150).contains(&early), "{early}");
    }

    proptest! {
        #[test]
        fn jitter_stays_in_its_range_and_keeps_the_order(
            delay in 0u64..20_000,
            jitter in 0u64..20_000,
            gaps in prop::collection::vec(0u64..3_000, 1..200),
        ) {
            let (delay, jitter) = (Duration::from_micros(delay), Duration::from_micros(jitter));
            let mut queue = Queue::new(Impairment { delay, jitter, ..Impairment::default() }, 3);
            let mut now = Duration::ZERO;
            let mut sent = Vec::new();
            for (index, gap) in gaps.iter().enumerate() {
                now += Duration::from_micros(*gap);
                sent.push(now);
                queue.push(now, index.to_be_bytes().to_vec());
            }
            let arrived = drain(&mut queue);
            prop_assert_eq!(arrived.len(), sent.len());
            let mut latest = Duration::ZERO;
            for (index, (due, frame)) in arrived.iter().enumerate() {
                prop_assert_eq!(frame, &index.to_be_bytes().to_vec());
                prop_assert!(*due >= latest && *due >= sent[index] + delay.saturating_sub(jitter));
                // Order may hold a frame back, but never beyond what the one ahead of it was given.
                prop_assert!(*due <= (sent[index] + delay + jitter).max(latest));
                latest = *due;
            }
        }
    }
}
