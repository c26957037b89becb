//! The programs that a comparison runs, as a release would build them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::overlay::Programs;
use crate::{shell, workspace};

/// Where the programs are.
pub(super) struct BenchPrograms {
    /// This project's own.
    pub(super) own: Programs,
    /// The tunnel without keys.
    pub(super) null_gso: PathBuf,
    /// The generator and counter of datagrams.
    pub(super) datagrams: PathBuf,
}

impl BenchPrograms {
    /// Builds them.
    pub(super) fn build() -> Result<Self> {
        let own = Programs::build()?;
        let folder = own.cloud.parent().unwrap_or(Path::new(".")).to_owned();
        let mut null = shell::cargo();
        null.args(["build", "--release", "--locked", "--quiet", "-p", "cyphonic-dataplane"]);
        shell::run(null.args(["--features", "bench", "--example", "null_gso"]))?;
        let mut lab = shell::cargo();
        lab.args(["build", "--release", "--locked", "--quiet", "-p", "cyphonic-lab"]);
        shell::run(lab.args(["--bin", "cyphonic-datagrams"]))?;
        Self::with(own, &folder)
    }

    /// The programs in a folder such as `target/release`.
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        let own = Programs::in_folder(folder)?;
        let folder = own.cloud.parent().unwrap_or(folder).to_owned();
        Self::with(own, &folder)
    }

    fn with(own: Programs, folder: &Path) -> Result<Self> {
        let programs = Self {
            own,
            null_gso: folder.join("examples/null_gso"),
            datagrams: folder.join("cyphonic-datagrams"),
        };
        for program in [&programs.null_gso, &programs.datagrams] {
            if !program.is_file() {
                bail!("there is no {}: build it first", program.display());
            }
        }
        Ok(programs)
    }
}

/// A program that `bench setup` installs for this repository alone, or that the system has.
pub(super) fn peer(name: &str) -> Result<PathBuf> {
    let own = workspace::tools().join("bin").join(name);
    if own.is_file() {
        return Ok(own);
    }
    match shell::find(name) {
        Some(path) => Ok(path),
        None => bail!("there is no program {name}: run `cargo xtask bench setup`"),
    }
}
