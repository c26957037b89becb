//! What the virtual machines of `vagrant/` need of this tree.
//!
//! `cargo xtask vagrant-stage` brings it together in `target/vagrant`, from where Vagrant copies it to every
//! machine: the Debian packages and the program that makes a machine a node of the topology.

pub(crate) mod rehearsal;
pub(crate) mod trial;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::package::stage::runs_on_debian;
use crate::package::{make, make_to_try, revision};
use crate::target::Target;
use crate::workspace;

/// The lab's program for a machine of its own.
const NODE_PROGRAM: &str = "cyphonic-lab-node";

/// What to bring together.
#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// Take programs as they are developed, unoptimised: quicker to build.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn stage(args: &StageArgs) -> Result<()> {
    let target = Target::Amd64;
    let packages = if args.debug { make_to_try(target)? } else { make(target, true, revision()?)? };
    // Built with all programs.
    let program = target.folder(!args.debug).join(NODE_PROGRAM);
    runs_on_debian(&program)?;

    let stage = folder();
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot clear {}", stage.display()))?;
    }
    fs::create_dir_all(&stage).with_context(|| format!("cannot make {}", stage.display()))?;
    target.strip(&program, &stage.join(NODE_PROGRAM))?;
    for package in &packages {
        let to = stage.join(staged(package));
        fs::copy(package, &to).with_context(|| format!("cannot copy {}", package.display()))?;
    }
    println!("vagrant-stage: {} has what the machines are given", stage.display());
    Ok(())
}

/// A package's name without its version, so that on a machine it replaces the one that was brought before, be
/// it newer or older.
fn staged(package: &Path) -> String {
    let file = package.file_name().unwrap_or_default().to_string_lossy();
    format!("{}.deb", file.split('_').next().unwrap_or_default())
}

/// Where it is brought together.
fn folder() -> PathBuf {
    workspace::root().join("target/vagrant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_replaces_the_one_that_was_brought_before() {
        let staged = |file| staged(Path::new(file));
        assert_eq!(staged("target/debian/cyphonic_0.1.0-9_amd64.deb"), "cyphonic.deb");
        assert_eq!(staged("target/debian/cyphonic-cloud_0.1.0-1234_amd64.deb"), "cyphonic-cloud.deb");
    }
}
