//! What was done to `/etc/resolv.conf`, and how it is undone.
//!
//! The journal is one file, `resolv.conf.json`, written before the edit and removed after the restoration.
//! Whoever finds it, the daemon that stops, the next one or `cyphonicd cleanup`, knows what stood there and
//! whether the edit still does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::edit::{Rest, Was, whole};
use super::resolv_conf::{MAX_BYTES, ResolvConfError};
use crate::state::{StateError, read_bounded, write_atomic};

/// The journal, in its folder.
pub(super) const JOURNAL: &str = "resolv.conf.json";
const MAX_JOURNAL_BYTES: u64 = 1024 * 1024;

/// The journal's content: enough to undo the edit, and to know whether it still stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) original: Original,
    pub(super) ours: String,
    /// Ours before that, where it stood until this edit: a crash may have come between journal and edit.
    #[serde(default)]
    pub(super) before: Option<String>,
}

/// What stood there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Original {
    Absent,
    File { text: String, mode: u32 },
    Link { target: PathBuf },
    Mounted { text: String, at: PathBuf },
}

impl Original {
    /// The same with another text, where it is one that has a text.
    pub(super) fn with_text(self, text: &str) -> Self {
        match self {
            Self::File { mode, .. } => Self::File { text: text.to_owned(), mode },
            Self::Mounted { at, .. } => Self::Mounted { text: text.to_owned(), at },
            other => other,
        }
    }

    /// What our edit of it says of it.
    pub(super) fn was(&self) -> Was {
        match self {
            Self::Absent => Was::Nothing,
            Self::File { .. } | Self::Mounted { .. } => Was::File,
            Self::Link { target } => Was::Link(target.clone()),
        }
    }

    /// What stood for this before it had an edit of ours in it, which told `rest`.
    pub(super) fn before(self, rest: &Rest) -> Self {
        match (self, &rest.was) {
            (Self::File { .. }, Some(Was::Nothing)) if rest.whole => Self::Absent,
            (Self::File { .. }, Some(Was::Link(target))) if rest.whole => {
                Self::Link { target: target.clone() }
            }
            (found, _) => found.with_text(&rest.text),
        }
    }
}

/// Undoes what the journal says was done. True if there was a journal.
pub fn restore_journal(journal_dir: &Path) -> Result<bool, ResolvConfError> {
    let journal = journal_dir.join(JOURNAL);
    let Some(json) = read_bounded(&journal, MAX_JOURNAL_BYTES)? else { return Ok(false) };
    match serde_json::from_slice::<Entry>(&json) {
        Ok(entry) => undo(&entry, &journal)?,
        Err(error) => {
            // Written atomically, so this is not ours; without it nothing can be undone.
            tracing::error!(%error, journal = %journal.display(), "the resolver's journal is damaged: set aside");
            let aside = journal.with_extension("damaged");
            fs::rename(&journal, &aside)
                .map_err(|source| ResolvConfError::io("set aside", &journal, source))?;
        }
    }
    Ok(true)
}

/// The edit that the journal tells of, if it is known to stand.
pub(super) fn standing(journal_dir: &Path) -> Option<Entry> {
    let json = read_bounded(&journal_dir.join(JOURNAL), MAX_JOURNAL_BYTES).ok()??;
    let entry: Entry = serde_json::from_slice(&json).ok()?;
    entry.stands().unwrap_or(false).then_some(entry)
}

/// Puts the original back if the edit still stands, and forgets the edit.
///
/// # Errors
///
/// When that cannot be known or done. The journal then stays, for the next who tries.
pub(super) fn undo(entry: &Entry, journal: &Path) -> Result<(), ResolvConfError> {
    if !entry.put_back(journal)? {
        tracing::info!(path = %entry.path.display(), "changed by someone else since: left alone");
    }
    Ok(())
}

impl Entry {
    /// Makes the edit, after it is in the journal; which is not written where it can be known before that the
    /// edit cannot be made.
    pub(super) fn make(&self, journal: &Path) -> Result<(), ResolvConfError> {
        let failed = |source| ResolvConfError::io("write", &self.path, source);
        let edit = self.begin().map_err(failed)?;
        let json = serde_json::to_vec(self).map_err(ResolvConfError::Journal)?;
        write_atomic(journal, &json, 0o600)?;
        edit.finish(&self.ours).map_err(|source| {
            // In place, a part may be written.
            let _ = self.put_back(journal);
            failed(source)
        })
    }

