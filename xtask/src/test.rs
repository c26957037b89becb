//! `cargo xtask test`: every test there is, on a machine that may have nothing installed.
//!
//! Many tests make network namespaces and load eBPF programs, so test programs run as root (through sudo where this
//! is not root); nothing is skipped where a privilege or a tool is missing. cargo itself runs as the user.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::kernels::report::Report;
use crate::{aarch64, ebpf, kernels, setup, shell};

/// Which tests to run.
#[derive(Debug, Default, Args)]
pub(crate) struct TestArgs {
    /// Only the part in emulated machines: the eBPF programs on other kernels.
    #[arg(long)]
    emulated: bool,
    /// Arguments for `cargo test`, for example `-p cyphonic-lab`. All tests of the workspace by default.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    setup::lab()?;
    setup::vagrant()?;
    // A choice of tests is about one's own change, seldom about other kernels.
    let emulated = args.emulated || args.arguments.is_empty();
    if emulated {
        aarch64::Short::set_up()?;
    }
    if args.arguments.is_empty() && !args.emulated {
        setup::emulated_server()?;
        setup::packager()?;
    }
    ebpf::build()?;
    let mut total = if args.emulated {
        Total { cargo_succeeded: true, ..Total::default() }
    } else {
        cargo_test(&args.arguments)?
    };
    if emulated {
        println!("test: the eBPF programs on other kernels, emulated");
        total.add_kernels(kernels::short());
    }
    println!("\ntest: {} in {:.0} s", total.describe(), start.elapsed().as_secs_f64());
    total.into_result()
}

fn cargo_test(arguments: &[String]) -> Result<Total> {
    println!("test: building and running the tests");
    let mut cargo = shell::cargo();
    cargo.args(["test", "--locked", "--no-fail-fast"]);
    if arguments.is_empty() {
        cargo.arg("--workspace");
    }
    cargo.args(arguments).stdout(Stdio::piped());
    run_as_root(&mut cargo)?;
    let mut child = cargo.spawn().context("cannot start `cargo test`")?;
    let mut total = Total::default();
    let stdout = child.stdout.take().context("`cargo test` has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what `cargo test` says")?;
        println!("{line}");
        total.add(&line);
    }
    total.cargo_succeeded = child.wait().context("cannot wait for `cargo test`")?.success();
    Ok(total)
}

/// cargo starts test programs through its configured runner.
pub(crate) fn run_as_root(cargo: &mut Command) -> Result<()> {
    if shell::is_root() {
        return Ok(());
    }
    if shell::find("sudo").is_none() {
        bail!("the tests need root for network namespaces and eBPF, and there is no sudo: run this as root");
    }
    let arch = std::env::consts::ARCH.to_uppercase();
    cargo.env(format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUNNER"), "sudo --preserve-env --");
    Ok(())
}

/// What libtest reported, over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
    cargo_succeeded: bool,
}

impl Total {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`.
    fn add(&mut self, line: &str) {
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

    /// Adds what the emulated kernels said. One that did not come to its end, or could not be started, is a test that
    /// failed.
    fn add_kernels(&mut self, reports: Result<Vec<(String, Report)>>) {
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

    fn describe(&self) -> String {
        let Self { programs, passed, failed, ignored, .. } = self;
        format!(
            "total {} tests in {programs} programs: {passed} passed, {failed} failed, {ignored} ignored",
            passed + failed + ignored
        )
    }

    /// A test program that crashed reports nothing, so cargo's own verdict counts too.
    fn into_result(self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if !self.cargo_succeeded {
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
        let mut total = Total { cargo_succeeded: true, ..Total::default() };
        total.add("running 3 tests");
        total.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.50s",
        );
        total.add(
            "test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        );
        let expected = Total { programs: 2, passed: 43, failed: 0, ignored: 1, cargo_succeeded: true };
        assert_eq!(total, expected);
        assert_eq!(total.describe(), "total 44 tests in 2 programs: 43 passed, 0 failed, 1 ignored");
        assert!(total.into_result().is_ok());
    }

    #[test]
    fn a_kernel_that_fails_or_is_not_there_is_a_failed_test() {
        let good =
            "program agent/x: verified_instructions=4 \ntest result: ok. 3 passed; 0 failed;\nguest: end\n";
        let report = |text: &str| ("6.1 on amd64".to_owned(), Report::parse(text));
        let mut total = Total { cargo_succeeded: true, ..Total::default() };
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
        let mut failed = Total { cargo_succeeded: false, ..Total::default() };
        failed.add(
            "test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!(failed.into_result().unwrap_err().to_string(), "2 tests failed");
        let crashed = Total { passed: 1, cargo_succeeded: false, ..Total::default() };
        assert_eq!(crashed.into_result().unwrap_err().to_string(), "`cargo test` failed");
        let empty = Total { cargo_succeeded: true, ..Total::default() };
        assert_eq!(empty.into_result().unwrap_err().to_string(), "no test ran");
    }
}
