//! Bars of one figure over all systems, as SVG.

use std::path::Path;

use anyhow::Result;
use cyphonic_lab::figures::Figures;

use crate::bars::{Row, bars};
use crate::bench::tunnels::NAMES;

/// A plot: both variants of one figure beside each other.
pub(super) struct Plot {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    figure: &'static str,
    /// Without the plain network, beside which the tunnels would be too small to see.
    tunnels_only: bool,
}

pub(super) const ALL: [Plot; 4] = [
    Plot { file: "tcp1.svg", title: "TCP, one stream, Gbit/s", figure: "tcp1_gbps", tunnels_only: true },
    Plot { file: "cpu.svg", title: "CPU seconds per GB", figure: "cpu_s_per_gb", tunnels_only: false },
    Plot {
        file: "udp64.svg",
        title: "UDP, 64 bytes, thousand packets per second",
        figure: "udp64_kpps",
        tunnels_only: false,
    },
    Plot {
        file: "rtt.svg",
        title: "Round trip, idle, median, µs",
        figure: "rtt_idle_us",
        tunnels_only: false,
    },
];

/// Draws it; whether there was anything to draw.
pub(super) fn draw(plot: &Plot, figures: &Figures, file: &Path) -> Result<bool> {
    let value = |prefix: &str, name: &str| {
        figures.get(&format!("{prefix}{name}.{}", plot.figure)).map(|figure| figure.value)
    };
    let rows: Vec<Row<'_>> = NAMES
        .iter()
        .filter(|name| !(plot.tunnels_only && **name == "underlay"))
        .map(|name| (*name, [value("", name), value("wire.", name)]))
        .filter(|(_, values)| values.iter().any(Option::is_some))
        .collect();
    bars(plot.title, ["normal", "wire-like"], &rows, file)
}
