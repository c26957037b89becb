//! The paper's tables and Fig. 6 with this run's figures beside them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cyphonic_lab::figures::Figures;

use crate::bars::{Row, bars};

/// Table II of the paper: minimum, mean, maximum and mean deviation, general and proposed, direct and by the
/// TRS.
const ROUND_TRIPS: [(&str, [&str; 4]); 4] = [
    ("min", ["14.783", "23.505", "17.135", "27.836"]),
    ("avg", ["15.656", "24.479", "17.867", "29.285"]),
    ("max", ["19.234", "30.115", "20.109", "33.001"]),
    ("mdev", ["0.673", "1.070", "0.456", "0.947"]),
];
const COLUMNS: [&str; 4] = ["general_direct", "general_relay", "proposed_direct", "proposed_relay"];
/// The averages of Table III.
const STREAMS: [(&str, &str, &str); 4] = [
    ("throughput, direct [Mbit/s]", "29.9", "udp30_direct_mbps"),
    ("throughput, by the TRS [Mbit/s]", "29.9", "udp30_relay_mbps"),
    ("jitter, direct [ms]", "0.181", "udp30_direct_jitter_ms"),
    ("jitter, by the TRS [ms]", "0.309", "udp30_relay_jitter_ms"),
];
/// Fig. 6; the paper has no start-up of a device that remembers its cloud.
const SIGNALLING: [(&str, &str, &str); 5] = [
    ("start-up", "286.85", "signalling_startup_ms"),
    ("start-up, cached", "–", "signalling_startup_cached_ms"),
    ("direct", "217", "signalling_direct_ms"),
    ("by the TRS, first", "282.7", "signalling_relay_cold_ms"),
    ("by the TRS, in use", "61", "signalling_relay_warm_ms"),
];
/// What it is, the figure, and what is promised of it.
const IN_ROUND_TRIPS: [(&str, &str, &str); 7] = [
    ("set-up, direct", "signalling_direct_round_trips", "2, and 5 ms"),
    ("set-up by the TRS, first", "signalling_relay_cold_round_trips", "3, and 5 ms"),
    ("set-up by the TRS, in use", "signalling_relay_warm_round_trips", "2, and 5 ms"),
    ("start-up", "signalling_startup_round_trips", "4, and 15 ms"),
    ("start-up, cached", "signalling_startup_cached_round_trips", "2, and 15 ms"),
    ("added to a round trip, direct [ms]", "rtt_added_direct_ms", "0.3"),
    ("added to a round trip, by the TRS [ms]", "rtt_added_relay_ms", "0.5"),
];
const SERIES: [&str; 2] = ["paper", "here"];
/// Beside the document.
const FOLDER: &str = "figures";

/// Writes the document, and its plots beside it.
pub(super) fn write(file: &Path, figures: &Figures) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("")).join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let value = |name: &str| figures.get(name).map(|figure| figure.value);
    let averages = ROUND_TRIPS.iter().filter(|(row, _)| *row == "avg").flat_map(|(_, paper)| paper);
    let labels = ["general, direct", "general, by the TRS", "overlay, direct", "overlay, by the TRS"];
    let round_trips: Vec<Row<'_>> = averages
        .zip(COLUMNS)
        .zip(labels)
        .map(|((paper, column), label)| (label, [paper.parse().ok(), value(&format!("{column}_rtt_avg_ms"))]))
        .collect();
    let signalling = SIGNALLING.map(|(label, paper, name)| (label, [paper.parse().ok(), value(name)]));
    bars("Round trip, mean, ms", SERIES, &round_trips, &folder.join("paper-rtt.svg"))?;
    bars("Signalling, ms", SERIES, &signalling, &folder.join("paper-signalling.svg"))?;
    fs::write(file, text(figures)).with_context(|| format!("cannot write {}", file.display()))
}

fn text(figures: &Figures) -> String {
    let here = |name: &str| cell(figures, name);
    let machine = figures.machine();
    let mut out = format!(
        "# The paper's evaluation, repeated\n\nMade by `cargo xtask paper --document FILE` on {} ({} cores, Linux {}), all machines as network namespaces, links with \
         the paper's delays. The paper: Raspberry Pis over the Internet. Each cell: paper / here.\n\n## Round trips (Table II) [ms]\n\n| | general, direct | general, by the TRS | \
         overlay, direct | overlay, by the TRS |\n|---|---|---|---|---|\n",
        machine.cpu, machine.cores, machine.kernel
    );
    for (row, paper) in ROUND_TRIPS {
        let cells = paper
            .iter()
            .zip(COLUMNS)
            .map(|(paper, column)| format!(" {paper} / {} |", here(&format!("{column}_rtt_{row}_ms"))));
        let _ = writeln!(out, "| {row} |{}", cells.collect::<String>());
    }
    let _ = writeln!(out, "\n![Round trips](figures/paper-rtt.svg)");
    table(&mut out, "Throughput at 30 Mbit/s (Table III)", &STREAMS, figures);
    table(&mut out, "Signalling times (Fig. 6) [ms]", &SIGNALLING, figures);
    let _ = writeln!(out, "\n![Signalling times](figures/paper-signalling.svg)");
    promises(&mut out, figures);
    out
}

fn table(out: &mut String, title: &str, rows: &[(&str, &str, &str)], figures: &Figures) {
    let _ = writeln!(out, "\n## {title}\n\n| | paper | here |\n|---|---|---|");
    for (label, paper, name) in rows {
        let _ = writeln!(out, "| {label} | {paper} | {} |", cell(figures, name));
    }
}

/// What the paper does not have: signalling in round trips of the path it serves, and what the tunnel adds.
fn promises(out: &mut String, figures: &Figures) {
    let _ = writeln!(
        out,
        "\n## In round trips\n\nOf the pair's own path for set-ups, of the path to the cloud for start-ups. What is added to a round trip is \
         the difference of two medians, of which ping tells tenths of a millisecond here. Decision \
         [0015](decisions/0015-set-up-in-two-round-trips.md) says what the floor is.\n\n| | here | promised |\n|---|---|---|"
    );
    for (label, name, promised) in IN_ROUND_TRIPS {
        let _ = writeln!(out, "| {label} | {} | {promised} |", cell(figures, name));
    }
}

fn cell(figures: &Figures, name: &str) -> String {
    figures.get(name).map_or("not measured".into(), |figure| format!("{:.3}", figure.value))
}
