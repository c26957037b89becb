//! How a daemon ends that cannot use its settings: with one status where only a person can mend that, and as after any other
//! failure where another try can.

use std::io;

/// `EX_CONFIG` of sysexits.h: only other settings help. systemd does not start the daemon again then
/// (`RestartPreventExitStatus=` in both units).
pub const WRONG_SETTINGS: u8 = 78;

/// Whether a file of settings that was not read, because of this error, stays unreadable until somebody changes it. One that is not
/// there may come with a mount that is late, and a disk that fails may answer the next time.
pub fn needs_a_person(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, PermissionDenied};
    // What is not UTF-8 is invalid data.
    matches!(error.kind(), InvalidData | PermissionDenied | IsADirectory | NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

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
