//! What both binaries do to become the daemon.

use std::{
    future::Future,
    io::{self, IsTerminal as _},
};

use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use super::{DaemonError, privileges, run};
use crate::{config::Config, engine};

/// Becomes the daemon: gives up unused privileges, starts logging, and runs until told to stop.
///
/// Call it from `main`, before there are other threads.
pub fn launch(config: Config) -> Result<(), LaunchError> {
    start_logging(&config.log);
    if let Err(error) = privileges::drop_unused() {
        tracing::warn!(%error, "running with more privileges than needed");
    }
    Ok(block_on(run(config, engine::start))??)
}

/// Runs a future on a runtime of its own.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, LaunchError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(LaunchError::Runtime)?;
    Ok(runtime.block_on(future))
}

/// To standard error, which is the journal under systemd; the journal has times of its own. Colours are for terminals.
fn start_logging(filter: &str) {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let layer = if io::stderr().is_terminal() { layer } else { layer.with_ansi(false) };
    let registry = tracing_subscriber::registry().with(targets(filter));
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(layer.without_time()).try_init()
    } else {
        registry.with(layer).try_init()
    };
    // Only a second logger of this process can be in the way.
    drop(started);
}

/// The DNS library logs every name that is asked for at INFO: it has to be asked for by name.
fn targets(filter: &str) -> Targets {
    format!("hickory=error,{filter}").parse().unwrap_or_default()
}

/// Why the daemon did not run, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Threads or timers.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn names_asked_for_are_logged_only_when_told_to() {
        let logs =
            |filter: &str| targets(filter).would_enable("hickory_server::server", &tracing::Level::INFO);
        assert!(!logs("info") && !logs("trace") && logs("info,hickory=info"));
        assert_eq!(targets("debug").default_level(), Some(LevelFilter::DEBUG));
    }
}
