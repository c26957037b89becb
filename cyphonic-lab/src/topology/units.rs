//! Values with units: `3.9ms`, `0.5%`, `30mbit`. A bare number is refused, since it does not say what it
//! counts.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// A share between 0 and 1, written `0.5%`.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Probability(f64);

impl Probability {
    /// From a fraction, if it is one.
    pub fn from_fraction(fraction: f64) -> Option<Self> {
        (0.0..=1.0).contains(&fraction).then_some(Self(fraction))
    }

    /// As a fraction between 0 and 1.
    pub fn fraction(self) -> f64 {
        self.0
    }
}

/// Bits per second on the wire, written `30mbit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct BitRate(u64);

impl BitRate {
    /// From bits per second, if there are any.
    pub fn from_bits_per_second(bits: u64) -> Option<Self> {
        (bits > 0).then_some(Self(bits))
    }

    /// In bits per second; never 0.
    pub fn bits_per_second(self) -> u64 {
        self.0
    }

    /// How long `bytes` occupy the wire.
    pub fn transmission_time(self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A port of TCP or UDP, written `tcp/443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let service = text.split_once('/').and_then(|(name, port)| {
            let protocol = ["tcp", "udp"].into_iter().find(|known| *known == name)?;
            Some(Self { protocol, port: port.parse().ok()? })
        });
        service.ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a service: write tcp or udp and its port, as in tcp/443"
            ))
        })
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit", self.0)
    }
}

impl<'de> Deserialize<'de> for Probability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let percent = scaled(&text, &[("%", 0.01)]);
        percent.and_then(Self::from_fraction).ok_or_else(|| {
            D::Error::custom(format!("`{text}` is not a share: write a number from 0% to 100%, as in 0.5%"))
        })
    }
}

impl<'de> Deserialize<'de> for BitRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bits = scaled(&text, &[("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)]);
        let bits = bits.filter(|bits| (1.0..=1e12).contains(bits)).map(|bits| bits as u64);
        bits.and_then(Self::from_bits_per_second).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a rate: write it with bit, kbit, mbit or gbit, as in 30mbit"
            ))
        })
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let seconds = scaled(&text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]);
    seconds.filter(|seconds| (0.0..=86_400.0).contains(seconds)).map(Duration::from_secs_f64).ok_or_else(
        || {
            D::Error::custom(format!(
                "`{text}` is not a time up to a day: write it with us, ms or s, as in 3.9ms"
            ))
        },
    )
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

/// The number before the first suffix that fits, times its scale.
fn scaled(text: &str, suffixes: &[(&str, f64)]) -> Option<f64> {
    let (number, scale) = suffixes
        .iter()
        .find_map(|(suffix, scale)| text.strip_suffix(suffix).map(|number| (number, scale)))?;
    let number = number.trim_end();
    // `f64::from_str` also takes `inf`, `nan` and exponents, which no one means to write here.
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Result<Duration, serde_yaml::Error> {
        duration(serde_yaml::Deserializer::from_str(text))
    }

    #[test]
    fn values_are_read_with_their_units() {
        assert_eq!(seconds("3.9ms").unwrap(), Duration::from_micros(3900));
        assert_eq!(seconds("150us").unwrap(), Duration::from_micros(150));
        assert_eq!(seconds("2s").unwrap(), Duration::from_secs(2));
        let loss: Probability = serde_yaml::from_str("0.5%").unwrap();
        assert!((loss.fraction() - 0.005).abs() < 1e-12);
        let rate: BitRate = serde_yaml::from_str("30mbit").unwrap();
        assert_eq!(rate.bits_per_second(), 30_000_000);
        assert_eq!(rate.transmission_time(1500), Duration::from_micros(400));
    }

    #[test]
    fn values_without_units_or_out_of_range_are_refused() {
        for text in ["3", "3 m", "-1ms", "infs", "nans", "1e3ms", "ms", "90000s"] {
            assert!(seconds(text).unwrap_err().to_string().contains("is not a time"), "{text}");
        }
        for text in ["0.5", "101%", "-1%", "%"] {
            assert!(serde_yaml::from_str::<Probability>(text).is_err(), "{text}");
        }
        for text in ["0bit", "30", "9999gbit"] {
            assert!(serde_yaml::from_str::<BitRate>(text).is_err(), "{text}");
        }
    }
}
