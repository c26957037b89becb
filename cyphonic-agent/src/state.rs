//! The state directory: the only thing that survives a restart.
//!
//! | File | Holds | Written |
//! |---|---|---|
//! | `identity/key.pem` | the device's private key, P-256 | once, before the first enrolment request |
//! | `identity/key.pem.next` | the one that takes its place once there is a certificate for it | where another device has the first |
//! | `identity/root.pem` | the overlay's root certificate | at enrolment |
//! | `identity/chain.pem` | the device's certificate, then the intermediate's | at enrolment and renewal |
//! | `identity/chain.old.pem` | what was in `chain.pem` before the last renewal | at renewal |
//! | `node.bin` | what the node remembers of its cloud, to start without it | seldom |
//! | `port` | the UDP port the kernel chose at the first start | once |
//! | `identity/key.pem.revoked`, `identity/key.pem.damaged` | a key that `up --anew` replaced: private, too | at `up --anew` |
//! | `lock` | nothing: held while an agent uses the directory | once |
//! | `resolver/` | what was changed in the host's resolver | see [`crate::resolver`] |
//!
//! Invariants: a file is replaced whole or not at all (written aside, flushed, renamed, directory flushed). A
//! device is enrolled exactly when `chain.pem` is there, which is why that file is written last; a key that
//! it is for takes its place after that, now or at the next start. The private key is readable by
//! its owner only, from its first byte on. Nothing is written periodically: SD cards wear out.

mod atomic;
mod identity;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomic::write_together;
pub use atomic::{read_bounded, write_atomic};
pub use identity::DeviceIdentity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::config::instance;

/// The node's cached state is a few kilobytes.
const MAX_NODE_BYTES: u64 = 1024 * 1024;
const MAX_PEM_BYTES: u64 = 64 * 1024;

/// The state directory, open.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    id: Arc<str>,
}

