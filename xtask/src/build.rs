//! `cargo xtask build`: the eBPF objects, then the programs that embed them.

use anyhow::Result;
use clap::Args;

use crate::target::Target;
use crate::{ebpf, setup, shell};

/// What to build.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Build the programs optimised, as they are shipped.
    #[arg(long)]
    release: bool,
    /// Build them for another machine: a Raspberry Pi is `aarch64-unknown-linux-gnu`. This one by default.
    #[arg(long, value_name = "TRIPLE")]
    target: Option<Target>,
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
    programs(args.target, args.release, None)
}

/// Builds all programs of the workspace, for this machine unless told otherwise. Agent and cloud say that
/// they are of `version`, else of the workspace's. The eBPF objects must be there: they are the same for all,
/// since every machine that is built for has the same byte order.
pub(crate) fn programs(target: Option<Target>, release: bool, version: Option<&str>) -> Result<()> {
    let mut cargo = shell::cargo();
    if let Some(version) = version {
        cargo.env("CYPHONIC_VERSION", version);
    }
    cargo.args(["build", "--workspace", "--locked"]);
    let foreign = target.is_some_and(|target| !target.is_host());
    match (foreign, release) {
        // With all members and an example, cargo chooses the libraries' features as for tests, which have
        // built all of this then. Not this very program, which runs.
        (false, false) => cargo.args(["--bin", "cyphonic*", "--example", "fleet"]),
        (true, false) => cargo.args(["--bins", "--exclude", "xtask"]),
        (_, true) => cargo.args(["--bins", "--exclude", "xtask", "--release"]),
    };
    match target {
        Some(target) => {
            setup::cross(target)?;
            println!("build: programs for {target}");
            target.configure(&mut cargo);
        }
        None => println!("build: programs"),
    }
    shell::run(&mut cargo)
}
