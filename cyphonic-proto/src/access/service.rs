//! Services of devices, as rules name them.

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;
use std::str::FromStr;

use cyphonic_common::packet::protocol;

/// Ports of one range. More are nearly all, which a word says.
const MAX_RANGE: usize = 1_000;

/// Services of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// All there are.
    All,
    /// Answers to pings.
    Ping,
    /// All ports of a protocol.
    Protocol(Protocol),
    /// Some.
    Ports(Protocol, RangeInclusive<u16>),
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Service {
    /// How many entries of the port policy it needs.
    pub(super) fn entries(&self) -> usize {
        match self {
            Self::All | Self::Ping | Self::Protocol(_) => 1,
            Self::Ports(_, ports) => ports.len(),
        }
    }
}

impl FromStr for Service {
    type Err = InvalidService;

    fn from_str(text: &str) -> Result<Self, InvalidService> {
        let invalid = |why| InvalidService { text: text.to_owned(), why };
        let (protocol, ports) = match text.split_once('/') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (text, None),
        };
        match (protocol, ports) {
            ("all", None) => return Ok(Self::All),
            ("ping", None) => return Ok(Self::Ping),
            _ => {}
        }
        let found = Protocol::ALL.into_iter().find(|known| known.name() == protocol);
        let protocol = found.ok_or_else(|| invalid(WhyNoService::Protocol))?;
        let Some(ports) = ports else { return Ok(Self::Protocol(protocol)) };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let digits = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let port = |text: &str| Some(text).filter(digits)?.parse().ok().filter(|port| *port != 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => {
                if usize::from(last - first) >= MAX_RANGE {
                    return Err(invalid(WhyNoService::Range));
                }
                Ok(Self::Ports(protocol, first..=last))
            }
            _ => Err(invalid(WhyNoService::Port)),
        }
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Ping => f.write_str("ping"),
            Self::Protocol(protocol) => f.write_str(protocol.name()),
            Self::Ports(protocol, ports) if ports.start() == ports.end() => {
                write!(f, "{}/{}", protocol.name(), ports.start())
            }
            Self::Ports(protocol, ports) => {
                write!(f, "{}/{}-{}", protocol.name(), ports.start(), ports.end())
            }
        }
    }
}

/// A text that names no service.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no service: {why}; allowed are `tcp/22`, `udp/5000-5010`, `tcp`, `udp`, `sctp`, `ping` and `all`"
)]
pub struct InvalidService {
    text: String,
    why: WhyNoService,
}

#[derive(Debug, thiserror::Error)]
enum WhyNoService {
    #[error("it does not begin with a protocol that has ports")]
    Protocol,
    #[error(
        "behind the slash stands a port from 1 to 65535, or two with a hyphen between, the lower one first"
    )]
    Port,
    #[error("a range has at most {MAX_RANGE} ports; without any, it is all of the protocol")]
    Range,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_service_says_what_would_be() {
        for service in [
            "",
            "ssh",
            "icmp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "tcp/9-8",
            "udp/1-1001",
            "tcp/ssh",
            "ping/1",
            "all/1",
            "TCP/22",
            "tcp/1-2-3",
            "tcp/+5",
        ] {
            let Err(error) = service.parse::<Service>() else { panic!("{service}") };
            assert!(error.to_string().contains("`udp/5000-5010`"), "{error}");
        }
    }

    #[test]
    fn services_are_printed_as_they_are_written() {
        for service in ["all", "ping", "tcp", "sctp", "udp/53", "udp/5000-5010", "tcp/1-1000"] {
            assert_eq!(service.parse::<Service>().unwrap().to_string(), service);
        }
        assert_eq!("tcp/22-22".parse::<Service>().unwrap().to_string(), "tcp/22");
    }
}
