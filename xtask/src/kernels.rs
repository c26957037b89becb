//! `cargo xtask test-kernels`: do the eBPF programs load, and decide right, on other kernels?
//!
//! Debian's kernels boot in an emulator with nothing but the eBPF objects and this crate's test programs, the very files
//! that run on the host: every program must pass that kernel's verifier with its maps at their largest, and every
//! `BPF_PROG_TEST_RUN` test must pass. Emulation needs no virtualisation of the host and takes a minute a kernel.

mod guest;
mod image;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use self::guest::{Report, Tests};
use crate::{ebpf, setup};

/// The series to test: what Debian 12 and 13 run. The host's own kernel comes last.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct KernelsArgs {
    /// Only these series, for example `6.1`; `host` is the running kernel.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &KernelsArgs) -> Result<()> {
    setup::emulator()?;
    ebpf::build()?;
    let tests = Tests::build()?;
    let wanted = |series: &str| args.only.is_empty() || args.only.iter().any(|only| only == series);
    let mut reports = Vec::new();
    for series in SERIES.into_iter().filter(|series| wanted(series)) {
        let kernel = image::fetch(series)?;
        println!("test-kernels: {}", kernel.release);
        reports.push((series.to_owned(), guest::boot(&kernel, &tests)?));
    }
    if wanted("host") {
        println!("test-kernels: this machine's kernel");
        reports.push(("host".to_owned(), tests.run_here()?));
    }
    if reports.is_empty() {
        bail!("there is no such kernel: choose among {} and host", SERIES.join(", "));
    }
    publish(&reports, args.json.as_deref())?;
    match reports.iter().find_map(|(series, report)| report.failure().map(|why| (series, why))) {
        None => Ok(()),
        Some((series, why)) => bail!("on {series}: {why}"),
    }
}

fn publish(reports: &[(String, Report)], json: Option<&std::path::Path>) -> Result<()> {
    let mut figures = Figures::new("test-kernels");
    println!(
        "\n{:<8} {:>8} {:>8} {:>8} {:>8}   largest program",
        "kernel", "loaded", "refused", "passed", "failed"
    );
    for (series, report) in reports {
        let count = |value: usize| Figure::count(u32::try_from(value).unwrap_or(u32::MAX));
        let largest = report.programs.iter().max_by_key(|program| program.instructions);
        let (loaded, refused) = (report.programs.len(), report.refused.len());
        figures.insert(&format!("{series}.programs_loaded"), count(loaded));
        figures.insert(&format!("{series}.programs_failed"), count(refused));
        figures.insert(&format!("{series}.tests_passed"), count(report.passed));
        figures.insert(&format!("{series}.tests_failed"), count(report.failed));
        let (passed, failed) = (report.passed, report.failed);
        print!("{series:<8} {loaded:>8} {refused:>8} {passed:>8} {failed:>8}");
        match largest {
            Some(program) => {
                figures.insert(&format!("{series}.max_instructions"), Figure::count(program.instructions));
                println!("   {} ({} instructions verified)", program.name, program.instructions);
            }
            None => println!(),
        }
    }
    print_programs(reports);
    if let Some(file) = json {
        figures.write(file)?;
    }
    Ok(())
}

/// Instructions that the verifier walked, per program and kernel: its limit is a million.
fn print_programs(reports: &[(String, Report)]) {
    let mut names: Vec<&str> = reports
        .iter()
        .flat_map(|(_, report)| &report.programs)
        .map(|program| program.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    print!("\n{:<28}", "instructions verified");
    reports.iter().for_each(|(series, _)| print!(" {series:>8}"));
    println!();
    for name in names {
        print!("{name:<28}");
        for (_, report) in reports {
            match report.programs.iter().find(|program| program.name == name) {
                Some(program) => print!(" {:>8}", program.instructions),
                None => print!(" {:>8}", "-"),
            }
        }
        println!();
    }
}
