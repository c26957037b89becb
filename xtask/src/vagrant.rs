//! What the virtual machines of `vagrant/` need of this tree.
//!
//! `cargo xtask vagrant-stage` brings it together in `target/vagrant`, from where Vagrant copies it to every machine: the
//! Debian packages and the program that makes a machine a node of the topology.

pub(crate) mod rehearsal;
pub(crate) mod trial;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::package::{make, make_to_try, revision, stage::runs_on_debian};
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
        let to = stage.join(package.file_name().unwrap_or_default());
        fs::copy(package, &to).with_context(|| format!("cannot copy {}", package.display()))?;
    }
    println!("vagrant-stage: {} has what the machines are given", stage.display());
    Ok(())
}

/// Where it is brought together.
fn folder() -> PathBuf {
    workspace::root().join("target/vagrant")
}
