//! How many tests there were, and how many of them failed.

use std::process::ExitStatus;

use anyhow::{Result, bail};

use crate::kernels::report::Report;

/// What libtest reported, over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
    cargo_failed: bool,
}

impl Total {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`.
    pub(super) fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let count = words.next().and_then(|word| word.parse::<u64>().ok());
            match (count, words.next()) {
                (Some(count), Some("passed")) => self.passed += count,
                (Some(count), Some("failed")) => self.failed += count,
                (Some(count), Some("ignored")) => self.ignored += count,
                _ => {}
            }
        }
    }

    /// Adds how cargo ended: a test program that crashed reports nothing.
    pub(super) fn add_cargo(&mut self, status: ExitStatus) {
        self.cargo_failed |= !status.success();
    }

    /// Adds what another run found.
    pub(super) fn include(&mut self, other: &Self) {
        self.programs += other.programs;
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.cargo_failed |= other.cargo_failed;
    }

    /// Adds what the emulated kernels said. One that did not come to its end, or could not be started, is a
    /// test that failed.
    pub(super) fn add_kernels(&mut self, reports: Result<Vec<(String, Report)>>) {
        let reports = match reports {
            Ok(reports) => reports,
            Err(error) => {
                println!("test: no other kernel was tried: {error:#}");
                self.failed += 1;
                return;
            }
        };
        for (kernel, report) in reports {
            self.programs += report.suites;
            self.passed += report.passed as u64;
            self.failed += report.failed as u64;
            let (programs, passed, failed) = (report.programs.len(), report.passed, report.failed);
            println!(
                "test: Linux {kernel}: {programs} programs loaded, {passed} tests passed, {failed} failed"
            );
            if let Some(why) = report.failure() {
                println!("test: Linux {kernel}: {why}");
                self.failed += u64::from(report.failed == 0);
            }
        }
    }

    pub(super) fn describe(&self) -> String {
        let Self { programs, passed, failed, ignored, .. } = self;
        format!(
            "total {} tests in {programs} programs: {passed} passed, {failed} failed, {ignored} ignored",
            passed + failed + ignored
        )
    }

    pub(super) fn into_result(self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if self.cargo_failed {
            bail!("`cargo test` failed");
        }
        if self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_added() {
        let mut total = Total::default();
        total.add("running 3 tests");
        total.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.50s",
        );
        total.add(
            "test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        );
        let expected = Total { programs: 2, passed: 43, failed: 0, ignored: 1, cargo_failed: false };
        assert_eq!(total, expected);
        assert_eq!(total.describe(), "total 44 tests in 2 programs: 43 passed, 0 failed, 1 ignored");
        assert!(total.into_result().is_ok());
    }

    #[test]
    fn a_kernel_that_fails_or_is_not_there_is_a_failed_test() {
        let good =
            "program agent/x: verified_instructions=4 \ntest result: ok. 3 passed; 0 failed;\nguest: end\n";
        let report = |text: &str| ("6.1 on amd64".to_owned(), Report::parse(text, 1));
        let mut total = Total::default();
        total.add_kernels(Ok(vec![report(good)]));
        assert_eq!((total.programs, total.passed, total.failed), (1, 3, 0));
        total.add_kernels(Ok(vec![report(good), report("kernel panic")]));
        assert_eq!((total.programs, total.passed, total.failed), (2, 6, 1));
        total.add_kernels(Ok(vec![report(&good.replace("0 failed", "2 failed"))]));
        assert_eq!(total.failed, 3);
        total.add_kernels(Err(anyhow::anyhow!("no emulator")));
        assert_eq!(total.into_result().unwrap_err().to_string(), "4 tests failed");
    }

    #[test]
    fn failures_crashes_and_empty_runs_are_errors() {
        let mut failed = Total { cargo_failed: true, ..Total::default() };
        failed.add(
            "test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!(failed.into_result().unwrap_err().to_string(), "2 tests failed");
        let mut crashed = Total { passed: 1, ..Total::default() };
        crashed.include(&Total { cargo_failed: true, ..Total::default() });
        assert_eq!(crashed.into_result().unwrap_err().to_string(), "`cargo test` failed");
        let empty = Total::default();
        assert_eq!(empty.into_result().unwrap_err().to_string(), "no test ran");
    }
}
