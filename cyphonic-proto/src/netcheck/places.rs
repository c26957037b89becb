//! The places that a probe asks: addresses and ports of servers, relative to the first one that answered.

use std::net::SocketAddr;

/// A server that answered: where it is, and its other place (RFC 5780 §7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) at: SocketAddr,
    pub(super) other: Option<SocketAddr>,
}

/// Where a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// The server to which fresh ports send first.
    pub(super) home: SocketAddr,
    /// Its address, another port.
    pub(super) other_port: Option<SocketAddr>,
    /// Another address: of the same server, or of another one.
    pub(super) other_address: Option<SocketAddr>,
    /// Where the home answers from when asked to change both; an address that the node's own port never
    /// sends to.
    pub(super) changed: Option<SocketAddr>,
}

impl Places {
    /// Picks among the servers that answered, in the order in which they were to be asked.
    pub(super) fn pick(answered: &[Server]) -> Option<Self> {
        let has_port = |server: &&Server| server.other.is_some_and(|other| other.port() != server.at.port());
        let home = answered.iter().find(has_port).or_else(|| answered.first())?;
        let (at, other) = (home.at, home.other.filter(|other| other.is_ipv4() == home.at.is_ipv4()));
        let elsewhere = |address: &SocketAddr| address.ip() != at.ip();
        let other_port = other.filter(|other| other.port() != at.port());
        let alternate = other.filter(elsewhere);
        let another = answered.iter().map(|server| server.at).find(elsewhere);
        Some(Self {
            home: at,
            other_port: other_port.map(|other| SocketAddr::new(at.ip(), other.port())),
            other_address: another.or_else(|| alternate.map(|other| SocketAddr::new(other.ip(), at.port()))),
            // One of the services' own addresses may have been sent to.
            changed: alternate.filter(|other| answered.iter().all(|server| server.at.ip() != other.ip())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(at: &str, other: Option<&str>) -> Server {
        Server { at: at.parse().unwrap(), other: other.map(|other| other.parse().unwrap()) }
    }

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_server_with_all_four_places_is_enough() {
        let places = Places::pick(&[server("192.0.2.1:443", Some("192.0.2.2:3479"))]).unwrap();
        assert_eq!(places.other_port, at("192.0.2.1:3479"));
        assert_eq!(places.other_address, at("192.0.2.2:443"));
        assert_eq!(places.changed, at("192.0.2.2:3479"));
    }

    #[test]
    fn another_service_is_another_address() {
        let servers = [server("192.0.2.1:443", None), server("192.0.2.9:443", Some("192.0.2.9:3479"))];
        let places = Places::pick(&servers).unwrap();
        assert_eq!(places.home, servers[1].at, "the one with another port");
        assert_eq!((places.other_address, places.changed), (at("192.0.2.1:443"), None));
    }

    #[test]
    fn an_alternate_that_is_a_service_of_its_own_proves_nothing_of_the_nodes_port() {
        let servers = [server("192.0.2.1:443", Some("192.0.2.9:3479")), server("192.0.2.9:443", None)];
        assert_eq!(Places::pick(&servers).unwrap().changed, None);
        assert_eq!(Places::pick(&[]), None);
    }
}
