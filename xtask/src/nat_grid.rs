//! `cargo xtask nat-grid`: a device behind every kind of NAT and firewall, and each pair of them connected.
//!
//! All agents run at once. In each round every device has one partner, and both ask once: the tunnel is taken
//! down, the other's name resolved, and pings go at once and while the path changes. A pair that does not
//! connect fails the verb, and so does one that is not direct although its networks [allow](access) it.

mod access;
mod idle;
mod pair;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::Topology;
use cyphonic_lab::command::Cancel;

use self::access::Access;
use self::pair::{Outcome, Way, measure, site};
use crate::overlay::{AgentSettings, Device, Overlay, Programs, Progress, become_root, watch_signals};
use crate::{page, workspace};

/// The scenes, as the topology calls them.
const SCENE: &str = "nat-grid";
const QUICK_SCENE: &str = "nat-grid-quick";
const IDLE_SCENE: &str = "nat-grid-idle";

/// Unless told otherwise.
const PROFILE: &str = "zero";

/// How to run it.
#[derive(Debug, Args)]
pub(crate) struct GridArgs {
    /// A few sites instead of all, for about a minute.
    #[arg(long)]
    quick: bool,
    /// Another of the topology's scenes.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["quick", "idle"])]
    scene: Option<String>,
    /// Only this pair of sites, as in `port:symmetric`.
    #[arg(long, value_name = "A:B")]
    pair: Option<String>,
    /// With `--pair`: so often, each time with a new tunnel.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "pair")]
    times: usize,
    /// Leave tunnels without traffic for so long, as in `10m`, and see whether the first packet still
    /// arrives.
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle: Option<Duration>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write docs/nat-grid.md, about the whole grid.
    #[arg(long)]
    document: bool,
    /// Link profile of the topology.
    #[arg(long, default_value = PROFILE)]
    profile: String,
    /// The lab's name.
    #[arg(long, default_value = "nat-grid")]
    name: String,
    /// The topology file [default: vagrant/topology.yaml]
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Use machines reached over SSH in place of namespaces: an OpenSSH configuration that names the scene's
    /// nodes, as `vagrant ssh-config` prints it. They run the installed packages, or what `--programs`
    /// names there.
    #[arg(long, value_name = "CONFIG")]
    ssh: Option<PathBuf>,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl GridArgs {
    /// What makes it another run than its page shows.
    pub(crate) fn partial(&self) -> Vec<&'static str> {
        page::given([
            ("--quick", self.quick),
            ("--scene", self.scene.is_some()),
            ("--pair", self.pair.is_some()),
            ("--idle", self.idle.is_some()),
            ("--profile", self.profile != PROFILE),
            ("--topology", self.topology.is_some()),
            ("--ssh", self.ssh.is_some()),
            ("--programs", self.programs.is_some()),
        ])
    }
}

/// Runs the verb.
pub(crate) fn run(args: &GridArgs) -> Result<()> {
    if args.document {
        page::demand_whole("nat-grid.md", &args.partial())?;
    }
    let cancel = watch_signals()?;
    let scene = match args {
        GridArgs { scene: Some(scene), .. } => scene,
        GridArgs { idle: Some(_), .. } => IDLE_SCENE,
        GridArgs { quick: true, .. } => QUICK_SCENE,
        GridArgs { .. } => SCENE,
    };
    let topology = crate::lab::topology(args.topology.clone(), Some(scene))?;
    let programs = Programs::choose(args.programs.as_deref(), args.ssh.is_some())?;
    if args.ssh.is_none() {
        become_root(&programs)?;
    }
    let progress = Progress::start();
    let lab = crate::lab::build(&topology, &args.name, &args.profile, args.ssh.as_deref())?;
    progress.done(&format!("{}, scene `{scene}`", crate::lab::describe(&lab)));
    let settings = match args.idle {
        Some(_) => idle::settings(),
        None => AgentSettings::default(),
    };
    let mut overlay = Overlay::new(settings, "auto");
    let started = overlay.launch(&lab, &topology, &programs, &progress, &cancel);
    let outcome = started.and_then(|()| {
        wait_online(overlay.devices_mut(), &progress, &cancel)?;
        match args.idle {
            Some(time) => idle::run(&lab, overlay.devices(), time, args.json.as_deref(), &progress, &cancel),
            None => grid(args, &topology, overlay.devices(), &progress, &cancel),
        }
    });
    let outcome = outcome.inspect_err(|error| overlay.explain(error));
    overlay.end(lab)?;
    outcome
}

/// Whoever does not come online has its column to say so.
fn wait_online(devices: &mut [Device], progress: &Progress, cancel: &Cancel) -> Result<()> {
    let mut online = 0;
    for device in devices.iter_mut() {
        match device.wait_online(cancel) {
            Ok(()) => {
                device.learn_address(cancel)?;
                online += 1;
            }
            Err(error) => {
                cancel.check()?;
                progress.done(&format!("{error:#}"));
            }
        }
    }
    progress.done(&format!("{online} of {} devices are online", devices.len()));
    Ok(())
}