    fn begin(&self) -> io::Result<Edit<'_>> {
        match &self.original {
            Original::Mounted { at, .. } => OpenOptions::new().write(true).open(at).map(Edit::InPlace),
            Original::Absent | Original::Link { .. } => {
                Aside::write(&self.path, &self.ours, 0o644).map(Edit::Aside)
            }
            Original::File { mode, .. } => {
                may_be_replaced(&self.path)?;
                Aside::write(&self.path, &self.ours, *mode).map(Edit::Aside)
            }
        }
    }

    /// Puts the original back if the edit still stands, or an earlier one what that was made of, and removes
    /// the journal. False if somebody else has the file.
    fn put_back(&self, journal: &Path) -> Result<bool, ResolvConfError> {
        let original = match self.stands()? || self.is_partly_undone()? {
            true => Some(self.original.clone()),
            false => self.before_an_earlier_edit()?,
        };
        let is_ours = original.is_some();
        if let Some(original) = &original {
            let path = &self.path;
            let restored = match original {
                Original::Absent => fs::remove_file(path).and_then(|()| sync_folder(path)),
                Original::File { text, mode } => Aside::write(path, text, *mode).and_then(Aside::replace),
                Original::Link { target } => replace_by_link(path, target),
                Original::Mounted { text, at } => {
                    OpenOptions::new().write(true).open(at).and_then(|file| rewrite(file, text))
                }
            };
            restored.map_err(|source| ResolvConfError::io("restore", path, source))?;
        }
        match fs::remove_file(journal) {
            // An edit that failed took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(is_ours),
            removed => {
                removed.map(|()| is_ours).map_err(|source| ResolvConfError::io("remove", journal, source))
            }
        }
    }

    /// Whether the file still is what we wrote. Written in place, it may be the start of it: we crashed
    /// half-way.
    ///
    /// # Errors
    ///
    /// The file cannot be read, so nobody knows. Taken for a no, it would leave our edit behind for good.
    pub(super) fn stands(&self) -> Result<bool, ResolvConfError> {
        if let Original::Mounted { at, .. } = &self.original {
            return Ok(bytes_of(at)?.is_some_and(|now| self.ours.as_bytes().starts_with(&now)));
        }
        match fs::symlink_metadata(&self.path) {
            Ok(meta) if !meta.is_file() => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(ResolvConfError::io("read", &self.path, source)),
        }
        let is_ours = |now: &[u8]| {
            [Some(&self.ours), self.before.as_ref()].into_iter().flatten().any(|ours| now == ours.as_bytes())
        };
        Ok(bytes_of(&self.path)?.as_deref().is_some_and(is_ours))
    }

    /// What stood there before the file was an earlier edit of ours, if it is one again: somebody had saved it.
    fn before_an_earlier_edit(&self) -> Result<Option<Original>, ResolvConfError> {
        let (path, is_mounted) = match &self.original {
            Original::Mounted { at, .. } => (at, true),
            Original::Absent | Original::File { .. } | Original::Link { .. } => (&self.path, false),
        };
        let Ok(meta) = fs::symlink_metadata(path) else { return Ok(None) };
        if !meta.is_file() {
            return Ok(None);
        }
        let text = bytes_of(path)?.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        let found = if is_mounted {
            Original::Mounted { text: String::new(), at: path.clone() }
        } else {
            Original::File { text: String::new(), mode: meta.permissions().mode() & 0o777 }
        };
        Ok(whole(&text).map(|rest| found.before(&rest)))
    }

    /// Whether the file is the start of the original, put back in place: that failed or crashed half-way.
    fn is_partly_undone(&self) -> Result<bool, ResolvConfError> {
        let Original::Mounted { text, at } = &self.original else { return Ok(false) };
        Ok(bytes_of(at)?.is_some_and(|now| text.as_bytes().starts_with(&now)))
    }
}

/// Nothing where there is no file, or one that is too large to be ours.
fn bytes_of(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match read_bounded(path, MAX_BYTES) {
        Err(StateError::TooLarge { .. }) => Ok(None),
        read => read,
    }
}

/// An edit of which nothing is to be seen yet.
enum Edit<'a> {
    InPlace(File),
    Aside(Aside<'a>),
}

impl Edit<'_> {
    fn finish(self, text: &str) -> io::Result<()> {
        match self {
            Self::InPlace(file) => rewrite(file, text),
            Self::Aside(file) => file.replace(),
        }
    }
}

/// A file beside the one that it is to replace. It goes if it does not.
struct Aside<'a>(&'a Path);

impl<'a> Aside<'a> {
    fn write(path: &'a Path, text: &str, mode: u32) -> io::Result<Self> {
        let aside = aside(path);
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&aside)?;
        let written = Self(path);
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(written)
    }

    fn replace(self) -> io::Result<()> {
        fs::rename(aside(self.0), self.0).and_then(|()| sync_folder(self.0))
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(aside(self.0));
    }
}

