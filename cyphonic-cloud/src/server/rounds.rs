//! Goes round all devices, some of them at a time: however many there are, a service is held up for a moment
//! only. Pure.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// For so long one round takes: each device's turn comes this often. A NAT that rebinds breaks a relayed
/// tunnel for this long at most, and two round trips.
const ROUND: Duration = Duration::from_secs(1);

/// At a time. A thousand connections are looked at in about a millisecond.
const AT_ONCE: usize = 1_000;

/// Whose turn it was last.
#[derive(Debug)]
pub(super) struct Rounds<K> {
    last: Option<K>,
}

impl<K> Default for Rounds<K> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<K: Ord + Copy> Rounds<K> {
    /// Whose turn it is now, and how long until it is the next ones'.
    pub(super) fn next<V>(&mut self, of: &BTreeMap<K, V>) -> (Vec<K>, Duration) {
        let parts = of.len().div_ceil(AT_ONCE).max(1);
        let share = of.len().div_ceil(parts);
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = of.range((after, Bound::Unbounded));
        // Then from the first on; more than there are is never asked for.
        let turn: Vec<K> = rest.chain(of.iter()).map(|(key, _)| *key).take(share).collect();
        self.last = turn.last().copied();
        (turn, ROUND / u32::try_from(parts).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Of so many that come and go meanwhile, those whose turn came within a round, and the most at a time.
    fn one_round(rounds: &mut Rounds<u64>, of: &mut BTreeMap<u64, ()>) -> (BTreeSet<u64>, usize) {
        let (mut seen, mut most, mut passed) = (BTreeSet::new(), 0, Duration::ZERO);
        while passed + Duration::from_micros(1) < ROUND {
            let (turn, pause) = rounds.next(of);
            most = most.max(turn.len());
            seen.extend(turn);
            passed += pause;
        }
        (seen, most)
    }

    #[test]
    fn the_turn_of_each_comes_once_a_round_and_never_that_of_too_many() {
        for count in [0, 1, 7, 999, 1_000, 1_001, 2_500, 12_345] {
            let mut of: BTreeMap<u64, ()> = (0..count).map(|key| (key, ())).collect();
            let mut rounds = Rounds::default();
            for _ in 0..3 {
                let (seen, most) = one_round(&mut rounds, &mut of);
                assert_eq!(seen.len(), of.len(), "of {count}");
                assert!(most <= AT_ONCE, "{most} of {count} at once");
            }
        }
    }

    #[test]
    fn those_that_go_leave_no_gap_and_those_that_come_get_their_turn() {
        let mut of: BTreeMap<u64, ()> = (0..3_000).map(|key| (key, ())).collect();
        let mut rounds = Rounds::default();
        let (first, pause) = rounds.next(&of);
        assert_eq!((first.len(), pause), (1_000, ROUND / 3));
        // Whose turn it was last, and those who would be next.
        of.retain(|key, ()| !(999..1_100).contains(key));
        of.insert(5_000, ());
        let (second, _) = rounds.next(&of);
        assert_eq!(second.first(), Some(&1_100));
        let seen: BTreeSet<u64> = second.into_iter().chain(rounds.next(&of).0).collect();
        assert!((1_100..3_000).all(|key| seen.contains(&key)) && seen.contains(&5_000));
        of.clear();
        assert_eq!(rounds.next(&of), (Vec::new(), ROUND));
        of.insert(7, ());
        assert_eq!(rounds.next(&of), (vec![7], ROUND));
        assert_eq!(rounds.next(&of), (vec![7], ROUND), "again and again");
    }
}
