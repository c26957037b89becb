//! How long processors stay awake after packets.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use cyphonic_transport::settings::written;

/// Less than this is over before an answer comes.
const LEAST: Duration = Duration::from_millis(1);
/// More than this is no longer about packets.
const MOST: Duration = Duration::from_secs(10);

/// How long all processors are kept from halting after a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum KeepAwake {
    /// Not at all.
    #[default]
    Off,
    /// For that long.
    For(Duration),
}

impl fmt::Display for KeepAwake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::For(window) => humantime::format_duration(*window).fmt(f),
        }
    }
}

impl FromStr for KeepAwake {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match humantime::parse_duration(text) {
            _ if text == "off" => Ok(Self::Off),
            Ok(window) if (LEAST..=MOST).contains(&window) => Ok(Self::For(window)),
            _ => Err(InvalidWindow(text.chars().take(40).collect())),
        }
    }
}

impl<'de> Deserialize<'de> for KeepAwake {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
    }
}

impl From<KeepAwake> for String {
    fn from(awake: KeepAwake) -> Self {
        awake.to_string()
    }
}

/// Neither `off` nor a time that makes sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time to keep processors awake: write off, or 1ms to 10s")]
pub struct InvalidWindow(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_kept_awake_for_a_time_that_makes_sense_or_not_at_all() {
        let parse = |text: &str| serde_yaml::from_str::<KeepAwake>(text);
        assert_eq!(parse("off").unwrap(), KeepAwake::Off);
        assert_eq!(parse("50ms").unwrap(), KeepAwake::For(Duration::from_millis(50)));
        assert_eq!(parse("10s").unwrap(), KeepAwake::For(MOST));
        for wrong in ["0s", "999us", "11s", "on", "50", "-1ms"] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("1ms to 10s"), "{error}");
        }
        for awake in [KeepAwake::Off, KeepAwake::For(Duration::from_millis(1500))] {
            let text = serde_yaml::to_string(&awake).unwrap();
            assert_eq!(serde_yaml::from_str::<KeepAwake>(&text).unwrap(), awake);
        }
    }
}
