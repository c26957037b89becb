//! `cargo xtask bench memory`: what an agent keeps in memory, idle and with fifty peers.
//!
//! Fifty-one agents, all on one network, so that tunnels are direct. What each keeps while it has no tunnel
//! is taken from all of them; then one sets up a tunnel to each of the others, and is asked again.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures, Statistic};
use cyphonic_lab::process::Daemon;
use cyphonic_lab::{Lab, LabConfig, Topology};

use super::document::{Kept, publish};
use crate::overlay::{AgentSettings, Device, Overlay, Programs, Progress, become_root, watch_signals};

const PEERS: usize = 50;
/// How long agents are left alone before they are asked: what starting and setting up took is given back by
/// then.
const SETTLE: Duration = Duration::from_secs(10);
/// What was promised, in MB resident.
const PROMISES: [(&str, f64); 2] = [("idle.rss_mb", 15.0), ("peers_50.rss_mb", 25.0)];
/// Of `/proc/PID/status`, and of figures.
const KINDS: [(&str, &str); 3] = [("VmRSS", "rss_mb"), ("RssAnon", "anonymous_mb"), ("RssFile", "file_mb")];

/// How to measure.
#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    /// The lab's name.
    #[arg(long, default_value = "memory")]
    name: String,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Also write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the verb.
pub(super) fn run(args: &MemoryArgs) -> Result<()> {
    let cancel = watch_signals()?;
    let programs = Programs::find(args.programs.as_deref())?;
    become_root(&programs)?;
    let topology = Topology::parse(&topology()).context("the benchmark's own topology is wrong")?;
    let lab = Lab::up(&topology, &LabConfig::new(&args.name, "zero"))?;
    let mut overlay = Overlay::new(AgentSettings::default(), "userspace");
    let measured = measure(&lab, &topology, &programs, &mut overlay, &cancel);
    let figures = measured.inspect_err(|error| overlay.explain(error))?;
    println!("\n{}\n{}", figures.table(), section(&figures));
    if let Some(path) = &args.json {
        figures.write(path)?;
    }
    // Programs of the developer's choice are none that the page is about.
    if args.programs.is_none() {
        publish(Kept::Memory, &figures)?;
    }
    let value = |name: &str| figures.get(name).map_or(f64::INFINITY, |figure| figure.value);
    let broken: Vec<_> = PROMISES.iter().filter(|(name, most)| value(name) > *most).collect();
    if !broken.is_empty() {
        bail!("more than was promised: {broken:?}");
    }
    Ok(())
}

fn measure(
    lab: &Lab,
    topology: &Topology,
    programs: &Programs,
    overlay: &mut Overlay,
    cancel: &Cancel,
) -> Result<Figures> {
    let progress = Progress::start();
    let mut figures = Figures::new("bench memory");
    overlay.start(lab, topology, programs, &progress, cancel)?;
    std::thread::sleep(SETTLE);
    let idle: Vec<[f64; 3]> = overlay.devices().iter().map(resident).collect::<Result<_>>()?;
    for (at, (_, name)) in KINDS.iter().enumerate() {
        let each: Vec<f64> = idle.iter().map(|kinds| kinds[at]).collect();
        if let Some(figure) = Figure::of(&each, Statistic::Median, "MB") {
            figures.insert(&format!("idle.{name}"), figure);
        }
    }
    let (first, peers) = overlay.devices().split_first().context("there is no device")?;
    for peer in peers {
        first.resolve(peer, cancel)?;
    }
    progress.done(&format!("a tunnel to each of {} peers", peers.len()));
    std::thread::sleep(SETTLE);
    let status = first.status(cancel)?;
    let standing = status["peers"].as_array().map_or(0, Vec::len);
    if standing != PEERS {
        bail!("{standing} tunnels stand, not {PEERS}");
    }
    for ((_, name), value) in KINDS.iter().zip(resident(first)?) {
        figures.insert(&format!("peers_50.{name}"), Figure::single(value, "MB"));
    }
    Ok(figures)
}

