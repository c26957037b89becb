//! What observations tell about a NAT.
//!
//! A node asks several servers from which address they see it. RFC 5780 §4.3 compares answers of different
//! servers to learn the mapping behaviour (RFC 4787 §4.1). Filtering cannot be learnt this way, so the
//! finding is a hint for the order of attempts, never a proof that one will work.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::V6, Self::V4];

    /// The family of an address in canonical form.
    pub const fn of(address: &SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// How a node's own address looks from outside, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatFinding {
    /// The node has no usable address of this family, and no server saw one.
    NoAddress,
    /// Servers saw one of the node's own addresses: no NAT, though perhaps a firewall.
    None,
    /// Two servers or more saw the same address: endpoint-independent mapping, which punching needs.
    EndpointIndependent,
    /// Servers saw different addresses: address-dependent mapping ("symmetric").
    AddressDependent,
    /// The node has an address, but too few servers saw it to tell.
    Unknown,
}

impl NatFinding {
    /// The finding in a person's words, to follow "is".
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::NoAddress => "without an address of this family",
            Self::None => "not behind a NAT",
            Self::EndpointIndependent => "behind a NAT with endpoint-independent mapping",
            Self::AddressDependent => "behind a symmetric NAT",
            Self::Unknown => "behind a NAT of unknown kind",
        }
    }
}

impl fmt::Display for NatFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "no address",
            Self::None => "no NAT",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::Unknown => "unknown",
        })
    }
}

/// The finding for one family from a node's own addresses and the (server, observed) pairs.
pub fn find(family: Family, own: &[SocketAddr], observations: &[(SocketAddr, SocketAddr)]) -> NatFinding {
    let seen: Vec<_> = observations.iter().filter(|(_, observed)| Family::of(observed) == family).collect();
    let Some((first_server, first)) = seen.first() else {
        return if own.iter().any(|address| may_send(family, address)) {
            NatFinding::Unknown
        } else {
            NatFinding::NoAddress
        };
    };
    if seen.iter().all(|(_, observed)| own.contains(observed)) {
        return NatFinding::None;
    }
    if seen.iter().any(|(_, observed)| observed != first) {
        return NatFinding::AddressDependent;
    }
    match seen.iter().any(|(server, _)| server != first_server) {
        true => NatFinding::EndpointIndependent,
        false => NatFinding::Unknown,
    }
}

/// Whether `seen`, by another server, is of no more use once a server that saw `before` sees `now`: the NAT has
/// a new mapping, or another NAT is in its place. Mixed with what is seen since, it would look like a
/// symmetric NAT, and some servers are not asked again for long.
pub fn is_outdated(before: SocketAddr, now: SocketAddr, seen: SocketAddr) -> bool {
    let changed = before != now && before.is_ipv4() == now.is_ipv4();
    changed && (seen == before || (seen.ip() == before.ip() && now.ip() != before.ip()))
}

/// Whether a node can perhaps reach the Internet from an address that no server saw: any IPv4 address can,
/// through a NAT; of IPv6 only global unicast (RFC 4291 §2.5.4), as NATs for it are rare.
fn may_send(family: Family, address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(ip) => family == Family::V6 && ip.octets()[0] & 0xe0 == 0x20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn observations_tell_the_mapping_behaviour() {
        let own = [at("10.0.0.2:7000"), at("[2001:db8::2]:7000")];
        let (s1, s2) = (at("192.0.2.1:443"), at("192.0.2.2:443"));
        let (p1, p2) = (at("198.51.100.1:7000"), at("198.51.100.1:7001"));
        assert_eq!(find(Family::V4, &own, &[]), NatFinding::Unknown);
        assert_eq!(find(Family::V4, &own[1..], &[]), NatFinding::NoAddress);
        assert_eq!(find(Family::V6, &[at("[fd77::1]:7000")], &[]), NatFinding::NoAddress);
        assert_eq!(find(Family::V4, &own, &[(s1, own[0])]), NatFinding::None);
        assert_eq!(find(Family::V4, &own, &[(s1, p1)]), NatFinding::Unknown);
        assert_eq!(find(Family::V4, &own, &[(s1, p1), (s1, p1)]), NatFinding::Unknown);
        assert_eq!(find(Family::V4, &own, &[(s1, p1), (s2, p1)]), NatFinding::EndpointIndependent);
        assert_eq!(find(Family::V4, &own, &[(s1, p1), (s2, p2)]), NatFinding::AddressDependent);
        assert!(!is_outdated(p1, p1, p1), "nothing has changed");
        assert!(is_outdated(p1, p2, p1), "the only mapping is another one");
        assert!(!is_outdated(p1, p2, at("198.51.100.1:7002")), "a mapping for another server");
        let elsewhere = at("198.51.100.9:7000");
        assert!(is_outdated(p1, elsewhere, p2), "the NAT is another one");
        assert!(!is_outdated(p1, own[1], p1), "the NAT is there for the other family");
        assert!(!is_outdated(p1, elsewhere, elsewhere) && !is_outdated(p1, elsewhere, own[1]));
        let six = [(at("[2001:db8::1]:443"), own[1])];
        assert_eq!(find(Family::V6, &own, &six), NatFinding::None);
        assert_eq!(find(Family::V4, &own[1..], &six), NatFinding::NoAddress);
    }
}
