//! The `relay` section: how a TRS forwards.

use std::path::PathBuf;

use cyphonic_dataplane::relay::RelayRate;
use cyphonic_dataplane::relay::xdp::{BPF_FILE_SYSTEM, Mode};
use serde::Deserialize;

use super::value;

/// Legs unless the file says otherwise: 32 MiB of the kernel's memory.
const DEFAULT_BINDINGS: usize = 1 << 17;
/// The most legs: 4 GiB of the kernel's memory, and 0.3 more when all are bound.
pub(super) const MAX_BINDINGS: usize = 1 << 24;
/// What a leg may send at once, as a part of a second at its rate: as much as queues at home routers hold.
const BURST: u64 = 10;

/// How a TRS forwards.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// In XDP or in userspace.
    #[serde(deserialize_with = "value::relay_mode")]
    pub mode: Mode,
    /// The interfaces for XDP. Empty: those that lead to the world.
    pub interfaces: Vec<String>,
    /// The most bindings (legs); a relayed tunnel has two.
    pub bindings: usize,
    /// How many bytes per second each may carry; 0 is no limit.
    #[serde(deserialize_with = "value::rate")]
    pub rate_limit: u64,
    /// The BPF file system in which the XDP relay outlives a killed process.
    pub pins: PathBuf,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            interfaces: Vec::new(),
            bindings: DEFAULT_BINDINGS,
            rate_limit: 0,
            pins: BPF_FILE_SYSTEM.into(),
        }
    }
}

impl RelayConfig {
    /// The limit of each leg.
    pub fn rate(&self) -> RelayRate {
        RelayRate::new(self.rate_limit, self.rate_limit / BURST)
    }
}
