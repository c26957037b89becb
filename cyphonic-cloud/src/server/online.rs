//! Who is online: a file that the NMS keeps in the run-time directory, for `device list`.
//!
//! It is replaced whole, some seconds after something has changed, and now and then besides: an old one was left by a process
//! that is gone, and says nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cyphonic_proto::identity::NetworkId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::clock::unix_now;
use crate::register::UnixSeconds;

/// The file's name in the run-time directory.
const FILE: &str = "online.json";

/// Written at least this often.
const REFRESHED: Duration = Duration::from_secs(60);

/// From this age on, nobody keeps it any more.
const STALE: UnixSeconds = 180;

/// Version of the file; programs of one release write and read it.
const VERSION: u32 = 1;

/// A device's connection to the NMS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Since when it stands.
    pub since: UnixSeconds,
    /// Whether it goes by TCP, as the device's network passes no UDP.
    pub by_tcp: bool,
}

/// The devices that are online, by name.
pub type Online = BTreeMap<String, Presence>;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    network_id: String,
    written_at: UnixSeconds,
    devices: Online,
}

/// Who is online, by the file in this directory; nothing where none is kept there for this overlay.
pub fn read_online(directory: &Path, network: NetworkId, now: UnixSeconds) -> Option<Online> {
    let text = fs::read(directory.join(FILE)).ok()?;
    let file: File = serde_json::from_slice(&text).ok()?;
    let is_kept = file.written_at.abs_diff(now) < STALE;
    let is_ours = file.version == VERSION && file.network_id == network.to_string();
    (is_kept && is_ours).then_some(file.devices)
}

/// Keeps the file. Never ends.
pub(super) async fn keep(directory: PathBuf, network: NetworkId, mut online: watch::Receiver<Online>) {
    let mut complained = false;
    loop {
        let devices = online.borrow_and_update().clone();
        let to = directory.clone();
        let write = move || write(&to, network, unix_now(), devices);
        let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        if let Err(error) = &written
            && !complained
        {
            let path = directory.join(FILE);
            tracing::warn!(path = %path.display(), %error, "cannot write who is online: `device list` does not know");
        }
        complained = written.is_err();
        if let Ok(Err(_)) = tokio::time::timeout(REFRESHED, online.changed()).await {
            // Nobody tells any more: the NMS has ended, and the process will.
            std::future::pending().await
        }
    }
}

fn write(directory: &Path, network: NetworkId, now: UnixSeconds, devices: Online) -> io::Result<()> {
    let file = File { version: VERSION, network_id: network.to_string(), written_at: now, devices };
    let (path, aside) = (directory.join(FILE), directory.join(format!("{FILE}.new")));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    // It is gone with the next start of the machine anyway: nothing is flushed.
    options.open(&aside)?.write_all(&serde_json::to_vec(&file)?)?;
    fs::rename(&aside, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: NetworkId = NetworkId([7; 16]);
    const NOW: UnixSeconds = 1_800_000_000;

    fn online() -> Online {
        BTreeMap::from([("a.lab".to_owned(), Presence { since: NOW - 5, by_tcp: true })])
    }

    #[test]
    fn a_file_says_something_while_it_is_kept_and_of_this_overlay_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_online(dir.path(), OURS, NOW), None);
        write(dir.path(), OURS, NOW - 1000, Online::new()).unwrap();
        write(dir.path(), OURS, NOW, online()).unwrap();
        assert_eq!(read_online(dir.path(), OURS, NOW + 60), Some(online()));
        assert_eq!(read_online(dir.path(), OURS, NOW + STALE), None);
        assert_eq!(read_online(dir.path(), OURS, NOW - STALE), None, "the clock was set");
        assert_eq!(read_online(dir.path(), NetworkId([8; 16]), NOW), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(read_online(dir.path(), OURS, NOW), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_written_and_what_does_not_is_refreshed() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = watch::channel(Online::new());
        let task = tokio::spawn(keep(dir.path().to_owned(), OURS, receiver));
        let path = dir.path().join(FILE);
        // The writes are real, the waits are not.
        let seen = async |devices: Online| {
            while read_online(dir.path(), OURS, unix_now()) != Some(devices.clone()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        seen(Online::new()).await;
        sender.send_replace(online());
        seen(online()).await;
        fs::remove_file(&path).unwrap();
        seen(online()).await;
        task.abort();
    }
}
