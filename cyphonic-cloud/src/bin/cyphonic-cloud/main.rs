//! The command line of the cloud.

/// `print!` for commands: a reader that has gone (`| head -1`) is an error, with which [`main`] ends in
/// silence, and no panic.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        write!(std::io::stdout(), $($text)*)?
    }};
}

/// `println!` for commands: see [`tell`].
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*)?
    }};
}

mod access;
mod backup;
mod device;
mod elsewhere;
mod init;
mod manual;
mod metrics;
mod operator;
mod presence;
mod renew;
mod run;
mod standby;
mod status;
mod table;
mod token;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use cyphonic_cloud::config::{Config, ConfigError, DEFAULT_PATH};
use cyphonic_cloud::installation::Elsewhere;
use cyphonic_cloud::register::{Register, RegisterError};
use cyphonic_cloud::server::StartError;
use cyphonic_dataplane::dumps;
use cyphonic_transport::logging::error_mark;
use cyphonic_transport::settings::{WRONG_SETTINGS, describe};

/// Where a service keeps what is of one run only: a variable that systemd sets, and what the package's unit
/// makes of it.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
const DEFAULT_RUNTIME_DIRECTORY: &str = "/run/cyphonic-cloud";
/// Where commands look for it, if not there. Not the variable above: whoever has systemd run a command has it
/// name a folder of the command's own.
const SERVICES_DIRECTORY: &str = "CYPHONIC_CLOUD_RUNTIME";

/// The cloud of a Cyphonic overlay network: enrols devices, steers their tunnels, relays.
#[derive(Debug, Parser)]
#[command(name = "cyphonic-cloud", version = cyphonic_cloud::VERSION, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a new overlay: keys, certificates, configuration and an empty register.
    Init(init::Arguments),
    /// Make certificate, key and configuration for a relay on a machine of its own.
    TrsCredentials(elsewhere::Arguments),
    /// The same for an NMS that stands in while the overlay's own cannot be reached.
    StandbyCredentials(elsewhere::Arguments),
    /// Renew services' certificates in place; their keys stay.
    Renew(renew::Arguments),
    /// Run the services that the configuration names, until SIGTERM or SIGINT.
    Run(ConfigArgument),
    /// Check a configuration, its certificates, keys and register, and say what they make this machine.
    Check(run::CheckArguments),
    /// Copy register, keys and configuration into a new folder, while the services run.
    Backup(backup::Arguments),
    /// Print what there is to measure, in the text form of Prometheus.
    Metrics {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        choice: metrics::Choice,
    },
    /// Show the relays of this host: those that run in XDP, and what the service relays in userspace.
    TrsStatus(status::Arguments),
    /// Show the NMSs that stand in for this one, or for which one this one stands in.
    StandbyStatus(standby::Arguments),
    /// Say what one device may open with another one, by the overlay's rules in the configuration.
    Access(access::Arguments),
    /// Enrolment tokens.
    #[command(subcommand)]
    Token(token::Command),
    /// Devices.
    #[command(subcommand)]
    Device(device::Command),
    /// Write man pages and shell completions into a folder.
    #[command(hide = true)]
    Manual {
        /// The folder; it is made.
        folder: PathBuf,
    },
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArgument {
    /// The configuration file.
    #[arg(long, env = "CYPHONIC_CLOUD_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgument {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.config)?)
    }

    /// The configuration and its register.
    fn open(&self) -> anyhow::Result<(Config, Register)> {
        let config = self.load()?;
        let path = config.register.as_deref().ok_or_else(|| {
            anyhow::anyhow!("{} names no register: ask the machine that runs the AS", self.config.display())
        })?;
        let register = Register::open(path)?.used_by(operator::operator());
        Ok((config, register))
    }
}

/// A copy is no place for what only the register itself can keep.
fn ensure_no_copy(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.follows.is_none(),
        "this is a standby, which copies register and rules: give the command on the machine that runs the AS"
    );
    Ok(())
}

/// Where commands look for what a running service tells.
fn runtime_directory() -> PathBuf {
    std::env::var_os(SERVICES_DIRECTORY).unwrap_or_else(|| DEFAULT_RUNTIME_DIRECTORY.into()).into()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Most commands have keys or tokens in their memory.
    if let Err(error) = dumps::forbid().context("core dumps of this process are not prevented") {
        complain(&error);
    }
    let done = match arguments.command {
        Command::Init(arguments) => init::run(&arguments),
        Command::TrsCredentials(arguments) => elsewhere::run(Elsewhere::Relay, &arguments),
        Command::StandbyCredentials(arguments) => elsewhere::run(Elsewhere::Standby, &arguments),
        Command::Renew(arguments) => renew::run(&arguments),
        Command::Run(argument) => run::run(&argument),
        Command::Check(arguments) => run::check(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Metrics { config, choice } => metrics::run(&config, choice),
        Command::TrsStatus(arguments) => status::run(&arguments),
        Command::StandbyStatus(arguments) => standby::run(&arguments),
        Command::Access(arguments) => access::run(&arguments),
        Command::Token(command) => token::run(&command),
        Command::Device(command) => device::run(&command),
        Command::Manual { folder } => manual::write(Arguments::command(), &folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            match needs_a_person(&error) {
                true => ExitCode::from(WRONG_SETTINGS),
                false => ExitCode::FAILURE,
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place where errors reach the person")]
fn complain(error: &anyhow::Error) {
    eprintln!("{}cyphonic-cloud: {}", error_mark(), describe(error.as_ref()));
}

/// Whether another try is in vain until somebody changes something.
fn needs_a_person(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(ConfigError::needs_a_person)
        || error.downcast_ref().is_some_and(RegisterError::needs_a_person)
        || error.downcast_ref().is_some_and(StartError::needs_a_person)
}

/// Whether whoever read the output has seen enough.
fn is_reader_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
