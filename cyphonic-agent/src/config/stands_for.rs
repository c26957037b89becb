//! The machine without an agent for which this one stands, as it is written.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use cyphonic_proto::access::{Protocol, Service, Services};
use cyphonic_transport::settings::written;
use serde::{Deserialize, Serialize};

/// Each port is a socket that waits.
pub const MAX_OFFERED_PORTS: usize = 256;

/// A machine, and which of its services peers reach at this device's virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandsFor {
    /// Where the machine is, seen from this host.
    pub address: IpAddr,
    /// What it offers.
    #[serde(deserialize_with = "written::one_or_many", serialize_with = "written::texts")]
    pub services: Vec<Offer>,
}

/// A service of the machine, as `tcp/502`, `udp/5000-5010`, `tcp/2222:22`, or `ping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// This host answers pings.
    Ping,
    /// Ports of the machine, at the same numbers.
    Ports {
        /// TCP or UDP.
        protocol: Carried,
        /// The first port.
        first: u16,
        /// The last one.
        last: u16,
    },
    /// A port of the machine, at another number.
    Other {
        /// TCP or UDP.
        protocol: Carried,
        /// The number here.
        at: u16,
        /// The number there.
        to: u16,
    },
}

/// A protocol whose conversations are carried on to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Carried {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port here, and that of the machine to which it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfferedPort {
    /// TCP or UDP.
    pub protocol: Carried,
    /// Here.
    pub at: u16,
    /// There.
    pub to: u16,
}

impl StandsFor {
    /// Every port that is offered.
    pub fn ports(&self) -> impl Iterator<Item = OfferedPort> + '_ {
        self.services.iter().flat_map(Offer::ports)
    }

    /// What peers may open at most, where of the ports these are held.
    pub fn offered(&self, is_held: impl Fn(OfferedPort) -> bool) -> Services {
        let ping = self.services.iter().filter(|offer| **offer == Offer::Ping).map(|_| Service::Ping);
        let held = self.ports().filter(|port| is_held(*port));
        let ports = held.map(|port| Service::Ports(port.protocol.of_rules(), port.at..=port.at));
        Services::named(&ping.chain(ports).collect::<Vec<_>>())
    }

    /// Why it cannot be meant, if it cannot.
    pub(super) fn fault(&self) -> Option<(&'static str, String)> {
        if let Some(what) = no_machine(self.address) {
            return Some((
                "stands_for.address",
                format!("{} is {what}: give the address of the machine", self.address),
            ));
        }
        if self.services.is_empty() {
            return Some(("stands_for.services", "it names none: nothing could be reached".into()));
        }
        let count = self.ports().count();
        if count > MAX_OFFERED_PORTS {
            return Some((
                "stands_for.services",
                format!("it names {count} ports: at most {MAX_OFFERED_PORTS} are carried"),
            ));
        }
        let mut known = BTreeSet::new();
        let twice = self.ports().find(|port| !known.insert((port.protocol, port.at)))?;
        Some(("stands_for.services", format!("{}/{} leads to two ports", twice.protocol, twice.at)))
    }
}

/// What an address is that no machine has.
fn no_machine(address: IpAddr) -> Option<&'static str> {
    match address {
        address if address.is_unspecified() => Some("no address"),
        address if address.is_multicast() => Some("an address of many machines"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("an address of many machines"),
        // Of which link is not said.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("an address that counts on one link only"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        _ => None,
    }
}

impl Offer {
    fn ports(&self) -> impl Iterator<Item = OfferedPort> + use<> {
        let offered = match *self {
            Self::Ping => None,
            Self::Ports { protocol, first, last } => Some((protocol, first..=last, None)),
            Self::Other { protocol, at, to } => Some((protocol, at..=at, Some(to))),
        };
        offered.into_iter().flat_map(|(protocol, ports, to)| {
            ports.map(move |at| OfferedPort { protocol, at, to: to.unwrap_or(at) })
        })
    }
}

impl Carried {
    const fn of_rules(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }

    const fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Some(Self::Tcp),
            Protocol::Udp => Some(Self::Udp),
            Protocol::Sctp => None,
        }
    }
}

impl FromStr for Offer {
    type Err = InvalidOffer;

