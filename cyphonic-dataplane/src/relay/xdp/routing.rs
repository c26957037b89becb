//! Lets the kernel look routes up for the program.
//!
//! See [`ROUTING_INTERFACE`](cyphonic_common::relay::map::ROUTING_INTERFACE): forwarding is switched on for loopback
//! alone, and off again at the end if it was off. Whoever switches it off for the whole host switches it off there too.

use std::fs;
use std::path::PathBuf;

use super::XdpError;
use super::pins::Pins;

/// The settings that were changed. Undone by [`Routing::restore`], and by dropping unless they are kept: a relay that does not
/// start leaves the host as it found it.
#[derive(Debug, Default)]
pub(super) struct Routing {
    changed: Vec<&'static str>,
    kept: bool,
}

impl Drop for Routing {
    fn drop(&mut self) {
        if !self.kept {
            self.restore(None);
        }
    }
}

impl Routing {
    /// Switches it on for both families, and returns those for which it was off. A host without IPv6 has no setting for it.
    pub(super) fn enable(&mut self, pins: Option<&Pins>) -> Result<Vec<&'static str>, XdpError> {
        let mut switched = Vec::new();
        for family in ["ipv4", "ipv6"] {
            let path = setting(family);
            let Ok(value) = fs::read_to_string(&path) else { continue };
            let marker = pins.map(|pins| pins.changed(family));
            if value.trim() == "0" {
                fs::write(&path, "1").map_err(|source| XdpError::Routing { path, source })?;
                // Without it a killed relay's successor would not know; the setting then stays on.
                let _ = marker.map(fs::create_dir);
                self.note(family);
                switched.push(family);
            } else if marker.is_some_and(|marker| marker.is_dir()) {
                self.note(family);
            }
        }
        Ok(switched)
    }

    fn note(&mut self, family: &'static str) {
        if !self.changed.contains(&family) {
            self.changed.push(family);
        }
    }

    /// What an earlier process changed.
    pub(super) fn left(pins: &Pins) -> Self {
        Self {
            changed: ["ipv4", "ipv6"].into_iter().filter(|family| pins.changed(family).is_dir()).collect(),
            kept: true,
        }
    }

    /// From here on, what is dropped is a relay whose program goes on.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Leaves the settings as they were found.
    pub(super) fn restore(&self, pins: Option<&Pins>) {
        for family in &self.changed {
            if let Err(error) = fs::write(setting(family), "0") {
                tracing::warn!(%error, family, "forwarding on loopback stays on");
            }
            let _ = pins.map(|pins| fs::remove_dir(pins.changed(family)));
        }
    }
}

fn setting(family: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/lo/forwarding"))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Needs root.
    #[test]
    fn what_was_changed_for_a_relay_that_does_not_start_is_changed_back() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let read = || ["ipv4", "ipv6"].map(|family| fs::read_to_string(setting(family)).unwrap());
            let (off, on) = (["0\n"; 2], ["1\n"; 2]);
            assert_eq!(read(), off);
            let enabled = |switched: &[&str]| {
                let mut routing = Routing::default();
                assert_eq!(routing.enable(None).unwrap(), switched);
                assert_eq!(read(), on);
                routing
            };
            let both = ["ipv4", "ipv6"];
            drop(enabled(&both));
            assert_eq!(read(), off);
            let mut started = enabled(&both);
            started.keep();
            drop(started);
            assert_eq!(read(), on);
            drop(enabled(&[]));
            assert_eq!(read(), on, "somebody else's");

            let mut routing = enabled(&[]);
            fs::write(setting("ipv6"), "0").unwrap();
            assert_eq!(routing.enable(None).unwrap(), ["ipv6"]);
            assert_eq!(routing.enable(None).unwrap(), [""; 0]);
            assert_eq!(read(), on);
            drop(routing);
            assert_eq!(read(), ["1\n", "0\n"], "as somebody wanted it meanwhile");
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }
}