impl StateDir {
    /// Opens the directory, creating it (mode 0700) if need be and taking others' access away if they have
    /// any.
    ///
    /// # Errors
    ///
    /// When it cannot be created, or belongs to somebody else.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::io("open", path, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        restrict(path, 0o700)?;
        let meta = fs::metadata(path).map_err(failed)?;
        let id = format!("{}:{}", meta.dev(), meta.ino()).into();
        let state = Self { path: path.to_owned(), id };
        for sub in [state.identity_dir(), state.resolver_dir()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&sub).map_err(failed)?;
        }
        Ok(state)
    }

    /// Makes sure that one daemon only uses the directory. The lock ends with the value, or with the process.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let is_read_only =
            file.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem);
        let file = file
            // Nothing is written to it.
            .or_else(|error| if is_read_only { File::open(&path).map_err(|_| error) } else { Err(error) })
            .map_err(|source| StateError::io("open", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(StateLock { _file: file }),
            // NFS locks only what may be written. Nobody can write here.
            Err(TryLockError::Error(error))
                if is_read_only && error.raw_os_error() == Some(Errno::BADF.raw_os_error()) =>
            {
                Ok(StateLock { _file: file })
            }
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(StateError::io("lock", &path, source)),
        }
    }

    /// What no other directory of this host has, also where containers call theirs the same; another one after
    /// it was moved or restored.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of [`crate::resolver`]'s journal.
    pub fn resolver_dir(&self) -> PathBuf {
        self.path.join("resolver")
    }

    /// The key to enrol with, made and kept at the first call: a retried enrolment asks for the same key
    /// again.
    pub fn key_or_generate(&self) -> Result<KeyPair, StateError> {
        if let Some(next) = self.next_key()? {
            return Ok(next);
        }
        match self.key()? {
            Some(key) => Ok(key),
            None => generate_key(&self.key_path()),
        }
    }

    /// Another key to enrol with, where another device has the same. The present one stays until there is a
    /// certificate for this one: the device is who it was until then.
    pub fn generate_next_key(&self) -> Result<KeyPair, StateError> {
        generate_key(&self.next_key_path())
    }

    /// Nothing where it is damaged: another one is made when it is needed.
    fn next_key(&self) -> Result<Option<KeyPair>, StateError> {
        match read_key(&self.next_key_path()) {
            Err(error) if error.is_damage() => Ok(None),
            read => read,
        }
    }

    /// Makes room for another key where the device's cannot be used; the damaged one is kept beside it.
    ///
    /// # Errors
    ///
    /// When it cannot be read or moved.
    pub fn set_damaged_key_aside(&self) -> Result<(), StateError> {
        match self.key() {
            Ok(_) => Ok(()),
            Err(error) if error.is_damage() => self.set_key_aside(&self.key_path(), "key.pem.damaged"),
            Err(error) => Err(error),
        }
    }

    /// Makes room for another key where the cloud has revoked the one that [`Self::key_or_generate`] gave,
    /// which is kept beside it.
    ///
    /// # Errors
    ///
    /// When it cannot be moved.
    pub fn set_revoked_key_aside(&self) -> Result<(), StateError> {
        let path = if self.next_key()?.is_some() { self.next_key_path() } else { self.key_path() };
        self.set_key_aside(&path, "key.pem.revoked")
    }

    fn set_key_aside(&self, path: &Path, name: &str) -> Result<(), StateError> {
        let aside = self.identity_dir().join(name);
        fs::rename(path, aside).map_err(|source| StateError::io("rename", path, source))
    }

    /// The device's key, if there is one.
    pub fn key(&self) -> Result<Option<KeyPair>, StateError> {
        read_key(&self.key_path())
    }

    /// The device's identity, or nothing while it is not enrolled.
    ///
    /// # Errors
    ///
    /// When files are missing or damaged, or key and certificate do not belong together.
    pub fn identity(&self) -> Result<Option<DeviceIdentity>, StateError> {
        let Some(chain) = read_bounded(&self.chain_path(), MAX_PEM_BYTES)? else { return Ok(None) };
        let missing = |path: PathBuf| StateError::Incomplete { path };
        let root =
            read_bounded(&self.root_path(), MAX_PEM_BYTES)?.ok_or_else(|| missing(self.root_path()))?;
        if let Some(next) = self.next_key()?
            && let Ok(identity) = DeviceIdentity::from_pem(next, &chain, &root)
        {
            // A loss of power kept it from its place. Where that cannot be had, it is found here again.
            let _ = self.take_next_key();
            return Ok(Some(identity));
        }
        let key = self.key()?.ok_or_else(|| missing(self.key_path()))?;
        DeviceIdentity::from_pem(key, &chain, &root)
            .map(Some)
            .map_err(|reason| StateError::Identity { path: self.identity_dir(), reason })
    }

    /// The same device with the certificate that it had before the last renewal, if that can be used.
    pub fn former(&self) -> Option<DeviceIdentity> {
        let chain = read_bounded(&self.former_path(), MAX_PEM_BYTES).ok()??;
        let root = read_bounded(&self.root_path(), MAX_PEM_BYTES).ok()??;
        DeviceIdentity::from_pem(self.key().ok()??, &chain, &root).ok()
    }

    /// Keeps the certificates of a device that enrolled, once checked. Its key must be one that this gave;
    /// one that is not the device's yet becomes it.
    pub fn save_identity(&self, identity: &DeviceIdentity) -> Result<(), StateError> {
        self.write_identity(identity)?;
        // It may be another device's.
        remove(&self.former_path())?;
        match self.next_key()? {
            Some(next) if identity.is_for(&next) => self.take_next_key(),
            _ => remove(&self.next_key_path()),
        }
    }

    /// Puts the next key in the place of the present one, which is another device's: it does not stay here.
    fn take_next_key(&self) -> Result<(), StateError> {
        let next = self.next_key_path();
        match fs::rename(&next, self.key_path()) {
            // Whoever has looked at the identity since has done it.
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError::io("rename", &next, source))
            }
            _ => Ok(()),
        }
    }

    /// Keeps the certificates of a device that renewed its own, and those that it renewed them by.
    pub fn save_renewed(&self, identity: &DeviceIdentity, former: &DeviceIdentity) -> Result<(), StateError> {
        write_atomic(&self.former_path(), former.chain_pem().as_bytes(), 0o644)?;
        self.write_identity(identity)
    }

    fn write_identity(&self, identity: &DeviceIdentity) -> Result<(), StateError> {
        let (root, chain) = (identity.root_pem(), identity.chain_pem());
        let (to_root, to_chain) = (self.root_path(), self.chain_path());
        write_together(&[(&to_root, root.as_bytes()), (&to_chain, chain.as_bytes())], 0o644)
    }

    /// What the node remembered, if anything. Opaque here.
    pub fn node(&self) -> Result<Option<Vec<u8>>, StateError> {
        read_bounded(&self.path.join("node.bin"), MAX_NODE_BYTES)
    }

    /// Keeps what the node remembers. Unchanged bytes are not written again.
    pub fn save_node(&self, bytes: &[u8]) -> Result<(), StateError> {
        if self.node().ok().flatten().as_deref() == Some(bytes) {
            return Ok(());
        }
        write_atomic(&self.path.join("node.bin"), bytes, 0o600)
    }

    /// The UDP port of earlier starts.
    pub fn port(&self) -> Option<u16> {
        let bytes = read_bounded(&self.path.join("port"), 16).ok()??;
        str::from_utf8(&bytes).ok()?.trim().parse().ok().filter(|&port| port != 0)
    }

    /// Remembers the UDP port, so that NAT mappings and firewall rules keep their meaning over restarts.
    pub fn save_port(&self, port: u16) -> Result<(), StateError> {
        if self.port() == Some(port) {
            return Ok(());
        }
        write_atomic(&self.path.join("port"), format!("{port}\n").as_bytes(), 0o600)
    }

    fn identity_dir(&self) -> PathBuf {
        self.path.join("identity")
    }

    fn key_path(&self) -> PathBuf {
        self.identity_dir().join("key.pem")
    }

    fn next_key_path(&self) -> PathBuf {
        self.identity_dir().join("key.pem.next")
    }

    fn chain_path(&self) -> PathBuf {
        self.identity_dir().join("chain.pem")
    }

    fn former_path(&self) -> PathBuf {
        self.identity_dir().join("chain.old.pem")
    }

    fn root_path(&self) -> PathBuf {
        self.identity_dir().join("root.pem")
    }
}

