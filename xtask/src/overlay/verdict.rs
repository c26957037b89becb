//! What a verb measured, and which of its promises did not hold.

use std::fmt::Display;

use anyhow::{Result, bail};
use cyphonic_lab::figures::{Figure, Figures, Statistic};

use super::Progress;

/// Grows while a verb runs. A figure is inserted only where something was measured; a promise that is broken
/// is noted, and the verb goes on.
pub(crate) struct Verdict<'a> {
    pub(crate) figures: Figures,
    pub(crate) broken: Vec<String>,
    progress: &'a Progress,
}

impl<'a> Verdict<'a> {
    pub(crate) fn new(verb: &str, progress: &'a Progress) -> Self {
        Self { figures: Figures::new(verb), broken: Vec::new(), progress }
    }

    pub(crate) fn promise(&mut self, kept: bool, what: impl FnOnce() -> String) {
        if !kept {
            let what = what();
            self.progress.done(&format!("BROKEN: {what}"));
            self.broken.push(what);
        }
    }

    /// Inserts the median of some milliseconds and returns it; nothing if there are none.
    pub(crate) fn median(&mut self, name: &str, samples: &[f64]) -> Option<f64> {
        let figure = Figure::of(samples, Statistic::Median, "ms")?;
        let value = figure.value;
        self.figures.insert(name, figure);
        Some(value)
    }

    pub(crate) fn single(&mut self, name: &str, value: f64, unit: &'static str) {
        self.figures.insert(name, Figure::single(value, unit));
    }
}

/// The median of some milliseconds.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    Figure::of(samples, Statistic::Median, "ms").map(|figure| figure.value)
}

/// Says which promises were broken: how a verb ends.
///
/// # Errors
/// Any was.
pub(crate) fn conclude(broken: &[impl Display]) -> Result<()> {
    if broken.is_empty() {
        println!("Every promise was kept.");
        return Ok(());
    }
    println!("Broken promises:");
    broken.iter().for_each(|promise| println!("  - {promise}"));
    bail!("{} promise(s) broken", broken.len())
}
