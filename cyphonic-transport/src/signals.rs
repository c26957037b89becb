//! The signals that both daemons know: SIGTERM and SIGINT stop them, SIGHUP has settings read again where a
//! daemon can, and must not end it. systemd takes a death by SIGHUP for a clean end, and would not start it
//! again.

use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// See the module.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<(Signal, Hangup)>,
    advice: String,
}

/// What SIGHUP says to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    /// The terminal that it runs in has gone.
    TerminalGone,
    /// What makes other daemons read their settings again.
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

/// What somebody asks of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To stop.
    ToStop,
    /// To read its settings again.
    ToReadAgain,
}

impl StopSignals {
    /// From now on. `advice` is how to have settings read again, for whoever hopes that SIGHUP does it.
    ///
    /// # Errors
    /// The system takes no handler, or there is no tokio runtime with drivers.
    pub fn listen(advice: &str) -> io::Result<Self> {
        // A process has no terminal any more when it is told that it went: so now.
        let has_terminal = fs::File::open("/dev/tty").is_ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::listen_for(Hangup::meaning(ignores_hangup(&status), has_terminal), advice)
    }

    fn listen_for(hangup: Option<Hangup>, advice: &str) -> io::Result<Self> {
        let hangup = match hangup {
            Some(meaning) => Some((signal(SignalKind::hangup())?, meaning)),
            None => None,
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
            advice: advice.to_owned(),
        })
    }

    /// Returns when the daemon is to stop. Whoever hopes that it reads settings meanwhile is told in the log.
    pub async fn received(&mut self) {
        while self.next().await == Asked::ToReadAgain {
            tracing::info!(advice = self.advice, "settings are read at the start only");
        }
    }

    /// The next thing that is asked.
    pub async fn next(&mut self) -> Asked {
        let Self { terminate, interrupt, hangup, .. } = self;
        let hung_up = async {
            let Some((signal, meaning)) = hangup else { return std::future::pending().await };
            signal.recv().await;
            match meaning {
                Hangup::TerminalGone => Asked::ToStop,
                Hangup::ReadAgain => Asked::ToReadAgain,
            }
        };
        tokio::select! {
            _ = terminate.recv() => Asked::ToStop,
            _ = interrupt.recv() => Asked::ToStop,
            asked = hung_up => asked,
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
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::time::timeout;

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

    #[tokio::test]
    async fn a_hangup_ends_no_daemon_and_stops_one_whose_terminal_went() {
        let mut service = StopSignals::listen_for(Some(Hangup::ReadAgain), "").unwrap();
        let mut foreground = StopSignals::listen_for(Some(Hangup::TerminalGone), "").unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        timeout(Duration::from_secs(20), foreground.received()).await.expect("it stops");
        // It was told at the same moment.
        assert_eq!(service.next().await, Asked::ToReadAgain);
        kill_process(getpid(), Signal::HUP).unwrap();
        assert!(timeout(Duration::from_millis(50), service.received()).await.is_err());
    }
}
