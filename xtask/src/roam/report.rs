//! What all cells cost, for people and programs.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cyphonic_lab::figures::{Figure, Figures, Statistic};

use super::cell::{Cell, Mover, Outcome, Way};
use super::place::{Place, Style};
use crate::workspace;

/// Beyond three round trips.
const ALLOWED_MS: f64 = 50.0;

const HEAD: &str = "# Roaming\n\n\
Written by `cargo xtask roam --document`. Two devices move between networks under traffic (a ping every 10 ms and a TCP\n\
transfer whose content is checked at both ends); 20 ms lie between them, 30 ms by the TRS. A **gap** is the longest time in\n\
which no ping was answered, in milliseconds, from when they were sent; bold is what took longer than three round trips and 50 ms.\n\
*Make first*: the new network is there before the old one goes; *break first*: the old one goes first, and the new one is there\n\
some milliseconds later, which count. Each cell is one move.\n";

/// All that happened.
#[derive(Default)]
pub(super) struct Report {
    cells: Vec<(Cell, Result<Outcome, String>)>,
    pauses: Vec<(String, Result<Outcome, String>)>,
}

impl Report {
    pub(super) fn add(&mut self, cell: Cell, outcome: Result<Outcome>) {
        self.cells.push((cell, outcome.map_err(|error| format!("{error:#}"))));
    }

    pub(super) fn add_pause(&mut self, name: String, outcome: Result<Outcome>) {
        self.pauses.push((name, outcome.map_err(|error| format!("{error:#}"))));
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.cells.iter().filter_map(|(_, outcome)| outcome.as_ref().ok())
    }

