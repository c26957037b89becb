//! Servers that ask us in turn, and what is said of them.

use std::fmt;
use std::net::SocketAddr;

/// Servers of the host that ask us in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeadingBack {
    /// Which.
    pub servers: Vec<SocketAddr>,
    /// Who is asked then.
    pub instead: Instead,
}

/// Who is asked in the place of servers that ask us in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// The host has others, or these ask others besides us.
    Others,
    /// There is no other; those that the host had before.
    Earlier,
    /// There is no other, and none before.
    Nobody,
}

impl fmt::Display for LeadingBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(|server| server.ip().to_string()).collect();
        let (servers, several) = (servers.join(" and "), self.servers.len() > 1);
        let (ask, them) = if several { ("ask", "them") } else { ("asks", "it") };
        let so = match self.instead {
            Instead::Others => "and others are asked first",
            Instead::Earlier => "and there is no other: those that the host had before are asked",
            Instead::Nobody => "and there is no other: names outside the overlay do not resolve",
        };
        write!(
            f,
            "the host's DNS server {servers} {ask} this agent in turn, {so}; give {them} other servers to ask (dnsmasq: `no-resolv` and \
             `server=`)"
        )
    }
}