/// Held by the daemon while it uses a state directory.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

fn generate_key(path: &Path) -> Result<KeyPair, StateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| StateError::Key { path: path.to_owned(), reason: error.to_string() })?;
    let pem = Zeroizing::new(key.serialize_pem());
    write_atomic(path, pem.as_bytes(), 0o600)?;
    Ok(key)
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, StateError> {
    let Some(pem) = read_bounded(path, MAX_PEM_BYTES)? else { return Ok(None) };
    restrict(path, 0o600)?;
    let pem = Zeroizing::new(pem);
    let damaged = |reason: String| StateError::Key { path: path.to_owned(), reason };
    let text = str::from_utf8(&pem).map_err(|_| damaged("it is not text".into()))?;
    KeyPair::from_pem(text).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Makes sure that there is no such file.
fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StateError::io("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Takes away access beyond `mode`; a restored backup often has too much of it.
fn restrict(path: &Path, mode: u32) -> Result<(), StateError> {
    let failed = |source| StateError::io("restrict access to", path, source);
    let mut permissions = fs::metadata(path).map_err(failed)?.permissions();
    if permissions.mode() & 0o777 & !mode == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "others had access to this: taken away");
    permissions.set_mode(mode);
    fs::set_permissions(path, permissions).map_err(failed)
}

/// What helps where an identity is damaged, and no backup is at hand.
fn enrol_anew() -> String {
    format!(
        "stop the daemon and enrol with `{} up --anew --token file:PATH` and a token of \
         `cyphonic-cloud token create --name NAME --replace`",
        instance::command()
    )
}

/// Why state could not be read or written. Nothing was changed, except that a directory may have been
/// created.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `open`, `write`…
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Larger than it can be.
    #[error("{} is larger than {limit} bytes: it is damaged; restore it from a backup, or if it is of the device's identity, {}", path.display(), enrol_anew())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Another daemon runs.
    #[error("another daemon uses {}: stop it first (`systemctl stop {}` or `{} down`), or give this one its own --state-dir", path.display(), instance::unit(), instance::command())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the identity is missing while others are there.
    #[error("{} is missing but the device is enrolled: restore it from a backup, or {}", path.display(), enrol_anew())]
    Incomplete {
        /// Which file.
        path: PathBuf,
    },
    /// The key cannot be used.
    #[error("the device's key {} cannot be used: {reason}; restore it from a backup, or {}", path.display(), enrol_anew())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificates cannot be used.
    #[error("the device's identity in {} cannot be used: {reason}; restore it from a backup, or {}", path.display(), enrol_anew())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl StateError {
    /// True where files can be read and are of no use, so that only others in their place help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Incomplete { .. } | Self::Key { .. } | Self::Identity { .. } => {
                true
            }
            Self::Io { .. } | Self::InUse { .. } => false,
        }
    }

    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_key_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("s")).unwrap();
        assert!(state.key().unwrap().is_none());
        let first = state.key_or_generate().unwrap();
        let second = state.key_or_generate().unwrap();
        assert_eq!(first.public_key_raw(), second.public_key_raw());
        assert_eq!(mode(&state.key_path()), 0o600);
        assert_eq!(mode(state.path()), 0o700);
        assert!(state.identity().unwrap().is_none(), "a key alone is no enrolment");
    }

    #[test]
    fn access_of_others_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let state = StateDir::open(&path).unwrap();
        state.key_or_generate().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(state.key_path(), fs::Permissions::from_mode(0o644)).unwrap();
        let state = StateDir::open(&path).unwrap();
        state.key().unwrap();
        assert_eq!((mode(&path), mode(&state.key_path())), (0o700, 0o600));
    }

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::InUse { .. })));
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(state.key_path(), [0xff, 0xfe]).unwrap();
        assert!(matches!(state.key(), Err(StateError::Key { .. })));
        assert!(
            matches!(state.key_or_generate(), Err(StateError::Key { .. })),
            "a damaged key is never replaced unasked"
        );
        fs::write(state.chain_path(), "x").unwrap();
        assert!(matches!(state.identity(), Err(StateError::Incomplete { .. })));
        fs::write(state.path().join("node.bin"), vec![0; 2 * 1024 * 1024]).unwrap();
        assert!(matches!(state.node(), Err(StateError::TooLarge { .. })));
        fs::write(state.path().join("port"), "pony").unwrap();
        assert_eq!(state.port(), None);
    }

    #[test]
    fn a_damaged_key_makes_room_on_request_and_a_sound_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.set_damaged_key_aside().unwrap();
        fs::write(state.key_path(), "damaged").unwrap();
        state.set_damaged_key_aside().unwrap();
        assert_eq!(fs::read_to_string(state.identity_dir().join("key.pem.damaged")).unwrap(), "damaged");
        let key = state.key_or_generate().unwrap();
        state.set_damaged_key_aside().unwrap();
        assert_eq!(state.key().unwrap().unwrap().public_key_raw(), key.public_key_raw());
    }

    #[test]
    fn node_state_and_port_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!((state.node().unwrap(), state.port()), (None, None));
        state.save_node(b"abc").unwrap();
        state.save_port(4711).unwrap();
        assert_eq!((state.node().unwrap().as_deref(), state.port()), (Some(&b"abc"[..]), Some(4711)));
    }
}
