//! From what was seen to what it means (RFC 5780 §4.3, §4.4).

use std::net::SocketAddr;

use super::{Filtering, Mapping};

/// How a NAT maps, from what servers saw of one port: (server, observed).
pub(super) fn mapping(seen: &[(SocketAddr, SocketAddr)]) -> Mapping {
    let pairs = || seen.iter().enumerate().flat_map(|(n, a)| seen.iter().skip(n + 1).map(move |b| (a, b)));
    let one_address = || pairs().filter(|(a, b)| a.0.ip() == b.0.ip() && a.0 != b.0);
    let two_addresses = || pairs().filter(|(a, b)| a.0.ip() != b.0.ip());
    let differ = |(a, b): (&(_, SocketAddr), &(_, SocketAddr))| a.1 != b.1;
    if one_address().any(differ) {
        Mapping::AddressAndPortDependent
    } else if two_addresses().any(differ) {
        Mapping::AddressDependent
    } else if two_addresses().next().is_some() {
        Mapping::EndpointIndependent
    } else if one_address().next().is_some() {
        Mapping::NotPortDependent
    } else {
        Mapping::Unknown
    }
}

/// The more dependent of two, as each may have seen less than the other.
pub(super) fn worse_mapping(a: Mapping, b: Mapping) -> Mapping {
    let rank = |mapping| match mapping {
        Mapping::Unknown | Mapping::NoNat => 0,
        Mapping::NotPortDependent => 1,
        Mapping::EndpointIndependent => 2,
        Mapping::AddressDependent => 3,
        Mapping::AddressAndPortDependent => 4,
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// What became of a packet from a place that nothing was sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Passage {
    /// Not tried, or not to be told from loss.
    #[default]
    Unknown,
    /// It came in.
    Passed,
    /// It did not, though the place answers when asked.
    Blocked,
}

/// Whom a NAT or firewall lets in, by what became of packets from another port and from another address.
pub(super) fn filtering(other_port: Passage, other_address: Passage) -> Filtering {
    match (other_port, other_address) {
        (_, Passage::Passed) => Filtering::EndpointIndependent,
        (Passage::Passed, Passage::Blocked) => Filtering::AddressDependent,
        (Passage::Passed, Passage::Unknown) => Filtering::NotPortDependent,
        (Passage::Blocked, _) | (Passage::Unknown, Passage::Blocked) => Filtering::AddressAndPortDependent,
        (Passage::Unknown, Passage::Unknown) => Filtering::Unknown,
    }
}

/// By how much the outer port grew from each destination to the next, if always by the same.
pub(super) fn port_delta(seen: &[(SocketAddr, SocketAddr)]) -> Option<i32> {
    let port = |(_, observed): &(SocketAddr, SocketAddr)| i32::from(observed.port());
    let mut deltas = seen.windows(2).filter_map(|pair| match pair {
        [a, b] => Some(port(b) - port(a)),
        _ => None,
    });
    let first = deltas.next().filter(|delta| *delta != 0)?;
    // Two destinations make one delta, which is no pattern.
    (seen.len() > 2 && deltas.all(|delta| delta == first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pairs: &[(&str, u16)]) -> Vec<(SocketAddr, SocketAddr)> {
        let observed = |port| SocketAddr::from(([203, 0, 113, 1], port));
        pairs.iter().map(|(server, port)| (server.parse().unwrap(), observed(*port))).collect()
    }

    #[test]
    fn mapping_is_told_by_what_changes_it() {
        let (a, b, c) = ("192.0.2.1:443", "192.0.2.1:3479", "192.0.2.2:443");
        assert_eq!(mapping(&seen(&[(a, 1)])), Mapping::Unknown);
        assert_eq!(mapping(&seen(&[(a, 1), (a, 1)])), Mapping::Unknown);
        assert_eq!(mapping(&seen(&[(a, 1), (b, 1)])), Mapping::NotPortDependent);
        assert_eq!(mapping(&seen(&[(a, 1), (b, 1), (c, 1)])), Mapping::EndpointIndependent);
        assert_eq!(mapping(&seen(&[(a, 1), (b, 1), (c, 2)])), Mapping::AddressDependent);
        assert_eq!(mapping(&seen(&[(a, 1), (b, 2), (c, 3)])), Mapping::AddressAndPortDependent);
        assert_eq!(mapping(&seen(&[(a, 1), (b, 2)])), Mapping::AddressAndPortDependent);
    }

    #[test]
    fn filtering_is_open_only_where_another_address_came_in() {
        use Passage::{Blocked, Passed, Unknown};
        assert_eq!(filtering(Unknown, Passed), Filtering::EndpointIndependent);
        assert_eq!(filtering(Passed, Blocked), Filtering::AddressDependent);
        assert_eq!(filtering(Passed, Unknown), Filtering::NotPortDependent);
        assert_eq!(filtering(Blocked, Blocked), Filtering::AddressAndPortDependent);
        assert_eq!(filtering(Unknown, Unknown), Filtering::Unknown);
    }

    #[test]
    fn ports_that_grow_evenly_are_predictable() {
        let (a, b, c) = ("192.0.2.1:443", "192.0.2.1:3479", "192.0.2.2:443");
        assert_eq!(port_delta(&seen(&[(a, 7000), (b, 7002), (c, 7004)])), Some(2));
        assert_eq!(port_delta(&seen(&[(a, 7000), (b, 7002), (c, 7005)])), None);
        assert_eq!(port_delta(&seen(&[(a, 7000), (b, 7000), (c, 7000)])), None);
        assert_eq!(port_delta(&seen(&[(a, 7000), (b, 7001)])), None);
    }
}
