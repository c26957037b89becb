//! `cargo xtask test-packages`: the packages' whole life on a Debian with systemd, in an emulated machine.
//!
//! Installed, set up, killed, upgraded, removed, purged; after each step `trial.sh` looks whether the overlay's zone is where it should be,
//! and whether firewall, SSH, resolver and `/etc` are what they were.

use anyhow::Result;
use clap::Args;

use super::{PACKAGES, archive, build_and_stage};
use crate::server::Server;
use crate::target::Target;
use crate::workspace;

/// What to try.
#[derive(Debug, Args)]
pub(crate) struct TrialArgs {
    /// Try packages of unoptimised programs: quicker to build.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &TrialArgs) -> Result<()> {
    let target = Target::Amd64;
    let cargo_deb = build_and_stage(target, !args.debug)?;
    let server = Server::furnish("packages")?;
    for package in &PACKAGES {
        for revision in [1, 2] {
            let name = package.file(revision, target);
            let file = workspace::root().join("target/package").join(&name);
            // What stays on this machine need not be small.
            let more = ["--fast", "--deb-revision", &revision.to_string()];
            archive(&cargo_deb, package, target, &more, &file)?;
            server.file(&file, &format!("debs/{name}"))?;
        }
    }
    println!("test-packages: installing, upgrading and purging in an emulated machine (some minutes)");
    server.run(include_str!("trial.sh"))?.verdict("test-packages")
}
