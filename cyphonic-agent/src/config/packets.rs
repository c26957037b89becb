//! Settings of the packet path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use cyphonic_transport::settings::written;

/// More workers than this are of no use to the kernel's tables.
const MAX_WORKERS: usize = cyphonic_common::map::MAX_WORKERS as usize;
/// What `auto` never exceeds: a device's other work wants CPUs too.
const MAX_AUTO: usize = 8;
/// A worker is two threads, one a direction: this many CPUs keep one busy.
const CPUS_PER_WORKER: usize = 2;

/// Which encapsulation ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RingChoice {
    /// The best that kernel and NIC can do.
    Auto,
    /// AF_XDP on a veth pair.
    Xdp,
    /// TUN with offloads.
    Offload,
}

/// Where the ring `xdp` receives tunnels' packets outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum UnderlayChoice {
    /// AF_XDP on network cards that need not copy, the UDP port for the rest.
    Auto,
    /// AF_XDP on every network card that has native XDP, though the kernel copies.
    Xdp,
    /// The UDP port alone.
    Port,
}

/// How many workers carry packets. Each is a pair of threads, one a direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workers {
    /// As many as the CPUs keep busy.
    #[default]
    Auto,
    /// That many.
    Number(usize),
}

impl Workers {
    /// The number on a host with so many CPUs.
    pub fn on(self, cpus: usize) -> usize {
        match self {
            Self::Auto => (cpus / CPUS_PER_WORKER).clamp(1, MAX_AUTO),
            Self::Number(workers) => workers,
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Number(workers) => workers.fmt(f),
        }
    }
}

impl FromStr for Workers {
    type Err = InvalidWorkers;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(workers @ 1..=MAX_WORKERS) => Ok(Self::Number(workers)),
            _ if text == "auto" => Ok(Self::Auto),
            _ => Err(InvalidWorkers(text.chars().take(40).collect())),
        }
    }
}

/// Neither `auto` nor a number that makes sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no number of workers: write auto, or 1 to {MAX_WORKERS}")]
pub struct InvalidWorkers(String);

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        written::read(deserializer)
    }
}

impl Serialize for Workers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Number(workers) => workers.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_a_number_that_makes_sense_or_auto() {
        let parse = |text: &str| serde_yaml::from_str::<Workers>(text);
        assert_eq!(parse("auto").unwrap(), Workers::Auto);
        assert_eq!(parse("3").unwrap(), Workers::Number(3));
        assert_eq!(parse("\"16\"").unwrap(), Workers::Number(16));
        for wrong in ["0", "17", "many", "-1", "1.5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for workers in [Workers::Auto, Workers::Number(4)] {
            let text = serde_yaml::to_string(&workers).unwrap();
            assert_eq!(serde_yaml::from_str::<Workers>(&text).unwrap(), workers);
            assert_eq!(workers.to_string().parse(), Ok(workers));
        }
    }

    #[test]
    fn two_cpus_keep_one_worker_busy() {
        let auto = [1, 2, 3, 4, 16, 64].map(|cpus| Workers::Auto.on(cpus));
        assert_eq!(auto, [1, 1, 1, 2, 8, 8]);
        assert_eq!(Workers::Number(3).on(1), 3);
    }
}
