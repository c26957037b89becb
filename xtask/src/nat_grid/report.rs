//! The grid, for people and as figures.

use std::fmt::Write as _;

use cyphonic_lab::figures::{Figure, Figures, Statistic};

use super::pair::{DIRECT_WITHIN, Outcome, Way};

/// How many of the slowest set-ups are named.
const SLOWEST: usize = 5;

/// The figures of all pairs.
pub(super) fn figures(outcomes: &[Outcome]) -> Figures {
    let mut figures = Figures::new("nat-grid");
    let count = |wanted: &dyn Fn(&Outcome) -> bool| {
        let number = outcomes.iter().filter(|outcome| wanted(outcome)).count();
        Figure::count(u32::try_from(number).unwrap_or(u32::MAX))
    };
    figures.insert("pairs", count(&|_| true));
    figures.insert("connected", count(&|outcome| outcome.way != Way::Failed));
    figures.insert("direct", count(&|outcome| outcome.way == Way::Direct));
    figures.insert("punchable", count(&|outcome| outcome.punchable));
    figures.insert("punchable_direct", count(&|outcome| outcome.punchable && outcome.way == Way::Direct));
    let setups: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.setup_ms).collect();
    let upgrades: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.upgrade_ms).collect();
    for (name, samples) in [("setup", &setups), ("upgrade", &upgrades)] {
        for (percentile, statistic) in [("p50", Statistic::Median), ("p99", Statistic::P99)] {
            if let Some(figure) = Figure::of(samples, statistic, "ms") {
                figures.insert(&format!("{name}_{percentile}_ms"), figure);
            }
        }
    }
    let upgraded = outcomes.iter().filter(|outcome| outcome.upgrade_ms.is_some());
    figures.insert("upgrade_packets_lost", Figure::count(upgraded.map(|outcome| outcome.lost).sum()));
    figures.insert("packets_lost", Figure::count(outcomes.iter().map(|outcome| outcome.lost).sum()));
    figures
}

/// The grid as a table: a row for who asks, a column for who is asked.
pub(super) fn table(outcomes: &[Outcome], separator: &str) -> Vec<String> {
    let mut sites: Vec<&str> = outcomes.iter().flat_map(|outcome| [&*outcome.from, &*outcome.to]).collect();
    sites.sort_unstable();
    sites.dedup();
    let row = |head: &str, cells: &[String]| {
        let mut line = format!("{head:<10}");
        cells.iter().for_each(|cell| {
            let _ = write!(line, "{separator}{cell:>10}");
        });
        line
    };
    let heads: Vec<String> = sites.iter().map(|site| (*site).to_owned()).collect();
    let mut lines = vec![row("", &heads)];
    for from in &sites {
        let cells: Vec<String> = sites.iter().map(|to| cell(outcomes, from, to)).collect();
        lines.push(row(from, &cells));
    }
    lines
}

fn cell(outcomes: &[Outcome], from: &str, to: &str) -> String {
    let Some(outcome) = outcomes.iter().find(|outcome| outcome.from == from && outcome.to == to) else {
        return String::new();
    };
    let way = match (outcome.way, outcome.upgrade_ms) {
        (Way::Direct, Some(time)) => format!("d {time:.0}"),
        (Way::Direct, None) => "d".to_owned(),
        (Way::Relayed, _) => "relay".to_owned(),
        (Way::Failed, _) => "FAILED".to_owned(),
    };
    if outcome.is_as_promised() { way } else { format!("{way} !") }
}

/// What deserves a look: the slowest set-ups, and who lost packets.
pub(super) fn remarks(outcomes: &[Outcome]) -> Vec<String> {
    let mut slow: Vec<(&Outcome, f64)> =
        outcomes.iter().filter_map(|outcome| Some((outcome, outcome.setup_ms?))).collect();
    slow.sort_by(|one, other| other.1.total_cmp(&one.1));
    let slow = slow.iter().take(SLOWEST);
    let slow =
        slow.map(|(outcome, time)| format!("{} to {} was set up in {time:.0} ms", outcome.from, outcome.to));
    let lost = outcomes.iter().filter(|outcome| outcome.lost > 0);
    let lost = lost.map(|outcome| {
        format!("{} to {} lost {} packet(s): {:?}", outcome.from, outcome.to, outcome.lost, outcome.missing)
    });
    slow.chain(lost).collect()
}

/// `docs/nat-grid.md`.
pub(super) fn document(outcomes: &[Outcome], figures: &Figures) -> String {
    let machine = figures.machine();
    let mut text = format!(
        "# Every kind of network with every other\n\n\
         Written by `cargo xtask nat-grid` on {} ({} cores, Linux {}). The sites are those of the scene `nat-grid` in\n\
         [vagrant/topology.yaml](../vagrant/topology.yaml), each with one device; all pairs of a round run side by side, so times are those of a busy machine.\n\n\
         A row asks, a column is asked. `d` is a direct path from the start, `d 42` one that replaced the relay 42 ms after the\n\
         set-up, `relay` a tunnel through the TRS, and `!` a pair that did less than its networks allow: those that can meet by\n\
         punching holes are to be direct within {} s of their first packet. Which pairs can is computed from the kinds of their\n\
         NATs alone, by the table in `xtask/src/nat_grid/access.rs` (RFC 4787, RFC 5128).\n\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        DIRECT_WITHIN.as_secs()
    );
    let lines = table(outcomes, " | ");
    let columns = lines.first().map(|line| line.matches(" | ").count()).unwrap_or_default();
    for (number, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "| {line} |");
        if number == 0 {
            let _ = writeln!(text, "|---|{}", "---|".repeat(columns));
        }
    }
    text.push_str("\n| Figure | Value |\n|---|---|\n");
    for line in summary(figures) {
        let _ = writeln!(text, "| {} | {} |", line.0, line.1);
    }
    text
}

/// Names and values of the figures, as people read them.
pub(super) fn summary(figures: &Figures) -> Vec<(&'static str, String)> {
    const ROWS: [(&str, &str); 11] = [
        ("pairs", "pairs"),
        ("connected", "connected"),
        ("direct", "direct"),
        ("punchable", "can meet without a relay"),
        ("punchable_direct", "of these, direct"),
        ("setup_p50_ms", "set-up, median"),
        ("setup_p99_ms", "set-up, 99th percentile"),
        ("upgrade_p50_ms", "relay to direct, median"),
        ("upgrade_p99_ms", "relay to direct, 99th percentile"),
        ("upgrade_packets_lost", "packets lost while that happened"),
        ("packets_lost", "packets lost in all"),
    ];
    let value = |name: &str| match figures.get(name) {
        Some(figure) if figure.unit == "ms" => format!("{:.1} ms", figure.value),
        Some(figure) => format!("{:.0}", figure.value),
        None => "not measured".to_owned(),
    };
    ROWS.iter().map(|(name, label)| (*label, value(name))).collect()
}
