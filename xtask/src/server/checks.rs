//! What a script found out on an emulated machine.

use anyhow::{Result, bail};

use crate::kernels::report::END;

/// Comes before every script: what it says by `check` is read here.
const PRELUDE: &str = include_str!("checks.sh");
/// So much of what a machine said last tells why it stopped.
const LAST_LINES: usize = 40;

/// A script as it is run: it says itself that it came to its end, since it can be killed, or stop at an error.
pub(super) fn script(checks: &str) -> String {
    format!("{PRELUDE}{checks}\necho '{END}'\n")
}

/// What held and what did not, by what the script calls it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checks {
    pub(crate) held: Vec<String>,
    /// Each with what was said instead.
    pub(crate) failed: Vec<String>,
}

impl Checks {
    /// Reads all that a machine said. One that stopped before its script did has shown nothing.
    pub(super) fn read(text: &str) -> Result<Self> {
        let lines = || text.lines().map(str::trim_end);
        let found = |mark: &str| {
            lines().filter_map(|line| Some(line.split_once(mark)?.1.to_owned())).collect::<Vec<_>>()
        };
        let checks = Self { held: found("@ok "), failed: found("@fail ") };
        if !lines().any(|line| line.ends_with(END)) {
            let all: Vec<&str> = lines().collect();
            let last = all.get(all.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n  ");
            bail!(
                "the machine stopped before its script was over, after {} checks. It said last:\n  {last}",
                checks.held.len() + checks.failed.len()
            );
        }
        Ok(checks)
    }

    /// Prints them. That nothing was checked, or that a check failed, is an error.
    pub(crate) fn verdict(&self, verb: &str) -> Result<()> {
        let Self { held, failed } = self;
        held.iter().for_each(|what| println!("  holds  {what}"));
        failed.iter().for_each(|what| println!("  FAILS  {what}"));
        match (held.len(), failed.len()) {
            (0, 0) => bail!("nothing was checked"),
            (held, 0) => {
                println!("{verb}: {held} checks hold");
                Ok(())
            }
            (held, failed) => bail!("{failed} of {} checks fail", held + failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<()> {
        Checks::read(text)?.verdict("test")
    }

    #[test]
    fn a_script_that_dies_halfway_is_not_whole() {
        let run = |checks: &str| {
            let output = std::process::Command::new("sh").args(["-c", &script(checks)]).output().unwrap();
            verdict(&String::from_utf8_lossy(&output.stdout))
        };
        run("check one true\ncheck two true").unwrap();
        assert!(!super::super::UNIT.contains(END), "the unit also stops when the script was killed");
        for death in ["kill -KILL $$", "exit 0", "check two 'true", "if true; then"] {
            let error = run(&format!("check one true\n{death}\n")).unwrap_err().to_string();
            assert!(error.contains("stopped before its script was over"), "{death}: {error}");
        }
    }

    #[test]
    fn a_script_passes_only_whole_and_without_failures() {
        assert!(verdict("boot\r\n@ok install\r\n@ok purge\r\nguest: end\r\n").is_ok());
        let failed = verdict("@ok install\n@fail purge: it said no\nguest: end\n").unwrap_err().to_string();
        assert_eq!(failed, "1 of 2 checks fail");
        let stopped = verdict("@ok install\nkernel panic\n").unwrap_err().to_string();
        assert!(stopped.contains("after 1 checks") && stopped.contains("kernel panic"), "{stopped}");
        assert!(verdict("guest: end\n").unwrap_err().to_string().contains("nothing"));
    }
}
