//! Tunnels beside each other in one topology.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// How to compare tunnels.
#[derive(Debug, Args)]
pub(super) struct TunnelArgs {
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the comparison.
pub(super) fn run(args: &TunnelArgs) -> Result<()> {
    bail!("nothing is measured yet{}", args.json.as_ref().map_or("", |_| " and nothing written"))
}

/// Installs what is compared.
pub(super) fn setup() -> Result<()> {
    Ok(())
}
