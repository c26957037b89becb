//! `cargo xtask fuzz`: damaged frames, by the million, at every program that judges packets.
//!
//! Each frame goes through the kernel's program and through the same code in userspace: the verdicts, and
//! what is left of the frame, must be the same, and what must not be forwarded never is. The tests of the
//! data plane do that with a few thousand frames; this verb runs them with many, from a seed of its own each
//! time. A disagreement is shrunk to the shortest frame that shows it. A whole run keeps its figures in
//! `docs/figures/` and renders `docs/performance.md`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};

use crate::bench::document::{Kept, publish};
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
        filter: "agreement::the_kernel_and_userspace_agree_on_damaged_frames",
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

/// Frames for each target in a whole run.
const FRAMES: u32 = 2_500_000;

/// How much to try.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Frames for each target; the virtual and the underlay program of the AF_XDP ring each judge all of
    /// theirs.
    #[arg(long, default_value_t = FRAMES)]
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
    if args.only.is_empty() && args.frames >= FRAMES {
        publish(Kept::Fuzz, &figures)?;
    }
    if !bad.is_empty() {
        bail!("kernel and userspace disagree, or crash: {}", bad.join(", "));
    }
    println!("fuzz: kernel and userspace agreed on every frame");
    Ok(())
}

/// The fuzzer's section of `docs/performance.md`.
pub(crate) fn section(figures: &Figures) -> String {
    let mut text = String::from(TEXT);
    for Target { name, .. } in &TARGETS {
        let cell = |what: &str| {
            let figure = figures.get(&format!("{name}.{what}"));
            figure.map_or_else(|| "–".to_owned(), |figure| figure.value.to_string())
        };
        let _ = writeln!(
            text,
            "| `{name}` | {} | {} | {} |",
            cell("cases"),
            cell("crashes"),
            cell("disagreements")
        );
    }
    text
}

const TEXT: &str = "\
## Damaged frames

Each went through a program in the kernel and through the same code in userspace, which must judge alike; a case is a
verdict of both. Counts of a run that ended at a disagreement are not known.

| Programs | Cases | Crashes | Disagreements |
|---|---:|---:|---:|
";

impl Target {
    /// Whether every frame was judged alike.
    fn run(&self, frames: u32) -> Result<bool> {
        let test = || {
            let mut cargo = shell::cargo();
            cargo.args(["test", "--locked", "-p", "cyphonic-dataplane"]).args(self.test);
            cargo
        };
        // What does not build is no disagreement.
        shell::run(test().arg("--no-run"))?;
        let mut cargo = test();
        cargo.args(["--", "--exact", self.filter]).env("CYPHONIC_FUZZ_CASES", frames.to_string());
        crate::test::run_as_root(&mut cargo)?;
        let output = cargo.stderr(std::process::Stdio::inherit()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            println!("{said}");
        }
        outcome(&said, output.status.success())
            .with_context(|| format!("{} did not come to a verdict ({})", self.filter, output.status))
    }
}

/// What a test of one frame after the other has said: whether all were judged alike. A program that never
/// came to it has said nothing of the kind.
fn outcome(said: &str, success: bool) -> Option<bool> {
    match success {
        true => said.contains(" 1 passed").then_some(true),
        // A test that crashes the process ends without a count.
        false => (said.contains("; 1 failed") || said.contains("running 1 test")).then_some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_test_that_ran_disagrees() {
        assert_eq!(outcome("running 1 test\n.\ntest result: ok. 1 passed; 0 failed", true), Some(true));
        assert_eq!(outcome("running 1 test\nF\ntest result: FAILED. 0 passed; 1 failed", false), Some(false));
        assert_eq!(outcome("running 1 test\n", false), Some(false), "it crashed");
        assert_eq!(
            outcome("running 0 tests\ntest result: ok. 0 passed", true),
            None,
            "there is no such test"
        );
        assert_eq!(outcome("", false), None, "as without a password for sudo");
    }

    #[test]
    fn the_table_has_a_line_a_target_and_says_what_is_not_known() {
        let mut figures = Figures::new("fuzz");
        for (name, count) in [
            ("relay.cases", 2_500_000),
            ("relay.crashes", 0),
            ("relay.disagreements", 0),
            ("classifier.disagreements", 1),
        ] {
            figures.insert(name, Figure::count(count));
        }
        let text = section(&figures);
        assert!(text.contains("| `relay` | 2500000 | 0 | 0 |\n| `classifier` | – | – | 1 |\n"), "{text}");
    }
}
