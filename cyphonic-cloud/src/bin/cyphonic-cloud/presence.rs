//! Who is online, and when the others were: by what a running NMS says on this machine, and by the register.

use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::{DeviceRecord, UnixSeconds};
use cyphonic_cloud::server::{self, Gone, Online, read_kept};

use crate::runtime_directory;

/// What is known of devices' presence.
pub(crate) struct Presence {
    /// None where no NMS runs here.
    pub(crate) online: Option<Online>,
    gone: Gone,
    now: UnixSeconds,
}

impl Presence {
    pub(crate) fn read(config: &Config, now: UnixSeconds) -> Self {
        let (directory, network) = (runtime_directory(), Some(config.network.id));
        let gone = read_kept(&directory, network, now).unwrap_or_default();
        Self { online: read_kept(&directory, network, now), gone, now }
    }

    /// Whether a device is online, where that is known.
    pub(crate) fn is_online(&self, device: &DeviceRecord) -> Option<bool> {
        self.online.as_ref().map(|online| online.0.contains_key(&device.fqdn))
    }

    /// A device's connection to the NMS.
    pub(crate) fn of(&self, device: &DeviceRecord) -> Option<&server::Presence> {
        self.online.as_ref()?.0.get(&device.fqdn)
    }

    /// When the overlay last saw it; now, if it is online.
    pub(crate) fn last_seen(&self, device: &DeviceRecord) -> Option<UnixSeconds> {
        if self.of(device).is_some() {
            return Some(self.now);
        }
        // Not of who had the name before.
        let gone = self.gone.0.get(&device.fqdn).copied().filter(|at| *at >= device.enrolled_at);
        [gone, device.last_seen_at, device.last_login_at].into_iter().flatten().max()
    }
}
