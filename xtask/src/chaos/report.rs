//! What all faults did, for people and programs.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::figures::{Figure, Figures, Statistic};

use super::fault::Fault;
use crate::workspace;

const HEAD: &str = "# Chaos\n\n\
Written by `cargo xtask chaos --document`. In the network of the paper's Fig. 5 a ping goes every 20 ms through a direct tunnel and\n\
through a relayed one, and devices are enrolled and revoked, while processes are killed or frozen and cables are pulled out, at\n\
random, each for up to three seconds. **Recovery** is the time from a fault's end (a killed process is ready again) to the next\n\
answer to a ping; it counts where the fault interrupted the tunnel, by losing pings or by holding them. What is on its way is held\n\
until a cable is in again, or a process goes on. A tunnel is *lost* where another one stands in its place afterwards, and *replaced* where\n\
that was due: its own agent was killed (keys are nowhere else), or one of its ends was cut off, and the other asked for another tunnel\n\
after half a second of silence, as it would if its peer had moved. What was *acknowledged* are tokens, enrolments and revocations.\n";

/// A tunnel is interrupted where no answer came for longer: a busy machine may lose a ping or two.
const INTERRUPTED: Duration = Duration::from_millis(80);

/// What became of one pair's packets.
#[derive(Debug)]
pub(super) struct Passage {
    /// Pings without an answer.
    pub(super) lost: u32,
    /// The longest time in which no answer came.
    pub(super) silence: Duration,
    /// From the fault's end to the next answer; none if there was none in time.
    pub(super) recovery: Option<Duration>,
    /// Whether it is still the same tunnel.
    pub(super) stands: bool,
    /// Whether it need not be.
    pub(super) replaceable: bool,
}

impl Passage {
    fn is_lost(&self) -> bool {
        !self.stands && !self.replaceable
    }

    fn is_replaced(&self) -> bool {
        !self.stands && self.replaceable
    }

    fn interrupted(&self) -> Option<Duration> {
        self.recovery.filter(|_| self.silence > INTERRUPTED)
    }
}

/// What one fault did.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) direct: Passage,
    pub(super) relayed: Passage,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lost, ", self.lost)?;
        match (self.recovery, self.interrupted()) {
            (None, _) => write!(f, "NOT BACK")?,
            (Some(_), None) => write!(f, "not interrupted")?,
            (Some(_), Some(recovery)) => write!(f, "back after {} ms", recovery.as_millis())?,
        }
        match (self.is_lost(), self.is_replaced()) {
            (true, _) => write!(f, ", TUNNEL LOST"),
            (false, true) => write!(f, ", tunnel replaced"),
            (false, false) => Ok(()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "direct {}; relayed {}", self.direct, self.relayed)
    }
}

