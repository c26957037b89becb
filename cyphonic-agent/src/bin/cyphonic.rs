//! The command that talks to the daemon.

use std::process::ExitCode;

use cyphonic_agent::cli::{Cli, exit_code, parse};

fn main() -> ExitCode {
    exit_code("cyphonic", parse::<Cli>().unwrap_or_else(|error| error.exit()).run())
}
