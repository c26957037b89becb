//! The `stun` section: from where devices' questions about their networks are answered.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::value;

/// The port beside STUN's own (RFC 5780 §10.1 leaves it to the server).
const DEFAULT_ALTERNATE_PORT: u16 = 3479;

/// The second addresses and ports of the STUN server, which tell a device more of its NAT (RFC 5780).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StunConfig {
    /// The other port: 0 is none. Unset is 3479 if that is free; set, it must be.
    pub alternate_port: Option<u16>,
    /// Further addresses of this host, at most one of each IP version.
    #[serde(deserialize_with = "value::ips")]
    pub alternate_addresses: Vec<IpAddr>,
}

impl StunConfig {
    /// The other port, if there shall be one, and whether it must be had.
    pub fn port(&self) -> Option<(u16, bool)> {
        let port = self.alternate_port.unwrap_or(DEFAULT_ALTERNATE_PORT);
        (port != 0).then_some((port, self.alternate_port.is_some()))
    }

    /// What does not go together with the addresses that are listened on and told to devices.
    pub(super) fn check(
        &self,
        listen: &[SocketAddr],
        public: &[SocketAddr],
    ) -> Result<(), (&'static str, String)> {
        if let Some((port, true)) = self.port()
            && listen.iter().any(|address| address.port() == port)
        {
            return Err(("stun.alternate_port", format!("the services listen on port {port} already")));
        }
        let key = "stun.alternate_addresses";
        for version in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if self.alternate_addresses.iter().filter(|ip| version(ip)).count() > 1 {
                return Err((key, "at most one address of each IP version".to_owned()));
            }
        }
        let used = |ip: &&IpAddr| listen.iter().chain(public).any(|address| address.ip() == **ip);
        match self.alternate_addresses.iter().find(used) {
            Some(ip) => Err((key, format!("{ip} is the services' own address: name another one"))),
            None => Ok(()),
        }
    }
}
