//! A backup: the register as it stands while it is used, and all files that it takes to go on elsewhere.
//!
//! It is laid out as the configuration's own directory, so that restoring is copying. What the configuration
//! names elsewhere stands below [`OUTSIDE`]. The root's key is left out: nothing here needs it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use crate::config::Config;
use crate::pki::{self, PkiError, ServiceFiles};
use crate::register::{Register, RegisterError};

/// Files from outside the configuration's directory, by their absolute paths.
pub const OUTSIDE: &str = "outside";

/// What a backup has and has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Whether there was a register to copy: AS and NMS have one, a relay has none.
    pub has_register: bool,
    /// Files that are not in the configuration's directory. They are in the backup, below [`OUTSIDE`].
    pub outside: Vec<PathBuf>,
    /// Keys of the root, which were left out.
    pub left_out: Vec<PathBuf>,
}

/// Why there is no backup. What had been written of it is gone.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something already; it was left as it is.
    #[error("{} exists already and was left as it is: choose a folder that does not exist", .0.display())]
    Exists(PathBuf),
    /// What an interrupted backup left, or one that is being made.
    #[error("{} is being written, or an interrupted backup left it: then remove it", .0.display())]
    Unfinished(PathBuf),
    /// A folder could not be made.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that belongs to the backup could not be read.
    #[error("cannot read {}, which belongs to a backup: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The register.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Makes a backup of the services of this configuration file, which may run. The folder is new, its owner's
/// only, and there only once everything in it is on the disk.
///
/// # Errors
/// If the folder exists, or something cannot be read or written: there is none then. (If only its name does
/// not get to the disk, it is there, and may be gone after a loss of power.)
pub fn write(config: &Config, file: &Path, to: &Path) -> Result<Backup, BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let unfinished = to.with_added_extension("unfinished");
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Write { path, source }
    };
    DirBuilder::new().mode(0o700).create(&unfinished).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Unfinished(unfinished.clone()),
        _ => cannot(&unfinished)(error),
    })?;
    let written = fill(config, file, &unfinished).and_then(|backup| {
        fs::rename(&unfinished, to).map_err(cannot(to))?;
        Ok(backup)
    });
    match written {
        Ok(backup) => pki::sync_folder_of(to).map_err(cannot(to)).map(|()| backup),
        Err(error) => {
            // It has keys in it, and may have filled the disk.
            let _ = fs::remove_dir_all(&unfinished);
            Err(error)
        }
    }
}

fn fill(config: &Config, file: &Path, to: &Path) -> Result<Backup, BackupError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Read { path, source }
    };
    let file = straight(file)?;
    let home = file.parent().unwrap_or(Path::new("/"));
    let mut backup = Backup { has_register: false, outside: Vec::new(), left_out: Vec::new() };
    let root = pki::read_certificates(&config.root)?;
    let of_keys = home.join("pki");
    let held = match pki::hold_folder(&of_keys) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        held => Some(held.map_err(read(&of_keys))?),
    };
    for path in files(config, &file, &of_keys)? {
        let is_roots =
            pki::read_key(&path).is_ok_and(|key| root.iter().any(|root| pki::is_key_of(&key, root)));
        if is_roots {
            backup.left_out.push(path);
            continue;
        }
        let copy = place(&path, home, to, &mut backup.outside)?;
        let content = fs::read(&path).map(zeroize::Zeroizing::new).map_err(read(&path))?;
        let mode = fs::metadata(&path).map_err(read(&path))?.permissions().mode();
        pki::write_new(&copy, &content, mode & 0o777)?;
    }
    drop(held);
    if let Some(register) = &config.register {
        // A file of another program, or of another overlay, is no register to go back to.
        Register::check(register, config.network.prefix)?;
        let register = straight(register)?;
        let copy = place(&register, home, to, &mut backup.outside)?;
        Register::back_up(&register, &copy)?;
        backup.has_register = true;
    }
    Ok(backup)
}

/// The configuration, what it names, and what lies with its keys: the services' authority is named nowhere.
fn files(config: &Config, file: &Path, of_keys: &Path) -> Result<BTreeSet<PathBuf>, BackupError> {
    let of_services = &config.certificates;
    let pairs =
        [&config.devices_authority, &of_services.authentication, &of_services.management, &of_services.relay];
    let of_pair = |ServiceFiles { certificate, key }: &ServiceFiles| [certificate.clone(), key.clone()];
    let mut named: Vec<PathBuf> = vec![file.to_owned(), config.root.clone()];
    named.extend(pairs.into_iter().flatten().flat_map(of_pair));

    let cannot = |source| BackupError::Read { path: of_keys.to_owned(), source };
    match fs::read_dir(of_keys) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(cannot)?.path();
                if path.is_file() {
                    named.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(error)),
    }
    named.iter().map(|path| straight(path)).collect()
}

/// An absolute path without `..`, which could lead out of the backup. The file itself stays as it is named: a
/// link is restored under its own name.
fn straight(path: &Path) -> Result<PathBuf, BackupError> {
    let straighten = || {
        let path = std::path::absolute(path)?;
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) if folder.components().any(|part| part == Component::ParentDir) => {
                Ok(folder.canonicalize()?.join(name))
            }
            _ => Ok(path),
        }
    };
    straighten().map_err(|source| BackupError::Read { path: path.to_owned(), source })
}

/// Where in the backup a file goes. Its folder is made.
fn place(path: &Path, home: &Path, to: &Path, outside: &mut Vec<PathBuf>) -> Result<PathBuf, BackupError> {
    let copy = match path.strip_prefix(home) {
        Ok(inside) => to.join(inside),
        Err(_) => {
            outside.push(path.to_owned());
            to.join(OUTSIDE).join(path.strip_prefix("/").unwrap_or(path))
        }
    };
    let folder = copy.parent().unwrap_or(to);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| BackupError::Write { path: folder.to_owned(), source })?;
    Ok(copy)
}
