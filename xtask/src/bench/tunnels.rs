//! Tunnels beside each other in one topology, in interleaved repetitions.

mod measure;
mod nebula;
mod null_gso;
mod openvpn;
mod own;
mod programs;
mod quincy;
mod samples;
mod site;
mod system;
mod table;
mod variant;
mod wireguard;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::Figures;

use self::measure::{Effort, measure};
use self::own::Overlay;
use self::programs::BenchPrograms;
use self::samples::{AllSamples, into_figures};
use self::site::Site;
use self::system::System;
pub(super) use self::table::tables;
use self::variant::Variant;
use super::document::{Kept, publish};
use super::promises::{Outcome, judge_tunnels};
use crate::{setup, shell};

/// The systems by the names of their figures.
pub(super) const NAMES: [&str; System::ALL.len()] = {
    let (mut names, mut index) = ([""; System::ALL.len()], 0);
    while index < names.len() {
        names[index] = System::ALL[index].name();
        index += 1;
    }
    names
};

/// How to compare tunnels.
#[derive(Debug, Args)]
pub(super) struct TunnelArgs {
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Short transfers and one repetition: does everything run?
    #[arg(long)]
    quick: bool,
    /// Only these systems, separated by commas.
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',')]
    only: Vec<String>,
    /// Only one variant of the network: `normal` or `wire-like`.
    #[arg(long, value_name = "VARIANT")]
    variant: Option<String>,
    /// Repetitions, each of all systems one after the other [default: 3; 1 with --quick]
    #[arg(long, value_name = "N")]
    reps: Option<u32>,
    /// Seconds of each TCP transfer [default: 3; 1 with --quick]
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// The lab's name.
    #[arg(long, default_value = "bench")]
    name: String,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Write docs/performance.md and its figures even after a partial run.
    #[arg(long)]
    docs: bool,
}

impl TunnelArgs {
    fn effort(&self) -> Effort {
        let (seconds, pings, trial, trials) = if self.quick { (1, 50, 300, 4) } else { (3, 200, 600, 10) };
        let trial = Duration::from_millis(trial);
        Effort { seconds: self.seconds.unwrap_or(seconds), pings, trial, trials }
    }

    fn systems(&self) -> Result<Vec<System>> {
        if let Some(stranger) =
            self.only.iter().find(|name| System::ALL.iter().all(|system| system.name() != *name))
        {
            let known: Vec<&str> = System::ALL.iter().map(|system| system.name()).collect();
            bail!("there is no system {stranger}; there are: {}", known.join(", "));
        }
        let wanted =
            |system: &System| self.only.is_empty() || self.only.iter().any(|name| name == system.name());
        Ok(System::ALL.into_iter().filter(wanted).collect())
    }

    fn variants(&self) -> Result<Vec<Variant>> {
        let Some(wanted) = &self.variant else { return Ok(Variant::ALL.to_vec()) };
        match Variant::ALL.into_iter().find(|variant| variant.name() == wanted) {
            Some(variant) => Ok(vec![variant]),
            None => bail!("a network is `normal` or `wire-like`, not `{wanted}`"),
        }
    }

    /// Whether the figures are those that the project's documentation shows: of all systems, as they are
    /// built and as long and as often as is usual.
    fn is_whole(&self) -> bool {
        let usual = self.programs.is_none() && self.reps.is_none() && self.seconds.is_none();
        usual && !self.quick && self.only.is_empty() && self.variant.is_none()
    }
}

/// sudo looks for programs in its `secure_path`, where no rustup is; env(1) does so in the PATH it is given.
/// rustup's toolchains are in HOME.
const AS_ROOT: &str = "sudo --preserve-env=PATH,HOME env cargo xtask bench";

/// Installs what is compared.
pub(super) fn setup() -> Result<()> {
    setup::peers()
}

/// Runs the comparison.
pub(super) fn run(args: &TunnelArgs) -> Result<()> {
    let (systems, variants) = (args.systems()?, args.variants()?);
    if !shell::is_root() {
        bail!("the networks and tunnels need root: run `{AS_ROOT}`");
    }
    let cancel = Cancel::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancel.flag()).context("cannot watch for Ctrl-C")?;
    }
    setup()?;
    let programs = match &args.programs {
        Some(folder) => BenchPrograms::in_folder(folder)?,
        None => BenchPrograms::build()?,
    };
    let mut figures = Figures::new("bench");
    let mut visits = Visits::new(Site::up(&args.name, &programs, &cancel)?, args.effort());
    for repetition in 1..=args.reps.unwrap_or(if args.quick { 1 } else { 3 }) {
        for variant in &variants {
            for system in &systems {
                visits.visit(*system, *variant, repetition)?;
            }
        }
    }
    into_figures(&visits.samples, &mut figures);
    finish(args, figures, visits)
}

