//! IPv4 addresses as the hosts behind a translator from IPv6 (NAT64, RFC 6146) write them: within its prefix
//! (RFC 6052).
//!
//! A host that has IPv6 alone reaches IPv4 by sending to such addresses, and hears from IPv4 from such. Which
//! prefix its network's translator has, somebody else finds out (RFC 7050); here is only the arithmetic, both
//! ways, and which addresses it is for.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::NonZeroU64;

/// The IPv4 addresses of `ipv4only.arpa`, by which a prefix is recognised (RFC 7050 §2.2). Nobody has them.
pub const WELL_KNOWN_ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// 64:ff9b::, whose length is 96 (RFC 6052 §2.1).
const WELL_KNOWN_HIGH: u64 = 0x0064_ff9b_0000_0000;

/// The lengths that there are (RFC 6052 §2.2), the most common one first.
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// Bits 64 to 71, which are zero in all of these addresses (RFC 6052 §2.2).
const RESERVED: u128 = 0xff << 56;

/// A translator's prefix.
///
/// Two words, so that it can be kept in atomic ones: the address's first 64 bits, and its next 32 bits above
/// the length. Where the length is 64 or less those 32 bits are zero. The second word is therefore never
/// zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nat64Prefix {
    high: u64,
    low: NonZeroU64,
}

impl Nat64Prefix {
    /// A prefix of this length; none unless it is one that RFC 6052 §2.2 allows, with no bit set after it nor
    /// in bits 64 to 71, and of unicast addresses that routers forward (so never that of IPv4-mapped
    /// ones, which mean IPv4 itself).
    pub const fn new(address: Ipv6Addr, length: u8) -> Option<Self> {
        let bits = address.to_bits();
        let allowed = matches!(length, 32 | 40 | 48 | 56 | 64 | 96);
        let first = address.segments()[0];
        let forwarded = first != 0 && first & 0xffc0 != 0xfe80 && first & 0xff00 != 0xff00;
        if !allowed || !forwarded || bits & RESERVED != 0 || bits & !mask(length) != 0 {
            return None;
        }
        match NonZeroU64::new((bits as u64) | length as u64) {
            Some(low) => Some(Self { high: (bits >> 64) as u64, low }),
            None => None,
        }
    }

    /// The one prefix that `ipv4only.arpa`'s AAAA records speak of (RFC 7050 §3): the addresses in them are
    /// the well-known ones. Where one of these stands at two places of an address, the place counts where
    /// another record has the other.
    pub fn from_well_known(answers: impl IntoIterator<Item = Ipv6Addr> + Clone) -> Option<Self> {
        let found = |answer: Ipv6Addr| {
            LENGTHS.into_iter().filter_map(move |length| {
                let prefix = Self::new(Ipv6Addr::from_bits(answer.to_bits() & mask(length)), length)?;
                let ip = prefix.extract(answer)?;
                WELL_KNOWN_ADDRESSES.contains(&ip).then_some((prefix, ip))
            })
        };
        let all = || answers.clone().into_iter().flat_map(found);
        let confirmed = |prefix, ip| all().any(|(other, other_ip)| other == prefix && other_ip != ip);
        let both = all().find(|(prefix, ip)| confirmed(*prefix, *ip));
        let clear = || {
            let mut clear = answers.clone().into_iter().filter(|answer| found(*answer).count() == 1);
            clear.find_map(|answer| found(answer).next())
        };
        both.or_else(clear).map(|(prefix, _)| prefix)
    }

    /// The words it consists of.
    pub const fn to_words(self) -> [u64; 2] {
        [self.high, self.low.get()]
    }

    /// The prefix of words that [`to_words`](Self::to_words) gave; none of words that it never gives.
    pub const fn from_words([high, low]: [u64; 2]) -> Option<Self> {
        let bits = ((high as u128) << 64) | (low & !0xff) as u128;
        Self::new(Ipv6Addr::from_bits(bits), low as u8)
    }

    /// Its first address.
    pub const fn address(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.bits())
    }

    /// How many bits it has.
    pub const fn length(self) -> u8 {
        self.low.get() as u8
    }

    /// The address by which `ip` is reached through the translator; none where it is not to be.
    ///
    /// Not to be: what means this host, this link or many hosts; and, under the well-known prefix, private
    /// addresses (RFC 6052 §3.1), since that prefix is for what is the same everywhere.
    pub fn embed(self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        if !self.carries(ip) {
            return None;
        }
        let ip = u128::from(ip.to_bits());
        Some(Ipv6Addr::from_bits(
            self.bits()
                | match self.length() {
                    96 => ip,
                    length => {
                        // What has room before bit 64, and what comes after bit 71.
                        let rest = u32::from(length) - 32;
                        let low = ip & ((1 << rest) - 1);
                        ((ip >> rest) << 64) | (low << (56 - rest))
                    }
                },
        ))
    }

    /// The address that [`embed`](Self::embed) makes this one of; none where it does so of no address.
    pub fn extract(self, ip: Ipv6Addr) -> Option<Ipv4Addr> {
        let (bits, length) = (ip.to_bits(), self.length());
        if bits & mask(length) != self.bits() || (length != 96 && bits & RESERVED != 0) {
            return None;
        }
        let found = match length {
            96 => bits as u32,
            _ => {
                let rest = u32::from(length) - 32;
                // Nothing comes after the IPv4 address.
                if bits & ((1 << (56 - rest)) - 1) != 0 {
                    return None;
                }
                let low = (bits & ((1 << 56) - 1)) >> (56 - rest);
                (((bits >> 64) << rest) | low) as u32
            }
        };
        let found = Ipv4Addr::from_bits(found);
        self.carries(found).then_some(found)
    }

    /// Where a datagram to `remote` goes from a host that has IPv6 alone.
    pub fn outward(self, remote: SocketAddr) -> SocketAddr {
        match remote.ip() {
            IpAddr::V4(ip) => self.embed(ip).map_or(remote, |ip| SocketAddr::from((ip, remote.port()))),
            IpAddr::V6(_) => remote,
        }
    }

    /// Whom a datagram from `remote` comes from.
    pub fn inward(self, remote: SocketAddr) -> SocketAddr {
        match remote.ip() {
            IpAddr::V6(ip) => self.extract(ip).map_or(remote, |ip| SocketAddr::from((ip, remote.port()))),
            IpAddr::V4(_) => remote,
        }
    }

    const fn bits(self) -> u128 {
        ((self.high as u128) << 64) | (self.low.get() & !0xff) as u128
    }

    /// Both ways: a source that claims to be this host or its link through the translator is nobody's.
    fn carries(self, ip: Ipv4Addr) -> bool {
        let [a, b, ..] = ip.octets();
        let special = a == 0 || a >= 224 || ip.is_loopback() || ip.is_link_local();
        let private = || ip.is_private() || (a == 100 && b & 0xc0 == 64);
        !(special || self.is_well_known() && private())
    }

    const fn is_well_known(self) -> bool {
        self.high == WELL_KNOWN_HIGH && self.low.get() == 96
    }
}

impl fmt::Display for Nat64Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl fmt::Debug for Nat64Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first bits of an address. `length` is between 1 and 128.
const fn mask(length: u8) -> u128 {
    u128::MAX << (128 - length as u32)
}

#[cfg(test)]
mod tests;
