//! Where the cloud is: as it is written, and as it is found.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Instant;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::complaints::Complaints;
use cyphonic_transport::settings::written;

/// The port of AS, NMS and TRS where none is named: firewalls let QUIC's through.
pub const DEFAULT_CLOUD_PORT: u16 = 443;

/// Host (name or address) and port of a cloud service.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct CloudAddress {
    host: String,
    port: u16,
}

impl CloudAddress {
    /// The host's name, or its address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its socket address, where the host is an address and no name.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Whether it needs no look-up.
    pub fn is_literal(&self) -> bool {
        self.literal().is_some()
    }

    /// Its socket addresses now: one for a literal address, else what the host's resolver answers.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

/// The socket addresses of all `cloud` entries, in order, without duplicates. Names that do not resolve now
/// are left out and logged, once for as long as they do not: another entry may work.
pub(crate) async fn resolve_all(
    cloud: &[CloudAddress],
    complaints: &mut Complaints<CloudAddress>,
) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for entry in cloud {
        match entry.resolve().await {
            Ok(addresses) => {
                if complaints.settle(entry) {
                    tracing::info!(cloud = %entry, "the cloud's name can be resolved again");
                }
                for address in addresses {
                    if !found.contains(&address) {
                        found.push(address);
                    }
                }
            }
            Err(error) if complaints.is_news(Instant::now(), entry.clone(), &error.to_string()) => {
                tracing::warn!(cloud = %entry, %error, "cannot resolve the cloud's name");
            }
            Err(error) => tracing::debug!(cloud = %entry, %error, "cannot resolve the cloud's name"),
        }
    }
    found
}

impl FromStr for CloudAddress {
    type Err = InvalidCloudAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCloudAddress(text.chars().take(80).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(invalid()),
                port => Ok(Self { host: address.ip().to_string(), port }),
            };
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self { host: ip.to_string(), port: DEFAULT_CLOUD_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|&port| port != 0).ok_or_else(invalid)?),
            None => (text, DEFAULT_CLOUD_PORT),
        };
        if is_host_name(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(invalid()) }
    }
}

fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

impl fmt::Display for CloudAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for CloudAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for CloudAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
    }
}

impl From<CloudAddress> for String {
    fn from(address: CloudAddress) -> Self {
        address.to_string()
    }
}

/// Not `HOST`, `HOST:PORT`, `ADDRESS:PORT` or `[IPV6]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cloud address: write HOST, HOST:PORT, 192.0.2.1:443 or [2001:db8::1]:443")]
pub struct InvalidCloudAddress(String);

#[cfg(test)]
mod tests {
    use super::*;

    /// What `cloud:` may be followed by.
    fn list(yaml: &str) -> Vec<CloudAddress> {
        written::one_or_many(serde_yaml::Deserializer::from_str(yaml)).unwrap()
    }

    #[test]
    fn only_names_have_to_be_looked_up() {
        let cloud = list("[192.0.2.1, '[2001:db8::1]:4433', cloud.example]");
        let literal: Vec<_> = cloud.iter().map(|c| c.literal().map(|address| address.to_string())).collect();
        assert_eq!(literal, [Some("192.0.2.1:443".into()), Some("[2001:db8::1]:4433".into()), None]);
    }

    #[test]
    fn cloud_addresses_have_every_usual_form() {
        for (text, shown) in [
            ("cloud.example", "cloud.example:443"),
            ("cloud.example:8443", "cloud.example:8443"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            assert_eq!(list(&format!("'{text}'"))[0].to_string(), shown);
        }
        assert_eq!(list("[a, b]").len(), 2);
    }
}
