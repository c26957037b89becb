//! `cargo xtask roam`: two devices move between networks under traffic, and nothing but a moment is lost.
//!
//! In the topology's scene each of the two has six networks to attach to: IPv4, IPv6, both, behind a NAT. A
//! *cell* is one move: who moves (either, or both at once), from where to where, whether the new network is
//! there before the old one goes, and whether packets go directly or through the TRS. In each a ping goes
//! every 10 ms and a TCP transfer is checked byte by byte. What counts is the gap: the longest time in which
//! no ping was answered.

mod cell;
mod place;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::Topology;
use cyphonic_lab::command::Cancel;

use self::cell::{Cell, Mover, Outcome, Stage, Way};
use self::place::{Place, Roamer, Style};
use self::report::Report;
use crate::overlay::{
    AgentSettings, Device, Overlay, Programs, Progress, become_root, conclude, watch_signals,
};
use crate::page;

/// The scene and the link profile, as the topology calls them; and the two devices that roam.
const SCENE: &str = "roam";
const NODES: [&str; 2] = ["p", "q"];

/// From where to where.
const MOVES: [(Place, Place); 10] = [
    (Place::V4a, Place::V4b),
    (Place::V6a, Place::V6b),
    (Place::V4a, Place::V6a),
    (Place::V6a, Place::V4a),
    (Place::Dual, Place::V4a),
    (Place::Dual, Place::V6a),
    (Place::V4a, Place::Dual),
    (Place::V6a, Place::Dual),
    (Place::V4a, Place::Nat),
    (Place::Nat, Place::V6a),
];

/// What a short run does.
const QUICK: [(Way, Mover, Place, Place, Style); 6] = [
    (Way::Direct, Mover::Initiator, Place::V4a, Place::V4b, Style::BreakFirst),
    (Way::Direct, Mover::Responder, Place::V4a, Place::V6a, Style::MakeFirst),
    (Way::Direct, Mover::Both, Place::Dual, Place::V4a, Style::MakeFirst),
    (Way::Relayed, Mover::Initiator, Place::V6a, Place::V6b, Style::MakeFirst),
    (Way::Relayed, Mover::Responder, Place::V6a, Place::V4a, Style::BreakFirst),
    (Way::Relayed, Mover::Both, Place::V4a, Place::V6a, Style::BreakFirst),
];

/// The ring, unless told otherwise.
const AUTO: &str = "auto";

/// How to run it.
#[derive(Debug, Args)]
pub(crate) struct RoamArgs {
    /// Six cells instead of all.
    #[arg(long)]
    quick: bool,
    /// Only cells and pauses whose description has all of these words, as in `direct both "v4 → v6"` or
    /// `asleep`.
    #[arg(long, value_name = "WORDS", num_args = 1..)]
    only: Vec<String>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write docs/roam.md, about all cells.
    #[arg(long)]
    document: bool,
    /// Hold it only to what works, not to how fast: for unoptimised programs and busy machines.
    #[arg(long)]
    untimed: bool,
    /// The lab's name.
    #[arg(long, default_value = "roam")]
    name: String,
    /// The topology file [default: vagrant/topology.yaml]
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// The encapsulation ring of both agents.
    #[arg(long, default_value = AUTO, value_parser = [AUTO, "xdp", "offload"])]
    ring: String,
    /// Use machines reached over SSH in place of namespaces: an OpenSSH configuration that names the scene's
    /// nodes, as `vagrant ssh-config` prints it. They run the installed packages, or what `--programs`
    /// names there.
    #[arg(long, value_name = "CONFIG")]
    ssh: Option<PathBuf>,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl RoamArgs {
    /// What makes it another run than its page shows.
    pub(crate) fn partial(&self) -> Vec<&'static str> {
        page::given([
            ("--quick", self.quick),
            ("--only", !self.only.is_empty()),
            ("--untimed", self.untimed),
            ("--ring", self.ring != AUTO),
            ("--topology", self.topology.is_some()),
            ("--ssh", self.ssh.is_some()),
            ("--programs", self.programs.is_some()),
        ])
    }

    fn wants(&self, description: &str) -> bool {
        self.only.iter().all(|word| description.contains(word.as_str()))
    }
}

