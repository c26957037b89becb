//! `cargo xtask bench crypto`: what sealing and opening a packet takes, by both ciphers.
//!
//! The data plane's own benchmark measures (`cyphonic-dataplane/benches/hot_paths`, criterion); this runs the
//! part of it that is about packet protection, and takes over its samples.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use cyphonic_lab::figures::{Figure, Figures, Statistic};
use serde_json::Value;

use super::document::{Kept, publish};
use crate::{ebpf, setup, shell, workspace};

/// As the benchmark calls them, and as people do.
const SUITES: [(&str, &str); 2] =
    [("aes_128_gcm", "AES-128-GCM"), ("chacha20_poly1305", "ChaCha20-Poly1305")];
const WHAT: [&str; 2] = ["seal", "open"];
const SIZES: [u32; 3] = [64, 512, 1_400];

/// How to measure packet protection.
#[derive(Debug, Args)]
pub(super) struct CryptoArgs {
    /// Also write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(super) fn run(args: &CryptoArgs) -> Result<()> {
    setup::lab()?;
    ebpf::build()?;
    let mut figures = Figures::new("bench crypto");
    let home = workspace::root().join("target/bench-crypto");
    if home.exists() {
        // Else an earlier run's samples might be taken for this one's.
        fs::remove_dir_all(&home).with_context(|| format!("cannot clear {}", home.display()))?;
    }
    let mut cargo = shell::cargo();
    cargo.args(["bench", "--locked", "-p", "cyphonic-dataplane", "--bench", "hot_paths", "--"]);
    // Criterion keeps its samples there.
    shell::run(cargo.arg("^(seal|open|mask)/").env("CRITERION_HOME", &home))?;
    for (suite, _) in SUITES {
        figures.insert(&format!("{suite}.mask_ns"), samples(&home.join("mask").join(suite))?);
        for (what, size) in WHAT.iter().flat_map(|what| SIZES.map(|size| (what, size))) {
            let taken = samples(&home.join(what).join(suite).join(size.to_string()))?;
            figures.insert(&format!("{suite}.{what}_{size}_ns"), taken);
        }
    }
    println!("\n{}\n{}", figures.table(), section(&figures));
    if let Some(path) = &args.json {
        figures.write(path)?;
    }
    publish(Kept::Crypto, &figures)
}

/// Nanoseconds an iteration, from criterion's samples: each is a number of iterations and the time they took
/// together.
fn samples(folder: &Path) -> Result<Figure> {
    let file = folder.join("new/sample.json");
    let text = fs::read(&file).with_context(|| format!("the benchmark left no {}", file.display()))?;
    let read = serde_json::from_slice(&text).ok().and_then(|sample| per_iteration(&sample));
    read.with_context(|| format!("{} is no sample of criterion's", file.display()))
}

fn per_iteration(sample: &Value) -> Option<Figure> {
    let numbers = |key: &str| sample[key].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
    let each: Vec<f64> =
        numbers("times")?.iter().zip(numbers("iters")?).map(|(time, count)| time / count).collect();
    Figure::of(&each, Statistic::Median, "ns")
}

/// The section of `docs/performance.md` about packet protection.
pub(super) fn section(figures: &Figures) -> String {
    let mut text = String::from(TEXT);
    let value = |name: String| figures.get(&name).map(|figure| figure.value);
    let cell = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    for (suite, name) in SUITES {
        let _ = write!(text, "| {name} |");
        for (what, size) in WHAT.iter().flat_map(|what| SIZES.map(|size| (what, size))) {
            let _ = write!(text, " {} |", cell(value(format!("{suite}.{what}_{size}_ns")), 0));
        }
        let sealing = value(format!("{suite}.seal_1400_ns")).map(|ns| 1_400.0 * 8.0 / ns);
        let mask = cell(value(format!("{suite}.mask_ns")), 1);
        let _ = writeln!(text, " {mask} | {} |", cell(sealing, 1));
    }
    let machine = figures.machine();
    let _ = writeln!(
        text,
        "\nMeasured on: {}, Linux {}; load {:.1} when the run began.",
        machine.cpu, machine.kernel, machine.load
    );
    text
}

const TEXT: &str = "\
## Packet protection

Nanoseconds a packet on one processor, by bytes of frames in it, everything included that protection does: packet
number, AEAD, header protection, and for opening the replay window. Packets are in the cache, as they are behind a read
from the device. *Mask* is the part of header protection; the last column is what one processor could seal if it did
nothing else.

| | seal 64 | 512 | 1,400 | open 64 | 512 | 1,400 | mask | Gbit/s, 1,400 B |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_times_over_iterations() {
        let sample = serde_json::json!({"sampling_mode": "Linear", "iters": [10.0, 20.0, 30.0], "times": [100.0, 220.0, 360.0]});
        let figure = per_iteration(&sample).unwrap();
        assert_eq!(
            (figure.value, figure.min, figure.max, figure.n, figure.unit),
            (11.0, 10.0, 12.0, 3, "ns")
        );
        assert!(per_iteration(&serde_json::json!({"iters": "no"})).is_none());
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let mut figures = Figures::new("bench crypto");
        figures.insert("aes_128_gcm.seal_1400_ns", Figure::single(400.0, "ns"));
        let text = section(&figures);
        assert!(text.contains("| AES-128-GCM | – | – | 400 | – | – | – | – | 28.0 |"), "{text}");
    }
}
