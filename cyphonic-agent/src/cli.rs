//! The `cyphonic` command: verbs that people know from other overlays.
//!
//! Exit status: 0 done; 1 not done, with the reason on standard error, for `status --check`, `wait` and
//! `ping` the answer itself; 2 no such command or flag; 3 `status --check` may not ask; 78 the configuration
//! is wrong.
#![expect(clippy::print_stderr, reason = "the output of a command")]

mod bugreport;
mod dns;
mod failure;
mod manual;
mod output;
mod parse;
mod ping;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
pub use failure::exit_code;
pub use manual::write_manual;
pub use output::print;
pub use parse::parse;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::output::{say, say_json};
use crate::config::{Config, Instance};
use crate::control::report::ServiceKind;
use crate::control::{
    ClientError, ControlClient, Reloaded, ResetTarget, StatusReport, metrics, netcheck, text,
};
use crate::daemon::block_on;

/// Reach devices of a Cyphonic overlay by name.
#[derive(Debug, Parser)]
#[command(name = "cyphonic", version = crate::VERSION)]
pub struct Cli {
    /// The daemon's control socket [default: /run/cyphonic/cyphonic.sock].
    #[arg(long, env = "CYPHONIC_SOCKET", value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Which of several agents of this host: cyphonicd@NAME.
    #[arg(short, long, env = "CYPHONIC_INSTANCE", value_name = "NAME", global = true)]
    instance: Option<Instance>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrol this device and tell how to start the daemon.
    Up(up::Up),
    /// Stop the daemon.
    Down,
    /// Show what is going on.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Print nothing; exit with 0 if the daemon is live (answers) or ready (can resolve names), with 1
        /// if not, with 3 and the reason if this user may not ask it.
        #[arg(long, value_enum)]
        check: Option<Check>,
    },
    /// Show what network this device is in: NATs, firewalls, relays.
    Netcheck {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print figures for Prometheus' node exporter (textfile collector).
    Metrics,
    /// Wait until names can be resolved.
    Wait {
        /// How many seconds; for ever if not given.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
    },
    /// Reach a device and tell by which path.
    Ping(ping::Ping),
    /// Look at the overlay's DNS.
    #[command(subcommand)]
    Dns(dns::Dns),
    /// Print this device's virtual address.
    Ip,
    /// Work with tunnels.
    #[command(subcommand)]
    Tunnel(Tunnel),
    /// Have the daemon read its settings again and take over `access` and `keep_open`.
    Reload,
    /// Print the versions of command and daemon.
    Version,
    /// Print all that somebody who is to help has to see: status, settings, network and log. Run it as root.
    Bugreport,
    /// Write man pages and shell completions into a folder.
    #[command(hide = true)]
    Manual {
        /// The folder; it is made.
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Check {
    Live,
    Ready,
}

#[derive(Debug, Subcommand)]
enum Tunnel {
    /// Take tunnels down; the next packet or query sets them up anew.
    Reset {
        /// The peer.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every tunnel.
        #[arg(long)]
        all: bool,
    },
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode> {
        self.instance.iter().for_each(Instance::is_of_this_process);
        match self.command {
            // May become the daemon, which has a runtime of its own.
            Command::Up(up) => up.run(self.socket, self.instance),
            Command::Manual { folder } => {
                write_manual(Self::command(), &folder)?;
                Ok(ExitCode::SUCCESS)
            }
            command => {
                let of_instance = self.instance.as_ref().map(Instance::socket);
                let socket = self.socket.or(of_instance).unwrap_or_else(|| Config::default().socket);
                block_on(command.run(socket, self.instance))?
            }
        }
    }
}

impl Command {
    async fn run(self, socket: PathBuf, instance: Option<Instance>) -> Result<ExitCode> {
        match self {
            Self::Status { check: Some(check), .. } => return Ok(self::check(&socket, check).await),
            Self::Wait { timeout } => return wait(&socket, timeout).await,
            Self::Metrics => metrics(&socket, instance.as_ref()).await?,
            Self::Version => version(&socket).await?,
            Self::Bugreport => bugreport::run(&socket, instance).await?,
            command => return command.ask(ControlClient::connect(&socket).await?).await,
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn ask(self, mut client: ControlClient) -> Result<ExitCode> {
        match self {
            Self::Down => {
                client.shutdown().await?;
                say("The daemon is stopping.")?;
            }
            Self::Status { json: true, .. } => say(serde_json::to_string_pretty(&client.status().await?)?)?,
            Self::Status { .. } => print(text::render(&client.status().await?))?,
            Self::Netcheck { json: true } => say_json(&client.status().await?.netcheck)?,
            Self::Netcheck { json: false } => print(netcheck::render(&client.status().await?))?,
            Self::Ping(ping) => return ping.run(client).await,
            Self::Dns(dns) => return dns.run(client).await,
            Self::Ip => match client.status().await?.virtual_address {
                Some(address) => say(address)?,
                None => bail!("this device has no virtual address yet: see `cyphonic status`"),
            },
            Self::Tunnel(Tunnel::Reset { name, .. }) => {
                let target = name.clone().map_or(ResetTarget::All, ResetTarget::Peer);
                match (client.reset(target).await?.tunnels, name) {
                    (0, Some(name)) => bail!("no tunnel leads to {name}: `cyphonic status` shows the peers"),
                    (tunnels, _) => say(format_args!("{tunnels} tunnels taken down."))?,
                }
            }
            Self::Reload => reload(&client.reload().await?)?,
            Self::Up(_)
            | Self::Metrics
            | Self::Wait { .. }
            | Self::Version
            | Self::Bugreport
            | Self::Manual { .. } => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn status(socket: &std::path::Path) -> Result<StatusReport, ClientError> {
    ControlClient::connect(socket).await?.status().await
}

/// Of `status --check`: whoever asks is at fault, the daemon may be well.
const MAY_NOT_ASK: u8 = 3;

async fn check(socket: &std::path::Path, check: Check) -> ExitCode {
    let passed = match (status(socket).await, check) {
        (Ok(_), Check::Live) => true,
        (Ok(report), Check::Ready) => report.is_ready(),
        (Err(error), _) if error.is_not_allowed() => {
            eprintln!("cyphonic: {error}");
            return ExitCode::from(MAY_NOT_ASK);
        }
        (Err(_), _) => false,
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn wait(socket: &std::path::Path, seconds: Option<f64>) -> Result<ExitCode> {
    let limit = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    // A year is for ever, and no clock overflows on it.
    let begun = Instant::now();
    let deadline = begun + limit.unwrap_or(Duration::from_secs(365 * 86_400));
    let mut pause = SOON;
    let mut last = "the daemon did not answer in time".to_owned();
    let mut told = None;
    loop {
        match timeout_at(deadline, status(socket)).await {
            Ok(Ok(report)) if report.is_ready() => return Ok(ExitCode::SUCCESS),
            Ok(Ok(report)) => last = why_not_ready(&report),
            Ok(Err(error)) if error.is_not_allowed() => return Err(error.into()),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => bail!("not ready: {last}"),
        }
        if Instant::now() >= deadline {
            bail!("not ready: {last}");
        }
        if begun.elapsed() >= START_UP && told.as_ref() != Some(&last) {
            eprintln!("cyphonic: waiting: {last}");
            told = Some(last.clone());
        }
        pause = next_pause(begun.elapsed(), pause);
        sleep_until(deadline.min(Instant::now() + pause)).await;
    }
}

/// Start-up is timed by `wait`; a question costs the daemon far less than this.
const SOON: Duration = Duration::from_millis(5);
/// Who waits for longer than this, waits for a cloud or for a daemon that somebody is to start.
const START_UP: Duration = Duration::from_secs(3);
const SELDOM: Duration = Duration::from_millis(500);

/// How long `wait`, which has waited for `waited`, pauses before it asks again, after its last pause.
fn next_pause(waited: Duration, last: Duration) -> Duration {
    if waited < START_UP { SOON } else { (last * 2).min(SELDOM) }
}

/// That the cloud does not let this device in, which comes with what to do; else the NMS's error, since names
/// wait for it; else that of the AS, which knows where the NMS is. A relay is neither's.
fn why_not_ready(report: &StatusReport) -> String {
    if let Some(check) = report.health_check("not-admitted") {
        return check.message.clone();
    }
    let failing = [ServiceKind::Nms, ServiceKind::As].into_iter().find_map(|kind| {
        report
            .services
            .iter()
            .filter(|service| service.kind == kind)
            .find_map(|service| service.last_error.clone())
    });
    let failing = failing.or_else(|| report.health_check("not-enrolled").map(|check| check.message.clone()));
    let failing = failing.or_else(|| report.why_no_names().map(|check| check.message.clone()));
    failing.unwrap_or_else(|| "not registered at the cloud yet".into())
}

fn reload(reloaded: &Reloaded) -> Result<()> {
    say("`access` and `keep_open` are as the settings have them now.")?;
    if !reloaded.needs_restart.is_empty() {
        say(format_args!(
            "Changed as well, but read at the start only: {}.",
            reloaded.needs_restart.join(", ")
        ))?;
    }
    Ok(())
}

/// A daemon that does not answer is a figure too.
async fn metrics(socket: &std::path::Path, instance: Option<&Instance>) -> Result<()> {
    let report = match status(socket).await {
        Err(error) if error.is_not_allowed() => return Err(error.into()),
        report => report.ok(),
    };
    print(metrics::render(report.as_ref(), instance))?;
    Ok(())
}

async fn version(socket: &std::path::Path) -> Result<()> {
    say(format_args!("cyphonic  {}", crate::VERSION))?;
    let daemon = async { ControlClient::connect(socket).await?.version().await };
    match daemon.await {
        Ok(info) => say(format_args!("cyphonicd {} (control protocol {})", info.version, info.protocol))?,
        Err(error) => say(format_args!("cyphonicd -: {error}"))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::{ServiceReport, ServiceState};

    #[test]
    fn who_waits_is_told_of_the_service_that_names_wait_for() {
        let service = |kind, error: Option<&str>| ServiceReport {
            kind,
            name: String::new(),
            remote: None,
            by_tcp: false,
            state: ServiceState::BackingOff,
            since_s: 0,
            last_error: error.map(str::to_owned),
        };
        let of = |services: &[ServiceReport]| {
            why_not_ready(&StatusReport { services: services.to_vec(), ..StatusReport::default() })
        };
        let relay = service(ServiceKind::Trs, Some("the relay is away"));
        let authentication = service(ServiceKind::As, Some("no answer"));
        let management = service(ServiceKind::Nms, Some("no route"));
        assert_eq!(of(&[relay.clone(), authentication.clone(), management]), "no route");
        let starting = service(ServiceKind::Nms, None);
        assert_eq!(of(&[relay.clone(), authentication, starting]), "no answer");
        assert_eq!(of(&[relay]), "not registered at the cloud yet");
    }

    #[test]
    fn start_up_is_waited_for_closely_and_an_absent_cloud_at_leisure() {
        let (mut waited, mut pause, mut questions) = (Duration::ZERO, SOON, 0);
        while waited < START_UP {
            pause = next_pause(waited, pause);
            assert_eq!(pause, SOON, "after {waited:?}");
            waited += pause;
        }
        while waited < Duration::from_secs(3_600) {
            let next = next_pause(waited, pause);
            assert!(next >= pause, "{next:?} after {pause:?}");
            pause = next;
            waited += pause;
            questions += 1;
        }
        assert_eq!(pause, SELDOM);
        assert!(questions < 2 * 3_600 + 10, "{questions} in an hour");
    }
}
