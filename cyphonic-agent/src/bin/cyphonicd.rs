//! The daemon of one device.
#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use cyphonic_agent::{
    cli::{exit_code, write_manual},
    config::{Config, DEFAULT_PATH, EXAMPLE, Overrides},
    daemon,
    state::StateDir,
};

/// Joins this device to a Cyphonic overlay.
#[derive(Debug, Parser)]
#[command(name = "cyphonicd", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Settings {
    /// The configuration [default: /etc/cyphonic/agent.yaml, which may be missing].
    #[arg(long, env = "CYPHONIC_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon (the default).
    Run,
    /// Restore the host's resolver and remove the virtual interface after a crash (systemd's ExecStopPost).
    Cleanup,
    /// Work with the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write man pages and shell completions into a folder.
    #[command(hide = true)]
    Manual {
        /// The folder; it is made.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration with every default.
    Example,
    /// Check the configuration and print it as it would be used.
    Check,
}

impl Settings {
    fn load(&self) -> Result<Config> {
        let path = self.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        Ok(Config::load(&path, self.config.is_some(), &self.overrides)?)
    }
}

fn main() -> ExitCode {
    exit_code("cyphonicd", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => daemon::launch(cli.settings.load()?)?,
        Command::Cleanup => cleanup(&cli.settings.load()?)?,
        Command::Manual { folder } => write_manual(Cli::command(), &folder)?,
        Command::Config(ConfigCommand::Example) => print!("{EXAMPLE}"),
        Command::Config(ConfigCommand::Check) => print!("{}", serde_yaml::to_string(&cli.settings.load()?)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn cleanup(config: &Config) -> Result<()> {
    if !config.state_dir.exists() {
        return Ok(());
    }
    let state = StateDir::open(&config.state_dir)?;
    // A running daemon's edits are its own.
    let _lock = state.lock()?;
    if daemon::block_on(daemon::clean_up_host(&state, config))?? {
        println!(
            "What a daemon that died left on the host is gone: resolver configuration, virtual interface."
        );
    }
    Ok(())
}
