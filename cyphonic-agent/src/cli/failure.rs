//! How a binary's `main` ends.
#![expect(clippy::print_stderr, reason = "the output of a command")]

use std::process::ExitCode;

use anyhow::Result;

/// The exit status of a command; what failed goes to standard error, in one line.
pub fn exit_code(command: &str, result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("{command}: {}", describe(&error));
        ExitCode::FAILURE
    })
}

/// The error and those of its causes that it does not already tell.
fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn every_cause_is_told_once() {
        let error =
            Err::<(), _>(anyhow!("disk full")).context("cannot write f: disk full").context("no state");
        assert_eq!(describe(&error.unwrap_err()), "no state: cannot write f: disk full");
    }
}
