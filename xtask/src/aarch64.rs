//! `cargo xtask test-aarch64`: does it all work on a Raspberry Pi 4?
//!
//! Debian's kernels for 64-bit ARM boot on an emulated Cortex-A72 with the programs that are shipped for that
//! machine and the data plane's test programs. There, every eBPF program must pass the verifier, every
//! `BPF_PROG_TEST_RUN` test must pass, and an overlay in network namespaces must work: two agents reach each
//! other directly, two others through the relay in XDP, and each says why it chose what it chose. The
//! emulator's Cortex-A72 has cryptographic instructions, which the Pi's has not: [`pi`] takes them away. A
//! whole run keeps its figures in `docs/figures/` and renders `docs/performance.md`.

mod overlay;
mod pi;
mod system;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use self::overlay::Findings;
use self::system::Unpacked;
use crate::bench::document::{Kept, publish};
use crate::kernels::guest::{CORTEX_A72, Disk, System};
use crate::kernels::report::Report;
use crate::kernels::suites::{Extent, Tests};
use crate::kernels::{self, tell};
use crate::target::Target;
use crate::{build, ebpf, setup, workspace};

const TARGET: Target = Target::Arm64;
/// The series to test: what Debian 12 runs, and the series of Raspberry Pi OS.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// The one that [`crate::test`] has time for.
const SHORT_SERIES: &str = "6.12";

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Aarch64Args {
    /// Test the programs as they are developed, unoptimised: quicker to build.
    #[arg(long)]
    debug: bool,
    /// Leave out the tests of the data plane, which take most of the time.
    #[arg(long)]
    overlay_only: bool,
    /// Only these series, for example `6.12`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Aarch64Args) -> Result<()> {
    setup::emulator_arm64()?;
    ebpf::build()?;
    build::programs(Some(TARGET), !args.debug, None)?;
    let tests = if args.overlay_only { None } else { Some(Tests::build(TARGET, Extent::Whole)?) };
    let mut figures = Figures::new("test-aarch64");
    let (mut reports, mut broken) = (Vec::new(), Vec::new());
    for series in SERIES
        .into_iter()
        .filter(|series| args.only.is_empty() || args.only.iter().any(|only| only == series))
    {
        let system = system::unpack(series)?;
        figures.note(series, system.release.as_str());
        let disk = disk(&system)?;
        let mut task = overlay::install(&disk, &TARGET.folder(!args.debug), TARGET)?;
        if let Some(tests) = &tests {
            task += &tests.install(&disk, &system.release)?;
        }
        let text = boot(&system, &disk, &task)?;
        let findings = Findings::read(&text)?;
        findings.tell();
        let mut on_this = findings.broken_promises(kernels::version(&system.release));
        // What a device holds are the programs that are shipped: others are twice their size.
        if !args.debug {
            figures.insert(&format!("{series}.rss_idle_mb"), Figure::single(findings.resident_mb, "MB"));
            on_this.extend(findings.too_large());
        }
        broken.extend(on_this.into_iter().map(|why| format!("on {series}: {why}")));
        if let Some(tests) = &tests {
            reports.push((series.to_owned(), tests.report(&text)));
        }
    }
    if figures.notes().next().is_none() {
        bail!("there is no such kernel: choose among {}", SERIES.join(", "));
    }
    if tests.is_some() {
        tell(&reports, &mut figures);
    }
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if args.only.is_empty() && tests.is_some() {
        publish(Kept::Aarch64, &figures)?;
    }
    broken.extend(kernels::failures(&reports));
    if !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }
    Ok(())
}

/// What `cargo xtask test` runs: every program loaded, its verdicts checked.
#[derive(Debug)]
pub(crate) struct Short {
    tests: Tests,
}

impl Short {
    /// Installs what it needs.
    pub(crate) fn set_up() -> Result<()> {
        setup::emulator_arm64()?;
        setup::cross(TARGET)
    }

    /// Builds the test programs.
    pub(crate) fn build() -> Result<Self> {
        Ok(Self { tests: Tests::build(TARGET, Extent::Short)? })
    }

    /// By what it is told apart from others' kernels.
    pub(crate) fn name(&self) -> String {
        format!("{} on {}", SHORT_SERIES, TARGET.debian())
    }

    /// Fetches the machine's system, and runs them there.
    pub(crate) fn run(&self) -> Result<Report> {
        let system = system::unpack(SHORT_SERIES)?;
        let disk = disk(&system)?;
        let task = self.tests.install(&disk, &system.release)?;
        Ok(self.tests.report(&boot(&system, &disk, &task)?))
    }
}

fn disk(system: &Unpacked) -> Result<Disk> {
    let root = workspace::root().join("target/kernels/root").join(&system.release);
    Disk::new(root, System::Unpacked(system.tree.clone()), &system.modules)
}

fn boot(system: &Unpacked, disk: &Disk, task: &str) -> Result<String> {
    let image = workspace::root().join("target/kernels").join(format!("pi-{}", system.release));
    pi::without_cryptography(&system.image, &image)?;
    println!("test-aarch64: {} on a Cortex-A72 without cryptographic instructions", system.release);
    let text = CORTEX_A72.boot(&image, &disk.pack(task)?)?;
    let log = disk.beside("log");
    fs::write(&log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    println!("test-aarch64: what the machine said is in {}", log.display());
    Ok(text)
}

/// The section of `docs/performance.md`.
pub(crate) fn section(figures: &Figures) -> String {
    let mut text = String::from(TEXT);
    for kernel in SERIES {
        if let Some(resident) = figures.get(&format!("{kernel}.rss_idle_mb")) {
            let _ = writeln!(
                text,
                "On {kernel}, an agent without tunnels holds {:.1} MB of memory.\n",
                resident.value
            );
        }
    }
    text + &kernels::table(figures, &SERIES)
}

const TEXT: &str = "\
## Verified instructions on 64-bit ARM

The same on an emulated Raspberry Pi 4. Emulated time says nothing of a real one's, so there is none here.

";
