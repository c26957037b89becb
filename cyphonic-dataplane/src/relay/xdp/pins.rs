//! What outlives the process: files in the BPF file system.
//!
//! `cyphonic/relay-<network namespace>-<port>/` (root's alone) holds the maps of legs, under names that have
//! their layout in them, and a link for each interface. The kernel keeps both, and so the program, until the files go.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use cyphonic_common::relay::LAYOUT;
use rustix::mount::{MountFlags, mount};

use super::Hook;

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// A relay's folder.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes the folder, and mounts the file system if it is not.
    pub(super) fn open(file_system: &Path, port: u16) -> io::Result<Self> {
        if !is_bpf(file_system) {
            mount("bpf", file_system, "bpf", MountFlags::empty(), None)?;
        }
        let folder = folder(file_system, port)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// The folder that an earlier process left.
    pub(super) fn left(file_system: &Path, port: u16) -> Option<Self> {
        let folder = folder(file_system, port).ok()?;
        (is_bpf(file_system) && folder.is_dir()).then_some(Self { folder })
    }

    /// Where one of the legs' maps is, if it has this version's layout.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{LAYOUT:016x}", name.to_ascii_lowercase()))
    }

    /// Where an interface's link is.
    pub(super) fn link(&self, interface: u32, hook: Hook) -> PathBuf {
        self.folder.join(format!("link-{interface}-{hook}"))
    }

    /// Remembers that a setting was 0 before: a folder, since the file system takes no plain files.
    pub(super) fn changed(&self, setting: &str) -> PathBuf {
        self.folder.join(format!("changed-{setting}"))
    }

    /// Removes what is not in `keep`: other interfaces' links, maps of other layouts.
    pub(super) fn remove_others(&self, keep: &[PathBuf]) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !keep.contains(path)) {
            let is_folder = path.is_dir();
            if !is_folder && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "what an earlier relay left stays");
            }
        }
    }

    /// Removes everything.
    pub(super) fn remove(&self) {
        self.remove_others(&[]);
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::debug!(%error, folder = %self.folder.display(), "the relay's folder stays");
        }
    }
}

/// Numbers of interfaces, and ports, are those of one network namespace.
fn folder(file_system: &Path, port: u16) -> io::Result<PathBuf> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(file_system.join("cyphonic").join(format!("relay-{namespace}-{port}")))
}

fn is_bpf(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|t| t == BPF_FS_MAGIC))
}
