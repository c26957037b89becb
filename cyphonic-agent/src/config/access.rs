//! Who may open conversations with this device, and with which of its services.

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;
use std::str::FromStr;

use cyphonic_common::policy;
use cyphonic_proto::name::{self, NameError};
use serde::{Deserialize, Deserializer, Serialize};

use super::written;

/// More rules than this are a programme, for which a packet filter is the better place.
pub(super) const MAX_RULES: usize = 64;
/// Entries of the policy that all rules together need. Devices for whom different rules hold need them again,
/// for which the policy's table is larger.
pub(super) const MAX_ENTRIES: usize = 4_096;
/// Ports of one range. More are nearly all, which a word says.
const MAX_RANGE: usize = 1_000;

/// These devices may open conversations with these services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Who.
    #[serde(deserialize_with = "written::one_or_many")]
    pub from: Vec<Who>,
    /// To what.
    #[serde(deserialize_with = "written::one_or_many")]
    pub to: Vec<Service>,
}

impl AccessRule {
    /// How many entries of the policy it needs, for each class that it is for.
    pub(super) fn entries(&self) -> usize {
        self.to.iter().map(Service::entries).sum()
    }

    /// Whether it says nothing: whoever wrote it meant something else.
    pub(super) fn is_void(&self) -> bool {
        self.from.is_empty() || self.to.is_empty()
    }
}

/// Some devices of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Who {
    /// All.
    All,
    /// All whose names end so: canonical, with the dot in front.
    Below(String),
    /// All whose names look so: canonical labels, in which `*` stands for any characters.
    Named(String),
}

impl Who {
    /// Whether a device is one of them. They may be written with or without the zone, which is no part of
    /// what is compared: it says nothing of a device.
    pub fn includes(&self, fqdn: &str, zone: &str) -> bool {
        let Some(name) = without_zone(fqdn, zone) else { return *self == Self::All };
        let written = |text: &'_ str| without_zone(text, zone).unwrap_or(text).to_owned();
        match self {
            Self::All => true,
            Self::Below(suffix) => {
                let suffix = written(suffix);
                name.len() > suffix.len() && name.ends_with(&suffix)
            }
            Self::Named(pattern) => matches(&written(pattern), name),
        }
    }
}

/// What stands before the zone, if it does.
fn without_zone<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    name.strip_suffix(zone)?.strip_suffix('.')
}

/// Label by label: a `*` stands for no dot.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if label_matches(pattern, label) => {}
            _ => return false,
        }
    }
}

fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == label };
    label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
}

impl FromStr for Who {
    type Err = InvalidWho;

    fn from_str(text: &str) -> Result<Self, InvalidWho> {
        let invalid = |why| InvalidWho { text: text.to_owned(), why };
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(suffix) = text.strip_prefix('.') {
            let suffix = name::canonical(suffix).map_err(|error| invalid(WhyNobody::Name(error)))?;
            return Ok(Self::Below(format!(".{suffix}")));
        }
        if text.split('.').any(|label| label.matches('*').count() > 1) {
            return Err(invalid(WhyNobody::Stars));
        }
        // What a `*` stands for makes a name of it.
        let name = name::canonical(&text.replace('*', "0"));
        name.map_err(|error| invalid(WhyNobody::Name(error)))?;
        Ok(Self::Named(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()))
    }
}

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Below(name) | Self::Named(name) => f.write_str(name),
        }
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

impl<'de> Deserialize<'de> for Who {
    /// Text only: YAML reads `12.10` as a number, which would become another device's name.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read_text(deserializer, "a device's name, in quotes where it looks like a number")
    }
}

/// A text that says of no device that it is meant.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no device's name: {why}; allowed are names (`press-7.plant`, with or without the zone), `press-*.plant`, \
     `.plant` for all below it, and `all`"
)]
pub struct InvalidWho {
    text: String,
    why: WhyNobody,
}

#[derive(Debug, thiserror::Error)]
enum WhyNobody {
    #[error(transparent)]
    Name(NameError),
    #[error("a part between dots has more than one `*`")]
    Stars,
}

