//! Kinds of paths.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What kind of path leads to an address, the best first. As RFC 8445 §5.1.2 has it, a path without a NAT
/// comes before one with, and a relay is the last resort; of two kinds without, the one comes first that is
/// likelier to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum Class {
    /// IPv6: nobody's address is translated.
    Ipv6,
    /// An IPv4 address that is only good within one site.
    Site,
    /// A public IPv4 address, of a host or a NAT.
    Internet,
    /// A TRS.
    Relay,
}

impl Class {
    pub(super) fn of(remote: &SocketAddr) -> Self {
        match remote.ip() {
            IpAddr::V6(_) => Self::Ipv6,
            IpAddr::V4(ip) if ip.is_private() || is_shared(ip) => Self::Site,
            IpAddr::V4(_) => Self::Internet,
        }
    }
}

/// Carrier-grade NATs' inner side (RFC 6598).
const fn is_shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && b & 0xc0 == 64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn kinds_of_paths_come_in_order() {
        let order = ["[2001:db8::1]:1", "192.168.1.2:1", "198.51.100.1:1"].map(|a| Class::of(&at(a)));
        assert_eq!(order, [Class::Ipv6, Class::Site, Class::Internet]);
        assert!(order.is_sorted() && Class::Internet < Class::Relay);
        assert_eq!(Class::of(&at("100.64.0.1:1")), Class::Site);
        assert_eq!(Class::of(&at("100.128.0.1:1")), Class::Internet);
    }
}
