//! How long an answer of the routing table may be used again.
//!
//! Asking the kernel's tables costs more than all else that is done for a packet, and of a million legs each
//! is used too seldom for an answer that lasts a moment. So userspace watches the tables, and says when they
//! last changed: an answer that is newer is as good as a new one. Where nobody watches, as after the process
//! was killed, it lasts a moment only.

/// For how long an answer is used while somebody watches: as long as the kernel believes what routers on the
/// way told it about their MTU (RFC 1191 §6.3), which is the one thing it changes without telling.
const WATCHED: u32 = ticks(600_000_000_000);
/// For how long an answer is used while nobody does. The program's clock moves in steps of up to 20 ms.
const UNWATCHED: u32 = ticks(100_000_000);
/// Somebody who has not been heard of for this long does not watch any more.
const PATIENCE: u32 = ticks(3_000_000_000);

/// A moment of `CLOCK_MONOTONIC` in steps of 2²⁴ ns, 16.8 ms. They start anew after two years: an answer that
/// was not used for exactly so long would be taken for a new one.
#[inline(always)]
#[must_use]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> 24) as u32
}

/// What the watcher says, in [`ticks`]. All zero as the kernel makes it: nobody watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct RelayWatch {
    /// When it last noticed that routes, neighbours or interfaces changed.
    pub changed: u32,
    /// When it was last there.
    pub seen: u32,
}

impl RelayWatch {
    /// Whether an answer may be used now. An answer in the tick of a change may be older than the change.
    ///
    /// The program's clock is up to 20 ms behind the watcher's, so both of its moments may seem to lie ahead.
    #[inline(always)]
    #[must_use]
    pub const fn is_fresh(&self, asked: u32, now: u32) -> bool {
        let (age, unseen) = (now.wrapping_sub(asked), now.wrapping_sub(self.seen).cast_signed());
        if unseen < PATIENCE.cast_signed() {
            return age < WATCHED && asked.wrapping_sub(self.changed).cast_signed() > 0;
        }
        age < UNWATCHED
    }
}

const _: () = assert!(size_of::<RelayWatch>() == 8 && align_of::<RelayWatch>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_000_000;

    #[test]
    fn while_somebody_watches_only_a_change_makes_an_answer_old() {
        let watch = RelayWatch { changed: NOW - 1_000, seen: NOW - 1 };
        assert!(watch.is_fresh(NOW, NOW) && watch.is_fresh(NOW - 999, NOW));
        assert!(!watch.is_fresh(NOW - 1_000, NOW) && !watch.is_fresh(NOW - 1_001, NOW));
        let long_ago = RelayWatch { changed: NOW - 900_000, seen: NOW };
        assert!(long_ago.is_fresh(NOW - WATCHED + 1, NOW) && !long_ago.is_fresh(NOW - WATCHED, NOW));
    }

    #[test]
    fn where_nobody_watches_an_answer_lasts_a_moment() {
        for watch in [RelayWatch::default(), RelayWatch { changed: 0, seen: NOW - PATIENCE }] {
            assert!(watch.is_fresh(NOW, NOW) && watch.is_fresh(NOW - UNWATCHED + 1, NOW));
            assert!(!watch.is_fresh(NOW - UNWATCHED, NOW));
        }
    }

    #[test]
    fn a_clock_that_is_behind_harms_nothing() {
        let watch = RelayWatch { changed: NOW - 1_000, seen: NOW + 1 };
        assert!(watch.is_fresh(NOW - 10, NOW));
        // A change that is noticed before the program's clock gets there.
        let watch = RelayWatch { changed: NOW + 1, seen: NOW + 1 };
        assert!(!watch.is_fresh(NOW, NOW) && !watch.is_fresh(NOW - 1, NOW));
    }
}
