//! What both binaries do to become the daemon.

use std::future::Future;
use std::io;
use std::time::Duration;

use cyphonic_dataplane::dumps;
use cyphonic_transport::descriptors;
use cyphonic_transport::logging::LogFilter;

use super::{DaemonError, privileges, run};
use crate::control::Settings;
use crate::engine;

/// How long a runtime that has done its work waits for threads that still wait for something: a look-up of a
/// name takes as long as the host's resolver, and nobody needs the answer.
const LEFT_OVER: Duration = Duration::from_millis(500);

/// More than everything that the agent bounds can take.
const DESCRIPTORS: u64 = 16_384;

/// Becomes the daemon: starts logging, gives up unused privileges and core dumps, and runs until told to
/// stop.
///
/// Call it from `main`, before there are other threads.
pub fn launch(settings: Settings) -> Result<(), LaunchError> {
    start_logging(&settings.started_with().log);
    tracing::info!(version = crate::VERSION, "starting");
    if let Err(error) = privileges::drop_unused() {
        tracing::warn!(%error, "running with more privileges than needed");
    }
    if let Err(error) = dumps::forbid() {
        tracing::warn!(%error, "a core dump of this process would have its keys");
    }
    // Cards, sockets and queries in hand take some hundreds.
    descriptors::up_to(DESCRIPTORS);
    Ok(block_on(run(settings, engine::start))??)
}

/// Runs a future on a runtime of its own. What it must not leave half done, it has to wait for itself.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, LaunchError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(LaunchError::Runtime)?;
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(LEFT_OVER);
    Ok(output)
}

/// Starts the log that the settings ask for.
pub fn start_logging(filter: &str) {
    // It was checked with the other settings.
    let filter: LogFilter = filter.parse().unwrap_or_default();
    // The DNS library logs every name that is asked for at INFO: it has to be asked for by name.
    filter.start(false, "hickory=error");
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
}