/// Runs the verb.
pub(crate) fn run(args: &RoamArgs) -> Result<()> {
    if args.document {
        page::demand_whole("roam.md", &args.partial())?;
    }
    let cancel = watch_signals()?;
    let topology = crate::lab::topology(args.topology.clone(), Some(SCENE))?;
    let programs = Programs::choose(args.programs.as_deref(), args.ssh.is_some())?;
    if args.ssh.is_none() {
        become_root(&programs)?;
    }
    let progress = Progress::start();
    let report = roam(args, &topology, &programs, &progress, &cancel)?;
    report.print();
    let figures = report.figures();
    if let Some(file) = &args.json {
        figures.write(file)?;
        println!("Figures are in {}.", file.display());
    }
    if args.document {
        let file = report.write_document()?;
        println!("The table is in {}.", file.display());
    }
    let broken = report.broken(!args.untimed);
    conclude(&broken)
}

fn roam(
    args: &RoamArgs,
    topology: &Topology,
    programs: &Programs,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let lab = crate::lab::build(topology, &args.name, SCENE, args.ssh.as_deref())?;
    let roamers = [Roamer::new(&lab, topology, NODES[0])?, Roamer::new(&lab, topology, NODES[1])?];
    progress.done(&format!("{}; two devices with six networks each", crate::lab::describe(&lab)));
    let settings = AgentSettings { ring: args.ring.clone(), ..AgentSettings::default() };
    let mut overlay = Overlay::new(settings, "auto");
    overlay.start(&lab, topology, programs, progress, cancel).inspect_err(|error| overlay.explain(error))?;
    let [p, q] = overlay.devices() else { bail!("the scene `{SCENE}` has two devices") };
    let address = |device: &Device| device.address().context("an agent without an address");
    let addresses = [address(p)?, address(q)?];
    let patience = if args.untimed { cell::STALLED_UNTIMED } else { cell::STALLED };
    let mut stage = Stage { lab: &lab, devices: [p, q], roamers, addresses, cancel, patience, way: None };
    let mut report = Report::default();
    for cell in cells(args) {
        let outcome = stage.run(&cell);
        progress.done(&format!("{cell} {}", told(&outcome)));
        report.add(cell, outcome);
        cancel.check()?;
    }
    for (name, sleeps, length) in pauses(args) {
        let outcome = if sleeps { stage.asleep(length) } else { stage.away(length) };
        progress.done(&format!("{name:<48} {}", told(&outcome)));
        report.add_pause(name, outcome);
        cancel.check()?;
    }
    drop(stage);
    if !report.broken(!args.untimed).is_empty() {
        overlay.show_logs();
    }
    overlay.end(lab)?;
    Ok(report)
}

/// All cells that are asked for, those of one way together.
fn cells(args: &RoamArgs) -> Vec<Cell> {
    let all: Vec<Cell> = if args.quick {
        QUICK.map(|(way, mover, from, to, style)| Cell { way, mover, from, to, style }).into()
    } else {
        let mut all = Vec::new();
        for way in [Way::Direct, Way::Relayed] {
            for (from, to) in MOVES {
                for mover in [Mover::Initiator, Mover::Responder, Mover::Both] {
                    for style in [Style::MakeFirst, Style::BreakFirst] {
                        all.push(Cell { way, mover, from, to, style });
                    }
                }
            }
        }
        all
    };
    all.into_iter().filter(|cell| args.wants(&cell.to_string())).collect()
}

/// All pauses that are asked for: what they are called, whether the device sleeps or has no network, and how
/// long.
fn pauses(args: &RoamArgs) -> Vec<(String, bool, Duration)> {
    let lengths = if args.quick { [].as_slice() } else { &[2, 10] };
    let kinds = [("no network", false), ("asleep", true)];
    let all = lengths.iter().flat_map(|seconds| {
        kinds.map(|(name, sleeps)| (format!("{name} for {seconds} s"), sleeps, Duration::from_secs(*seconds)))
    });
    all.filter(|(name, ..)| args.wants(name)).collect()
}

fn told(outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) => {
            let Outcome { gap, round_trip, lost, flow_lost, way_after } = outcome;
            let flow = flow_lost.as_ref().map(|why| format!(", TRANSFER LOST: {why}")).unwrap_or_default();
            format!(
                "gap {:4} ms (round trip {:.1} ms), {lost} lost, then {way_after}{flow}",
                gap.as_millis(),
                round_trip.as_secs_f64() * 1e3
            )
        }
        Err(error) => format!("FAILED: {error:#}"),
    }
}
