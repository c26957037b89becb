//! `/etc/resolv.conf`, where nothing better runs.
//!
//! The file may be a regular file, a link into another program's directory, or a mount point (containers; `ip netns
//! exec` mounts a namespace's own over the host's). A file or link is replaced as a whole by rename; a mount point
//! cannot be, and *through a link* must not be (the link's directory is the host's, the mount is ours), so it is
//! written in place.
//!
//! The journal is one file, `resolv.conf.json`, written before the edit and removed after the restoration.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    dns::Upstream,
    state::{StateError, read_bounded, write_atomic},
};

const JOURNAL: &str = "resolv.conf.json";

/// glibc reads no more lines than make sense; a larger file is not one.
const MAX_BYTES: u64 = 64 * 1024;
const MAX_JOURNAL_BYTES: u64 = 1024 * 1024;

/// An edit that is ready to be made.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    journal: PathBuf,
    original: Original,
    text: String,
}

/// The edited file.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    journal: PathBuf,
    entry: Entry,
}

/// The journal's content: enough to undo the edit, and to know whether it still stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    original: Original,
    ours: String,
}

/// What stood there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Original {
    Absent,
    File { text: String, mode: u32 },
    Link { target: PathBuf },
    Mounted { text: String, at: PathBuf },
}

impl ResolvConf {
    /// Looks at the file. Restores first what a crashed daemon left.
    ///
    /// # Errors
    ///
    /// When the file cannot be read. Nothing was changed then, except by such a restoration.
    pub fn prepare(path: &Path, journal_dir: &Path) -> Result<Prepared, ResolvConfError> {
        restore_journal(journal_dir)?;
        let (original, text) = look_at(path)?;
        Ok(Prepared { path: path.to_owned(), journal: journal_dir.join(JOURNAL), original, text })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// False when somebody else has changed the file since.
    pub fn is_intact(&self) -> bool {
        self.entry.stands()
    }

    /// Puts the original back, unless somebody else has changed the file since.
    ///
    /// # Errors
    ///
    /// When the file cannot be written. The journal then stays, and the next start tries again.
    pub fn restore(self) -> Result<(), ResolvConfError> {
        undo(&self.entry, &self.journal)
    }
}

impl Prepared {
    /// The host's own servers; glibc's default where the file names none.
    pub fn upstream(&self, own: SocketAddr) -> Upstream {
        let mut servers = nameservers(&self.text);
        if servers.is_empty() {
            servers.push(([127, 0, 0, 1], 53).into());
        }
        Upstream::new(servers, own)
    }

    /// Makes `server` the only one. Search domains and options stay.
    pub fn apply(self, server: IpAddr) -> Result<ResolvConf, ResolvConfError> {
        let Self { path, journal, original, text } = self;
        let ours = edited(&text, server);
        let entry = Entry { path: path.clone(), original, ours };
        let json = serde_json::to_vec(&entry).map_err(ResolvConfError::Journal)?;
        write_atomic(&journal, &json, 0o600)?;
        let written = match &entry.original {
            Original::Mounted { at, .. } => write_in_place(at, &entry.ours),
            Original::Absent | Original::Link { .. } => replace(&path, &entry.ours, 0o644),
            Original::File { mode, .. } => replace(&path, &entry.ours, *mode),
        };
        if let Err(source) = written {
            // In place, a part may be written.
            let _ = undo(&entry, &journal);
            return Err(ResolvConfError::io("write", &path, source));
        }
        Ok(ResolvConf { path, journal, entry })
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

fn undo(entry: &Entry, journal: &Path) -> Result<(), ResolvConfError> {
    if entry.stands() {
        let path = &entry.path;
        let restored = match &entry.original {
            Original::Absent => fs::remove_file(path),
            Original::File { text, mode } => replace(path, text, *mode),
            Original::Link { target } => replace_by_link(path, target),
            Original::Mounted { text, at } => write_in_place(at, text),
        };
        restored.map_err(|source| ResolvConfError::io("restore", path, source))?;
    } else {
        tracing::info!(path = %entry.path.display(), "changed by someone else since: left alone");
    }
    fs::remove_file(journal).map_err(|source| ResolvConfError::io("remove", journal, source))
}

impl Entry {
    /// Whether the file still is what we wrote. Written in place, it may be the start of it: we crashed half-way.
    fn stands(&self) -> bool {
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.is_symlink());
        let bytes = |path: &Path| read_bounded(path, MAX_BYTES).ok().flatten();
        match &self.original {
            Original::Mounted { at, .. } => {
                bytes(at).is_some_and(|now| self.ours.as_bytes().starts_with(&now))
            }
            _ => !is_link && bytes(&self.path).as_deref() == Some(self.ours.as_bytes()),
        }
    }
}

fn look_at(path: &Path) -> Result<(Original, String), ResolvConfError> {
    let read = |source| ResolvConfError::io("read", path, source);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Original::Absent, String::new()));
        }
        Err(error) => return Err(read(error)),
    };
    // Follows links; a link to nowhere has no text.
    let bytes = read_bounded(path, MAX_BYTES)?.unwrap_or_default();
    let text = String::from_utf8(bytes).map_err(|_| ResolvConfError::NotText { path: path.to_owned() })?;
    let original = match fs::canonicalize(path) {
        Ok(at) if is_mount_point(&at) => Original::Mounted { text: text.clone(), at },
        _ if meta.is_symlink() => Original::Link { target: fs::read_link(path).map_err(read)? },
        _ => Original::File { text: text.clone(), mode: meta.permissions().mode() & 0o777 },
    };
    Ok((original, text))
}

