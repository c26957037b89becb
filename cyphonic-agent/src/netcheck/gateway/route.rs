//! Which gateway this host has, and whether a mapping there makes sense.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cyphonic_dataplane::udp::UdpPort;

/// The kernel's table of IPv4 routes.
const ROUTES: &str = "/proc/net/route";

/// The gateway, and this host's address towards it, where a mapping makes sense: only from private addresses.
pub(super) fn here(port: &UdpPort) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let gateway = gateway_of(&std::fs::read_to_string(ROUTES).ok()?)?;
    let source = port.source_for(SocketAddr::new(gateway.into(), crab_nat::GATEWAY_PORT)).ok()?;
    match source {
        IpAddr::V4(client) if is_translated(client) => Some((gateway, client)),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Private addresses (RFC 1918) and those of carriers' NATs (RFC 6598).
pub(super) const fn is_translated(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || (a == 100 && b & 0xc0 == 64)
}

/// The gateway of the default route with the least metric. The kernel writes addresses in hexadecimal, in its
/// own byte order.
fn gateway_of(routes: &str) -> Option<Ipv4Addr> {
    /// "The destination is a gateway", and "the route is usable" (route(8)).
    const USABLE: u32 = 0x2 | 0x1;
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let [destination, gateway, flags] = [fields.next()?, fields.next()?, fields.next()?];
        let metric: u32 = fields.nth(2)?.parse().ok()?;
        let mask = fields.next()?;
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let default = hex(destination)? == 0 && hex(mask)? == 0 && hex(flags)? & USABLE == USABLE;
        default.then_some((metric, Ipv4Addr::from(hex(gateway)?.to_ne_bytes())))
    };
    routes.lines().filter_map(route).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_least_metric_names_the_gateway() {
        let gateway = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let routes = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             wlan0\t00000000\t{}\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n",
            gateway([192, 168, 9, 1]),
            gateway([192, 168, 1, 1])
        );
        assert_eq!(gateway_of(&routes), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(gateway_of(""), None);
        assert_eq!(gateway_of("a b\nc\t00000000\tzz\t3\t0\t0\t0\t0\n"), None);
    }

    #[test]
    fn only_translated_addresses_are_worth_a_mapping() {
        for (ip, worth) in
            [([10, 0, 0, 1], true), ([100, 64, 0, 1], true), ([100, 128, 0, 1], false), ([8, 8, 8, 8], false)]
        {
            assert_eq!(is_translated(ip.into()), worth, "{ip:?}");
        }
    }
}
