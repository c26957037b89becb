//! `cargo xtask scale`: what one `cyphonic-cloud` bears.
//!
//! A cloud with ten thousand nodes connected: what each costs it in memory, what all of them cost while
//! nobody asks for anything, and how many set-ups it directs in a second. And one whose register has a
//! million devices: how long it takes to start. The program `fleet` of `cyphonic-cloud` measures, in a
//! network namespace of its own; this turns what it finds into figures.

mod document;
mod fleet;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures, Statistic};
use cyphonic_lab::{Lab, LabConfig, Topology};

use self::fleet::{Fleet, Nodes, Registered};
use crate::overlay::{Programs, Progress, become_root, watch_signals};
use crate::page;

/// Unless told otherwise: all, and in a short run.
const NODES: [usize; 2] = [10_000, 200];
/// The figures of a register are named after it.
const MILLION: usize = 1_000_000;
/// One host, for the cloud and all that connects to it.
const TOPOLOGY: &str = "version: 1
networks: { cloud: { ipv4: 192.0.2.0/24 } }
routers: {}
hosts: { cloud: { roles: [as, nms], interfaces: [ { network: cloud, ipv4: 192.0.2.2 } ] } }
profiles: { zero: {} }
";

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// 200 nodes for a second, and no million.
    #[arg(long)]
    quick: bool,
    /// How many nodes connect: each takes some 150 kB, in both programs together [default: 10000]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Leave out the register with a million devices, which takes minutes and 2 GB of disk to make.
    #[arg(long)]
    without_million: bool,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write docs/scale.md, about a whole run.
    #[arg(long)]
    document: bool,
    /// The lab's name.
    #[arg(long, default_value = "scale")]
    name: String,
    /// Use the programs in this folder, as `target/release`, instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl ScaleArgs {
    /// What makes it another run than its page shows.
    pub(crate) fn partial(&self) -> Vec<&'static str> {
        page::given([
            ("--quick", self.quick),
            ("--nodes", self.nodes.is_some()),
            ("--without-million", self.without_million),
            ("--programs", self.programs.is_some()),
        ])
    }
}

/// Runs the verb.
pub(crate) fn run(args: &ScaleArgs) -> Result<()> {
    if args.document {
        page::demand_whole("scale.md", &args.partial())?;
    }
    let cancel = watch_signals()?;
    let programs = Programs::find(args.programs.as_deref())?;
    let fleet = Fleet::find(&programs, programs.are_built_here())?;
    become_root(&programs)?;
    let mut figures = Figures::new("scale");
    let topology = Topology::parse(TOPOLOGY).context("the verb's own topology is wrong")?;
    let lab = Lab::up(&topology, &LabConfig::new(&args.name, "zero"))?;
    let folder = std::env::temp_dir().join(format!("cyphonic-{}-{}", args.name, std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let measured = measure(args, &fleet, &lab, &folder, &mut figures, &cancel);
    // Only then has nothing in it a writer any more.
    let down = lab.down();
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let failures = measured?;
    down?;
    print!("{}", figures.table());
    figures.notes().for_each(|(about, text)| println!("{about}: {text}"));
    if let Some(file) = &args.json {
        figures.write(file)?;
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    if args.document {
        println!("The table is in {}.", document::write(&figures)?.display());
    }
    Ok(())
}

/// Fills the figures. Returns what failed; figures of that are absent.
fn measure(
    args: &ScaleArgs,
    fleet: &Fleet,
    lab: &Lab,
    folder: &Path,
    figures: &mut Figures,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    let progress = Progress::start();
    let count = args.nodes.unwrap_or(NODES[usize::from(args.quick)]);
    let mut failures = Vec::new();
    match fleet.nodes(lab, &folder.join("nodes"), count, args.quick, cancel) {
        Ok(nodes) => {
            progress.done(&format!("{} nodes connected, and directed {} set-ups", nodes.nodes, nodes.setups));
            of_nodes(&nodes, figures);
        }
        Err(error) => failures.push(absent(figures, "nodes", &error)),
    }
    cancel.check()?;
    if args.quick || args.without_million {
        figures.note("register", "no register with a million devices was asked for");
        return Ok(failures);
    }
    match fleet.register(lab, &folder.join("register"), MILLION, cancel) {
        Ok(registered) => {
            let starts = registered.starts.len();
            progress.done(&format!(
                "a register with {MILLION} devices made, and the cloud started {starts} times"
            ));
            of_register(&registered, figures);
        }
        Err(error) => failures.push(absent(figures, "register", &error)),
    }
    cancel.check()?;
    Ok(failures)
}

fn absent(figures: &mut Figures, what: &str, error: &anyhow::Error) -> String {
    figures.note(what, format!("not measured: {error:#}"));
    format!("{what}: {error:#}")
}

fn of_nodes(nodes: &Nodes, figures: &mut Figures) {
    let count = nodes.nodes as f64;
    let [without, with, after] = nodes.resident.map(|bytes| bytes as f64);
    figures.insert("nodes", Figure::count(u32::try_from(nodes.nodes).unwrap_or(u32::MAX)));
    figures.insert("nms_kb_per_node", Figure::single((with - without) / count / 1e3, "kB"));
    figures.insert("nms_kb_per_node_after_load", Figure::single((after - without) / count / 1e3, "kB"));
    figures.insert("nms_idle_cpu_percent", Figure::single(nodes.idle.cpu / nodes.idle.seconds * 100.0, "%"));
    figures.insert("connect_per_s", Figure::single(count / nodes.connecting.seconds, "1/s"));
    figures.insert("connect_cpu_ms", Figure::single(nodes.connecting.cpu / count * 1e3, "ms"));
    let setups = nodes.setups as f64;
    figures.insert("setups_per_s", Figure::single(setups / nodes.load.seconds, "1/s"));
    // Too short a load takes no time that the kernel counts.
    if nodes.load.cpu > 0.0 {
        figures.insert("setups_per_cpu_s", Figure::single(setups / nodes.load.cpu, "1/s"));
    }
    for (name, stat) in [("setup_median_ms", Statistic::Median), ("setup_p99_ms", Statistic::P99)] {
        if let Some(figure) = Figure::of(&nodes.setup_ms, stat, "ms") {
            figures.insert(name, figure);
        }
    }
}

fn of_register(registered: &Registered, figures: &mut Figures) {
    let megabytes: Vec<f64> = registered.resident.iter().map(|bytes| *bytes as f64 / 1e6).collect();
    let samples = [
        ("register_start_s_at_1m", registered.starts.as_slice(), "s"),
        ("nms_mb_at_1m", megabytes.as_slice(), "MB"),
        ("register_mb_at_1m", &[registered.bytes as f64 / 1e6], "MB"),
    ];
    for (name, samples, unit) in samples {
        if let Some(figure) = Figure::of(samples, Statistic::Median, unit) {
            figures.insert(name, figure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topology_has_the_cloud_alone() {
        let topology = Topology::parse(TOPOLOGY).unwrap();
        assert_eq!(topology.nodes().collect::<Vec<_>>(), [fleet::HOST]);
        assert_eq!(topology.hosts[fleet::HOST].addresses().collect::<Vec<_>>(), [fleet::ADDRESS.ip()]);
    }
}
