//! The signals that `run` knows, as the agent does: SIGTERM and SIGINT stop it, SIGHUP must not end it as it is. systemd takes
//! a death by SIGHUP for a clean end, and would not start it again.

use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// See the module.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<(Signal, Hangup)>,
}

/// What SIGHUP says to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    /// The terminal that it runs in has gone.
    TerminalGone,
    /// What makes other services read their settings again.
    ReadAgain,
}

impl Hangup {
    /// Nothing, where whoever started it has the signal ignored (nohup(1)).
    fn meaning(ignored: bool, has_terminal: bool) -> Option<Self> {
        match (ignored, has_terminal) {
            (true, _) => None,
            (false, true) => Some(Self::TerminalGone),
            (false, false) => Some(Self::ReadAgain),
        }
    }
}

impl StopSignals {
    pub(crate) fn listen() -> io::Result<Self> {
        // A process has no terminal any more when it is told that it went: so now.
        let has_terminal = fs::File::open("/dev/tty").is_ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = match Hangup::meaning(ignores_hangup(&status), has_terminal) {
            Some(meaning) => Some((signal(SignalKind::hangup())?, meaning)),
            None => None,
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    /// Returns when the services are to stop.
    pub(crate) async fn received(&mut self) {
        let Self { terminate, interrupt, hangup } = self;
        let hung_up = async {
            let Some((signal, meaning)) = hangup else { return std::future::pending().await };
            loop {
                signal.recv().await;
                match meaning {
                    Hangup::TerminalGone => return,
                    Hangup::ReadAgain => {
                        tracing::info!(
                            "settings are read at the start only: `systemctl restart cyphonic-cloud`"
                        );
                    }
                }
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = hung_up => {}
        }
    }
}

/// proc(5): the lowest bit of `SigIgn` is SIGHUP's.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_means_what_the_process_was_started_as() {
        assert_eq!(Hangup::meaning(false, true), Some(Hangup::TerminalGone));
        assert_eq!(Hangup::meaning(false, false), Some(Hangup::ReadAgain));
        assert_eq!(Hangup::meaning(true, true), None);
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("SigBlk:\t1\nSigIgn:\t0000000000001000\nSigCgt:\t1\n"));
        assert!(!ignores_hangup(""));
    }
}