/// Fails where no file may take this one's place, though others may be made beside it (`chattr +i`). Who may
/// not write it may replace it all the same.
fn may_be_replaced(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Err(error),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn replace_by_link(path: &Path, target: &Path) -> io::Result<()> {
    let aside = aside(path);
    let _ = fs::remove_file(&aside);
    symlink(target, &aside)?;
    let renamed = fs::rename(&aside, path).and_then(|()| sync_folder(path));
    renamed.inspect_err(|_| drop(fs::remove_file(&aside)))
}

/// What stands at a path is on disk only with its folder; the journal goes after that.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn rewrite(mut file: File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".cyphonic");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOST: &str = "nameserver 192.0.2.1\n";
    const OURS: &str = "nameserver 127.0.0.55\n";

    struct Host {
        dir: tempfile::TempDir,
        entry: Entry,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for folder in ["etc", "journal"] {
                fs::create_dir(dir.path().join(folder)).unwrap();
            }
            let path = dir.path().join("etc/resolv.conf");
            fs::write(&path, HOST).unwrap();
            let original = Original::File { text: HOST.into(), mode: 0o644 };
            Self { dir, entry: Entry { path, original, ours: OURS.into(), before: None } }
        }

        fn journal(&self) -> PathBuf {
            self.dir.path().join("journal")
        }

        fn restore(&self) -> Result<bool, ResolvConfError> {
            restore_journal(&self.journal())
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.entry.path).unwrap()
        }
    }

    #[test]
    fn a_crash_between_journal_and_edit_changes_nothing() {
        let host = Host::new();
        fs::write(host.journal().join(JOURNAL), serde_json::to_vec(&host.entry).unwrap()).unwrap();
        assert!(host.restore().unwrap());
        assert_eq!(host.text(), HOST);
        assert!(fs::read_dir(host.journal()).unwrap().next().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_anothers() {
        let host = Host::new();
        host.entry.make(&host.journal().join(JOURNAL)).unwrap();
        // A link to itself in the way makes every look fail, whoever runs the test.
        let (etc, away) = (host.dir.path().join("etc"), host.dir.path().join("away"));
        fs::rename(&etc, &away).unwrap();
        symlink(&etc, &etc).unwrap();
        assert!(host.entry.stands().is_err() && host.restore().is_err());
        fs::remove_file(&etc).unwrap();
        fs::rename(&away, &etc).unwrap();
        assert_eq!(host.text(), OURS);
        assert!(host.restore().unwrap(), "the journal is still there");
        assert_eq!(host.text(), HOST);
    }

    #[test]
    fn a_restoration_in_place_that_stopped_half_way_is_completed() {
        let mut host = Host::new();
        host.entry.original = Original::Mounted { text: HOST.into(), at: host.entry.path.clone() };
        host.entry.make(&host.journal().join(JOURNAL)).unwrap();
        // As where the disk is full, or at a loss of power.
        fs::write(&host.entry.path, &HOST[..HOST.len() - 3]).unwrap();
        assert!(host.restore().unwrap());
        assert_eq!(host.text(), HOST);
    }

    #[test]
    fn what_cannot_be_our_edit_is_somebody_elses() {
        let host = Host::new();
        let path = &host.entry.path;
        fs::write(path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(!host.entry.stands().unwrap());
        fs::remove_file(path).unwrap();
        assert!(!host.entry.stands().unwrap());
        fs::create_dir(path).unwrap();
        assert!(!host.entry.stands().unwrap());
    }

    #[test]
    fn a_file_that_may_not_be_replaced_costs_no_write() {
        let mut host = Host::new();
        let journal = host.journal();
        let fails_unwritten = |entry: &Entry| {
            File::open(&journal).unwrap().set_modified(UNIX_EPOCH).unwrap();
            let failed = entry.make(&journal.join(JOURNAL)).is_err();
            let written = fs::metadata(&journal).unwrap().modified().unwrap();
            failed && written == UNIX_EPOCH && !aside(&entry.path).exists()
        };
        let chattr = |how: &str| {
            let done = Command::new("chattr").arg(how).arg(&host.entry.path).output();
            done.is_ok_and(|done| done.status.success())
        };
        // Not every file system, nor everybody, can.
        if chattr("+i") {
            let unwritten = fails_unwritten(&host.entry);
            assert!(chattr("-i") && unwritten);
        }
        // In place; whoever runs the test.
        host.entry.original = Original::Mounted { text: HOST.into(), at: host.dir.path().join("etc") };
        assert!(fails_unwritten(&host.entry));
        assert_eq!(host.text(), HOST);
    }

    #[test]
    fn a_damaged_journal_is_set_aside() {
        let host = Host::new();
        fs::write(host.journal().join(JOURNAL), "{").unwrap();
        assert!(host.restore().unwrap());
        assert!(!host.restore().unwrap());
    }
}
