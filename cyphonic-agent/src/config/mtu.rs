//! The largest inner packet.

use std::fmt;
use std::str::FromStr;

use cyphonic_common::limits::{MAX_INNER_MTU, MIN_INNER_MTU};
use serde::{Deserialize, Serialize};

use cyphonic_transport::settings::written;

/// The most that a tunnel's inner MTU is raised to where its path carries that much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mtu {
    /// What paths of 9,000 bytes carry, or less where the ring takes less.
    #[default]
    Auto,
    /// That many bytes, from 1,280.
    Number(u16),
}

impl Mtu {
    /// The number, where the ring takes `most` by itself.
    pub fn or(self, most: u16) -> u16 {
        match self {
            Self::Auto => most,
            Self::Number(mtu) => mtu,
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Number(mtu) => mtu.fmt(f),
        }
    }
}

impl FromStr for Mtu {
    type Err = InvalidMtu;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u16>() {
            Ok(mtu) if (MIN_INNER_MTU..=MAX_INNER_MTU).contains(&usize::from(mtu)) => Ok(Self::Number(mtu)),
            _ if text == "auto" => Ok(Self::Auto),
            _ => Err(InvalidMtu(text.chars().take(40).collect())),
        }
    }
}

/// Neither `auto` nor a number that makes sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MTU of an IPv6 interface: write auto, or {MIN_INNER_MTU} to {MAX_INNER_MTU}")]
pub struct InvalidMtu(String);

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
    }
}

impl Serialize for Mtu {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Number(mtu) => serializer.serialize_u16(*mtu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_a_number_that_ipv6_can_use_or_auto() {
        let parse = |text: &str| serde_yaml::from_str::<Mtu>(text);
        assert_eq!(parse("auto").unwrap(), Mtu::Auto);
        assert_eq!(parse("1280").unwrap(), Mtu::Number(1280));
        assert_eq!(parse("\"8942\"").unwrap(), Mtu::Number(8942));
        for wrong in ["0", "1279", "8943", "70000", "much", "1280.5", "-1280", "true"] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("1280 to 8942"), "{error}");
        }
        for mtu in [Mtu::Auto, Mtu::Number(1400)] {
            let text = serde_yaml::to_string(&mtu).unwrap();
            assert_eq!(serde_yaml::from_str::<Mtu>(&text).unwrap(), mtu);
            assert_eq!(mtu.to_string().parse(), Ok(mtu));
        }
        assert_eq!((Mtu::Auto.or(1500), Mtu::Number(1300).or(1500)), (1500, 1300));
    }
}
