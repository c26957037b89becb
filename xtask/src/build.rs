//! `cargo xtask build`: the eBPF objects, then the programs that embed them.

use anyhow::Result;
use clap::Args;

use crate::{ebpf, shell};

/// What to build.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Build the programs optimised, as they are shipped.
    #[arg(long)]
    release: bool,
    /// Build the eBPF objects only.
    #[arg(long)]
    ebpf_only: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &BuildArgs) -> Result<()> {
    let objects = ebpf::build()?;
    println!("build: {}", objects.display());
    if args.ebpf_only {
        return Ok(());
    }
    programs(args.release)
}

/// Builds all programs of the workspace. The eBPF objects must be there.
pub(crate) fn programs(release: bool) -> Result<()> {
    println!("build: programs");
    let mut cargo = shell::cargo();
    cargo.args(["build", "--workspace", "--bins", "--exclude", "xtask", "--locked"]);
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)
}