    /// The figures; what failed is in none.
    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures::new("roam");
        let count = |n: usize| Figure::count(u32::try_from(n).unwrap_or(u32::MAX));
        figures.insert("cells", count(self.cells.len()));
        let lost = self.outcomes().filter(|outcome| outcome.flow_lost.is_some()).count();
        figures.insert("flows_lost", count(lost));
        let gaps: Vec<f64> = self.outcomes().map(|outcome| outcome.gap.as_secs_f64() * 1e3).collect();
        let beyond: Vec<f64> = self.outcomes().map(beyond_ms).collect();
        let packets: Vec<f64> = self.outcomes().map(|outcome| f64::from(outcome.lost)).collect();
        for (name, samples, stat, unit) in [
            ("gap_p50_ms", &gaps, Statistic::Median, "ms"),
            ("gap_p99_ms", &gaps, Statistic::P99, "ms"),
            ("gap_beyond_3_rtt_p99_ms", &beyond, Statistic::P99, "ms"),
            ("packets_lost_p50", &packets, Statistic::Median, ""),
        ] {
            if let Some(figure) = Figure::of(samples, stat, unit) {
                figures.insert(name, figure);
            }
        }
        figures
    }

    /// The promises that broke; those of time only if `timed`.
    pub(super) fn broken(&self, timed: bool) -> Vec<String> {
        let mut broken = Vec::new();
        let cells = self.cells.iter().map(|(cell, outcome)| (cell.to_string(), outcome));
        let pauses = self.pauses.iter().map(|(name, outcome)| (name.clone(), outcome));
        for (name, outcome) in cells.chain(pauses) {
            match outcome {
                Err(error) => broken.push(format!("{name}: {error}")),
                Ok(Outcome { flow_lost: Some(why), .. }) => {
                    broken.push(format!("{name}: the transfer was lost: {why}"));
                }
                Ok(_) => {}
            }
        }
        for (name, outcome) in &self.pauses {
            if let Some(outcome) =
                outcome.as_ref().ok().filter(|outcome| timed && outcome.gap > outcome.bound())
            {
                let (gap, bound) = (outcome.gap.as_millis(), outcome.bound().as_millis());
                broken.push(format!("{name}: the gap after it is {gap} ms, and may be {bound} ms"));
            }
        }
        let beyond: Vec<f64> = self.outcomes().map(beyond_ms).collect();
        let p99 = Figure::of(&beyond, Statistic::P99, "ms").map(|figure| figure.value);
        if let Some(p99) = p99.filter(|p99| timed && *p99 >= ALLOWED_MS) {
            broken.push(format!(
                "the 99th percentile of gaps is {p99:.0} ms beyond three round trips, and may be {ALLOWED_MS:.0} ms"
            ));
        }
        broken
    }

    /// What was promised, and what came of it.
    fn promises(&self) -> String {
        let mut text = "| What | Promised | Reached |\n|---|---|---|\n".to_owned();
        let verdict = |kept: bool| if kept { "kept" } else { "**missed**" };
        let lost = self.outcomes().chain(self.after_pauses()).filter(|outcome| outcome.flow_lost.is_some());
        let lost = lost.count();
        let _ = writeln!(text, "| transfers that are lost | 0 | {lost}, {} |", verdict(lost == 0));
        let beyond: Vec<f64> = self.outcomes().map(beyond_ms).collect();
        if let Some(p99) = Figure::of(&beyond, Statistic::P99, "ms") {
            let verdict = verdict(p99.value < ALLOWED_MS);
            let what = "99th percentile of moves' gaps, beyond three round trips";
            let _ = writeln!(text, "| {what} | < {ALLOWED_MS:.0} ms | {:.0} ms, {verdict} |", p99.value);
        }
        let worst = self.after_pauses().map(|outcome| outcome.gap.as_millis()).max();
        if let Some(worst) = worst {
            let verdict = verdict(self.after_pauses().all(|outcome| outcome.gap <= outcome.bound()));
            let what = "gaps after pauses, beyond three round trips, each";
            let _ =
                writeln!(text, "| {what} | ≤ {ALLOWED_MS:.0} ms | at most {worst} ms with them, {verdict} |");
        }
        text
    }

    fn after_pauses(&self) -> impl Iterator<Item = &Outcome> {
        self.pauses.iter().filter_map(|(_, outcome)| outcome.as_ref().ok())
    }

    pub(super) fn print(&self) {
        println!("\n{}", self.tables());
        print!("{}", self.figures().table());
    }

    /// Writes docs/roam.md.
    pub(super) fn write_document(&self) -> Result<PathBuf> {
        let file = workspace::root().join("docs/roam.md");
        let figures = self.figures();
        let machine = figures.machine();
        let machine = format!(
            "Measured on: {}, {} processors, Linux {}; load {} when the run began.\n",
            machine.cpu, machine.cores, machine.kernel, machine.load
        );
        let (promises, tables, figures) = (self.promises(), self.tables(), figures.table());
        let text = format!("{HEAD}\n{machine}\n{promises}\n{tables}\n## Figures\n\n```\n{figures}```\n");
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        for way in [Way::Direct, Way::Relayed] {
            let of_way = self.cells.iter().filter(|(cell, _)| cell.way == way);
            let mut moves: Vec<(Place, Place)> = Vec::new();
            for (cell, _) in of_way {
                if !moves.contains(&(cell.from, cell.to)) {
                    moves.push((cell.from, cell.to));
                }
            }
            if moves.is_empty() {
                continue;
            }
            let _ = writeln!(text, "## {}\n", if way == Way::Direct { "Direct" } else { "Through the TRS" });
            let _ = writeln!(
                text,
                "| from → to | initiator, make first | break first | responder, make first | break first | both, make first | break first |"
            );
            text.push_str("|---|---|---|---|---|---|---|\n");
            for (from, to) in moves {
                let _ = write!(text, "| {from} → {to} |");
                for mover in [Mover::Initiator, Mover::Responder, Mover::Both] {
                    for style in [Style::MakeFirst, Style::BreakFirst] {
                        let cell = Cell { way, mover, from, to, style };
                        let outcome = self.cells.iter().find(|(other, _)| *other == cell);
                        let _ = write!(
                            text,
                            " {} |",
                            outcome.map(|(_, outcome)| shown(outcome)).unwrap_or_default()
                        );
                    }
                }
                text.push('\n');
            }
            text.push('\n');
        }
        if !self.pauses.is_empty() {
            text.push_str("## Pauses\n\nFrom the pause's end until the first answer, beyond a round trip.\n\n| pause | gap |\n|---|---|\n");
            for (name, outcome) in &self.pauses {
                let _ = writeln!(text, "| {name} | {} |", shown(outcome));
            }
        }
        text
    }
}

fn beyond_ms(outcome: &Outcome) -> f64 {
    (outcome.gap.as_secs_f64() - 3.0 * outcome.round_trip.as_secs_f64()) * 1e3
}

fn shown(outcome: &Result<Outcome, String>) -> String {
    match outcome {
        Err(_) => "failed".to_owned(),
        Ok(outcome) => {
            let gap = outcome.gap.as_millis();
            let late = if outcome.gap >= outcome.bound() { "**" } else { "" };
            let flow = if outcome.flow_lost.is_some() { ", transfer lost" } else { "" };
            format!("{late}{gap}{late}{flow}")
        }
    }
}
