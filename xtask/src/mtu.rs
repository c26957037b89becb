//! `cargo xtask mtu`: tunnels over 26 outer MTUs, and over one that changes under a transfer.
//!
//! Two devices, a router in the middle, and behind it a cable whose MTU is set: over IPv4 and IPv6 outside,
//! directly and through the TRS, with routers that say what does not fit and with routers that keep silent.
//! For each MTU the tunnel must find out what the path carries, carry everything up to the inner MTU it
//! states, and answer what is larger with Packet Too Big that states the same. What is asked for and does not
//! arrive is a black hole.

mod case;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures};
use cyphonic_lab::{Lab, Topology};

use self::case::{Case, Site};
use crate::overlay::{AgentSettings, Overlay, Programs, Progress, become_root, conclude, watch_signals};

/// About every limit there is: IPv6's least, inner 1,280 under both families, DSL, Ethernet, jumbo frames.
const OUTER_MTUS: [u16; 26] = [
    1280, 1281, 1300, 1311, 1338, 1339, 1340, 1357, 1358, 1372, 1400, 1419, 1420, 1421, 1450, 1478, 1492,
    1498, 1499, 1500, 1501, 2000, 4000, 6000, 8999, 9000,
];
const QUICK_MTUS: [u16; 4] = [1280, 1358, 1500, 9000];
/// The longest that a transfer may stand still when the path becomes narrower: 1.7 s until it is noticed, and
/// TCP's retransmission time-out, which has doubled meanwhile.
const LONGEST_STALL: Duration = Duration::from_secs(5);
/// The networks that must not be the narrow ones.
const WIDE: [&str; 2] = ["cloud", "relay"];

/// How to run the sweep.
#[derive(Debug, Args)]
pub(crate) struct MtuArgs {
    /// Four MTUs and two of the eight kinds of path.
    #[arg(long)]
    quick: bool,
    /// Do not hold transfers to a longest pause: for unoptimised programs and busy machines.
    #[arg(long)]
    untimed: bool,
    /// Only the kinds of path whose description has this text, as `IPv6 outside, through the TRS`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The lab's name.
    #[arg(long, default_value = "mtu")]
    name: String,
    /// The encapsulation ring of both agents.
    #[arg(long, default_value = "auto", value_parser = ["auto", "xdp", "offload"])]
    ring: String,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// What went wrong, by kind.
#[derive(Debug, Default)]
struct Findings {
    black_holes: Vec<String>,
    wrong_packet_too_big: Vec<String>,
    longest_stall: Duration,
}

/// Runs the sweep.
pub(crate) fn run(args: &MtuArgs) -> Result<()> {
    let cancel = watch_signals()?;
    let mut topology = crate::lab::topology(None, Some("mtu"))?;
    for network in WIDE {
        if let Some(network) = topology.networks.get_mut(network) {
            network.mtu = 9000;
        }
    }
    let programs = Programs::find(args.programs.as_deref())?;
    become_root(&programs)?;
    let progress = Progress::start();
    let (cases, outer): (Vec<Case>, &[u16]) =
        if args.quick { (Case::quick(), &QUICK_MTUS) } else { (Case::all(), &OUTER_MTUS) };
    let mut findings = Findings::default();
    let cases: Vec<Case> = match &args.only {
        Some(text) => cases.into_iter().filter(|case| case.to_string().contains(text.as_str())).collect(),
        None => cases,
    };
    for case in &cases {
        sweep(args, case, outer, &topology, &programs, &progress, &mut findings, &cancel)?;
    }
    report(args, outer.len(), cases.len(), &findings)
}

/// One kind of path, in a lab of its own.
#[expect(clippy::too_many_arguments, reason = "what every case needs, handed on once")]
fn sweep(
    args: &MtuArgs,
    case: &Case,
    outer: &[u16],
    topology: &Topology,
    programs: &Programs,
    progress: &Progress,
    findings: &mut Findings,
    cancel: &Cancel,
) -> Result<()> {
    let lab = Lab::up(topology, &crate::lab::config(&args.name, "zero")?)?;
    case.prepare(&lab, cancel)?;
    let settings = AgentSettings { ring: args.ring.clone(), ..AgentSettings::default() };
    let mut overlay = Overlay::new(settings, "auto");
    let outcome = overlay.start(&lab, topology, programs, progress, cancel).and_then(|()| {
        let site = Site::new(&lab, case, overlay.devices(), cancel)?;
        for mtu in outer {
            let (holes, wrong) = (findings.black_holes.len(), findings.wrong_packet_too_big.len());
            site.check(*mtu, findings)?;
            let new = findings.black_holes.iter().skip(holes);
            new.chain(findings.wrong_packet_too_big.iter().skip(wrong))
                .for_each(|fault| progress.detail(fault));
        }
        progress.done(&format!("{case}: {} outer MTUs", outer.len()));
        let stall = site.change_under_transfer(findings)?;
        progress
            .done(&format!("{case}: 1500 → 1300 → 1280 → 9000 under transfers, longest pause {stall:.1?}"));
        Ok(())
    });
    let outcome = outcome.inspect_err(|error| overlay.explain(error));
    lab.down()?;
    outcome
}

fn report(args: &MtuArgs, outer: usize, cases: usize, findings: &Findings) -> Result<()> {
    let mut figures = Figures::new("mtu");
    let count = |number: usize| Figure::count(u32::try_from(number).unwrap_or(u32::MAX));
    figures.insert("outer_mtus", count(outer));
    figures.insert("paths", count(cases));
    figures.insert("black_holes", count(findings.black_holes.len()));
    figures.insert("wrong_packet_too_big", count(findings.wrong_packet_too_big.len()));
    figures.insert("longest_pause_ms", Figure::single(findings.longest_stall.as_secs_f64() * 1e3, "ms"));
    println!("{}", figures.table());
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    let mut broken: Vec<String> =
        findings.black_holes.iter().chain(&findings.wrong_packet_too_big).cloned().collect();
    if findings.longest_stall > LONGEST_STALL && !args.untimed {
        broken.push(format!("a transfer stood still for {:.1?}", findings.longest_stall));
    }
    conclude(&broken)
}
