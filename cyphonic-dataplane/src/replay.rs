//! The anti-replay window of RFC 6479: a ring of bits that slides a word at a time.
//!
//! **Invariant.** [`ReplayWindow::accept`] says yes to each packet number at most once, and never to one that
//! lies [`WINDOW`] or more behind the highest accepted. It is asked only about packets that authenticated.

/// Bits of the ring, as in WireGuard: at a million packets per second, eight milliseconds of reordering.
const BITS: u64 = 8192;
/// Bits per word.
const WORD: u64 = u64::BITS as u64;
const WORDS: usize = (BITS / WORD) as usize;

/// How far behind the highest number a packet may be. One word of the ring is always being refilled (RFC 6479
/// §3).
pub const WINDOW: u64 = BITS - WORD;

/// The packet numbers that were accepted so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayWindow {
    /// One more than the highest number accepted.
    next: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// The full packet number for one of which the low 32 bits were received: the candidate nearest to the
    /// next expected one (RFC 9000 §A.3).
    #[inline]
    pub fn expand(&self, truncated: u32) -> u64 {
        const SPAN: u64 = 1 << 32;
        let candidate = (self.next & !(SPAN - 1)) | u64::from(truncated);
        if candidate + SPAN / 2 <= self.next && candidate < (1 << 62) - SPAN {
            candidate + SPAN
        } else if candidate > self.next + SPAN / 2 && candidate >= SPAN {
            candidate - SPAN
        } else {
            candidate
        }
    }

    /// Whether the number is higher than all that were accepted.
    #[inline]
    pub fn is_newest(&self, number: u64) -> bool {
        number >= self.next
    }

    /// Marks a number as seen. False, and no change, if it was seen before or is too old to tell.
    #[inline]
    pub fn accept(&mut self, number: u64) -> bool {
        if number >= self.next {
            self.slide_to(number);
        } else if self.next - 1 - number >= WINDOW {
            return false;
        }
        let word = &mut self.seen[slot(number / WORD)];
        let bit = 1 << (number % WORD);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Empties the words between the old highest number's and the new one's.
    #[inline]
    fn slide_to(&mut self, number: u64) {
        if self.next > 0 {
            let highest = (self.next - 1) / WORD;
            let words = (number / WORD - highest).min(WORDS as u64);
            for word in highest + 1..=highest + words {
                self.seen[slot(word)] = 0;
            }
        }
        self.next = number.saturating_add(1);
    }
}

#[inline]
fn slot(word: u64) -> usize {
    word as usize % WORDS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The definition, without a ring: remembers everything.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accept(&mut self, number: u64) -> bool {
            let highest = self.seen.last().copied().unwrap_or(0);
            highest.saturating_sub(number) < WINDOW && self.seen.insert(number)
        }
    }

    /// Numbers near each other, near the window's edges, and far away.
    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let edge = WINDOW as i64;
        let step = prop_oneof![
            8 => -70i64..70,
            4 => -edge - 70..=-edge + 70,
            2 => edge - 70..=edge + 140,
            1 => -30_000i64..30_000,
            1 => Just(i64::MAX / 4),
        ];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_model(start in 0u64..100_000, steps in steps()) {
            let (mut window, mut model) = (ReplayWindow::default(), Model::default());
            let mut number = start;
            for step in steps {
                number = number.saturating_add_signed(step).min(1 << 62);
                let newest = model.seen.last().is_none_or(|highest| number > *highest);
                prop_assert_eq!(window.is_newest(number), newest);
                prop_assert_eq!(window.accept(number), model.accept(number), "number {}", number);
            }
        }

        #[test]
        fn a_full_number_is_found_from_its_low_bits(next in 0u64..1 << 61, distance in -(1i64 << 31) + 1..1 << 31) {
            let mut window = ReplayWindow::default();
            if next > 0 {
                window.accept(next - 1);
            }
            if let Some(number) = next.checked_add_signed(distance) {
                prop_assert_eq!(window.expand(number as u32), number);
            }
        }
    }

    /// The cases of WireGuard's replay counter self-test, with this window's size.
    #[test]
    fn the_edges_are_where_they_should_be() {
        let mut window = ReplayWindow::default();
        for (number, expected) in [
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (WINDOW, true),
            (WINDOW - 1, true),
            (WINDOW - 1, false),
            (WINDOW - 2, true),
            (2, true),
            (2, false),
            (WINDOW + 16, true),
            (3, false),
            (WINDOW + 16, false),
            (WINDOW * 4, true),
            (WINDOW * 4 - (WINDOW - 1), true),
            (10, false),
            (WINDOW * 4 - WINDOW, false),
            (WINDOW * 4 - (WINDOW + 1), false),
            (WINDOW * 4 - (WINDOW - 2), true),
            (WINDOW * 4 + 1 - WINDOW, false),
            (0, false),
            (u64::MAX, true),
            (u64::MAX, false),
        ] {
            assert_eq!(window.accept(number), expected, "number {number}");
        }
    }

    #[test]
    fn a_whole_window_is_accepted_once_forwards_and_backwards() {
        let mut window = ReplayWindow::default();
        assert!((0..WINDOW).all(|number| window.accept(number)));
        assert!((0..WINDOW).all(|number| !window.accept(number)));
        let mut window = ReplayWindow::default();
        assert!((1..=WINDOW).rev().all(|number| window.accept(number)));
        assert!(!window.accept(0), "one behind the window");
        assert!(window.accept(WINDOW + 1) && !window.accept(1));
    }
}
