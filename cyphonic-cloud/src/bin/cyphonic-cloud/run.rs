//! `cyphonic-cloud run` and `cyphonic-cloud check`

use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::UnixSeconds;
use cyphonic_cloud::server::{self, Checked, Cloud, Reloader, Standing, unix_now};
use cyphonic_transport::logging::LogFilter;
use cyphonic_transport::settings::describe;
use cyphonic_transport::signals::{Asked, StopSignals};
use sd_notify::NotifyState;
use serde_json::json;

use crate::table::time;
use crate::{ConfigArgument, RUNTIME_DIRECTORY};

pub(crate) fn run(argument: &ConfigArgument) -> anyhow::Result<()> {
    let mut config = argument.load()?;
    // systemd's (`RuntimeDirectory=` in the unit).
    config.runtime_directory = std::env::var_os(RUNTIME_DIRECTORY).map(PathBuf::from);
    start_log(&config);
    let (zone, roles) = (&config.network.zone, roles(&config).join(", "));
    tracing::info!(version = cyphonic_cloud::VERSION, zone, roles, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(serve(argument, &config))
}

/// Version of the JSON that `check` prints; fields are only added within one.
const JSON_VERSION: u32 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// For programs. What keeps the services from starting is an error all the same.
    #[arg(long)]
    json: bool,
}

pub(crate) fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let (checked, now) = (server::check(&config)?, unix_now());
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&to_json(&config, &checked, now))?);
    } else {
        show(&arguments.config, &config, &checked, now)?;
    }
    let refused = checked.terms.iter().filter_map(|term| {
        // Those that renew themselves do so when the services start.
        let objection = term.objection(now).filter(|_| !(term.renews_itself && now >= term.not_after))?;
        Some(format!("{}: {objection}", term.certificate.display()))
    });
    let refused: Vec<_> = refused.collect();
    anyhow::ensure!(refused.is_empty(), refused.join("; "));
    Ok(())
}

fn show(argument: &ConfigArgument, config: &Config, checked: &Checked, now: UnixSeconds) -> io::Result<()> {
    say!("{} is sound.", argument.config.display());
    say!("zone {} ({}), roles {}", config.network.zone, config.network.prefix, roles(config).join(", "));
    for relay in &config.relays {
        let addresses: Vec<_> = relay.addresses.iter().map(ToString::to_string).collect();
        say!("relay {} at {}", config.service_fqdn(&relay.name), addresses.join(", "));
    }
    for standby in &config.standbys {
        let addresses: Vec<_> = standby.addresses.iter().map(ToString::to_string).collect();
        say!("standby {} at {}", config.service_fqdn(&standby.name), addresses.join(", "));
    }
    if let Some(main) = &config.follows {
        let addresses: Vec<_> = main.iter().map(ToString::to_string).collect();
        say!("stands in for the NMS at {}", addresses.join(", "));
    }
    for note in &checked.notes {
        say!("note: {note}");
    }
    for term in &checked.terms {
        let judgement = match term.standing(now) {
            Standing::EndsSoon { .. } | Standing::Ended if term.renews_itself => {
                "; the running service renews it".to_owned()
            }
            Standing::EndsSoon { days_left } => {
                format!("; it ends in {days_left} days: renew it (cyphonic-cloud renew)")
            }
            Standing::Sound | Standing::Early | Standing::Ended => String::new(),
        };
        say!("certificate {} until {}{judgement}", term.certificate.display(), time(term.not_after));
    }
    Ok(())
}

fn to_json(config: &Config, checked: &Checked, now: UnixSeconds) -> serde_json::Value {
    let certificates = checked.terms.iter().map(|term| {
        json!({
            "service": term.service,
            "file": term.certificate,
            "not_after": time(term.not_after),
            "days_left": term.days_left(now),
            "state": term.standing(now).name(),
            "renews_itself": term.renews_itself,
        })
    });
    json!({
        "version": JSON_VERSION,
        "zone": config.network.zone,
        "prefix": config.network.prefix.to_string(),
        "roles": roles(config),
        "notes": checked.notes,
        "certificates": certificates.collect::<Vec<_>>(),
    })
}

fn roles(config: &Config) -> Vec<String> {
    config.roles.iter().map(ToString::to_string).collect()
}

async fn serve(argument: &ConfigArgument, config: &Config) -> anyhow::Result<()> {
    // Before the ports open: from then on a signal must not be lost.
    let mut signals =
        StopSignals::listen("systemctl restart cyphonic-cloud").context("cannot listen for signals")?;
    let mut cloud = Cloud::start(config).await?;
    tell_systemd(&[NotifyState::Ready]);
    tracing::info!("ready");
    let reloader = cloud.reloader();
    let failure = tokio::select! {
        () = obey(&mut signals, argument, &reloader) => None,
        () = give_signs_of_life() => None,
        failure = cloud.failed() => Some(failure),
    };
    tell_systemd(&[NotifyState::Stopping]);
    cloud.shutdown().await;
    match failure {
        None => {
            tracing::info!("stopped");
            Ok(())
        }
        Some(failure) => Err(anyhow::anyhow!(failure)),
    }
}

/// Takes over what can be taken over as often as a signal says so; returns when one says stop.
async fn obey(signals: &mut StopSignals, argument: &ConfigArgument, reloader: &Reloader) {
    while signals.next().await == Asked::ToReadAgain {
        reloader.look_after_certificates();
        match read_again(argument, reloader) {
            Ok(true) => tracing::info!("other access rules are in force"),
            Ok(false) => tracing::info!("the access rules are as they were"),
            Err(error) => {
                tracing::error!("the settings were read again, in vain: {}", describe(error.as_ref()))
            }
        }
        tracing::info!(
            "certificates are looked after now; settings but `access` are read at the start only: systemctl restart cyphonic-cloud"
        );
    }
}

fn read_again(argument: &ConfigArgument, reloader: &Reloader) -> anyhow::Result<bool> {
    Ok(reloader.take_over(&argument.load()?)?)
}

/// `RUST_LOG` is for the one who looks into a problem right now.
fn start_log(config: &Config) {
    // Modules' names tell which of the services of one process speaks.
    let start = |filter: &LogFilter| filter.start(true, "");
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    match wanted.map(|filter| filter.parse::<LogFilter>()) {
        None => start(&config.log),
        Some(Ok(filter)) => start(&filter),
        Some(Err(error)) => {
            start(&config.log);
            tracing::warn!(%error, "RUST_LOG is ignored");
        }
    }
}

/// For systemd's watchdog (`WatchdogSec=`): while this task gets its turn, the runtime that serves all others
/// does turn. Never ends.
async fn give_signs_of_life() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tell_systemd(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 2).await;
    }
}

/// Without systemd there is nobody to tell.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