/// proc(5): the fifth field of a line of mountinfo is the mount point, with blanks as `\040`.
fn is_mount_point(path: &Path) -> bool {
    // Namespaces belong to threads.
    let Ok(mounts) = fs::read_to_string("/proc/thread-self/mountinfo") else { return false };
    let wanted = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let aside = aside(path);
    let _ = fs::remove_file(&aside);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&aside)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&aside, path));
    written.inspect_err(|_| drop(fs::remove_file(&aside)))
}

fn replace_by_link(path: &Path, target: &Path) -> io::Result<()> {
    let aside = aside(path);
    let _ = fs::remove_file(&aside);
    symlink(target, &aside)?;
    fs::rename(&aside, path).inspect_err(|_| drop(fs::remove_file(&aside)))
}

fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".cyphonic");
    path.with_file_name(name)
}

/// The file with our server instead of its own.
fn edited(text: &str, server: IpAddr) -> String {
    let mut out = String::from(
        "# Edited by cyphonicd, which relays other names to the servers that stood here. Restored when it stops;\n\
         # after a crash by its next start or by `cyphonicd cleanup`.\n",
    );
    out.push_str(&format!("nameserver {server}\n"));
    for line in text.lines().filter(|line| keyword(line) != Some("nameserver")) {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The servers that a resolv.conf file names; none if it cannot be read.
pub(super) fn nameservers_of(path: &Path) -> Vec<SocketAddr> {
    let bytes = read_bounded(path, MAX_BYTES).ok().flatten().unwrap_or_default();
    nameservers(&String::from_utf8_lossy(&bytes))
}

fn nameservers(text: &str) -> Vec<SocketAddr> {
    let values = text.lines().filter(|line| keyword(line) == Some("nameserver"));
    values.filter_map(|line| parse_server(line.split_whitespace().nth(1)?)).collect()
}

/// resolv.conf(5): the keyword starts in the first column; `#` and `;` start comments.
fn keyword(line: &str) -> Option<&str> {
    if line.starts_with(char::is_whitespace) { None } else { line.split_whitespace().next() }
}

/// An address, with `%interface` where it is link-local.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, 53));
    };
    let index = scope.parse().ok().or_else(|| {
        let usable = scope.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let index = usable.then(|| fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok())??;
        index.trim().parse().ok()
    })?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into())
}

/// Why `/etc/resolv.conf` could not be edited or restored.
#[derive(Debug, thiserror::Error)]
pub enum ResolvConfError {
    /// The file system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `read`, `write`…
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not UTF-8: no resolver configuration.
    #[error("{} is not text: it is left alone; set `dns: resolver: none` or repair it", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
    },
    /// The journal.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal.
    #[error("cannot write the resolver's journal: {0}")]
    Journal(serde_json::Error),
}