fn grid(
    args: &GridArgs,
    topology: &Topology,
    devices: &[Device],
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let outcomes = match &args.pair {
        Some(pair) => one(topology, devices, (pair, args.times), cancel)?,
        None => all(topology, devices, progress, cancel)?,
    };
    println!();
    report::table(&outcomes, " ").iter().for_each(|line| println!("{line}"));
    println!(
        "\nRows ask, columns are asked; `d 42` left the relay after 42 ms, `!` is less than the networks allow.\n"
    );
    let figures = report::figures(&outcomes);
    for (label, value) in report::summary(&figures) {
        println!("{label:<36} {value:>12}");
    }
    report::remarks(&outcomes).iter().for_each(|remark| println!("{remark}"));
    if let Some(file) = &args.json {
        figures.write(file)?;
        println!("Figures are in {}.", file.display());
    }
    if args.document {
        let file = workspace::root().join("docs/nat-grid.md");
        std::fs::write(&file, report::document(&outcomes, &figures))
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("The grid is in {}.", file.display());
    }
    let broken: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_as_promised()).collect();
    for outcome in &broken {
        let wanted =
            if outcome.way == Way::Failed { "is not connected" } else { "could be direct and is relayed" };
        println!("BROKEN: {} to {} {wanted}: {}", outcome.from, outcome.to, outcome.why);
    }
    if !broken.is_empty() {
        bail!("{} of {} pairs did less than their networks allow", broken.len(), outcomes.len());
    }
    Ok(())
}

/// One pair, in both directions, so many times.
fn one(
    topology: &Topology,
    devices: &[Device],
    (pair, times): (&str, usize),
    cancel: &Cancel,
) -> Result<Vec<Outcome>> {
    let (a, b) = pair.split_once(':').context("write a pair as A:B")?;
    let find = |name: &str| {
        let known = || devices.iter().map(site).collect::<Vec<_>>().join(", ");
        let device = devices.iter().find(|device| site(device) == name);
        device.with_context(|| format!("there is no site `{name}`; there are: {}", known()))
    };
    let (a, b) = (find(a)?, find(b)?);
    let mut outcomes = Vec::new();
    for _ in 0..times {
        outcomes.extend(both_ways(topology, a, b, cancel)?);
    }
    Ok(outcomes)
}

/// All pairs, by rounds in which every device has one partner.
fn all(
    topology: &Topology,
    devices: &[Device],
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let rounds = rounds(devices.len());
    for (number, round) in rounds.iter().enumerate() {
        let pairs: Vec<(&Device, &Device)> =
            round.iter().filter_map(|(a, b)| Some((devices.get(*a)?, devices.get(*b)?))).collect();
        let results: Vec<Result<Vec<Outcome>>> = std::thread::scope(|scope| {
            let started: Vec<_> =
                pairs.iter().map(|(a, b)| scope.spawn(|| both_ways(topology, a, b, cancel))).collect();
            started.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        if results.len() != pairs.len() {
            bail!("a pair's measurement panicked");
        }
        for result in results {
            outcomes.extend(result?);
        }
        let direct = outcomes.iter().filter(|outcome| outcome.way == Way::Direct).count();
        let failed = outcomes.iter().filter(|outcome| outcome.way == Way::Failed).count();
        progress.done(&format!(
            "round {} of {}: {} connections so far, {direct} direct, {failed} failed",
            number + 1,
            rounds.len(),
            outcomes.len()
        ));
    }
    Ok(outcomes)
}

fn both_ways(topology: &Topology, a: &Device, b: &Device, cancel: &Cancel) -> Result<Vec<Outcome>> {
    let can_meet = Access::of(topology, a.node()).can_meet(&Access::of(topology, b.node()));
    [(a, b), (b, a)].into_iter().map(|(from, to)| measure(from, to, can_meet, cancel)).collect()
}

/// Every pair of `count` once, in rounds in which nobody is twice: all but the first walk around a table.
fn rounds(count: usize) -> Vec<Vec<(usize, usize)>> {
    let seats = count + count % 2;
    let round = |shift: usize| {
        let at = |seat: usize| if seat == 0 { 0 } else { 1 + (seat - 1 + shift) % (seats - 1) };
        let pairs = (0..seats / 2).map(|seat| (at(seat), at(seats - 1 - seat)));
        // With an odd number, whoever meets the empty seat waits.
        pairs.filter(|(a, b)| *a < count && *b < count).collect()
    };
    (0..seats.saturating_sub(1)).map(round).collect()
}

/// `90s`, `10m`.
fn time(text: &str) -> Result<Duration, String> {
    let parse = |number: &str, unit: u64| number.parse::<u64>().ok()?.checked_mul(unit);
    let seconds = text
        .strip_suffix('m')
        .and_then(|number| parse(number, 60))
        .or_else(|| text.strip_suffix('s').and_then(|number| parse(number, 1)));
    let seconds = seconds.filter(|seconds| (1..=86_400).contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "write a time up to a day with s or m, as in 10m".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_meets_once_and_nobody_is_twice_in_a_round() {
        for count in 0..20 {
            let mut met = BTreeSet::new();
            for round in rounds(count) {
                let mut seen = BTreeSet::new();
                for (a, b) in round {
                    assert!(seen.insert(a) && seen.insert(b), "{count}");
                    assert!(met.insert((a.min(b), a.max(b))), "{count}");
                }
            }
            assert_eq!(met.len(), count * count.saturating_sub(1) / 2);
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("25s"), Ok(Duration::from_secs(25)));
        for text in ["10", "m", "-1s", "0s", "2000m", "99999999999999999999m"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
