//! The machines that the programs are built for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{shell, workspace};

/// A machine's architecture, by the name Rust has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// PCs and servers.
    #[value(name = "x86_64-unknown-linux-gnu")]
    Amd64,
    /// Raspberry Pi 3 and later with a 64-bit system, and other 64-bit ARM machines.
    #[value(name = "aarch64-unknown-linux-gnu")]
    Arm64,
}

impl Target {
    /// This machine's, if the programs are built for its like.
    pub(crate) fn host() -> Option<Self> {
        Self::value_variants().iter().copied().find(|target| target.arch() == std::env::consts::ARCH)
    }

    /// Whether what is built for it runs here, so that nothing foreign is needed.
    pub(crate) fn is_host(self) -> bool {
        Self::host() == Some(self)
    }

    /// Rust's name of it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's name of it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// GNU's name of it, which begins its tools' names.
    pub(crate) fn gnu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Tells cargo to build for it. Builds for this machine stay where they are without a target, so that
    /// there is one of each.
    pub(crate) fn configure(self, cargo: &mut Command) {
        if self.is_host() {
            return;
        }
        let variable = self.triple().to_uppercase().replace('-', "_");
        cargo.args(["--target", self.triple()]);
        // What a person has set stays set.
        if std::env::var_os(format!("CARGO_TARGET_{variable}_LINKER")).is_none() {
            cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), format!("{}-gcc", self.gnu()));
        }
    }

    /// Where cargo puts what it builds for it.
    pub(crate) fn folder(self, release: bool) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace::root().join("target"), PathBuf::from);
        let target = workspace::root().join(target);
        let target = if self.is_host() { target } else { target.join(self.triple()) };
        target.join(if release { "release" } else { "debug" })
    }

    /// Copies a program without its symbols, which are most of it.
    pub(crate) fn strip(self, from: &Path, to: &Path) -> Result<()> {
        let own = format!("{}-strip", self.gnu());
        let tool = if self.is_host() && shell::find(&own).is_none() { "strip".to_owned() } else { own };
        let mut strip = Command::new(&tool);
        let stripped = strip.arg("-o").arg(to).arg(from).status();
        let status = stripped.with_context(|| format!("cannot start {tool}: install binutils"))?;
        if !status.success() {
            bail!("{tool} cannot strip {}: {status}", from.display());
        }
        Ok(())
    }

    fn arch(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.triple())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_foreign_target_changes_how_cargo_is_called() {
        for target in Target::value_variants() {
            let mut cargo = Command::new("cargo");
            target.configure(&mut cargo);
            let arguments: Vec<_> = cargo.get_args().map(|argument| argument.to_string_lossy()).collect();
            let expected = if target.is_host() { vec![] } else { vec!["--target", target.triple()] };
            assert_eq!(arguments, expected);
            assert!(target.folder(true).ends_with("release"));
        }
    }
}
