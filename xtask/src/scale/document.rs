//! `docs/scale.md`: what one cloud bears, for people.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cyphonic_lab::figures::Figures;

use crate::workspace;

const HEAD: &str = "# Scale\n\n\
Written by `cargo xtask scale --document`: what one `cyphonic-cloud` (AS and NMS, one process) bears. Nodes are connections of the\n\
project's own transport, with a certificate and a name each, from many addresses; they answer the NMS as agents do. They run on the\n\
machine that the cloud runs on and have to share its processors with it, so that rates are those of both together; the cloud's\n\
processor time is its own. A **set-up** is a Direction Request that was answered and that the other end has confirmed; 32 nodes at a\n\
time ask, each place again as soon as it is answered. What a node costs is resident memory with all of them connected less that\n\
without, divided; *idle* is when nothing but keep-alives passes. A register's million devices have a certificate each.\n";

/// What each figure is about.
const ROWS: [(&str, &str); 13] = [
    ("nodes", "nodes connected"),
    ("nms_kb_per_node", "memory for each of them [kB]"),
    ("nms_kb_per_node_after_load", "the same after the load [kB]"),
    ("nms_idle_cpu_percent", "idle, all of them: of one processor [%]"),
    ("connect_per_s", "nodes that connect and register in a second"),
    ("connect_cpu_ms", "the cloud's processor time for each [ms]"),
    ("setups_per_s", "set-ups in a second"),
    ("setups_per_cpu_s", "set-ups in a second of the cloud's processor time"),
    ("setup_median_ms", "from request to answer under that load, median [ms]"),
    ("setup_p99_ms", "the same, 99th percentile [ms]"),
    ("register_start_s_at_1m", "start with a million devices in the register [s]"),
    ("nms_mb_at_1m", "resident then, with nobody connected [MB]"),
    ("register_mb_at_1m", "that register on disk [MB]"),
];

/// Writes the page and the figures beside it; returns where the page is.
pub(super) fn write(figures: &Figures) -> Result<PathBuf> {
    let docs = workspace::root().join("docs");
    figures.write(&docs.join("figures/scale.json"))?;
    let file = docs.join("scale.md");
    std::fs::write(&file, page(figures)).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn page(figures: &Figures) -> String {
    let mut text = format!("{HEAD}\n| What | Measured |\n|---|---:|\n");
    for (name, what) in ROWS {
        let value = figures.get(name).map_or_else(|| "–".to_owned(), |figure| shown(figure.value));
        text += &format!("| {what} | {value} |\n");
    }
    let machine = figures.machine();
    text += &format!(
        "\nMeasured on: {}, {} processors, Linux {}; load {} when the run began.\n",
        machine.cpu, machine.cores, machine.kernel, machine.load
    );
    for (about, note) in figures.notes() {
        text += &format!("\n{about}: {note}\n");
    }
    text
}

/// With three digits, as far as that is honest.
fn shown(value: f64) -> String {
    let decimals = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use cyphonic_lab::figures::Figure;

    use super::*;

    #[test]
    fn the_page_says_what_was_measured_and_what_was_not() {
        let mut figures = Figures::new("scale");
        figures.insert("nms_kb_per_node", Figure::single(47.51, "kB"));
        figures.insert("setups_per_s", Figure::single(6806.4, "1/s"));
        figures.note("register", "left out");
        let page = page(&figures);
        for line in [
            "| memory for each of them [kB] | 47.5 |",
            "| set-ups in a second | 6806 |",
            "| that register on disk [MB] | – |",
            "register: left out",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }
}
