//! What a running service tells commands on its machine: files in the run-time directory.
//!
//! A file is replaced whole, some seconds after something has changed, and now and then besides: an old one
//! was left by a process that is gone, and says nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::identity::NetworkId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::clock::unix_now;
use super::standby::Following;
use crate::register::{UnixSeconds, Visit};

/// How often it is looked whether something has changed, at most.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// No more than this part of the time goes to looking and writing: with very many devices each takes long.
const PART: u32 = 100;

/// Written at least this often.
const REFRESHED: Duration = Duration::from_secs(60);

/// From this age on, nobody keeps it any more.
const STALE: UnixSeconds = 180;

/// A device that has not been displaced for so long is one machine again.
const DOUBLED: UnixSeconds = 3_600;

/// Version of the files; programs of one release write and read them.
const VERSION: u32 = 1;

/// What a file is about.
pub trait Content: Serialize + DeserializeOwned + PartialEq + Send + 'static {
    /// Its name in the run-time directory.
    const FILE: &'static str;
}

/// The devices that are online, by name. Shared, since there may be very many.
pub type Online = Arc<BTreeMap<String, Presence>>;

/// A device's connection to the NMS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Since when it stands.
    pub since: UnixSeconds,
    /// Whether it goes by TCP, as the device's network passes no UDP.
    pub by_tcp: bool,
    /// When another machine with the same identity was last found to displace it.
    pub doubled_at: Option<UnixSeconds>,
}

impl Presence {
    /// Whether two machines have had the device's identity lately: each displaces the other within minutes.
    pub fn is_doubled(&self, now: UnixSeconds) -> bool {
        self.doubled_at.is_some_and(|at| at.abs_diff(now) < DOUBLED)
    }
}

/// Who is online, and who was since the service started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attendance {
    /// Those that are.
    pub here: Online,
    /// Those that are not, until their visits stand in the register.
    pub gone: Arc<BTreeMap<String, Visit>>,
}

impl Content for Attendance {
    const FILE: &'static str = "online.json";
}

/// What an NMS and those of the same overlay know of each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Companions {
    /// Those that may stand in for it, and since when each of them follows it; nothing: it does not.
    Standbys(BTreeMap<String, Option<UnixSeconds>>),
    /// It stands in for another one.
    Follows(Following),
}

impl Content for Companions {
    const FILE: &'static str = "standby.json";
}

/// What a relay does in userspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// Its UDP port.
    pub port: u16,
    /// Legs that are bound.
    pub legs: usize,
    /// Datagrams forwarded.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Content for Relayed {
    const FILE: &'static str = "relay.json";
}

#[derive(Debug, Serialize, Deserialize)]
struct File<T> {
    version: u32,
    network_id: String,
    written_at: UnixSeconds,
    content: T,
}

/// What a service says in this directory: nothing where none is running, or, if `network` is given, only one
/// of another overlay.
pub fn read_kept<T: Content>(directory: &Path, network: Option<NetworkId>, now: UnixSeconds) -> Option<T> {
    let text = fs::read(directory.join(T::FILE)).ok()?;
    let file: File<T> = serde_json::from_slice(&text).ok()?;
    let is_kept = file.written_at.abs_diff(now) < STALE;
    let is_meant = network.is_none_or(|network| network.to_string() == file.network_id);
    (file.version == VERSION && is_kept && is_meant).then_some(file.content)
}

/// How long to wait before the next look, after one that took so long.
pub(super) fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(PART).clamp(LOOK, REFRESHED)
}

/// Keeps the file that says what `look` finds. Never ends.
pub(super) async fn keep<T: Content + Clone>(
    directory: PathBuf,
    network: NetworkId,
    mut look: impl FnMut() -> T,
) {
    let (mut last, mut complained) = (None, false);
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        let begun = Instant::now();
        let found = look();
        pause = pause_after(begun.elapsed());
        let is_known = |(at, known): &(Instant, T)| at.elapsed() < REFRESHED && *known == found;
        if last.as_ref().is_some_and(is_known) {
            continue;
        }
        last = Some((Instant::now(), found.clone()));
        let to = directory.clone();
        let write = move || write(&to, network, unix_now(), found);
        let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        if let Err(error) = &written
            && !complained
        {
            let path = directory.join(T::FILE);
            tracing::warn!(path = %path.display(), %error, "cannot tell commands what this service does");
        }
        complained = written.is_err();
        pause = pause_after(begun.elapsed());
    }
}

fn write<T: Content>(directory: &Path, network: NetworkId, now: UnixSeconds, content: T) -> io::Result<()> {
    let file = File { version: VERSION, network_id: network.to_string(), written_at: now, content };
    let (path, aside) = (directory.join(T::FILE), directory.join(format!("{}.new", T::FILE)));
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

    fn online() -> Attendance {
        let presence = Presence { since: NOW - 5, by_tcp: true, doubled_at: None };
        let visit = Visit { since: NOW - 9, until: NOW - 7 };
        Attendance {
            here: Arc::new(BTreeMap::from([("a.lab".to_owned(), presence)])),
            gone: Arc::new(BTreeMap::from([("b.lab".to_owned(), visit)])),
        }
    }

    #[test]
    fn a_file_says_something_while_it_is_kept_and_of_this_overlay_only() {
        let dir = tempfile::tempdir().unwrap();
        let read = |network, now| read_kept::<Attendance>(dir.path(), network, now);
        assert_eq!(read(Some(OURS), NOW), None);
        write(dir.path(), OURS, NOW - 1000, Attendance::default()).unwrap();
        write(dir.path(), OURS, NOW, online()).unwrap();
        assert_eq!(read(Some(OURS), NOW + 60), Some(online()));
        assert_eq!(read(None, NOW + 60), Some(online()));
        assert_eq!(read(Some(OURS), NOW + STALE), None);
        assert_eq!(read(Some(OURS), NOW - STALE), None, "the clock was set");
        assert_eq!(read(Some(NetworkId([8; 16])), NOW), None);
        fs::write(dir.path().join(Attendance::FILE), "{").unwrap();
        assert_eq!(read(Some(OURS), NOW), None);
    }

    #[test]
    fn what_takes_long_is_done_more_rarely() {
        let pause = |took| pause_after(Duration::from_millis(took));
        assert_eq!((pause(0), pause(50)), (LOOK, LOOK));
        assert_eq!(pause(300), Duration::from_secs(30));
        assert!(pause(10_000) == REFRESHED && REFRESHED.as_secs() < STALE / 2, "it stays fresh");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_written_and_what_does_not_is_refreshed() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = tokio::sync::watch::channel(Attendance::default());
        let task = tokio::spawn(keep(dir.path().to_owned(), OURS, move || receiver.borrow().clone()));
        // The writes are real, the waits are not.
        let seen = async |online: Attendance| {
            while read_kept(dir.path(), Some(OURS), unix_now()) != Some(online.clone()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        seen(Attendance::default()).await;
        sender.send_replace(online());
        seen(online()).await;
        fs::remove_file(dir.path().join(Attendance::FILE)).unwrap();
        seen(online()).await;
        task.abort();
    }
}
