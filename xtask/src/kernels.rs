//! `cargo xtask test-kernels`: do the eBPF programs load, and decide right, on other kernels?
//!
//! Debian's kernels boot in an emulator with nothing but the eBPF objects and this crate's test programs, the
//! very files that run on the host: every program must pass that kernel's verifier with its maps at their
//! largest, and every `BPF_PROG_TEST_RUN` test must pass. Emulation needs no virtualisation of the host and
//! takes a minute a kernel. A whole run keeps its figures in `docs/figures/` and renders
//! `docs/performance.md`.

pub(crate) mod guest;
pub(crate) mod image;
pub(crate) mod report;
pub(crate) mod suites;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use self::guest::{Disk, PC, System};
use self::image::Kernel;
use self::report::Report;
use self::suites::{Extent, Tests};
use crate::bench::document::{Kept, publish};
use crate::target::Target;
use crate::{aarch64, ebpf, setup, workspace};

/// The series to test: what Debian 12 and 13 run. The host's own kernel comes last.
const SERIES: [&str; 2] = ["6.1", "6.12"];
const HOST: &str = "host";
/// Between a kernel and a program in the names of figures.
const VERIFIED: &str = ".instructions.";

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
    let tests = Tests::build(Target::Amd64, Extent::Whole)?;
    let wanted = |series: &str| args.only.is_empty() || args.only.iter().any(|only| only == series);
    let mut figures = Figures::new("test-kernels");
    let mut reports = Vec::new();
    for series in SERIES.into_iter().filter(|series| wanted(series)) {
        let kernel = image::fetch(series)?;
        println!("test-kernels: {}", kernel.release);
        figures.note(series, kernel.release.as_str());
        reports.push((series.to_owned(), boot(&kernel, &tests)?));
    }
    if wanted(HOST) {
        println!("test-kernels: this machine's kernel");
        let release = figures.machine().kernel.clone();
        figures.note(HOST, release);
        reports.push((HOST.to_owned(), tests.run_here()?));
    }
    if reports.is_empty() {
        bail!("there is no such kernel: choose among {} and host", SERIES.join(", "));
    }
    tell(&reports, &mut figures);
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if args.only.is_empty() {
        publish(Kept::Kernels, &figures)?;
    }
    let failures: Vec<_> = failures(&reports).collect();
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

/// What went wrong, in words, a kernel with a failure each.
pub(crate) fn failures(reports: &[(String, Report)]) -> impl Iterator<Item = String> {
    reports.iter().filter_map(|(series, report)| Some(format!("on {series}: {}", report.failure()?)))
}

/// `(6, 1)` of `6.1.0-56-cloud-amd64`.
pub(crate) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What `cargo xtask test` has of the emulated kernels, this machine's kind and 64-bit ARM:
/// [`Extent::Short`]. The host's kernel has all tests anyway.
#[derive(Debug)]
pub(crate) struct Short {
    tests: Tests,
    raspberry: aarch64::Short,
}

impl Short {
    /// Builds the test programs. cargo keeps other builds waiting meanwhile, also those that tests start.
    pub(crate) fn build() -> Result<Self> {
        Ok(Self { tests: Tests::build(Target::Amd64, Extent::Short)?, raspberry: aarch64::Short::build()? })
    }

    /// Runs them.
    ///
    /// # Errors
    /// A kernel could not be had. That it fails is in its report.
    pub(crate) fn run(&self) -> Result<Vec<(String, Report)>> {
        let mut reports = Vec::new();
        for series in SERIES {
            let name = format!("{series} on {}", Target::Amd64.debian());
            reports.push((name, boot(&image::fetch(series)?, &self.tests)?));
        }
        reports.push((self.raspberry.name(), self.raspberry.run()?));
        Ok(reports)
    }
}

