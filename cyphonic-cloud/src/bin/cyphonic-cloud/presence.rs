//! Who is online, and when the others were: by what a running NMS says on this machine, and by the register.

use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::{DeviceRecord, UnixSeconds};
use cyphonic_cloud::server::{self, Attendance, Online, read_kept};

use crate::runtime_directory;

/// What is known of devices' presence.
pub(crate) struct Presence {
    /// None where no NMS runs here.
    attendance: Option<Attendance>,
    now: UnixSeconds,
}

impl Presence {
    pub(crate) fn read(config: &Config, now: UnixSeconds) -> Self {
        Self { attendance: read_kept(&runtime_directory(), Some(config.network.id), now), now }
    }

    /// Those that are online, where that is known.
    pub(crate) fn online(&self) -> Option<&Online> {
        self.attendance.as_ref().map(|attendance| &attendance.here)
    }

    /// Whether a device is online, where that is known.
    pub(crate) fn is_online(&self, device: &DeviceRecord) -> Option<bool> {
        self.online().map(|online| online.contains_key(&device.fqdn))
    }

    /// A device's connection to the NMS.
    pub(crate) fn of(&self, device: &DeviceRecord) -> Option<&server::Presence> {
        self.online()?.get(&device.fqdn)
    }

    /// When the overlay last saw it; now, if it is online.
    pub(crate) fn last_seen(&self, device: &DeviceRecord) -> Option<UnixSeconds> {
        if self.of(device).is_some() {
            return Some(self.now);
        }
        let visit = self.attendance.as_ref().and_then(|attendance| attendance.gone.get(&device.fqdn));
        // Not of who had the name before.
        let visit = visit.filter(|visit| visit.since >= device.enrolled_at).map(|visit| visit.until);
        [visit, device.last_seen_at, device.last_login_at].into_iter().flatten().max()
    }
}