impl ResolvConfError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 55));
    const HOST: &str =
        "# host\nnameserver 192.0.2.1\nsearch example.com\nnameserver 2001:db8::1\noptions ndots:2\n";

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("journal")).unwrap();
            Self { dir }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("resolv.conf")
        }

        fn journal(&self) -> PathBuf {
            self.dir.path().join("journal")
        }

        fn prepare(&self) -> Prepared {
            ResolvConf::prepare(&self.path(), &self.journal()).unwrap()
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path()).unwrap()
        }

        fn is_clean(&self) -> bool {
            fs::read_dir(self.journal()).unwrap().next().is_none()
        }
    }

    #[test]
    fn our_server_becomes_the_only_one_and_everything_else_stays() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        let prepared = host.prepare();
        let upstream = prepared.upstream("127.0.0.55:53".parse().unwrap());
        assert_eq!(
            upstream.servers(),
            ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]
        );
        let applied = prepared.apply(OWN).unwrap();
        assert_eq!(nameservers(&host.text()), ["127.0.0.55:53".parse().unwrap()]);
        assert!(host.text().contains("search example.com\n") && host.text().contains("options ndots:2\n"));
        assert!(applied.is_intact());
        applied.restore().unwrap();
        assert_eq!(host.text(), HOST);
        assert!(host.is_clean());
    }

    #[test]
    fn mode_and_kind_come_back() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o604)).unwrap();
        host.prepare().apply(OWN).unwrap().restore().unwrap();
        assert_eq!(fs::metadata(host.path()).unwrap().permissions().mode() & 0o777, 0o604);
    }

    #[test]
    fn an_absent_file_is_absent_again() {
        let host = Host::new();
        let prepared = host.prepare();
        assert_eq!(
            prepared.upstream("127.0.0.55:53".parse().unwrap()).servers(),
            ["127.0.0.1:53".parse().unwrap()]
        );
        let applied = prepared.apply(OWN).unwrap();
        assert!(host.path().exists());
        applied.restore().unwrap();
        assert!(!host.path().exists() && host.is_clean());
    }

    #[test]
    fn a_link_is_a_link_again_and_its_target_untouched() {
        let host = Host::new();
        let target = host.dir.path().join("run.conf");
        fs::write(&target, HOST).unwrap();
        symlink("run.conf", host.path()).unwrap();
        let applied = host.prepare().apply(OWN).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), HOST);
        assert!(!fs::symlink_metadata(host.path()).unwrap().is_symlink());
        applied.restore().unwrap();
        assert_eq!(fs::read_link(host.path()).unwrap(), Path::new("run.conf"));
    }

    #[test]
    fn after_a_crash_the_next_start_restores() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        std::mem::forget(host.prepare().apply(OWN).unwrap());
        assert!(restore_journal(&host.journal()).unwrap());
        assert_eq!(host.text(), HOST);
        assert!(!restore_journal(&host.journal()).unwrap(), "once is enough");
    }

    #[test]
    fn a_crash_between_journal_and_edit_changes_nothing() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        let prepared = host.prepare();
        let entry = Entry { path: prepared.path, original: prepared.original, ours: edited(HOST, OWN) };
        fs::write(prepared.journal, serde_json::to_vec(&entry).unwrap()).unwrap();
        assert!(restore_journal(&host.journal()).unwrap());
        assert_eq!(host.text(), HOST);
        assert!(host.is_clean());
    }

    #[test]
    fn preparing_twice_never_takes_our_own_edit_for_the_original() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        std::mem::forget(host.prepare().apply(OWN).unwrap());
        let applied = host.prepare().apply(OWN).unwrap();
        applied.restore().unwrap();
        assert_eq!(host.text(), HOST);
    }

    #[test]
    fn what_someone_else_wrote_since_is_left_alone() {
        let host = Host::new();
        fs::write(host.path(), HOST).unwrap();
        let applied = host.prepare().apply(OWN).unwrap();
        fs::write(host.path(), "nameserver 203.0.113.1\n").unwrap();
        assert!(!applied.is_intact());
        applied.restore().unwrap();
        assert_eq!(host.text(), "nameserver 203.0.113.1\n");
        assert!(host.is_clean());
    }

    #[test]
    fn a_damaged_journal_is_set_aside() {
        let host = Host::new();
        fs::write(host.journal().join(JOURNAL), "{").unwrap();
        assert!(restore_journal(&host.journal()).unwrap());
        assert!(!restore_journal(&host.journal()).unwrap());
    }

    #[test]
    fn servers_have_every_usual_form() {
        let text = "nameserver 192.0.2.1 # x\n#nameserver 192.0.2.2\n nameserver 192.0.2.3\nnameserver\nnameserver x\n\
                    nameserver fe80::1%lo\nnameserver fe80::2%../x\n";
        let servers: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1%1]:53"]);
    }
}
