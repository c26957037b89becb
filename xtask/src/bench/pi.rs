//! `cargo xtask bench pi`: how many instructions of a Raspberry Pi 4 a packet takes, and what that allows.
//!
//! There is no Pi among the machines that test, and emulated time says nothing of its speed. What an emulator
//! does know exactly is how many instructions the very code for 64-bit ARM executes. QEMU's user mode
//! executes one at a time and tells each. Two runs that differ only in how often a step is done give what one
//! costs, start and end of the program cancelled out.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures};
use serde_json::Value;

use super::document::{Kept, publish};
use crate::target::Target;
use crate::{setup, shell};

const TARGET: Target = Target::Arm64;

/// As the program calls them, and as people do.
const SUITES: [(&str, &str); 2] =
    [("chacha20_poly1305", "ChaCha20-Poly1305"), ("aes_128_gcm", "AES-128-GCM")];
const PROTECTION: [&str; 2] = ["seal", "open"];
const SIZES: [u32; 3] = [64, 512, 1_400];
/// Steps that handle a super-packet at once.
const WHOLES: [&str; 2] = ["split", "join"];

/// How often a step is done in the two runs.
const PACKETS: [u32; 2] = [32, 160];
const SUPER_PACKETS: [u32; 2] = [2, 8];

/// Of the model: see [`MODEL`].
const CLOCK_HZ: f64 = 1.5e9;
const IPC: [f64; 2] = [0.8, 1.5];
/// An inner packet of 1,400 bytes on the wire: 29 bytes of the tunnel, UDP, IPv4, and Ethernet with preamble
/// and gap.
const FRAME_BITS: f64 = (1_400.0 + 29.0 + 8.0 + 20.0 + 38.0) * 8.0;
const GIGABIT: f64 = 1e9;

/// How to count.
#[derive(Debug, Args)]
pub(super) struct PiArgs {
    /// Also write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(super) fn run(args: &PiArgs) -> Result<()> {
    setup::for_pi_bench()?;
    let program = build()?;
    let mut figures = Figures::new("bench pi");
    for ((suite, _), what) in SUITES.iter().flat_map(|suite| PROTECTION.map(|what| (suite, what))) {
        for size in SIZES {
            let step = [what, *suite, &size.to_string()];
            let (few, many) = (count(&program, step, PACKETS[0])?, count(&program, step, PACKETS[1])?);
            figures.insert(&format!("{suite}.{what}_{size}_insn"), per_packet(&few, &many, PACKETS)?);
        }
    }
    for what in WHOLES {
        let step = [what, SUITES[0].0, "0"];
        let (few, many) =
            (count(&program, step, SUPER_PACKETS[0])?, count(&program, step, SUPER_PACKETS[1])?);
        let packets: u32 =
            few.said.trim().parse().context("the program does not say how many packets it handled")?;
        let counts = SUPER_PACKETS.map(|count| count * packets);
        figures.insert(&format!("{what}_1360_insn"), per_packet(&few, &many, counts)?);
    }
    println!("\n{}\n{}", figures.table(), section(&figures));
    if let Some(path) = &args.json {
        figures.write(path)?;
    }
    publish(Kept::Pi, &figures)
}

/// Builds the program that does the steps, as a release would be.
fn build() -> Result<PathBuf> {
    println!("build: the steps of a packet's way, for {TARGET}");
    let mut cargo = shell::cargo();
    cargo.args(["build", "--release", "--locked", "-p", "cyphonic-dataplane", "--example", "packet_cost"]);
    cargo.args(["--features", "cyphonic-dataplane/bench", "--message-format=json-render-diagnostics"]);
    TARGET.configure(&mut cargo);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the program does not build (cargo's messages are above)");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built =
        artifacts.filter_map(|artifact| Some(PathBuf::from(artifact.get("executable")?.as_str()?))).next();
    built.context("cargo built no program")
}

/// What a run of the program came to.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    instructions: u64,
    said: String,
}

/// Has a step done so many times, and counts.
fn count(program: &Path, step: [&str; 3], times: u32) -> Result<Run> {
    let mut emulator = Command::new("qemu-aarch64");
    if !TARGET.is_host() {
        emulator.arg("-L").arg(format!("/usr/{}", TARGET.gnu()));
    }
    // Each instruction a block of its own, and each block told whenever it is executed.
    emulator.args(["-cpu", "cortex-a72", "-singlestep", "-d", "exec,nochain"]).arg(program).args(step);
    emulator.arg(times.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = emulator.spawn().context("cannot start qemu-aarch64")?;
    let trace = child.stderr.take().context("the emulator has no error output")?;
    let (instructions, complaint) = instructions(BufReader::with_capacity(1 << 20, trace))?;
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut said).context("cannot read what the program says")?;
    }
    let status = child.wait().context("cannot wait for the emulator")?;
    if !status.success() {
        bail!("`packet_cost {} {times}` failed under emulation ({status}): {complaint}", step.join(" "));
    }
    Ok(Run { instructions, said })
}

