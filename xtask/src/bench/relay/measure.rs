//! The measurements.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cyphonic_lab::figures::{Figure, Figures, Statistic};
use serde_json::Value;

use super::{Mode, RelayArgs};
use crate::{ebpf, setup, shell, workspace};

const SMALL: u16 = 64;
const LARGE: u16 = 1400;
/// Packets of one tunnel that follow each other where its sender has super-packets cut by the kernel or the card: fewer
/// than the 44 that it hands over at once.
const TRAIN: u32 = 16;

/// One thing to measure: what is spread over how many bindings, in packets of which size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    mode: Mode,
    bindings: u32,
    /// How many of one binding follow each other.
    train: u32,
    payload: u16,
}

/// Builds the objects and the measuring program, and installs coturn.
pub(super) fn build() -> Result<PathBuf> {
    setup::for_relay_bench()?;
    ebpf::build()?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--release", "--locked", "-p", "cyphonic-dataplane", "--example", "relay_bench"]);
    cargo.arg("--target-dir").arg(workspace::root().join("target"));
    shell::run(&mut cargo).context("the measuring program does not build")?;
    Ok(workspace::root().join("target/release/examples/relay_bench"))
}

/// Measures everything in turn, and that again. Returns what could not be measured, and why.
pub(super) fn all(program: &Path, args: &RelayArgs, figures: &mut Figures) -> Result<Vec<String>> {
    let (reps, seconds) = if args.quick { (1, 0.3) } else { (args.reps.max(1), args.seconds) };
    let mut cases = cases(&args.only);
    let (mut rates, mut samples, mut absent) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for rep in 1..=reps {
        println!("relay: round {rep} of {reps}");
        cases.retain(|case| match measure(program, *case, seconds, rates.get(case).copied()) {
            Ok(run) => {
                println!(
                    "  {:<16} {:>9} bindings {:>5} B {:>9.1} kpps",
                    case.mode.name(),
                    case.bindings,
                    case.payload,
                    run.kpps()
                );
                rates.insert(*case, run.rate);
                samples.entry(*case).or_insert_with(Vec::new).push(run);
                true
            }
            Err(error) => {
                absent.push(format!(
                    "{} with {} bindings, {} B: {error:#}",
                    case.mode.name(),
                    case.bindings,
                    case.payload
                ));
                false
            }
        });
    }
    for (case, runs) in &samples {
        insert(figures, *case, runs);
    }
    if args.only.is_empty() || args.only.contains(&Mode::Xdp) {
        program_cost(program, reps, figures)?;
    }
    if samples.is_empty() {
        bail!("nothing could be measured: {}", absent.join("; "));
    }
    Ok(absent)
}

fn cases(only: &[Mode]) -> Vec<Case> {
    let modes = Mode::ALL.into_iter().filter(|mode| only.is_empty() || only.contains(mode));
    let of = |mode| {
        let most: &[u32] = match mode {
            // It has no bindings.
            Mode::BareXdpForward => &[1],
            // One more would be a port more than an address has.
            Mode::Coturn => &[1, 1_000],
            Mode::Xdp | Mode::XdpGeneric | Mode::Userspace => &[1, 1_000, 1_000_000],
        };
        let small =
            most.iter().map(move |bindings| Case { mode, bindings: *bindings, train: 1, payload: SMALL });
        let large = Case { mode, bindings: 1, train: 1, payload: LARGE };
        let trains = Case { mode, bindings: 1_000_000, train: TRAIN, payload: SMALL };
        small.chain([large]).chain((mode == Mode::Xdp).then_some(trains))
    };
    modes.flat_map(of).collect()
}

/// What one run found.
struct Run {
    rate: f64,
    delivered: f64,
    relay_cpu_s: f64,
    seconds: f64,
}

impl Run {
    /// Thousands of packets per second of the relay's processor.
    fn kpps(&self) -> f64 {
        self.delivered / self.relay_cpu_s / 1e3
    }
}

fn measure(program: &Path, case: Case, seconds: f64, rate: Option<f64>) -> Result<Run> {
    let mut command = command(program, case)?;
    command.args(["--seconds", &seconds.to_string()]);
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let found = output(&mut command)?;
    let number = |name: &str| found[name].as_f64().with_context(|| format!("the program told no {name}"));
    let run = Run {
        rate: number("rate")?,
        delivered: number("delivered")?,
        relay_cpu_s: number("relay_cpu_s")?,
        seconds: number("seconds")?,
    };
    if run.delivered == 0.0 || run.relay_cpu_s == 0.0 {
        bail!("nothing was relayed");
    }
    Ok(run)
}

fn command(program: &Path, case: Case) -> Result<Command> {
    let mut command = shell::as_root(program)?;
    command.args(["--mode", case.mode.name()]);
    command.args(["--bindings", &case.bindings.to_string(), "--payload", &case.payload.to_string()]);
    command.args(["--train", &case.train.to_string()]);
    command.arg("--objects").arg(workspace::ebpf_objects());
    Ok(command)
}

fn output(command: &mut Command) -> Result<Value> {
    let output = command.output().context("the measuring program does not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // An error and its causes, a line each.
        let said: Vec<&str> = said.split_whitespace().collect();
        bail!("{}", if said.is_empty() { "it failed silently".to_owned() } else { said.join(" ") });
    }
    serde_json::from_slice(&output.stdout).context("the measuring program printed something else")
}

fn insert(figures: &mut Figures, case: Case, runs: &[Run]) {
    let name = case.mode.name();
    let mut add = |figure: &str, unit, of: &dyn Fn(&Run) -> f64| {
        let samples: Vec<f64> = runs.iter().map(of).collect();
        if let Some(found) = Figure::of(&samples, Statistic::Median, unit) {
            figures.insert(&format!("{name}.{figure}"), found);
        }
    };
    if case.payload == LARGE {
        add("gbps_1400", "Gbit/s", &|run| run.kpps() * 1e3 * f64::from(LARGE) * 8e-9);
        return;
    }
    if case.train > 1 {
        add("bindings_1m_trains_kpps", "kpps", &Run::kpps);
        return;
    }
    let bindings = match case.bindings {
        1 => "1",
        1_000 => "1k",
        _ => "1m",
    };
    add(&format!("bindings_{bindings}_kpps"), "kpps", &Run::kpps);
    if case.bindings == 1 {
        add("kpps_64", "kpps", &Run::kpps);
        add("ns_per_packet", "ns", &|run| 1e6 / run.kpps());
        add("delivered_kpps", "kpps", &|run| run.delivered / run.seconds / 1e3);
    }
}

/// The program alone, on fresh packets, without driver and cable.
fn program_cost(program: &Path, reps: u32, figures: &mut Figures) -> Result<()> {
    for (bindings, name) in [(1, "1"), (1_000, "1k"), (1_000_000, "1m")] {
        let case = Case { mode: Mode::Xdp, bindings, train: 1, payload: SMALL };
        let once = |_| {
            let found = output(command(program, case)?.arg("--program"))?;
            found["program_ns"].as_f64().context("the program told no program_ns")
        };
        let samples = (0..reps).map(once).collect::<Result<Vec<f64>>>()?;
        if let Some(figure) = Figure::of(&samples, Statistic::Median, "ns") {
            figures.insert(&format!("xdp.program_{name}_ns"), figure);
        }
    }
    Ok(())
}
