//! What the processes that live on hold, compared with what they held when they were first seen.

use std::collections::HashMap;

use cyphonic_lab::measure::resident_bytes;
use cyphonic_lab::process::Daemon;

use crate::overlay::{Overlay, Part, Service};

/// By process number: its first and its last resident set, in bytes.
#[derive(Default)]
pub(super) struct Memory(HashMap<u32, (u64, u64)>);

impl Memory {
    /// Looks at all services and agents.
    pub(super) fn look(&mut self, overlay: &Overlay) {
        let services = overlay.cloud().into_iter();
        let services = services.flat_map(|cloud| [cloud.part(Part::Services), cloud.part(Part::Relay)]);
        let agents = overlay.devices().iter().filter_map(|device| device.service());
        for process in services.chain(agents).filter_map(Service::daemon).map(Daemon::pid) {
            if let Some(bytes) = resident_bytes(process) {
                self.0.entry(process).or_insert((bytes, bytes)).1 = bytes;
            }
        }
    }

    /// The most that any has grown, in MB.
    pub(super) fn growth(&self) -> f64 {
        let growth = self.0.values().map(|(first, last)| last.saturating_sub(*first));
        growth.max().unwrap_or_default() as f64 / 1e6
    }
}
