//! Virtual addresses.
//!
//! Each network has a random /48 out of fd00::/8 (RFC 4193). A device's address is that prefix and 80 bits of
//! a hash over network and name: it stays the same for life, through re-enrolment and loss of every database,
//! and anyone who knows the name can recompute it. So neither NMS nor AS can move a name to another address
//! unnoticed. 80 bits of SHA-256 do not collide by accident (2^40 devices for an even chance).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use ring::digest;
use thiserror::Error;

use crate::identity::NetworkId;

const LABEL: &[u8] = b"cyphonic virtual address v1";

/// A network's /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix([u8; 6]);

/// Why a text or address is no prefix of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// No IPv6 address, a slash and 48.
    #[error("a network's prefix is written like fd12:3456:789a::/48")]
    Syntax,
    /// Outside fd00::/8 (RFC 4193 §3.1).
    #[error("a network's prefix must lie in fd00::/8, as RFC 4193 asks of locally assigned ones")]
    NotLocal,
    /// Bits beyond the 48th are set.
    #[error("a network's prefix has nothing but zeros after its first 48 bits")]
    HostBits,
}

impl Prefix {
    /// Length in bits.
    pub const LENGTH: u8 = 48;

    /// The prefix that starts at `address`.
    ///
    /// # Errors
    /// Where the address is outside fd00::/8 or has bits beyond the 48th.
    pub fn new(address: Ipv6Addr) -> Result<Self, PrefixError> {
        let prefix = Self::of(address);
        if address.octets()[0] != 0xfd {
            return Err(PrefixError::NotLocal);
        }
        if prefix.address() == address { Ok(prefix) } else { Err(PrefixError::HostBits) }
    }

    /// The prefix made of 40 random bits (RFC 4193 §3.2).
    pub const fn from_random(random: [u8; 5]) -> Self {
        let [a, b, c, d, e] = random;
        Self([0xfd, a, b, c, d, e])
    }

    /// The first 48 bits of `address`.
    pub const fn of(address: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, ..] = address.octets();
        Self([a, b, c, d, e, f])
    }

    /// The prefix with zeros after it.
    pub const fn address(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Whether `address` belongs to the network.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        Self::of(address) == self
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), Self::LENGTH)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let address = text.strip_suffix("/48").ok_or(PrefixError::Syntax)?;
        Self::new(address.parse().map_err(|_| PrefixError::Syntax)?)
    }
}

/// The address of the device called `fqdn` (any case) in the network.
pub fn virtual_address(prefix: Prefix, network: NetworkId, fqdn: &str) -> Ipv6Addr {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(LABEL);
    hash.update(&network.0);
    hash.update(fqdn.to_ascii_lowercase().as_bytes());
    let mut octets = prefix.address().octets();
    for (octet, byte) in octets.iter_mut().skip(6).zip(hash.finish().as_ref()) {
        *octet = *byte;
    }
    Ipv6Addr::from_octets(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_depends_on_network_and_name_alone() {
        let prefix: Prefix = "fd12:3456:789a::/48".parse().unwrap();
        let network = NetworkId([7; 16]);
        let address = virtual_address(prefix, network, "press-7.plant.cyphonic.internal");
        assert!(prefix.contains(address));
        assert_eq!(address, virtual_address(prefix, network, "PRESS-7.plant.cyphonic.internal"));
        assert_ne!(address, virtual_address(prefix, network, "press-8.plant.cyphonic.internal"));
        assert_ne!(address, virtual_address(prefix, NetworkId([8; 16]), "press-7.plant.cyphonic.internal"));
    }

    /// Computed once with `sha256sum`; another result would move every device of every network.
    #[test]
    fn the_address_never_changes_between_versions() {
        let prefix = Prefix::new("fd00:1:2::".parse().unwrap()).unwrap();
        let address = virtual_address(prefix, NetworkId([0; 16]), "a.lab");
        assert_eq!(address, "fd00:1:2:3990:4c62:865c:715:21db".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_prefix_is_local_and_has_no_host_bits() {
        assert_eq!("fd00:1:2::/48".parse::<Prefix>().unwrap().to_string(), "fd00:1:2::/48");
        assert_eq!("fd00:1:2::/64".parse::<Prefix>(), Err(PrefixError::Syntax));
        assert_eq!("fd00:1:2:3::/48".parse::<Prefix>(), Err(PrefixError::HostBits));
        assert_eq!("2001:db8::/48".parse::<Prefix>(), Err(PrefixError::NotLocal));
    }
}
