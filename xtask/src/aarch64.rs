//! `cargo xtask test-aarch64`: does it all work on a Raspberry Pi 4?
//!
//! Debian's kernel for 64-bit ARM boots on an emulated Cortex-A72 with the programs that are shipped for that machine and the data
//! plane's test programs. There, every eBPF program must pass the verifier, every `BPF_PROG_TEST_RUN` test must pass, and an
//! overlay in network namespaces must work: two agents reach each other directly, two others through the relay in XDP, and each says
//! why it chose what it chose. The emulator's Cortex-A72 has cryptographic instructions, which the Pi's has not: [`pi`] takes
//! them away.

mod overlay;
mod pi;
mod system;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use self::overlay::Findings;
use crate::kernels::guest::{CORTEX_A72, Disk, System};
use crate::kernels::report::Report;
use crate::kernels::suites::Tests;
use crate::kernels::tell;
use crate::target::Target;
use crate::{build, ebpf, setup, workspace};

const TARGET: Target = Target::Arm64;

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Aarch64Args {
    /// Test the programs as they are developed, unoptimised: quicker to build.
    #[arg(long)]
    debug: bool,
    /// Leave out the tests of the data plane, which take most of the time.
    #[arg(long)]
    overlay_only: bool,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Aarch64Args) -> Result<()> {
    setup::emulator_arm64()?;
    ebpf::build()?;
    build::programs(Some(TARGET), !args.debug)?;
    let tests = if args.overlay_only { None } else { Some(Tests::build(TARGET)?) };
    let system = system::unpack()?;
    let image = workspace::root().join("target/kernels").join(format!("pi-{}", system.release));
    pi::without_cryptography(&system.image, &image)?;
    println!("test-aarch64: {} on a Cortex-A72 without cryptographic instructions", system.release);

    let root = workspace::root().join("target/kernels/root").join(&system.release);
    let disk = Disk::new(root, System::Unpacked(system.tree.clone()), &system.modules)?;
    let mut task = overlay::install(&disk, &TARGET.folder(!args.debug), TARGET)?;
    if let Some(tests) = &tests {
        task += &tests.install(&disk, &system.release)?;
    }
    let text = CORTEX_A72.boot(&image, &disk.pack(&task)?)?;
    let log = disk.beside("log");
    fs::write(&log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    println!("test-aarch64: what the machine said is in {}", log.display());

    let mut figures = Figures::new("test-aarch64");
    let series = system.series();
    figures.note(&series, system.release.as_str());
    let findings = Findings::read(&text)?;
    findings.tell();
    figures.insert(&format!("{series}.rss_idle_mb"), Figure::single(findings.resident_mb, "MB"));
    let broken = findings.broken_promises();
    if tests.is_some() {
        let reports = [(series, Report::parse(&text))];
        tell(&reports, &mut figures);
        if let Some(why) = reports[0].1.failure() {
            bail!("on {}: {why}", system.release);
        }
    }
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if !broken.is_empty() {
        bail!("on {}: {}", system.release, broken.join("; "));
    }
    Ok(())
}
