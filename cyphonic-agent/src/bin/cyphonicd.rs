//! The daemon of one device.
#![expect(clippy::print_stderr, reason = "the output of a command")]

use std::env;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use cyphonic_agent::cli::{exit_code, parse, print, write_manual};
use cyphonic_agent::config::{Config, EXAMPLE, Instance, Overrides};
use cyphonic_agent::state::StateDir;
use cyphonic_agent::{control, daemon};

/// Joins this device to a Cyphonic overlay.
#[derive(Debug, Parser)]
#[command(name = "cyphonicd", version = cyphonic_agent::VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Settings {
    /// The configuration [default: /etc/cyphonic/agent.yaml, or that of the instance; either may be missing].
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
    /// Loaded, to be loaded again.
    fn read_again(self) -> Result<control::Settings> {
        // What was there is to be there: it may be on its way to another place just now.
        let path = self.path();
        let must_exist = self.config.is_some() || path.exists();
        let config = self.load()?;
        Ok(control::Settings::new(config, move || Config::load(&path, must_exist, &self.overrides)))
    }

    fn path(&self) -> PathBuf {
        Config::path(self.config.as_deref(), self.overrides.instance.as_ref())
    }

    fn load(&self) -> Result<Config> {
        Ok(Config::load(&self.path(), self.config.is_some(), &self.overrides)?)
    }
}

fn main() -> ExitCode {
    let result = match parse() {
        Ok(cli) => run(cli),
        // systemd gives it the environment that kept the daemon from starting.
        Err(error)
            if is_wrong_value(&error) && env::args_os().nth(1).is_some_and(|verb| verb == "cleanup") =>
        {
            clean_up_anyhow(&error, &Overrides::default())
        }
        Err(error) => error.exit(),
    };
    exit_code("cyphonicd", result)
}

fn run(cli: Cli) -> Result<ExitCode> {
    cli.settings.overrides.instance.iter().for_each(Instance::is_of_this_process);
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => daemon::launch(cli.settings.read_again()?)?,
        Command::Cleanup => match cli.settings.load() {
            Ok(config) => cleanup(&config)?,
            Err(error) => return clean_up_anyhow(&error, &cli.settings.overrides),
        },
        Command::Manual { folder } => write_manual(Cli::command(), &folder)?,
        Command::Config(ConfigCommand::Example) => print(EXAMPLE)?,
        Command::Config(ConfigCommand::Check) => print(serde_yaml::to_string(&cli.settings.load()?)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_wrong_value(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue)
}

/// Cleans up after a daemon that settings kept from starting, or changed since it did: names must resolve
/// again all the same.
fn clean_up_anyhow(error: &dyn Display, overrides: &Overrides) -> Result<ExitCode> {
    eprintln!("cyphonicd: {error}");
    eprintln!("cyphonicd: cleaning up where the daemon is unless settings say otherwise");
    let given = |name| env::var_os(name).filter(|value| !value.is_empty());
    let defaults = Config::default();
    let of_environment = || given("CYPHONIC_INSTANCE")?.into_string().ok()?.parse::<Instance>().ok();
    let instance = overrides.instance.clone().or_else(of_environment);
    instance.iter().for_each(Instance::is_of_this_process);
    let state_dir = overrides.state_dir.clone().or_else(|| given("CYPHONIC_STATE_DIR").map(PathBuf::from));
    let state_dir = state_dir.or_else(|| instance.as_ref().map(Instance::state_dir));
    let interface = overrides
        .interface
        .clone()
        .or_else(|| given("CYPHONIC_INTERFACE").and_then(|name| name.into_string().ok()))
        .or_else(|| instance.as_ref().map(|instance| instance.interface().to_owned()));
    cleanup(&Config {
        state_dir: state_dir.unwrap_or(defaults.state_dir),
        interface: interface.unwrap_or(defaults.interface),
        ..Config::default()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn cleanup(config: &Config) -> Result<()> {
    if !config.state_dir.exists() {
        return Ok(());
    }
    daemon::start_logging(&config.log);
    let state = StateDir::open(&config.state_dir)?;
    // A running daemon's edits are its own.
    let _lock = state.lock()?;
    if daemon::block_on(daemon::clean_up_host(&state, config))?? {
        tracing::info!(
            "what a daemon that died left on the host is gone: resolver configuration, virtual interface"
        );
    }
    Ok(())
}
