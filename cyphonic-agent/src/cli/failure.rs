//! How a binary's `main` ends.
#![expect(clippy::print_stderr, reason = "the output of a command")]

use std::process::ExitCode;

use anyhow::Result;
use cyphonic_transport::logging::error_mark;
use cyphonic_transport::settings::{WRONG_SETTINGS, describe};

use super::output::OutputError;
use crate::config::ConfigError;
use crate::daemon::{DaemonError, LaunchError};

/// The exit status of a command; what failed goes to standard error, in one line.
pub fn exit_code(command: &str, result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        if error.downcast_ref().is_some_and(OutputError::is_read_enough) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{}{command}: {}", error_mark(), describe(error.as_ref()));
        ExitCode::from(status(&error))
    })
}

fn status(error: &anyhow::Error) -> u8 {
    let no_identity = match error.downcast_ref() {
        Some(LaunchError::Daemon(DaemonError::NotEnrolled(_))) => true,
        Some(LaunchError::Daemon(DaemonError::State(error))) => error.is_damage(),
        _ => false,
    };
    let misconfigured = error.downcast_ref().is_some_and(ConfigError::needs_a_person);
    if no_identity || misconfigured { WRONG_SETTINGS } else { 1 }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use anyhow::anyhow;

    use super::*;
    use crate::state::StateError;

    #[test]
    fn a_daemon_that_only_other_settings_help_is_not_to_be_started_again() {
        let wrong = ConfigError::Value { key: "interface", reason: "no name".into() };
        assert_eq!(status(&wrong.into()), WRONG_SETTINGS);
        let not_enrolled = LaunchError::from(DaemonError::NotEnrolled("no cloud".into()));
        assert_eq!(status(&not_enrolled.into()), WRONG_SETTINGS);
        let state = |error: StateError| status(&LaunchError::from(DaemonError::State(error)).into());
        let (path, reason) = (PathBuf::from("key.pem"), "it is not text".into());
        assert_eq!(state(StateError::Key { path: path.clone(), reason }), WRONG_SETTINGS);
        assert_eq!(state(StateError::Incomplete { path: path.clone() }), WRONG_SETTINGS);
        assert_eq!(state(StateError::InUse { path: path.clone() }), 1, "the other one may end");
        let source = io::ErrorKind::StorageFull.into();
        assert_eq!(state(StateError::Io { what: "write", path, source }), 1, "there may be room again");
        assert_eq!(status(&LaunchError::from(DaemonError::Engine("no ring".into())).into()), 1);
        assert_eq!(status(&anyhow!("no")), 1);
        let unread =
            |kind: io::ErrorKind| ConfigError::Read { path: "agent.yaml".into(), source: kind.into() };
        assert_eq!(status(&unread(io::ErrorKind::InvalidData).into()), WRONG_SETTINGS);
        assert_eq!(status(&unread(io::ErrorKind::NotFound).into()), 1, "its mount may be late");
        // 2 is clap's, for flags and environment variables that it cannot read.
        let unit = include_str!("../../dist/cyphonicd.service");
        assert!(unit.lines().any(|line| line == format!("RestartPreventExitStatus=2 {WRONG_SETTINGS}")));
    }
}
