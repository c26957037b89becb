//! Where in the table a leg stands.
//!
//! The table is an array of pairs of entries. A virtual connection ID has two of them: its leg stands in the
//! first, at its home there or beside it; where both are taken, in the second; and where all four are, in the
//! hash map for what the table has no room for. The relay draws its IDs at
//! random, so their own bits spread them as evenly as any hash would, and nobody else can choose them: no
//! secret is needed.

/// Bytes of a pair.
pub const PAIR_LEN: usize = size_of::<[super::LegEntry; 2]>();

/// The pairs of a table for so many legs. With one for each, nine legs in ten are in their first pair when
/// all are bound, and one in 150 is in the hash map.
#[must_use]
pub const fn pairs_for(legs: u32) -> u32 {
    if legs == 0 { 1 } else { legs }
}

/// A leg's pair, and its home in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Less than the number of pairs.
    pub pair: u32,
    /// 0 or 1.
    pub home: usize,
}

impl Place {
    /// The first place of a virtual connection ID, which is as it lies in frames, among so many pairs.
    #[inline(always)]
    #[must_use]
    pub const fn first(cid: u64, pairs: u32) -> Self {
        let cid = u64::from_le(cid);
        Self { pair: (((cid >> 32) * pairs as u64) >> 32) as u32, home: ((cid >> 31) & 1) as usize }
    }

    /// Its second place. It may be the first once more.
    #[inline(always)]
    #[must_use]
    pub const fn second(cid: u64, pairs: u32) -> Self {
        Self::first(cid.rotate_left(u32::BITS), pairs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_place_is_in_the_table(cid: u64, pairs in 1u32..) {
            for Place { pair, home } in [Place::first(cid, pairs), Place::second(cid, pairs)] {
                prop_assert!(pair < pairs && home < 2);
            }
        }
    }

    #[test]
    fn places_are_taken_evenly() {
        let mut taken = [[0; 64]; 2];
        let mut word = 1u64;
        for _ in 0..64_000 {
            word =
                word.wrapping_mul(0xd129_42b4_8c2d_4e3b).rotate_left(29).wrapping_add(0x9e37_79b9_7f4a_7c15);
            // The bit of data.
            let cid = (word | 1 << 63).to_be();
            for (taken, place) in taken.iter_mut().zip([Place::first(cid, 32), Place::second(cid, 32)]) {
                taken[place.pair as usize * 2 + place.home] += 1;
            }
        }
        assert!(taken.as_flattened().iter().all(|count| (800..1200).contains(count)), "{taken:?}");
    }
}
