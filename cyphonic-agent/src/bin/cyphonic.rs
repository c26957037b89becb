//! The command that talks to the daemon.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use cyphonic_agent::cli::Cli;

fn main() -> Result<ExitCode> {
    Cli::parse().run()
}