/// Boots a kernel with the tests as its only programs.
fn boot(kernel: &Kernel, tests: &Tests) -> Result<Report> {
    let root = workspace::root().join("target/kernels/root").join(&kernel.release);
    let disk = Disk::new(root, System::Here, &kernel.modules)?;
    let task = tests.install(&disk, &kernel.release)?;
    let text = PC.boot(&kernel.image, &disk.pack(&task)?)?;
    let (report, log) = (tests.report(&text), disk.beside("log"));
    fs::write(&log, text).with_context(|| format!("cannot write {}", log.display()))?;
    if report.failure().is_some() {
        println!("test-kernels: what {} said is in {}", kernel.release, log.display());
    }
    Ok(report)
}

/// Prints what came out, and enters the figures.
pub(crate) fn tell(reports: &[(String, Report)], figures: &mut Figures) {
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
        for program in &report.programs {
            let name = format!("{series}{VERIFIED}{}", program.name);
            figures.insert(&name, Figure::count(program.instructions));
        }
    }
    print_programs(reports);
}

/// The verifiers' section of `docs/performance.md`.
pub(crate) fn section(figures: &Figures) -> String {
    TEXT.to_owned() + &table(figures, &[SERIES[0], SERIES[1], HOST])
}

/// What the verifiers walked and what the tests said, a line a program and a column a kernel.
pub(crate) fn table(figures: &Figures, kernels: &[&str]) -> String {
    let mut text = String::new();
    let releases: BTreeMap<&str, &str> = figures.notes().collect();
    let kernels: Vec<&str> = kernels.iter().copied().filter(|kernel| releases.contains_key(kernel)).collect();
    let row = |text: &mut String, what: &str, cell: &dyn Fn(&str) -> String| {
        let cells: Vec<String> = kernels.iter().map(|kernel| cell(kernel)).collect();
        let _ = writeln!(text, "| {what} | {} |", cells.join(" | "));
    };
    let value =
        |name: String| figures.get(&name).map_or_else(|| "–".to_owned(), |figure| figure.value.to_string());
    row(&mut text, "Program", &|kernel| releases.get(kernel).copied().unwrap_or(kernel).to_owned());
    row(&mut text, "---", &|_| "---:".to_owned());
    let mut programs: Vec<&str> =
        figures.all().filter_map(|(name, _)| Some(name.split_once(VERIFIED)?.1)).collect();
    programs.sort_unstable();
    programs.dedup();
    for program in programs {
        row(&mut text, &format!("`{program}`"), &|kernel| value(format!("{kernel}{VERIFIED}{program}")));
    }
    for (what, name) in [
        ("programs refused", "programs_failed"),
        ("tests passed", "tests_passed"),
        ("tests failed", "tests_failed"),
    ] {
        row(&mut text, &format!("*{what}*"), &|kernel| value(format!("{kernel}.{name}")));
    }
    text
}

const TEXT: &str = "\
## Verified instructions

What each kernel's verifier walked before it took a program, its maps at their largest; the limit is a million.

";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_a_program_and_a_column_a_kernel() {
        let mut figures = Figures::new("test-kernels");
        figures.note("6.1", "6.1.0-56-cloud-amd64");
        figures.note(HOST, "6.18.1");
        for (name, count) in [
            ("6.1.instructions.relay/cyphonic_relay", 2051),
            ("host.instructions.relay/cyphonic_relay", 2049),
            ("host.instructions.agent/cyphonic_egress", 412),
            ("host.tests_passed", 60),
        ] {
            figures.insert(name, Figure::count(count));
        }
        let text = section(&figures);
        let lines = [
            "| Program | 6.1.0-56-cloud-amd64 | 6.18.1 |",
            "| `agent/cyphonic_egress` | – | 412 |",
            "| `relay/cyphonic_relay` | 2051 | 2049 |",
            "| *tests passed* | – | 60 |",
        ];
        assert!(lines.iter().all(|line| text.lines().any(|found| found == *line)), "{text}");
    }
}
