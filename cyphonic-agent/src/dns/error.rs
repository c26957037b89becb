//! Why a name could not be resolved, and how DNS says so.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Why [`super::Resolver::resolve`] could not set a tunnel up. The text is shown to people: one line of
/// English.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No device of the overlay has this name: NXDOMAIN.
    #[error("no device has this name")]
    NoSuchPeer,
    /// The device exists but is not connected.
    #[error("the device is offline: {0}")]
    PeerOffline(String),
    /// No route joins the two networks.
    #[error("no route to the device: {0}")]
    NoRoute(String),
    /// The NMS, or the peer itself, refused.
    #[error("refused: {0}")]
    Refused(String),
    /// This node is not connected to its cloud, so it cannot ask.
    #[error("not connected to the cloud: {0}")]
    NotConnected(String),
    /// Nobody said no, but the tunnel did not stand in time.
    #[error("the set-up timed out: {0}")]
    TimedOut(String),
    /// A limit of this node was reached.
    #[error("too many set-ups at once: {0}")]
    Overloaded(String),
    /// This node's own failure.
    #[error("internal failure: {0}")]
    Internal(String),
}

impl ResolveError {
    /// The Extended DNS Error's INFO-CODE (RFC 8914 section 4, IANA registry).
    pub fn info_code(&self) -> u16 {
        match self {
            // "Other": the name does not exist, which the response code already says.
            Self::NoSuchPeer | Self::Overloaded(_) | Self::Internal(_) => 0,
            // 4.15 "Not Ready": up, but not fully functional yet.
            Self::NotConnected(_) => 14,
            // 4.19 "Prohibited".
            Self::Refused(_) => 18,
            // 4.23 "No Reachable Authority".
            Self::PeerOffline(_) => 22,
            // 4.24 "Network Error".
            Self::NoRoute(_) | Self::TimedOut(_) => 23,
        }
    }
}

/// Why the DNS server could not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The listening address is taken or not allowed.
    #[error("cannot listen on {address} ({protocol}) for DNS: {source}; {}", way_out(*address, source, zone))]
    Bind {
        /// Where it should have listened.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// The zone that it should have served.
        zone: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whoever listens on port 53 of all addresses has every loopback address, too, and resolv.conf can name no
/// other port.
fn way_out(address: SocketAddr, source: &io::Error, zone: &str) -> String {
    if source.kind() != io::ErrorKind::AddrInUse {
        return "choose another address with `dns: listen:`".into();
    }
    if address.port() != 53 {
        return "another program has it: choose another port with `dns: listen:`".into();
    }
    format!(
        "another DNS server of this host has port 53, perhaps of all addresses: set `dns: {{ listen: {ANOTHER}, resolver: none }}` \
         and have that server ask there for the zone (dnsmasq, Pi-hole: `server=/{zone}/{}#{}`)",
        ANOTHER.ip(),
        ANOTHER.port(),
    )
}

/// No port of DNS's relatives: those of mDNS and LLMNR are often taken.
const ANOTHER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 55)), 5300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_port_already_decides_what_helps() {
        let said = |address: &str, kind: io::ErrorKind| {
            let (address, zone) = (address.parse().unwrap(), "cyphonic.internal".into());
            DnsError::Bind { address, protocol: "UDP", zone, source: kind.into() }.to_string()
        };
        let taken = said("127.0.0.55:53", io::ErrorKind::AddrInUse);
        assert!(taken.contains("`dns: { listen: 127.0.0.55:5300, resolver: none }`"), "{taken}");
        assert!(taken.contains("server=/cyphonic.internal/127.0.0.55#5300"), "{taken}");
        let again = said("127.0.0.55:5300", io::ErrorKind::AddrInUse);
        assert!(again.contains("another port") && !again.contains("resolver"), "{again}");
        let nowhere = said("127.0.0.55:53", io::ErrorKind::AddrNotAvailable);
        assert!(nowhere.contains("another address"), "{nowhere}");
    }
}