    fn from_str(text: &str) -> Result<Self, InvalidOffer> {
        let invalid = |why: String| InvalidOffer { text: text.to_owned(), why };
        let (here, there) = match text.split_once(':') {
            Some((here, there)) => (here, Some(there)),
            None => (text, None),
        };
        let service: Service = here.parse().map_err(|error| invalid(format!("{error}")))?;
        let no_port = || invalid("every port has to be named, of TCP or UDP".into());
        let (protocol, ports) = match service {
            Service::Ping if there.is_none() => return Ok(Self::Ping),
            Service::Ports(protocol, ports) => (Carried::of(protocol).ok_or_else(no_port)?, ports),
            Service::All | Service::Ping | Service::Protocol(_) => return Err(no_port()),
        };
        let Some(there) = there else {
            return Ok(Self::Ports { protocol, first: *ports.start(), last: *ports.end() });
        };
        // As the port here is read.
        let to = match format!("{protocol}/{there}").parse() {
            Ok(Service::Ports(_, to)) if to.start() == to.end() && !there.contains('-') => *to.start(),
            _ => return Err(invalid("behind the colon stands one port of the machine".into())),
        };
        if ports.start() != ports.end() {
            return Err(invalid("ports of a range have the same numbers on both sides".into()));
        }
        Ok(Self::Other { protocol, at: *ports.start(), to })
    }
}

impl Display for Offer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.write_str("ping"),
            Self::Ports { protocol, first, last } if first == last => write!(f, "{protocol}/{first}"),
            Self::Ports { protocol, first, last } => write!(f, "{protocol}/{first}-{last}"),
            Self::Other { protocol, at, to } => write!(f, "{protocol}/{at}:{to}"),
        }
    }
}

impl Display for Carried {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A text that names no service that can be offered.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} cannot be offered: {why}; allowed are `tcp/502`, `udp/5000-5010`, `tcp/2222:22` (the machine's 22, here \
     at 2222) and `ping`"
)]
pub struct InvalidOffer {
    text: String,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> StandsFor {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn what_is_offered_is_what_was_written() {
        let machine =
            read("{address: 192.168.1.20, services: [tcp/502, 'tcp/2222:22', udp/5000-5001, ping]}");
        let port = |protocol, at, to| OfferedPort { protocol, at, to };
        assert_eq!(
            machine.ports().collect::<Vec<_>>(),
            [
                port(Carried::Tcp, 502, 502),
                port(Carried::Tcp, 2222, 22),
                port(Carried::Udp, 5000, 5000),
                port(Carried::Udp, 5001, 5001)
            ]
        );
        assert_eq!(machine.offered(|_| true).words(), ["ping", "tcp/502", "tcp/2222", "udp/5000-5001"]);
        assert_eq!(machine.offered(|port| port.at == 5001).words(), ["ping", "udp/5001"]);
        assert_eq!(machine.fault(), None);
        assert_eq!(read(&serde_yaml::to_string(&machine).unwrap()), machine);
        assert_eq!(read("{address: '2001:db8::7', services: tcp/80}").services.len(), 1);
    }

    #[test]
    fn what_cannot_be_carried_is_refused_with_what_can() {
        for text in [
            "all",
            "tcp",
            "udp",
            "sctp/9",
            "ping:3",
            "tcp/0",
            "tcp/1-2:3",
            "tcp/1:2-3",
            "tcp/1:2-2",
            "tcp/1:0",
            "tcp/1:",
            "tcp/1:tcp/2",
            "tcp/1:+2",
            "tcp/1:70000",
            "tcp/1:2:3",
            "x",
            "",
        ] {
            let error = text.parse::<Offer>().unwrap_err().to_string();
            assert!(error.contains("`tcp/2222:22`"), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault_of_its_key() {
        let fault = |yaml: &str| read(yaml).fault().map(|(key, _)| key);
        for address in [
            "0.0.0.0",
            "'::'",
            "224.0.0.1",
            "255.255.255.255",
            "'ff02::1'",
            "'fe80::1'",
            "'::ffff:192.0.2.1'",
        ] {
            let yaml = format!("{{address: {address}, services: tcp/1}}");
            assert_eq!(fault(&yaml), Some("stands_for.address"), "{address}");
        }
        for services in ["[]", "[tcp/1-200, udp/1-200]", "[tcp/5, 'tcp/5:6']", "[tcp/1-9, tcp/9]"] {
            let yaml = format!("{{address: 192.0.2.1, services: {services}}}");
            assert_eq!(fault(&yaml), Some("stands_for.services"), "{services}");
        }
        assert_eq!(fault("{address: 127.0.0.1, services: [tcp/5, udp/5]}"), None);
    }
}
