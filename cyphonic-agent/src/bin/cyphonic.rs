//! The command that talks to the daemon.

use std::process::ExitCode;

use clap::Parser;
use cyphonic_agent::cli::{Cli, exit_code};

fn main() -> ExitCode {
    exit_code("cyphonic", Cli::parse().run())
}
