//! A hasher for keys that are random already: connection IDs and virtual addresses.

use std::hash::Hasher;

/// Connection IDs are drawn at random by this node, virtual addresses are hashes of names. Strangers choose
/// only what is looked up, not what is stored, so one multiplication per word spreads them well enough.
#[derive(Default)]
pub(crate) struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.0 = (self.0 ^ u64::from_ne_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
        }
    }

    #[inline]
    fn write_usize(&mut self, _: usize) {
        // The length of an array, which is always the same.
    }
}
