//! Where a node is, how programs are run there, and how its files are reached.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::configure;
use crate::remote::Remote;
use crate::{LabError, Namespace};

/// A place where programs can be run.
pub trait Runs {
    /// A command that runs `program` there; arguments can be added as to any other.
    fn program(&self, program: &OsStr) -> Command;
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// The machine, and the network namespace, of this very process.
    Own,
    /// A network namespace of this machine.
    Namespace(Namespace),
    /// Another machine.
    Remote(Remote),
}

impl Runs for Namespace {
    fn program(&self, program: &OsStr) -> Command {
        self.command(program)
    }
}

impl Runs for Machine {
    fn program(&self, program: &OsStr) -> Command {
        match self {
            Self::Own => Command::new(program),
            Self::Namespace(namespace) => namespace.command(program),
            Self::Remote(remote) => remote.command(program),
        }
    }
}

impl Machine {
    /// A command that runs `program` on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.program(program.as_ref())
    }

    /// A command that runs `program` on it outside its namespace, as what asks for the machine's own state
    /// must.
    pub fn outside(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Own | Self::Namespace(_) => Command::new(program),
            Self::Remote(remote) => remote.command(program.as_ref()),
        }
    }

    /// Whether it shares no file system and no systemd with this process.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Remote(_))
    }

    /// Runs a batch of `ip` commands there.
    ///
    /// # Errors
    /// One of them failed; those before it took effect.
    pub fn ip(&self, batch: &str) -> Result<(), LabError> {
        match self {
            Self::Namespace(namespace) => namespace.ip(batch),
            Self::Own | Self::Remote(_) => {
                configure(self.command("ip").args(["-batch", "-"]), batch).map(drop)
            }
        }
    }

    /// Sets kernel parameters there.
    pub(crate) fn sysctl(&self, settings: &[String]) -> Result<(), LabError> {
        if settings.is_empty() {
            return Ok(());
        }
        configure(self.command("sysctl").args(["-q", "-w"]).args(settings), "").map(drop)
    }

    /// Loads an nftables ruleset there.
    pub(crate) fn nft(&self, ruleset: &str) -> Result<(), LabError> {
        configure(self.command("nft").args(["-f", "-"]), ruleset).map(drop)
    }

    /// Writes a file there, which only its owner may read if it is `secret`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, text: &str, secret: bool) -> Result<(), LabError> {
        let mode = if secret { 0o600 } else { 0o644 };
        if let Self::Remote(_) = self {
            let mut install = self.command("install");
            install.args(["-D", "-m", &format!("{mode:o}"), "/dev/stdin"]).arg(path);
            return configure(&mut install, text).map(drop);
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
        let written = file.and_then(|mut file| {
            // One that was there keeps its mode otherwise.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())
        });
        written.map_err(LabError::file("write", path))
    }

    /// Reads a file there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &Path) -> Result<String, LabError> {
        match self {
            Self::Remote(_) => configure(self.command("cat").arg(path), ""),
            Self::Own | Self::Namespace(_) => fs::read_to_string(path).map_err(LabError::file("read", path)),
        }
    }

    /// Whether something is at a path there.
    pub fn has(&self, path: &Path) -> bool {
        match self {
            Self::Remote(_) => configure(self.command("test").arg("-e").arg(path), "").is_ok(),
            Self::Own | Self::Namespace(_) => path.exists(),
        }
    }

    /// Removes a file there; one that is not there is removed already.
    ///
    /// # Errors
    /// It stays.
    pub fn remove(&self, path: &Path) -> Result<(), LabError> {
        match self {
            Self::Remote(_) => configure(self.command("rm").arg("-f").arg(path), "").map(drop),
            Self::Own | Self::Namespace(_) => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(LabError::file("delete", path)(error))
                }
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }

    /// Where this machine reaches a Unix socket of that one.
    ///
    /// # Errors
    /// SSH does not forward it.
    pub fn near(&self, socket: &Path) -> Result<PathBuf, LabError> {
        match self {
            Self::Remote(remote) => remote.bring_near(socket),
            Self::Own | Self::Namespace(_) => Ok(socket.to_owned()),
        }
    }

    /// Copies a folder from this machine of the lab to the same or another place on `other`.
    ///
    /// # Errors
    /// One of the two has no room, or no such folder.
    pub fn carry(&self, from: &Path, other: &Self, to: &Path) -> Result<(), LabError> {
        // Small files with keys in them: by way of this process, in base64, which is text.
        let pack = ["-c", r#"tar -C "$1" -cz . | base64"#, "sh"];
        let packed = configure(self.outside("sh").args(pack).arg(from), "")?;
        let unpack = ["-c", r#"mkdir -p "$1" && base64 -d | tar -C "$1" -xz"#, "sh"];
        configure(other.outside("sh").args(unpack).arg(to), &packed).map(drop)
    }
}
