//! `cargo xtask test-vagrant`: provisioning, and a scenario over SSH, on an emulated Debian with systemd.
//!
//! The emulated machine is one node of a scene: `vagrant/provision.sh` runs on it, whole. Namespaces on it
//! play the other nodes (`vagrant-rehearse`). A verb then connects a pair over SSH, one end of which is the
//! machine with its packages' units; meanwhile `trial.sh` looks whether systemd-resolved has the overlay's
//! zone, and afterwards whether it has it no more.

use anyhow::{Context, Result};
use clap::Args;

use super::{NODE_PROGRAM, StageArgs, folder, stage};
use crate::server::Server;
use crate::target::Target;
use crate::{setup, shell, workspace};

/// Of this scene the machine is a device with a public address; delays come from netem, which the emulated
/// kernel has.
const SCENE: &str = "nat-grid-pair";
const PROFILE: &str = "paper";

/// What to try.
#[derive(Debug, Args)]
pub(crate) struct TrialArgs {
    /// Try unoptimised programs: quicker to build.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &TrialArgs) -> Result<()> {
    setup::vagrant()?;
    stage(&StageArgs { debug: args.debug })?;
    let server = Server::furnish("vagrant")?;
    for file in std::fs::read_dir(folder()).context("nothing was staged")?.flatten() {
        server.file(&file.path(), &format!("stage/{}", file.file_name().to_string_lossy()))?;
    }
    let vagrant = workspace::root().join("vagrant");
    for name in ["topology.yaml", "provision.sh"] {
        server.file(&vagrant.join(name), &format!("stage/{name}"))?;
    }
    let mut ruby = std::process::Command::new("ruby");
    let machines = shell::output(ruby.arg(vagrant.join("machines.rb")).args([SCENE, PROFILE]));
    server.text(&machines.context("ruby vagrant/machines.rb fails")?, "stage/machines.json")?;
    // This very program, for the scenario.
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let stripped = folder().join("xtask");
    Target::Amd64.strip(&own, &stripped)?;
    server.file(&stripped, "stage/xtask")?;
    std::fs::remove_file(&stripped)?;
    server.text(include_str!("scenario.sh"), "stage/scenario.sh")?;
    println!(
        "test-vagrant: provisioning and a scenario on an emulated machine with {NODE_PROGRAM} (some minutes)"
    );
    server.run(include_str!("trial.sh"))?.verdict("test-vagrant")
}
