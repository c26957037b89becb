//! The comparison as tables, in Markdown that reads well on a terminal too.

use std::fmt::Write as _;

use cyphonic_lab::figures::Figures;

use super::system::System;
use super::variant::Variant;

/// A column: its heading, its figure, and digits behind the point.
type Column = (&'static str, &'static str, usize);

const COLUMNS: [Column; 11] = [
    ("TCP 1, Gbit/s", "tcp1_gbps", 2),
    ("TCP 4, Gbit/s", "tcp4_gbps", 2),
    ("CPU s/GB", "cpu_s_per_gb", 2),
    ("UDP 1360, kpps", "udp1360_kpps", 1),
    ("UDP 64, kpps", "udp64_kpps", 1),
    ("RTT p50, µs", "rtt_idle_us", 0),
    ("RTT p99, µs", "rtt_idle_p99_us", 0),
    ("added p50, µs", "rtt_added_us", 0),
    ("added p99, µs", "rtt_added_p99_us", 0),
    ("RTT loaded, µs", "rtt_loaded_us", 0),
    ("RSS, MB", "rss_mb", 1),
];

/// A table for each variant that was measured.
pub(in crate::bench) fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    for variant in Variant::ALL {
        let rows: Vec<String> =
            System::ALL.iter().filter_map(|system| row(figures, variant, *system)).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {}\n", title(variant));
        let headings: String = COLUMNS.iter().map(|(heading, ..)| format!(" {heading} |")).collect();
        let rule = |(heading, ..): &Column| format!("{}:|", "-".repeat(heading.chars().count() + 1));
        let rules: String = COLUMNS.iter().map(rule).collect();
        let _ = write!(text, "| {:<12} |{headings}\n|{}|{rules}", "", "-".repeat(14));
        let _ = write!(text, "\n{}\n", rows.concat());
    }
    text
}

fn title(variant: Variant) -> &'static str {
    match variant {
        Variant::Normal => "Normal: super-packets cross the network whole",
        Variant::Wire => "Wire-like: every packet crosses alone",
    }
}

fn row(figures: &Figures, variant: Variant, system: System) -> Option<String> {
    let figure = |name: &str| figures.get(&format!("{}{}.{name}", variant.prefix(), system.name()));
    if COLUMNS.iter().all(|(_, name, _)| figure(name).is_none()) {
        return None;
    }
    let mut row = format!("| {:<12} |", system.name());
    for (heading, name, digits) in COLUMNS {
        let cell = figure(name).map_or_else(
            || "–".to_owned(),
            |figure| {
                if figure.n > 1 && (name.ends_with("gbps") || name.ends_with("kpps")) {
                    format!("{:.digits$} ({:.digits$}–{:.digits$})", figure.value, figure.min, figure.max)
                } else {
                    format!("{:.digits$}", figure.value)
                }
            },
        );
        let width = heading.chars().count();
        let _ = write!(row, " {cell:>width$} |");
    }
    Some(row + "\n")
}
