//! What both binaries do to become the daemon.

use std::{
    future::Future,
    io::{self, IsTerminal as _},
    time::Duration,
};

use cyphonic_dataplane::dumps;
use cyphonic_transport::descriptors;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use super::{DaemonError, privileges, run};
use crate::{config::Config, engine};

/// How long a runtime that has done its work waits for threads that still wait for something: a look-up of a name takes as
/// long as the host's resolver, and nobody needs the answer.
const LEFT_OVER: Duration = Duration::from_millis(500);

/// More than everything that the agent bounds can take.
const DESCRIPTORS: u64 = 16_384;

/// Becomes the daemon: starts logging, gives up unused privileges and core dumps, and runs until told to stop.
///
/// Call it from `main`, before there are other threads.
pub fn launch(config: Config) -> Result<(), LaunchError> {
    start_logging(&config.log);
    if let Err(error) = privileges::drop_unused() {
        tracing::warn!(%error, "running with more privileges than needed");
    }
    if let Err(error) = dumps::forbid() {
        tracing::warn!(%error, "a core dump of this process would have its keys");
    }
    // Cards, sockets and queries in hand take some hundreds.
    descriptors::up_to(DESCRIPTORS);
    Ok(block_on(run(config, engine::start))??)
}

/// Runs a future on a runtime of its own. What it must not leave half done, it has to wait for itself.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, LaunchError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(LaunchError::Runtime)?;
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(LEFT_OVER);
    Ok(output)
}

/// To standard error, which is the journal under systemd; the journal has times of its own. Colours are for terminals.
pub fn start_logging(filter: &str) {
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
    fn a_thread_that_waits_does_not_keep_the_program() {
        // Left waiting when the runtime goes, as getaddrinfo(3) may be.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let output = block_on(async {
                let (begun, waits) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    begun.send(()).unwrap();
                    let _ = held.recv();
                });
                waits.await.unwrap();
                7
            });
            done.send(output.unwrap()).unwrap();
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)).expect("it ends"), 7);
        drop(release);
    }

    #[test]
    fn names_asked_for_are_logged_only_when_told_to() {
        let logs =
            |filter: &str| targets(filter).would_enable("hickory_server::server", &tracing::Level::INFO);
        assert!(!logs("info") && !logs("trace") && logs("info,hickory=info"));
        assert_eq!(targets("debug").default_level(), Some(LevelFilter::DEBUG));
    }
}