/// Services of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
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
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => policy::TCP,
            Self::Udp => policy::UDP,
            Self::Sctp => policy::SCTP,
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
    fn entries(&self) -> usize {
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

impl From<Service> for String {
    fn from(service: Service) -> Self {
        service.to_string()
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
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

    const ZONE: &str = "plant.cyphonic.internal";

    fn includes(who: &str, name: &str) -> bool {
        who.parse::<Who>().unwrap().includes(&format!("{name}.{ZONE}"), ZONE)
    }

    #[test]
    fn devices_are_named_by_name_by_pattern_and_by_what_they_are_below() {
        for (who, included, others) in [
            ("all", vec!["a", "a.b.c"], vec![]),
            ("press-7", vec!["press-7"], vec!["press-77", "press-7.hall", "xpress-7"]),
            ("Press-7.Hall.", vec!["press-7.hall"], vec!["press-7", "press-7.hall.x"]),
            ("press-7.plant.cyphonic.internal", vec!["press-7"], vec!["press-7.plant", "press"]),
            ("press-*", vec!["press-7", "press-77", "press-"], vec!["press", "press-7.hall"]),
            ("press-*.hall", vec!["press-7.hall"], vec!["press-7", "press-7.a.hall"]),
            ("*.hall", vec!["x.hall"], vec!["hall", "a.x.hall"]),
            ("*", vec!["x"], vec!["x.hall"]),
            ("a*a", vec!["aa", "aba"], vec!["a"]),
            (".hall", vec!["x.hall", "a.x.hall"], vec!["hall", "x.xhall", "hall.x"]),
            (".plant.cyphonic.internal", vec!["x", "x.hall"], vec![]),
            (".hall.plant.cyphonic.internal", vec!["x.hall"], vec!["hall", "x"]),
            ("*.plant.cyphonic.internal", vec!["x"], vec!["x.hall"]),
            // The zone's own words say nothing of a device.
            (".internal", vec!["x.internal"], vec!["x", "internal"]),
            (".cyphonic.internal", vec!["x.cyphonic.internal"], vec!["x"]),
            ("*.*.*.*", vec!["a.b.c.d"], vec!["x", "a.b.c"]),
            ("plant.cyphonic.internal", vec![], vec!["x", "plant"]),
        ] {
            assert!(included.iter().all(|name| includes(who, name)), "{who}");
            let wrong: Vec<_> = others.iter().filter(|name| includes(who, name)).collect();
            assert!(wrong.is_empty(), "{who} includes {wrong:?}");
        }
    }

    #[test]
    fn what_is_no_name_or_service_says_what_would_be() {
        for who in ["", ".", "a b", "a**b", "-a", "..a", "press_7", "a..b"] {
            let error = who.parse::<Who>().unwrap_err().to_string();
            assert!(error.contains(&format!("{who:?}")) && error.contains("`.plant`"), "{error}");
        }
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

    #[test]
    fn a_name_that_yaml_takes_for_a_number_is_refused() {
        for from in ["[12.10]", "12.10", "[7]", "[.7]", "[true]", "null"] {
            let error = serde_yaml::from_str::<AccessRule>(&format!("from: {from}\nto: ping\n"));
            assert!(from == "null" || error.is_err(), "{from}: {error:?}");
        }
        let quoted = serde_yaml::from_str::<AccessRule>("from: ['12.10']\nto: ping\n").unwrap();
        assert_eq!(quoted.from, ["12.10".parse().unwrap()]);
        let error = serde_yaml::from_str::<AccessRule>("from: [12.10]\nto: ping\n").unwrap_err().to_string();
        assert!(error.contains("in quotes") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn one_need_not_be_a_list() {
        let rule = |yaml: &str| serde_yaml::from_str::<AccessRule>(yaml);
        let short = rule("{from: all, to: ping}").unwrap();
        assert_eq!(short, rule("{from: [all], to: [ping]}").unwrap());
        assert_eq!(rule(&serde_yaml::to_string(&short).unwrap()).unwrap(), short);
        assert!(rule("{from: all}").is_err() && rule("{from: all, to: ping, port: 3}").is_err());
        let error = rule("from: all\nto: [ping, ssh]\n").unwrap_err().to_string();
        assert!(error.contains("ssh") && error.contains("line 2"), "{error}");
    }
}
