//! Addresses and the Internet checksum, in words that need no conversion.

use core::net::IpAddr;

use super::map::Family;

/// An address of sixteen bytes, IPv4 as `::ffff:a.b.c.d`, as two words in memory order: comparing and summing
/// words is what a processor does at once, and byte order does not matter for either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    high: u64,
    low: u64,
}

impl Address {
    /// All zero.
    pub const UNSPECIFIED: Self = Self { high: 0, low: 0 };

    /// Takes an address as it stands in a packet or map.
    #[inline(always)]
    pub const fn from_bytes(bytes: &[u8; 16]) -> Self {
        let whole = u128::from_ne_bytes(*bytes);
        // The first eight bytes in memory, on machines of either byte order.
        let (first, second) = if cfg!(target_endian = "little") {
            (whole as u64, (whole >> 64) as u64)
        } else {
            ((whole >> 64) as u64, whole as u64)
        };
        Self { high: first, low: second }
    }

    /// Takes an IPv4 address as it stands in a packet.
    #[inline(always)]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        // In one piece: from eight single bytes the compiler makes masks and shifts.
        let word = u32::from_ne_bytes(bytes) as u64;
        let low = if cfg!(target_endian = "little") { word << 32 | 0xffff_0000 } else { 0xffff << 32 | word };
        Self { high: 0, low }
    }

    /// Takes an address of userspace. An IPv4-mapped one is the IPv4 address that it maps.
    #[must_use]
    pub const fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_bytes(&v6.octets()),
        }
    }

    /// As it stands in a packet.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 16] {
        let whole = if cfg!(target_endian = "little") {
            self.high as u128 | (self.low as u128) << 64
        } else {
            (self.high as u128) << 64 | self.low as u128
        };
        whole.to_ne_bytes()
    }

    /// As the kernel's structures hold it: four words in memory order.
    #[inline(always)]
    pub const fn to_words(self) -> [u32; 4] {
        if cfg!(target_endian = "little") {
            [self.high as u32, (self.high >> 32) as u32, self.low as u32, (self.low >> 32) as u32]
        } else {
            [(self.high >> 32) as u32, self.high as u32, (self.low >> 32) as u32, self.low as u32]
        }
    }

    /// The last four bytes: the IPv4 address that a mapped one maps.
    #[inline(always)]
    pub const fn to_v4(self) -> [u8; 4] {
        let [_, _, _, _, a, b, c, d] = self.low.to_ne_bytes();
        [a, b, c, d]
    }

    /// Whether all bytes are zero.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.high | self.low == 0
    }

    /// Whether packets to it have one receiver. The limited broadcast is the only other one that can be told
    /// from the address alone.
    #[inline(always)]
    pub const fn is_unicast(&self, family: Family) -> bool {
        let [a, b, c, d] = self.to_v4();
        match family {
            Family::V4 => a & 0xf0 != 0xe0 && a & b & c & d != 0xff,
            Family::V6 => self.high.to_ne_bytes()[0] != 0xff,
        }
    }
}