/// All that happened.
pub(super) struct Report {
    seed: u64,
    outcomes: Vec<(Fault, Outcome)>,
    acknowledged: usize,
    writes_lost: Vec<String>,
    growth_mb: Option<f64>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, outcomes: Vec::new(), acknowledged: 0, writes_lost: Vec::new(), growth_mb: None }
    }

    pub(super) fn add(&mut self, fault: Fault, outcome: Outcome) {
        self.outcomes.push((fault, outcome));
    }

    pub(super) fn add_writes(&mut self, acknowledged: usize, lost: Vec<String>) {
        (self.acknowledged, self.writes_lost) = (acknowledged, lost);
    }

    pub(super) fn add_memory(&mut self, growth_mb: f64) {
        self.growth_mb = Some(growth_mb);
    }

    fn count(&self, is: impl Fn(&Passage) -> bool, passage: impl Fn(&Outcome) -> &Passage) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| is(passage(outcome))).count()
    }

    /// Milliseconds from faults' ends, of those that interrupted the tunnel.
    fn recoveries(&self, passage: impl Fn(&Outcome) -> &Passage) -> Vec<f64> {
        let recoveries = self.outcomes.iter().filter_map(|(_, outcome)| passage(outcome).interrupted());
        recoveries.map(|recovery| recovery.as_secs_f64() * 1e3).collect()
    }

    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures::new("chaos");
        let count = |n: usize| Figure::count(u32::try_from(n).unwrap_or(u32::MAX));
        // As far as a figure can hold it; exactly it is in the text.
        figures.insert("seed", Figure::single(self.seed as f64, ""));
        figures.insert("faults", count(self.outcomes.len()));
        let (lost, replaced) = (Passage::is_lost, Passage::is_replaced);
        figures.insert("direct_tunnels_lost", count(self.count(lost, |outcome| &outcome.direct)));
        figures.insert("relayed_tunnels_lost", count(self.count(lost, |outcome| &outcome.relayed)));
        figures.insert("direct_tunnels_replaced", count(self.count(replaced, |outcome| &outcome.direct)));
        figures.insert("relayed_tunnels_replaced", count(self.count(replaced, |outcome| &outcome.relayed)));
        let (direct, relayed) =
            (self.recoveries(|outcome| &outcome.direct), self.recoveries(|outcome| &outcome.relayed));
        for (name, samples, statistic) in [
            ("direct_recovery_p50_ms", &direct, Statistic::Median),
            ("direct_recovery_p99_ms", &direct, Statistic::P99),
            ("relayed_recovery_p50_ms", &relayed, Statistic::Median),
            ("relayed_recovery_p99_ms", &relayed, Statistic::P99),
        ] {
            if let Some(figure) = Figure::of(samples, statistic, "ms") {
                figures.insert(name, figure);
            }
        }
        figures.insert("acknowledged_writes", count(self.acknowledged));
        figures.insert("acknowledged_writes_lost", count(self.writes_lost.len()));
        if let Some(growth) = self.growth_mb {
            figures.insert("rss_growth_mb", Figure::single(growth, "MB"));
        }
        figures
    }

    /// The promises that broke.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (number, (fault, outcome)) in self.outcomes.iter().enumerate() {
            for (pair, passage) in [("direct", &outcome.direct), ("relayed", &outcome.relayed)] {
                if passage.recovery.is_none() {
                    broken.push(format!("fault {number}, {fault}: the {pair} pair did not meet again"));
                } else if passage.is_lost() {
                    broken.push(format!("fault {number}, {fault}: the {pair} tunnel was lost"));
                }
            }
        }
        broken.extend(self.writes_lost.iter().map(|what| format!("acknowledged and lost: {what}")));
        if self.acknowledged == 0 {
            broken.push("nothing was acknowledged".to_owned());
        }
        broken
    }

    pub(super) fn print(&self) {
        println!("\n{}", self.table());
        print!("{}", self.figures().table());
    }

    /// Writes docs/chaos.md.
    pub(super) fn write_document(&self) -> Result<PathBuf> {
        let file = workspace::root().join("docs/chaos.md");
        let figures = self.figures();
        let machine = figures.machine();
        let machine = format!(
            "Measured on: {}, {} processors, Linux {}; load {} when the run began. Seed: {}.\n",
            machine.cpu, machine.cores, machine.kernel, machine.load, self.seed
        );
        let (table, figures) = (self.table(), figures.table());
        let text = format!("{HEAD}\n{machine}\n{table}\n## Figures\n\n```\n{figures}```\n");
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn table(&self) -> String {
        let mut kinds: BTreeMap<Fault, Vec<&Outcome>> = BTreeMap::new();
        for (fault, outcome) in &self.outcomes {
            kinds.entry(*fault).or_default().push(outcome);
        }
        let mut text = "| fault | times | direct: interrupted | slowest recovery, ms | replaced | lost | relayed: interrupted | slowest recovery, ms | replaced | lost |\n\
            |---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for (fault, outcomes) in kinds {
            let _ = write!(text, "| {fault} | {} |", outcomes.len());
            let direct: Vec<_> = outcomes.iter().map(|outcome| &outcome.direct).collect();
            let relayed: Vec<_> = outcomes.iter().map(|outcome| &outcome.relayed).collect();
            for passages in [direct, relayed] {
                let interrupted = passages.iter().filter(|passage| passage.silence > INTERRUPTED).count();
                let slowest = passages.iter().filter_map(|passage| passage.interrupted()).max();
                let slowest = slowest.map_or_else(String::new, |slowest| slowest.as_millis().to_string());
                let lost = passages.iter().filter(|passage| passage.is_lost()).count();
                let replaced = passages.iter().filter(|passage| passage.is_replaced()).count();
                let _ = write!(text, " {interrupted} | {slowest} | {replaced} | {lost} |");
            }
            text.push('\n');
        }
        text
    }
}
