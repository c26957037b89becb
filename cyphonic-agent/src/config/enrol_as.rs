//! What a device asks to be called when it enrols.

use std::fmt;
use std::str::FromStr;

use cyphonic_proto::name::MAX_NAME;
use cyphonic_transport::settings::written;
use serde::{Deserialize, Serialize};

/// A name with parts that each host fills in, such as `camera-{serial}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct EnrolAs(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Of(HostFact),
}

/// What tells one host from another of the same image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFact {
    /// The first label of its name.
    Hostname,
    /// Twelve hexadecimal digits that follow from `/etc/machine-id`.
    MachineId,
    /// The serial number of its board.
    Serial,
}

impl HostFact {
    const ALL: [Self; 3] = [Self::Hostname, Self::MachineId, Self::Serial];

    const fn written(self) -> &'static str {
        match self {
            Self::Hostname => "{hostname}",
            Self::MachineId => "{machine-id}",
            Self::Serial => "{serial}",
        }
    }
}

impl EnrolAs {
    /// The name on a host of which `fact` tells.
    ///
    /// # Errors
    /// The first that `fact` has.
    pub fn fill<E>(&self, mut fact: impl FnMut(HostFact) -> Result<String, E>) -> Result<String, E> {
        self.0.iter().try_fold(String::new(), |name, part| match part {
            Part::Text(text) => Ok(name + text),
            Part::Of(which) => Ok(name + &fact(*which)?),
        })
    }
}

impl Default for EnrolAs {
    fn default() -> Self {
        Self(vec![Part::Of(HostFact::Hostname)])
    }
}

impl fmt::Display for EnrolAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Of(fact) => f.write_str(fact.written()),
        })
    }
}

impl FromStr for EnrolAs {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || InvalidName(text.chars().take(80).collect());
        let is_of_names = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(first) = rest.chars().next() {
            if first == '{' {
                let fact = HostFact::ALL
                    .into_iter()
                    .find(|fact| rest.starts_with(fact.written()))
                    .ok_or_else(wrong)?;
                rest = rest.strip_prefix(fact.written()).ok_or_else(wrong)?;
                parts.push(Part::Of(fact));
            } else {
                let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
                if !literal.chars().all(is_of_names) {
                    return Err(wrong());
                }
                rest = after;
                parts.push(Part::Text(literal.to_owned()));
            }
        }
        if parts.is_empty() || text.len() > MAX_NAME {
            return Err(wrong());
        }
        Ok(Self(parts))
    }
}

impl<'de> Deserialize<'de> for EnrolAs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
    }
}

impl From<EnrolAs> for String {
    fn from(name: EnrolAs) -> Self {
        name.to_string()
    }
}

/// No name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name to enrol as: write letters, digits, hyphens and dots, and {{hostname}}, {{machine-id}} or {{serial}} for what each host has of its own"
)]
pub struct InvalidName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_fills_in_what_it_has_of_its_own() {
        let fill = |text: &str| {
            let fact = |fact| {
                Ok::<_, ()>(match fact {
                    HostFact::Hostname => "pi".into(),
                    HostFact::MachineId => "0123456789ab".into(),
                    HostFact::Serial => "10000000abcd".into(),
                })
            };
            let name: EnrolAs = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            name.fill(fact).unwrap()
        };
        assert_eq!(fill("{hostname}"), "pi");
        assert_eq!(fill("camera-{serial}.gate"), "camera-10000000abcd.gate");
        assert_eq!(fill("{hostname}-{machine-id}"), "pi-0123456789ab");
        assert_eq!(fill("camera-12"), "camera-12");
        assert_eq!(EnrolAs::default(), "{hostname}".parse().unwrap());
        assert_eq!(EnrolAs::default().fill(|_| Err("none")), Err("none"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "{",
            "{mac}",
            "camera_{serial}",
            "{hostname",
            "hostname}",
            "a b",
            "kamera-ä",
            &"x".repeat(254),
        ] {
            assert!(text.parse::<EnrolAs>().is_err(), "{text}");
        }
    }
}