/// A one's complement sum (RFC 1071) that is still wider than the field it is for. Words are summed as they
/// lie in memory, which gives the checksum as it must lie in memory. A sum stays below 2⁴⁸: of some thousands
/// of additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Starts from a sixteen-bit word as it lies in memory.
    #[inline(always)]
    pub const fn of_word(word: u16) -> Self {
        Self(word as u64)
    }

    /// Adds eight bytes.
    #[inline(always)]
    #[must_use]
    pub const fn plus_u64(self, word: u64) -> Self {
        Self(self.0 + (word >> 32) + (word & 0xffff_ffff))
    }

    /// Takes eight bytes away, which is to add their complement.
    #[inline(always)]
    #[must_use]
    pub const fn minus_u64(self, word: u64) -> Self {
        self.plus_u64(!word)
    }

    /// Adds four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn plus_u32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two bytes.
    #[inline(always)]
    #[must_use]
    pub const fn plus_word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Takes two bytes away.
    #[inline(always)]
    #[must_use]
    pub const fn minus_word(self, word: u16) -> Self {
        self.plus_word(!word)
    }

    /// Adds an address. The `::ffff` of a mapped one adds nothing: 0xffff is another zero.
    #[inline(always)]
    #[must_use]
    pub const fn plus_address(self, address: Address) -> Self {
        self.plus_u64(address.high).plus_u64(address.low)
    }

    /// Takes a sum of two addresses away, which has been made already.
    #[inline(always)]
    #[must_use]
    pub const fn minus_addresses(self, addresses: Self) -> Self {
        // More than two addresses can come to (2³⁵), and a multiple of 0xffff, which is zero.
        const ZERO: u64 = 0xffff << 20;
        Self(self.0 + ZERO - addresses.0)
    }

    /// With the bytes of each word exchanged, of a sum of some words (RFC 1071 §2): 2⁸ times as much.
    #[inline(always)]
    #[must_use]
    pub const fn with_bytes_exchanged(self) -> Self {
        Self(self.0 << 8)
    }

    /// The sum in sixteen bits: 0 only if everything added was.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        // 48 bits to less than 2³² + 2¹⁶, to 0x1fffe at most, to 16 bits.
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §1, word by word.
    fn by_words(bytes: &[u8]) -> u16 {
        let sum =
            bytes.chunks(2).fold(0u64, |sum, word| sum + u64::from(u16::from_be_bytes([word[0], word[1]])));
        let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff));
        folded as u16
    }

    proptest! {
        #[test]
        fn a_sum_is_that_of_its_words(a: [u8; 16], b: [u8; 16], v4: [u8; 4], word: [u8; 2]) {
            let sum = Sum::of_word(u16::from_ne_bytes(word))
                .plus_address(Address::from_bytes(&a))
                .plus_address(Address::from_bytes(&b))
                .plus_u32(u32::from_ne_bytes(v4));
            let expected = by_words(&[&a[..], &b, &v4, &word].concat());
            prop_assert_eq!(sum.fold().to_ne_bytes(), expected.to_be_bytes());
        }

        #[test]
        fn taking_away_undoes_adding(a: [u8; 16], b: [u8; 16], base in 1u16.., word: u16) {
            let two = Sum::of_word(0).plus_address(Address::from_bytes(&a)).plus_address(Address::from_bytes(&b));
            let there = Sum::of_word(base)
                .plus_address(Address::from_bytes(&a))
                .plus_word(word)
                .plus_address(Address::from_bytes(&b));
            let back = there.minus_addresses(two).minus_word(word);
            prop_assert_eq!(back.fold() % 0xffff, base % 0xffff);
        }

        #[test]
        fn exchanged_bytes_are_those_of_each_word(a: u64, b: u64) {
            let sum = Sum::of_word(0).plus_u64(a).minus_u64(b);
            let expected = sum.fold().swap_bytes();
            prop_assert_eq!(sum.with_bytes_exchanged().fold() % 0xffff, expected % 0xffff);
        }

        #[test]
        fn every_sum_below_the_bound_folds(sum in 0..1u64 << 48) {
            let expected = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff));
            prop_assert_eq!(u64::from(Sum(sum).fold()), expected);
        }

        #[test]
        fn an_address_keeps_its_bytes(bytes: [u8; 16], v4: [u8; 4]) {
            prop_assert_eq!(Address::from_bytes(&bytes).to_bytes(), bytes);
            let words = Address::from_bytes(&bytes).to_words().map(u32::to_ne_bytes);
            prop_assert_eq!(words.as_flattened(), &bytes);
            let mapped = Address::from_v4(v4);
            prop_assert_eq!(mapped.to_v4(), v4);
            prop_assert_eq!(mapped.to_bytes(), std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets());
            prop_assert_eq!(Sum::of_word(1).plus_address(mapped).fold(), Sum::of_word(1).plus_u32(u32::from_ne_bytes(v4)).fold());
        }
    }

    #[test]
    fn the_largest_sums_fold() {
        assert_eq!([0, 0xffff, 0x1_0000, (1 << 48) - 1].map(|sum| Sum(sum).fold()), [0, 0xffff, 1, 0xffff]);
        let largest = Address { high: u64::MAX, low: u64::MAX };
        let addresses = Sum::of_word(0).plus_address(largest).plus_address(largest);
        assert_eq!(Sum::of_word(7).minus_addresses(addresses).fold(), 7);
    }

    #[test]
    fn unicast_is_told_from_the_rest() {
        let of = |text: &str| {
            let ip: IpAddr = text.parse().unwrap();
            Address::of(&ip).is_unicast(Family::of(&ip))
        };
        assert!(["192.0.2.1", "255.255.255.254", "240.0.0.1", "2001:db8::1", "fe80::1"].into_iter().all(of));
        assert!(!["224.0.0.1", "239.1.2.3", "255.255.255.255", "ff02::1"].into_iter().any(of));
    }
}