/// How many instructions a trace tells of, and its last line that tells of none.
fn instructions(mut trace: impl BufRead) -> Result<(u64, String)> {
    let (mut count, mut other, mut line) = (0, String::new(), Vec::new());
    while trace.read_until(b'\n', &mut line).context("cannot read the trace")? > 0 {
        if line.starts_with(b"Trace ") {
            count += 1;
        } else {
            other = String::from_utf8_lossy(&line).trim().to_owned();
        }
        line.clear();
    }
    Ok((count, other))
}

fn per_packet(few: &Run, many: &Run, packets: [u32; 2]) -> Result<Figure> {
    let difference = many.instructions.checked_sub(few.instructions).filter(|difference| *difference > 0);
    let difference = difference.context("more packets took no more instructions: the trace is not one")?;
    let packets = f64::from(packets[1]) - f64::from(packets[0]);
    Ok(Figure::single((difference as f64 / packets).round(), "instructions"))
}

/// The section of `docs/performance.md` about a Pi.
pub(super) fn section(figures: &Figures) -> String {
    let value = |name: String| figures.get(&name).map(|figure| figure.value);
    let cell = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"));
    let mut text = String::from(TEXT);
    for (suite, name) in SUITES {
        let _ = write!(text, "| {name} |");
        for (what, size) in PROTECTION.iter().flat_map(|what| SIZES.map(|size| (what, size))) {
            let _ = write!(text, " {} |", cell(value(format!("{suite}.{what}_{size}_insn"))));
        }
        text.push('\n');
    }
    let (split, join) = (value("split_1360_insn".into()), value("join_1360_insn".into()));
    let _ = writeln!(
        text,
        "\nSplitting a super-packet costs {} instructions a packet of 1,360 bytes, joining one {}.\n",
        cell(split),
        cell(join)
    );
    text.push_str(MODEL);
    for (suite, name) in SUITES {
        for (what, whole) in [("seal", split), ("open", join)] {
            let instructions =
                value(format!("{suite}.{what}_1400_insn")).zip(whole).map(|(one, two)| one + two);
            let Some(instructions) = instructions else { continue };
            let rate = |ipc: f64| CLOCK_HZ * ipc / instructions * FRAME_BITS / 1e9;
            let share = |ipc: f64| GIGABIT / FRAME_BITS * instructions / ipc / CLOCK_HZ * 100.0;
            let _ = writeln!(
                text,
                "| {name}, {what} | {instructions:.0} | {:.2}–{:.2} Gbit/s | {:.0}–{:.0} % |",
                rate(IPC[0]),
                rate(IPC[1]),
                share(IPC[1]),
                share(IPC[0])
            );
        }
    }
    text
}

const TEXT: &str = "\
## A Raspberry Pi 4's instructions

How many instructions a packet takes on a Cortex-A72 without cryptographic instructions, by bytes of frames in it: counted, not
timed, by executing the code for 64-bit ARM one instruction at a time (QEMU's user mode). The same on every machine. The kernel's
part is not in it.

| | seal 64 | 512 | 1,400 | open 64 | 512 | 1,400 |
|---|---:|---:|---:|---:|---:|---:|
";

const MODEL: &str = "\
What that allows is a model, not a measurement: bits a second = clock × IPC ÷ instructions × bits of a packet on the wire, where
the clock is 1.5 GHz, a packet of 1,400 bytes takes 1,495 bytes on Ethernet (tunnel, UDP, IPv4, preamble and gap), and the
instructions a cycle (IPC) are assumed to be between 0.8 and 1.5: the core issues at most three, and waits for memory and multiplies.
Only a Pi can tell. One core is left to the packet, which the kernel shares. *Of one core* is what 1 Gbit/s takes of it.

| One core | Instructions | Could carry | 1 Gbit/s takes, of one core |
|---|---:|---:|---:|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_counted_line_by_line() {
        let trace =
            "Trace 0: 0x7f [0/4000/0/1] main\nTrace 0: 0x80 [0/4004/0/1] \nqemu: uncaught target signal 11\n";
        assert_eq!(instructions(trace.as_bytes()).unwrap(), (2, "qemu: uncaught target signal 11".into()));
        assert_eq!(instructions(&b""[..]).unwrap(), (0, String::new()));
    }

    #[test]
    fn what_both_runs_have_cancels_out() {
        let run = |instructions| Run { instructions, said: String::new() };
        assert_eq!(per_packet(&run(1_000 + 32 * 70), &run(1_000 + 160 * 70), PACKETS).unwrap().value, 70.0);
        assert!(per_packet(&run(5), &run(5), PACKETS).is_err(), "a trace that is none");
    }

    #[test]
    fn the_model_follows_from_the_counts() {
        let mut figures = Figures::new("bench pi");
        figures.insert("chacha20_poly1305.seal_1400_insn", Figure::single(9_000.0, "instructions"));
        figures.insert("split_1360_insn", Figure::single(1_000.0, "instructions"));
        let text = section(&figures);
        // 1.5e9 × 0.8 ÷ 10,000 = 120,000 packets of 11,960 bits.
        assert!(text.contains("| ChaCha20-Poly1305, seal | 10000 | 1.44–2.69 Gbit/s | 37–70 % |"), "{text}");
        assert!(!text.contains("AES-128-GCM, seal"), "what was not counted is not told:\n{text}");
    }
}
