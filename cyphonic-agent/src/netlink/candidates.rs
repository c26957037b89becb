//! Which of the host's addresses a peer may try, and in which order. Pure.

use std::net::IpAddr;

use cyphonic_proto::address::Prefix;
use cyphonic_proto::message::endpoint::{MAX_ENDPOINTS, is_candidate};

/// Filters, sorts (public before private, IPv6 before IPv4 within each, else the kernel's order) and bounds.
pub(super) fn choose(addresses: impl IntoIterator<Item = IpAddr>, overlay: Prefix) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let address = address.to_canonical();
        if is_candidate(address, overlay) && !chosen.contains(&address) {
            chosen.push(address);
        }
    }
    chosen.sort_by_key(|address| (is_private(*address), address.is_ipv4()));
    chosen.truncate(MAX_ENDPOINTS);
    chosen
}

fn is_private(address: IpAddr) -> bool {
    match address {
        // RFC 1918, and RFC 6598's space between a provider and its customers.
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usable_addresses_in_order() {
        let all = [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "fd12:3456:789a::7",
            "192.168.1.2",
            "::ffff:127.0.0.1",
            "100.64.0.9",
            "198.51.100.7",
            "fd99::1",
            "2001:db8::5",
            "192.168.1.2",
        ];
        let chosen =
            choose(all.iter().map(|text| text.parse().unwrap()), "fd12:3456:789a::/48".parse().unwrap());
        let shown: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["2001:db8::5", "198.51.100.7", "fd99::1", "192.168.1.2", "100.64.0.9"]);
    }

    #[test]
    fn the_list_is_bounded() {
        let many = (0..200u8).map(|i| IpAddr::from([198, 51, 100, i]));
        assert_eq!(choose(many, "fd12:3456:789a::/48".parse().unwrap()).len(), MAX_ENDPOINTS);
    }
}
