//! `cargo xtask test`: every test there is, on a machine that may have nothing installed.
//!
//! Many tests make network namespaces and load eBPF programs, so test programs run as root (through sudo
//! where this is not root); nothing is skipped where a privilege or a tool is missing. cargo itself runs as
//! the user.

mod total;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::total::Total;
use crate::kernels::Short;
use crate::{aarch64, ebpf, setup, shell};

/// Which tests to run.
#[derive(Debug, Default, Args)]
pub(crate) struct TestArgs {
    /// Only the eBPF programs on other kernels, which are emulated.
    #[arg(long)]
    emulated: bool,
    /// Arguments for `cargo test`, for example `-p cyphonic-lab`. All tests of the workspace by default.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The module of the tests that take a machine with a whole Debian (`xtask/tests/machines.rs`).
const EMULATED: &str = "emulated::";

/// Runs the verb.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    let whole = args.arguments.is_empty();
    setup::lab()?;
    setup::vagrant()?;
    // A choice of tests is about one's own change, seldom about other kernels.
    if args.emulated || whole {
        aarch64::Short::set_up()?;
    }
    if whole && !args.emulated {
        setup::emulated_server()?;
        setup::packager()?;
    }
    ebpf::build()?;
    let mut total = Total::default();
    match (args.emulated, whole) {
        (true, _) => total.add_kernels(Short::build().and_then(|short| short.run())),
        (false, true) => everything(&mut total)?,
        (false, false) => cargo_test(&args.arguments, &mut total, |line| println!("{line}"))?,
    }
    println!("\ntest: {} in {:.0} s", total.describe(), start.elapsed().as_secs_f64());
    total.into_result()
}

/// All tests. Emulated machines run beside the others, and have what those leave of the processors: one after
/// the other, each would leave one of two processors idle for half of its time.
fn everything(total: &mut Total) -> Result<()> {
    println!("test: building the tests");
    shell::run(shell::cargo().args(["test", "--locked", "--workspace", "--no-run"]))?;
    let short = Short::build();
    println!(
        "test: running them, and on emulated machines the packages and the eBPF programs on other kernels"
    );
    thread::scope(|scope| {
        let machines = scope.spawn(machines);
        let kernels = scope.spawn(|| short?.run());
        let others = ["--workspace", "--", "--skip", EMULATED].map(str::to_owned);
        cargo_test(&others, total, |line| println!("{line}"))?;
        let (of_machines, said) = joined(machines)?;
        println!("{said}");
        total.include(&of_machines);
        total.add_kernels(joined(kernels));
        Ok(())
    })
}

/// The tests of [`EMULATED`], one after the other since they make the same packages, and what they said.
fn machines() -> Result<(Total, String)> {
    let (mut total, mut said) = (Total::default(), String::new());
    let arguments = ["--workspace", "--test", "machines", "--", "--test-threads=1"].map(str::to_owned);
    cargo_test(&arguments, &mut total, |line| said.extend([line, "\n"]))?;
    Ok((total, said))
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| bail!("the thread that ran emulated machines died"))
}

/// Runs `cargo test`, and gives each line of what it prints to `say`.
fn cargo_test(arguments: &[String], total: &mut Total, mut say: impl FnMut(&str)) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--locked", "--no-fail-fast"]).args(arguments).stdout(Stdio::piped());
    run_as_root(&mut cargo)?;
    let mut child = cargo.spawn().context("cannot start `cargo test`")?;
    let stdout = child.stdout.take().context("`cargo test` has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what `cargo test` says")?;
        say(&line);
        total.add(&line);
    }
    total.add_cargo(child.wait().context("cannot wait for `cargo test`")?);
    Ok(())
}

/// Starts a test program as root with the user's environment. sudo's `secure_path`, which Debian sets, has the
/// last word on PATH unless that is asked for by name: tests that build would find no rustup. (Tried with sudo
/// 1.9.13 on Debian 12, for a user who may run everything; who may not is refused, with sudo's own words.)
const RUNNER: &str = "sudo --preserve-env --preserve-env=PATH --";

/// cargo starts test programs through its configured runner.
pub(crate) fn run_as_root(cargo: &mut Command) -> Result<()> {
    if shell::is_root() {
        return Ok(());
    }
    if shell::find("sudo").is_none() {
        bail!("the tests need root for network namespaces and eBPF, and there is no sudo: run this as root");
    }
    let arch = std::env::consts::ARCH.to_uppercase();
    cargo.env(format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUNNER"), RUNNER);
    Ok(())
}
