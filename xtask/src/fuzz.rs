//! `cargo xtask fuzz`: damaged frames, by the million, at every program that judges packets.
//!
//! Each frame goes through the kernel's program and through the same code in userspace: the verdicts, and what is left of
//! the frame, must be the same, and what must not be forwarded never is. The tests of the data plane do that with a few
//! thousand frames; this verb runs them with many, from a seed of its own each time. A disagreement is shrunk
//! to the shortest frame that shows it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use crate::{ebpf, setup, shell};

/// Programs that one test's frames go through.
struct Target {
    name: &'static str,
    /// The test program and the test in it.
    test: [&'static str; 2],
    filter: &'static str,
    /// Programs that judge each frame.
    programs: u32,
}

const TARGETS: [Target; 3] = [
    Target {
        name: "relay",
        test: ["--test", "relay_program"],
        filter: "the_kernel_and_userspace_agree_on_damaged_frames",
        programs: 1,
    },
    Target {
        name: "classifier",
        test: ["--lib", "--quiet"],
        filter: "bpf::tests::verdicts::the_kernel_and_the_host_agree_on_mutated_packets",
        programs: 1,
    },
    Target {
        name: "xdp_ring",
        test: ["--lib", "--quiet"],
        filter: "bpf::tests::xsk::the_kernel_and_the_host_agree_on_mutated_frames",
        programs: 2,
    },
];

/// How much to try.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Frames for each target; the virtual and the underlay program of the AF_XDP ring each judge all of theirs.
    #[arg(long, default_value_t = 2_500_000)]
    frames: u32,
    /// Only these targets.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    setup::lab()?;
    ebpf::build()?;
    let mut figures = Figures::new("fuzz");
    let mut bad = Vec::new();
    let wanted = |target: &&Target| args.only.is_empty() || args.only.iter().any(|only| only == target.name);
    for target in TARGETS.iter().filter(wanted) {
        println!("fuzz: {}: {} frames", target.name, args.frames);
        let agreed = target.run(args.frames)?;
        let count = |value| Figure::count(value);
        // A test ends at its first disagreement (a crash of the program is one), so there is one or none.
        figures.insert(&format!("{}.disagreements", target.name), count(u32::from(!agreed)));
        if agreed {
            figures.insert(
                &format!("{}.cases", target.name),
                count(args.frames.saturating_mul(target.programs)),
            );
            figures.insert(&format!("{}.crashes", target.name), count(0));
        } else {
            bad.push(target.name);
        }
    }
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if !bad.is_empty() {
        bail!("kernel and userspace disagree, or crash: {}", bad.join(", "));
    }
    println!("fuzz: kernel and userspace agreed on every frame");
    Ok(())
}

impl Target {
    /// Whether every frame was judged alike.
    fn run(&self, frames: u32) -> Result<bool> {
        let mut cargo = shell::cargo();
        cargo.args(["test", "--locked", "-p", "cyphonic-dataplane"]).args(self.test);
        cargo.args(["--", "--exact", self.filter]).env("CYPHONIC_FUZZ_CASES", frames.to_string());
        crate::test::run_as_root(&mut cargo)?;
        let output = cargo.stderr(std::process::Stdio::inherit()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !said.contains(" 1 passed") && output.status.success() {
            bail!("there is no test {}", self.filter);
        }
        if !output.status.success() {
            println!("{said}");
        }
        Ok(output.status.success())
    }
}
