//! The Internet checksum (RFC 1071), fast enough to run over every byte that passes.
//!
//! One's complement sums do not depend on byte order (RFC 1071 §2.B), so words are added as the CPU reads
//! them and only the folded result is stored back the same way.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "code for a CPU feature is called once the CPU is known to have it")
)]

use cyphonic_common::packet::ip::IPV6_HEADER_LEN;

/// A running one's complement sum, not yet folded.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset of what is summed.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        Self(self.0 + sum_words(bytes))
    }

    /// Adds bytes as [`add`](Self::add) does, and copies them, in one pass. `None`, and nothing copied, where
    /// the places differ in length.
    pub(crate) fn add_copying(self, from: &[u8], to: &mut [u8]) -> Option<Self> {
        (from.len() == to.len()).then(|| Self(self.0 + copy_words(from, to)))
    }

    /// Adds what was summed elsewhere, from an even offset.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds a number that the checksummed data holds in network byte order.
    pub(crate) fn add_be32(self, value: u32) -> Self {
        Self(self.0 + u64::from(u32::from_ne_bytes(value.to_be_bytes())))
    }

    /// Takes such a number away again.
    pub(crate) fn sub_be32(self, value: u32) -> Self {
        Self(self.0 + u64::from(!u32::from_ne_bytes(value.to_be_bytes())))
    }

    /// Adds the pseudo-header of RFC 8200 §8.1, addresses taken from an IPv6 header.
    pub(crate) fn add_pseudo_header(self, ipv6: &[u8; IPV6_HEADER_LEN], next_header: u8, len: u32) -> Self {
        let (_, addresses) = ipv6.split_at(8);
        self.add(addresses).add_be32(len).add_be32(u32::from(next_header))
    }

    /// The sum folded to 16 bits, as it is stored in a partial checksum field.
    pub(crate) fn fold(self) -> [u8; 2] {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }

    /// The checksum: the complement of the folded sum.
    pub(crate) fn finish(self) -> [u8; 2] {
        let [a, b] = self.fold();
        [!a, !b]
    }

    /// The checksum of UDP, where zero means "none" (RFC 768).
    pub(crate) fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }

    /// Whether data that includes its own checksum is intact.
    pub(crate) fn verifies(self) -> bool {
        self.fold() == [0xff, 0xff]
    }
}

/// Sums 32-bit words, with wider vectors where the CPU has them.
fn sum_words(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the only condition is that the CPU has AVX2, and it was asked just now.
        return unsafe { sum_words_avx2(bytes) };
    }
    sum_words_in_lanes(bytes)
}

/// The same code, compiled for AVX2: half the instructions for each byte.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_words_avx2(bytes: &[u8]) -> u64 {
    sum_words_in_lanes(bytes)
}

/// The same, and copies them to a place of the same length.
fn copy_words(from: &[u8], to: &mut [u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if writes_whole_lines() {
        // SAFETY: the only condition is that the CPU has these features, and it was asked just now.
        return unsafe { copy_words_avx512(from, to) };
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the only condition is that the CPU has AVX2, and it was asked just now.
        return unsafe { copy_words_avx2(from, to) };
    }
    copy_words_in_lanes(from, to)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_words_avx2(from: &[u8], to: &mut [u8]) -> u64 {
    copy_words_in_lanes(from, to)
}

/// The same, compiled to write a cache line at once, which takes no longer than copying alone. (Summing alone
/// takes twice as long with such vectors.)
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn copy_words_avx512(from: &[u8], to: &mut [u8]) -> u64 {
    copy_words_in_lanes(from, to)
}

/// Whether vectors of 64 bytes are worth using: CPUs before those that also have AES for them clock
/// themselves down.
#[cfg(target_arch = "x86_64")]
fn writes_whole_lines() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("vaes")
}

/// Sums in independent 64-bit lanes, which the compiler turns into vector additions. Each lane has room for
/// 2^32 words; packets have at most 2^14.
#[inline(always)]
fn sum_words_in_lanes(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks();
    let mut lanes = Lanes::default();
    blocks.iter().for_each(|block| lanes.add(block));
    lanes.finish(rest)
}

#[inline(always)]
fn copy_words_in_lanes(from: &[u8], to: &mut [u8]) -> u64 {
    let ((blocks, rest), (places, last)) = (from.as_chunks(), to.as_chunks_mut());
    let mut lanes = Lanes::default();
    for (block, place) in blocks.iter().zip(places) {
        *place = *block;
        lanes.add(block);
    }
    last.copy_from_slice(rest);
    lanes.finish(rest)
}

const LANES: usize = 16;

#[derive(Default)]
struct Lanes([u64; LANES]);

impl Lanes {
    #[inline(always)]
    fn add(&mut self, block: &[u8; LANES * 4]) {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in self.0.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }

    /// The sum of all, and of what is less than a block.
    #[inline(always)]
    fn finish(self, rest: &[u8]) -> u64 {
        let mut sum: u64 = self.0.iter().sum();
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0u8; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum + u64::from(u32::from_ne_bytes(last))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1 word by word.
    fn naive(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), [0xdd, 0xf2]);
    }

    type Copier = fn(&[u8], &mut [u8]) -> u64;

    /// Each way of copying that this CPU has.
    fn copiers() -> Vec<Copier> {
        #[allow(unused_mut, reason = "only x86 has more than one")]
        let mut all: Vec<Copier> = vec![copy_words, copy_words_in_lanes];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the only condition is that the CPU has AVX2, and it was asked just now.
            all.push(|from, to| unsafe { copy_words_avx2(from, to) });
        }
        all
    }

    proptest! {
        #[test]
        fn every_cpu_gets_the_same_sum(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum_words(&bytes), sum_words_in_lanes(&bytes));
        }

        #[test]
        fn agrees_with_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().add(&bytes).finish(), naive(&bytes));
        }

        #[test]
        fn copying_gives_the_same_sum_and_a_copy(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut copy = vec![0; bytes.len()];
            let sum = Sum::default().add_copying(&bytes, &mut copy).unwrap();
            prop_assert_eq!(sum.finish(), Sum::default().add(&bytes).finish());
            prop_assert_eq!(&copy, &bytes);
            for copier in copiers() {
                let mut copy = vec![0; bytes.len()];
                prop_assert_eq!(copier(&bytes, &mut copy), sum_words_in_lanes(&bytes));
                prop_assert_eq!(&copy, &bytes);
            }
            prop_assert!(Sum::default().add_copying(&bytes, &mut vec![0; bytes.len() + 1]).is_none());
        }

        #[test]
        fn taking_away_undoes_adding(bytes in proptest::collection::vec(any::<u8>(), 2..64), n in any::<u32>()) {
            // One's complement has two zeros; they are the same checksum to a verifier.
            let plain = Sum::default().add(&bytes).fold();
            let back = Sum::default().add(&bytes).add_be32(n).sub_be32(n).fold();
            let zero = |s: [u8; 2]| s == [0, 0] || s == [0xff, 0xff];
            prop_assert!(plain == back || (zero(plain) && zero(back)));
        }

        #[test]
        fn data_with_its_own_checksum_verifies_and_a_flipped_bit_does_not(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..1500), bit in any::<prop::sample::Index>(),
        ) {
            bytes[2] = 0;
            bytes[3] = 0;
            let sum = Sum::default().add(&bytes).finish();
            bytes[2..4].copy_from_slice(&sum);
            prop_assert!(Sum::default().add(&bytes).verifies());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Sum::default().add(&bytes).verifies());
        }
    }
}
