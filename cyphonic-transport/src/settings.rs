//! How a daemon ends that cannot use its settings: with one status where only a person can mend that, and as
//! after any other failure where another try can. How programs tell of it, and of anything else that ends
//! them. How settings are read from their text ([`written`]).

pub mod written;

use std::error::Error;
use std::io;

/// `EX_CONFIG` of sysexits.h: only other settings help. systemd does not start the daemon again then
/// (`RestartPreventExitStatus=` in both units).
pub const WRONG_SETTINGS: u8 = 78;

/// Whether a file of settings that was not read, because of this error, stays unreadable until somebody
/// changes it. One that is not there may come with a mount that is late, and a disk that fails may answer the
/// next time.
pub fn needs_a_person(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, PermissionDenied};
    // What is not UTF-8 is invalid data.
    matches!(error.kind(), InvalidData | PermissionDenied | IsADirectory | NotADirectory)
}

/// The error and those of its causes that it does not already tell, in one line.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Failure {
        words: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn every_cause_is_told_once() {
        let because = |words, source| Some(Box::new(Failure { words, source }));
        let source = because("cannot write f: disk full", because("disk full", because("no room", None)));
        let error = Failure { words: "no state", source };
        assert_eq!(describe(&error), "no state: cannot write f: disk full: no room");
    }

    #[test]
    fn what_may_be_there_the_next_time_is_tried_again() {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_err();
        assert!(needs_a_person(&read("/")));
        assert!(needs_a_person(&read("/dev/null/agent.yaml")));
        assert!(needs_a_person(&io::ErrorKind::InvalidData.into()));
        assert!(needs_a_person(&io::Error::from_raw_os_error(13)), "permission denied");
        assert!(!needs_a_person(&read("/nonexistent/agent.yaml")));
        assert!(!needs_a_person(&io::Error::from_raw_os_error(5)), "the disk");
        assert!(!needs_a_person(&io::Error::from_raw_os_error(24)), "too many open files");
    }
}
