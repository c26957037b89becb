//! Servers that ask us in turn, and what is said of them.

use std::fmt;
use std::net::SocketAddr;

/// Servers of the host that ask us in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeadingBack {
    /// Which.
    pub servers: Vec<SocketAddr>,
    /// There is no other, and nobody whom they ask besides us: nobody is asked.
    pub all: bool,
}

impl fmt::Display for LeadingBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(|server| server.ip().to_string()).collect();
        let (servers, several) = (servers.join(" and "), self.servers.len() > 1);
        let (ask, them) = if several { ("ask", "them") } else { ("asks", "it") };
        let so = if self.all {
            "and there is no other: names outside the overlay do not resolve"
        } else {
            "and others are asked first"
        };
        write!(
            f,
            "the host's DNS server {servers} {ask} this agent in turn, {so}; give {them} other servers to ask (dnsmasq: `no-resolv` and \
             `server=`)"
        )
    }
}