fn finish(args: &TunnelArgs, mut figures: Figures, visits: Visits<'_>) -> Result<()> {
    let Visits { absent, site, mut overlay, .. } = visits;
    overlay.stop();
    site.lab.down()?;
    drop(overlay);
    versions().into_iter().for_each(|(name, version)| figures.note(&name, version));
    println!("{}", tables(&figures));
    for (name, reason) in &absent {
        println!("Not measured: {name}: {reason}");
        figures.note(&format!("absent.{name}"), reason.as_str());
    }
    if let Some(file) = &args.json {
        figures.write(file)?;
        println!("Figures are in {}.", file.display());
    }
    if args.is_whole() || args.docs {
        publish(Kept::Tunnels, &figures)?;
    }
    let judged = judge_tunnels(&figures);
    let mut missed = 0;
    for (promise, outcome) in &judged {
        println!("{:<58} {:>8}   {outcome}", promise.what, promise.bound());
        missed += u32::from(match outcome {
            Outcome::Kept(_) => false,
            Outcome::Broken(_) => true,
            Outcome::NotMeasured => args.is_whole(),
        });
    }
    if missed > 0 {
        bail!("{missed} promised ratio(s) missed, or not measured");
    }
    Ok(())
}

/// The other systems' versions, as they or their packages tell them.
fn versions() -> BTreeMap<String, String> {
    let ask = |program: &str, argument: &str| {
        let path = programs::peer(program).ok()?;
        let text = shell::output(std::process::Command::new(path).arg(argument))?;
        text.lines().find(|line| line.chars().any(|c| c.is_ascii_digit())).map(|line| line.trim().to_owned())
    };
    let mut versions = BTreeMap::new();
    for (name, program, argument) in [
        ("wireguard_go", "wireguard-go", "--version"),
        ("boringtun", "boringtun-cli", "--version"),
        ("nebula", "nebula", "-version"),
    ] {
        versions.extend(ask(program, argument).map(|version| (name.to_owned(), version)));
    }
    // It ends with a failure when it is asked for its version.
    let openvpn = shell::output(std::process::Command::new("dpkg-query").args(["-W", "openvpn"]));
    versions.extend(openvpn.map(|version| ("openvpn".to_owned(), version.replace('\t', " "))));
    versions.insert("quincy".to_owned(), format!("Quincy {}, TLS", setup::QUINCY));
    versions
}

/// The visits of systems in turn.
struct Visits<'a> {
    site: Site<'a>,
    effort: Effort,
    overlay: Overlay,
    samples: AllSamples,
    /// What could not be measured, and why.
    absent: BTreeMap<String, String>,
    started: Instant,
}

impl<'a> Visits<'a> {
    fn new(site: Site<'a>, effort: Effort) -> Self {
        let (overlay, samples, absent) = (Overlay::default(), AllSamples::new(), BTreeMap::new());
        Self { site, effort, overlay, samples, absent, started: Instant::now() }
    }

    /// Starts a system, measures it, and stops it. One that fails is noted, and the others go on.
    fn visit(&mut self, system: System, variant: Variant, repetition: u32) -> Result<()> {
        let name = format!("{}{}", variant.prefix(), system.name());
        self.site.lay(variant)?;
        let samples = self.samples.entry((variant, system.name())).or_default();
        let outcome = system
            .start(&self.site, &mut self.overlay)
            .and_then(|running| measure(&self.site, &running, self.effort, samples));
        self.overlay.stop();
        self.site.cancel.check()?;
        let elapsed = self.started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("[{elapsed:6.1} s] {name}, repetition {repetition}: {}", samples.summary()),
            Err(error) => {
                println!("[{elapsed:6.1} s] {name}, repetition {repetition}: {error:#}");
                self.absent.insert(name, format!("{error:#}"));
            }
        }
        Ok(())
    }
}
