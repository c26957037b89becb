//! Endpoints: from the wire to addresses that may be used.
//!
//! Addresses are canonical (`::ffff:192.0.2.1` becomes `192.0.2.1`) before they are filtered, so that no
//! filter is passed in disguise. A peer's addresses come from another device: packets to them must not reach
//! this host's own services or link, nor every host at once (RFC 9000 §21.5.3), nor loop back into the
//! overlay.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Endpoint, Observation};
use crate::address::Prefix;

/// Most endpoints taken from one list; the rest are ignored. As many as go into a tunnel's list of
/// candidates.
pub const MAX_ENDPOINTS: usize = cyphonic_common::frame::MAX_CANDIDATES;

/// The address in its canonical form, without scope and flow.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The endpoint of an address.
pub fn to_wire(address: SocketAddr) -> Endpoint {
    let address = canonical(address);
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    Endpoint { address: bytes, port: u32::from(address.port()) }
}

/// The endpoints of addresses.
pub fn list_to_wire(addresses: &[SocketAddr]) -> Vec<Endpoint> {
    addresses.iter().take(MAX_ENDPOINTS).copied().map(to_wire).collect()
}

/// The canonical address of an endpoint; `None` where it has no such form.
pub fn from_wire(endpoint: &Endpoint) -> Option<SocketAddr> {
    let ip = match endpoint.address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(endpoint.address.as_slice()).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(endpoint.address.as_slice()).ok()?),
        _ => return None,
    };
    let port = u16::try_from(endpoint.port).ok().filter(|port| *port != 0)?;
    Some(canonical(SocketAddr::new(ip, port)))
}

/// The addresses of a service, as an authenticated service told them: any unicast address will do.
pub fn services_from_wire(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    collect(endpoints, is_unicast)
}

/// A service's canonical name and its addresses; `None` without a valid name or any address.
pub(crate) fn service_from_wire(name: &str, endpoints: &[Endpoint]) -> Option<(String, Vec<SocketAddr>)> {
    let (name, addresses) = (crate::name::canonical(name).ok()?, services_from_wire(endpoints));
    (!addresses.is_empty()).then_some((name, addresses))
}

/// The addresses of a peer: those that may be dialled and probed. `overlay` is excluded.
pub fn peers_from_wire(endpoints: &[Endpoint], overlay: Prefix) -> Vec<SocketAddr> {
    collect(endpoints, |address| is_candidate(address, overlay))
}

/// The (server, observed) pairs of a list.
pub fn observations_from_wire(list: &[Observation], overlay: Prefix) -> Vec<(SocketAddr, SocketAddr)> {
    let pair = |o: &Observation| Some((from_wire(o.server.as_ref()?)?, from_wire(o.observed.as_ref()?)?));
    list.iter()
        .take(MAX_ENDPOINTS)
        .filter_map(pair)
        .filter(|(_, observed)| is_candidate(observed.ip(), overlay))
        .collect()
}

/// Whether one device may give this address to another as its own.
pub fn is_candidate(ip: IpAddr, overlay: Prefix) -> bool {
    let ip = ip.to_canonical();
    let local = match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unicast_link_local() || overlay.contains(v6) || embeds_v4(v6)
        }
    };
    is_unicast(ip) && !local
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] >= 240)
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    }
}

/// IPv4-compatible addresses (RFC 4291 §2.5.5.1, deprecated) are a way round the IPv4 filters.
fn embeds_v4(ip: Ipv6Addr) -> bool {
    ip.segments().iter().take(6).all(|segment| *segment == 0)
}

fn collect(endpoints: &[Endpoint], allowed: impl Fn(IpAddr) -> bool) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in endpoints.iter().take(MAX_ENDPOINTS).filter_map(from_wire) {
        if allowed(address.ip()) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overlay() -> Prefix {
        "fd00:1:2::/48".parse().unwrap()
    }

    #[test]
    fn a_peer_cannot_give_an_address_that_is_not_its_own_to_give() {
        for bad in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "169.254.1.1",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "250.1.1.1",
            "::127.0.0.1",
            "fd00:1:2::7",
            "::ffff:169.254.0.1",
        ] {
            assert!(!is_candidate(bad.parse().unwrap(), overlay()), "{bad}");
        }
        for good in ["192.0.2.1", "10.1.2.3", "192.168.1.1", "2001:db8::1", "fd00:1:3::7", "100.64.0.1"] {
            assert!(is_candidate(good.parse().unwrap(), overlay()), "{good}");
        }
    }

    #[test]
    fn endpoints_without_a_port_or_with_odd_lengths_are_dropped() {
        let odd = [
            Endpoint { address: vec![192, 0, 2, 1], port: 0 },
            Endpoint { address: vec![192, 0, 2, 1], port: 65_536 },
            Endpoint { address: vec![192, 0, 2], port: 1 },
            Endpoint { address: vec![], port: 1 },
        ];
        assert!(services_from_wire(&odd).is_empty());
    }

    proptest! {
        #[test]
        fn an_address_survives_the_wire_in_canonical_form(address: SocketAddr) {
            prop_assume!(address.port() != 0);
            prop_assert_eq!(from_wire(&to_wire(address)), Some(canonical(address)));
        }

        #[test]
        fn lists_are_bounded(list in prop::collection::vec((any::<[u8; 4]>(), 1..65_535u32), 0..64)) {
            let list: Vec<_> = list.iter().map(|(a, port)| Endpoint { address: a.to_vec(), port: *port }).collect();
            prop_assert!(peers_from_wire(&list, overlay()).len() <= MAX_ENDPOINTS);
        }
    }
}
