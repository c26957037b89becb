//! The anti-replay window of RFC 6479: a ring of bits that slides a word at a time.
//!
//! **Invariant.** [`ReplayWindow::accept`] says yes to each packet number at most once, and never to one that lies
//! [`WINDOW`] or more behind the highest accepted. It is asked only about packets that authenticated.

/// Bits of the ring, as in WireGuard: at a million packets per second, eight milliseconds of reordering.
const BITS: u64 = 8192;
/// Bits per word.
const WORD: u64 = u64::BITS as u64;
const WORDS: usize = (BITS / WORD) as usize;

/// How far behind the highest number a packet may be. One word of the ring is always being refilled (RFC 6479 §3).
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
    /// The full packet number for one of which the low 32 bits were received: the candidate nearest to the next
    /// expected one (RFC 9000 §A.3).
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
