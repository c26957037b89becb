//! `cargo xtask paper`: Section IV of the paper, over links with its distances.
//!
//! C reaches B directly, A and C meet at the TRS. Round trips of the overlay stand beside those of the plain
//! network between the same machines, and signalling times are told in round trips of the pair's own path as
//! well, since that is what they are promised in.

mod document;
mod experiments;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use cyphonic_lab::Lab;

use self::experiments::Experiments;
use crate::overlay::{
    AgentSettings, Fig5, Overlay, Programs, Progress, become_root, conclude, watch_signals,
};

/// How to repeat the paper's measurements.
#[derive(Debug, Args)]
pub(crate) struct PaperArgs {
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write them beside the paper's tables, as Markdown.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Streams of 5 s instead of a minute, and a fifth of the repetitions.
    #[arg(long)]
    quick: bool,
    /// Hold it only to what works, not to how fast: for unoptimised programs and busy machines.
    #[arg(long)]
    untimed: bool,
    /// The lab's name.
    #[arg(long, default_value = "paper")]
    name: String,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Measures, and holds the results to what is promised.
pub(crate) fn run(args: &PaperArgs) -> Result<()> {
    let cancel = watch_signals()?;
    let topology = crate::lab::topology(None, None)?;
    let programs = Programs::find(args.programs.as_deref())?;
    become_root(&programs)?;
    let progress = Progress::start();
    let lab = Lab::up(&topology, &crate::lab::config(&args.name, "paper")?)?;
    let mut overlay = Overlay::new(AgentSettings::default(), "auto");
    let outcome = overlay.start(&lab, &topology, &programs, &progress, &cancel).and_then(|()| {
        let devices = overlay.devices_mut();
        let fig5 = Fig5 { lab: &lab, topology: &topology, devices, progress: &progress, cancel: &cancel };
        Experiments::new(fig5, args.quick, !args.untimed).run()
    });
    let outcome = outcome.inspect_err(|error| overlay.explain(error));
    lab.down()?;
    let (figures, broken) = outcome?;
    print!("{}", figures.table());
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if let Some(file) = &args.document {
        document::write(file, &figures)?;
    }
    conclude(&broken)
}
