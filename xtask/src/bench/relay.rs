//! `cargo xtask bench relay`: what one processor forwards, by XDP, by userspace and by coturn.
//!
//! One program measures once (`cyphonic-dataplane/examples/relay_bench`); this runs it for all in turn, again
//! and again, so that what else the machine does hits all alike.

mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use cyphonic_lab::figures::Figures;
pub(super) use report::{rows, section};

use super::document::{Kept, publish};

/// What relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Mode {
    /// This project's program, in the driver.
    Xdp,
    /// The same, behind the driver.
    XdpGeneric,
    /// This project's relay without XDP.
    Userspace,
    /// Debian's TURN server.
    Coturn,
    /// A forwarder in the driver that looks nothing up.
    BareXdpForward,
}

impl Mode {
    const ALL: [Self; 5] = [Self::Xdp, Self::XdpGeneric, Self::Userspace, Self::Coturn, Self::BareXdpForward];

    /// As in the figures' names.
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp_generic",
            Self::Userspace => "userspace",
            Self::Coturn => "coturn",
            Self::BareXdpForward => "bare_xdp_forward",
        }
    }
}

/// Of what the documentation shows.
const REPS: u32 = 5;
const SECONDS: f64 = 1.0;

/// How to measure the relay.
#[derive(Debug, Args)]
pub(super) struct RelayArgs {
    /// Also write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each measurement is made.
    #[arg(long, default_value_t = REPS)]
    reps: u32,
    /// How long one measurement lasts.
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
    /// Short and few measurements: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Measure these only.
    #[arg(long, value_delimiter = ',', value_name = "MODE,…")]
    only: Vec<Mode>,
}

/// Runs the verb: measures, prints, writes. Fails if a promise was broken.
pub(super) fn run(args: &RelayArgs) -> Result<()> {
    let program = measure::build()?;
    let mut figures = Figures::new("bench relay");
    let absent = measure::all(&program, args, &mut figures)?;
    report::ratios(&mut figures);
    println!("\n{}\n{}", figures.table(), section(&figures));
    for reason in &absent {
        println!("absent: {reason}");
    }
    if let Some(path) = &args.json {
        figures.write(path)?;
    }
    let usual = args.reps >= REPS && args.seconds >= SECONDS;
    if usual && !args.quick && args.only.is_empty() {
        publish(Kept::Relay, &figures)?;
    }
    let broken = report::broken(&figures);
    if !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }
    Ok(())
}
