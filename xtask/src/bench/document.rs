//! `docs/performance.md`, rendered from the figures of the last whole runs in `docs/figures/`.

mod machines;
mod plot;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cyphonic_lab::figures::Figures;

use self::machines::Row;
use super::promises::{Outcome, Promise, judge_tunnels};
use super::{crypto, memory, pi, relay, tunnels};
use crate::{aarch64, fuzz, kernels, workspace};

const HEAD: &str = include_str!("document/head.md");
const METHOD: &str = include_str!("document/method.md");

/// Whose figures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Tunnels,
    Relay,
    Crypto,
    Pi,
    Memory,
    Kernels,
    Aarch64,
    Fuzz,
}

impl Kept {
    /// The figures, if there are any.
    fn read(self) -> Result<Option<Figures>> {
        let file = self.file();
        if !file.exists() {
            return Ok(None);
        }
        Ok(Some(Figures::read(&file)?))
    }

    fn file(self) -> PathBuf {
        folder().join(match self {
            Self::Tunnels => "tunnels.json",
            Self::Relay => "relay.json",
            Self::Crypto => "crypto.json",
            Self::Pi => "pi.json",
            Self::Memory => "memory.json",
            Self::Kernels => "kernels.json",
            Self::Aarch64 => "aarch64.json",
            Self::Fuzz => "fuzz.json",
        })
    }
}

/// Keeps the figures of a whole run, and renders the page anew.
pub(crate) fn publish(kept: Kept, figures: &Figures) -> Result<()> {
    fs::create_dir_all(folder()).context("cannot make docs/figures")?;
    machines::set_aside(&kept.file(), figures)?;
    figures.write(&kept.file())?;
    render()
}

/// What the page says of a verb's figures.
type Section = fn(&Figures) -> String;

/// Renders the page from the figures that are kept.
pub(super) fn render() -> Result<()> {
    let mut text = String::from(HEAD);
    if let Some(figures) = Kept::Tunnels.read()? {
        render_tunnels(&figures, &mut text)?;
    }
    let others: [(Kept, Section); 7] = [
        (Kept::Relay, relay::section),
        (Kept::Crypto, crypto::section),
        (Kept::Pi, pi::section),
        (Kept::Memory, memory::section),
        (Kept::Kernels, kernels::section),
        (Kept::Aarch64, aarch64::section),
        (Kept::Fuzz, fuzz::section),
    ];
    for (kept, section) in others {
        let Some(figures) = kept.read()? else { continue };
        let _ = write!(text, "\n{}", section(&figures));
        if kept == Kept::Relay {
            let _ = write!(text, "\n{}", machines::table(&kept.file(), &figures, relay::rows)?);
        }
    }
    let page = workspace::root().join("docs/performance.md");
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    println!("Rendered {}.", page.display());
    Ok(())
}

fn render_tunnels(figures: &Figures, text: &mut String) -> Result<()> {
    let machine = figures.machine();
    let _ = writeln!(
        text,
        "## Tunnels\n\nMeasured on: {}, {} processors, Linux {}; load {:.1} when the run began.\n",
        machine.cpu, machine.cores, machine.kernel, machine.load
    );
    text.push_str("| What | Promised | Reached |\n|---|---|---|\n");
    for (promise, outcome) in judge_tunnels(figures) {
        let _ = writeln!(text, "| {} | {} | {outcome} |", promise.what, promise.bound());
    }
    text.push('\n');
    text.push_str(&machines::table(&Kept::Tunnels.file(), figures, tunnel_rows)?);
    text.push_str(&tunnels::tables(figures));
    text.push('\n');
    for plot in plot::ALL {
        let name = plot.file;
        let drawn = plot::draw(&plot, figures, &folder().join(name))?;
        if drawn {
            let _ = writeln!(text, "![{}](figures/{name})\n", plot.title);
        }
    }
    let notes: BTreeMap<&str, &str> = figures.notes().collect();
    if !notes.is_empty() {
        text.push_str("Versions, and what could not be measured:\n\n");
        for (about, note) in notes {
            let first = note.lines().next().unwrap_or_default();
            let _ = writeln!(text, "- `{about}`: {first}");
        }
        text.push('\n');
    }
    text.push_str(METHOD);
    Ok(())
}

fn tunnel_rows(figures: &Figures) -> Vec<Row> {
    let row = |(promise, outcome): (Promise, Outcome)| {
        [promise.what.to_owned(), promise.bound(), outcome.to_string()]
    };
    judge_tunnels(figures).into_iter().map(row).collect()
}

fn folder() -> PathBuf {
    workspace::root().join("docs/figures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_that_are_kept_can_be_read() {
        let all =
            [Kept::Tunnels, Kept::Relay, Kept::Crypto, Kept::Pi, Kept::Memory, Kept::Kernels, Kept::Aarch64];
        for kept in all {
            let figures = kept.read().unwrap().unwrap_or_else(|| panic!("{kept:?} was never measured"));
            assert!(figures.all().count() > 0, "{kept:?}");
        }
    }
}
