//! `cyphonic-cloud run` and `cyphonic-cloud check`

use std::path::PathBuf;

use anyhow::Context as _;
use cyphonic_cloud::config::Config;
use cyphonic_cloud::server::{self, Cloud, Standing, unix_now};
use cyphonic_transport::logging::LogFilter;
use cyphonic_transport::signals::StopSignals;
use sd_notify::NotifyState;

use crate::table::time;
use crate::{ConfigArgument, RUNTIME_DIRECTORY};

pub(crate) fn run(argument: &ConfigArgument) -> anyhow::Result<()> {
    let mut config = argument.load()?;
    // systemd's (`RuntimeDirectory=` in the unit).
    config.runtime_directory = std::env::var_os(RUNTIME_DIRECTORY).map(PathBuf::from);
    start_log(&config);
    let roles: Vec<_> = config.roles.iter().map(ToString::to_string).collect();
    let (zone, roles) = (&config.network.zone, roles.join(", "));
    tracing::info!(version = cyphonic_cloud::VERSION, zone, roles, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(serve(&config))
}

pub(crate) fn check(argument: &ConfigArgument) -> anyhow::Result<()> {
    let config = argument.load()?;
    let checked = server::check(&config)?;
    let roles: Vec<_> = config.roles.iter().map(ToString::to_string).collect();
    say!("{} is sound.", argument.config.display());
    say!("zone {} ({}), roles {}", config.network.zone, config.network.prefix, roles.join(", "));
    for relay in &config.relays {
        let addresses: Vec<_> = relay.addresses.iter().map(ToString::to_string).collect();
        say!("relay {} at {}", config.relay_fqdn(&relay.name), addresses.join(", "));
    }
    for note in checked.notes {
        say!("note: {note}");
    }
    let mut refused = Vec::new();
    for term in checked.terms {
        let (certificate, standing) = (term.certificate.display(), term.standing(unix_now()));
        let judgement = match standing {
            Standing::EndsSoon { days_left } => {
                format!("; it ends in {days_left} days: renew it (cyphonic-cloud renew)")
            }
            Standing::Sound | Standing::Early | Standing::Ended => String::new(),
        };
        say!("certificate {certificate} until {}{judgement}", time(term.not_after));
        refused.extend(standing.objection().map(|objection| format!("{certificate}: {objection}")));
    }
    anyhow::ensure!(refused.is_empty(), refused.join("; "));
    Ok(())
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // Before the ports open: from then on a signal must not be lost.
    let mut stop =
        StopSignals::listen("systemctl restart cyphonic-cloud").context("cannot listen for signals")?;
    let mut cloud = Cloud::start(config).await?;
    tell_systemd(&[NotifyState::Ready]);
    tracing::info!("ready");
    let failure = tokio::select! {
        () = stop.received() => None,
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

/// For systemd's watchdog (`WatchdogSec=`): while this task gets its turn, the runtime that serves all others does turn.
/// Never ends.
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
