//! Where a node is, and how programs are run there.

use std::ffi::OsStr;
use std::process::Command;

use crate::command::configure;
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
        }
    }
}

impl Machine {
    /// A command that runs `program` on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.program(program.as_ref())
    }

    /// Runs a batch of `ip` commands there.
    ///
    /// # Errors
    /// One of them failed; those before it took effect.
    pub fn ip(&self, batch: &str) -> Result<(), LabError> {
        match self {
            Self::Namespace(namespace) => namespace.ip(batch),
            Self::Own => configure(self.command("ip").args(["-batch", "-"]), batch).map(drop),
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
}