/// By [`KINDS`], in MB (of a million bytes).
fn resident(device: &Device) -> Result<[f64; 3]> {
    let pid = device.daemon().map(Daemon::pid).context("the agent does not run")?;
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent has ended")?;
    let mut kinds = [0.0; 3];
    for (value, (kind, _)) in kinds.iter_mut().zip(KINDS) {
        *value = megabytes(&text, kind).with_context(|| format!("the kernel tells no {kind}"))?;
    }
    Ok(kinds)
}

fn megabytes(status: &str, kind: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024.0 / 1e6)
}

/// One network, and the services on others, as elsewhere.
fn topology() -> String {
    let mut text = String::from(
        "version: 1\n\
         networks:\n\
         \x20 site:  { ipv4: 198.51.100.0/24 }\n\
         \x20 cloud: { ipv4: 192.0.2.0/28 }\n\
         \x20 relay: { ipv4: 192.0.2.16/28 }\n\
         routers:\n\
         \x20 r:\n\
         \x20   interfaces:\n\
         \x20     - { network: site,  ipv4: 198.51.100.1 }\n\
         \x20     - { network: cloud, ipv4: 192.0.2.1 }\n\
         \x20     - { network: relay, ipv4: 192.0.2.17 }\n\
         profiles:\n\
         \x20 zero: {}\n\
         hosts:\n\
         \x20 cloud: { roles: [as, nms], gateway: r, interfaces: [ { network: cloud, ipv4: 192.0.2.2 } ] }\n\
         \x20 trs:   { roles: [trs], gateway: r, interfaces: [ { network: relay, ipv4: 192.0.2.18 } ] }\n",
    );
    for (number, host) in (0..=PEERS).zip(10_u8..) {
        let _ = writeln!(
            text,
            "  d{number:02}: {{ roles: [device], device: d{number:02}.site, gateway: r, interfaces: [ {{ network: site, ipv4: \
             198.51.100.{host} }} ] }}"
        );
    }
    text
}

/// The section of `docs/performance.md` about memory.
pub(super) fn section(figures: &Figures) -> String {
    let mut text = String::from(TEXT);
    let cell = |name: String| {
        figures.get(&name).map_or_else(|| "–".to_owned(), |figure| format!("{:.1}", figure.value))
    };
    for ((state, what), (_, most)) in [("idle", "idle"), ("peers_50", "50 peers")].iter().zip(PROMISES) {
        let _ = write!(text, "| {what} | {most:.0} |");
        for (_, kind) in KINDS {
            let _ = write!(text, " {} |", cell(format!("{state}.{kind}")));
        }
        text.push('\n');
    }
    let machine = figures.machine();
    let _ = writeln!(text, "\nMeasured on: {}, Linux {}.", machine.cpu, machine.kernel);
    text
}

const TEXT: &str = "\
## Memory

What an agent keeps resident, in MB: without a tunnel (the median of 51 agents), and one with tunnels to 50 peers. *File* is the
program and its libraries, which agents on one machine share and the kernel may take back; *anonymous* is what the agent itself has
taken.

| Agent | Promised | Resident | Anonymous | File |
|---|---:|---:|---:|---:|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topology_has_as_many_devices_as_it_takes() {
        let topology = Topology::parse(&topology()).unwrap();
        assert_eq!(topology.hosts_with(cyphonic_lab::Role::Device).count(), PEERS + 1);
    }

    #[test]
    fn the_kernel_counts_in_kibibytes() {
        let status = "Name:\tcyphonicd\nVmRSS:\t   20480 kB\nRssAnon:\t    4000 kB\n";
        assert_eq!(megabytes(status, "VmRSS"), Some(20.97152));
        assert_eq!(megabytes(status, "RssFile"), None);
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let mut figures = Figures::new("bench memory");
        figures.insert("idle.rss_mb", Figure::single(12.34, "MB"));
        assert!(section(&figures).contains("| idle | 15 | 12.3 | – | – |"));
    }
}
