//! The paper's tables with this run's figures beside them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use cyphonic_lab::figures::Figures;

/// Table II of the paper: minimum, mean, maximum and mean deviation, general and proposed, direct and by the TRS.
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
/// Fig. 6.
const SIGNALLING: [(&str, &str, &str); 4] = [
    ("start-up", "286.85", "signalling_startup_ms"),
    ("direct", "217", "signalling_direct_ms"),
    ("by the TRS, the first", "282.7", "signalling_relay_cold_ms"),
    ("by the TRS, in use", "61", "signalling_relay_warm_ms"),
];

/// Writes the document.
pub(super) fn write(file: &Path, figures: &Figures) -> Result<()> {
    std::fs::write(file, text(figures)).with_context(|| format!("cannot write {}", file.display()))
}

fn text(figures: &Figures) -> String {
    let here = |name: &str| figures.get(name).map_or("not measured".into(), |f| format!("{:.3}", f.value));
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
    for (title, rows) in
        [("Throughput at 30 Mbit/s (Table III)", &STREAMS), ("Signalling times (Fig. 6) [ms]", &SIGNALLING)]
    {
        let _ = writeln!(out, "\n## {title}\n\n| | paper | here |\n|---|---|---|");
        for (label, paper, name) in rows {
            let _ = writeln!(out, "| {label} | {paper} | {} |", here(name));
        }
    }
    out
}
