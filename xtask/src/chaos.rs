//! `cargo xtask chaos`: what can die dies, what can be pulled out is, at random, and what was promised still
//! holds.
//!
//! In the network of the paper's Fig. 5 packets go all the time through a direct tunnel and through a relayed
//! one, devices are enrolled and revoked all the time, and one fault follows another. A seed says which, and
//! how long each lasts; the same seed gives the same faults. After each both tunnels must carry packets
//! again, and be the ones that they were (unless it was one of their own ends that died or was cut off); in
//! the end everything must be in the register that anybody was told is there.

mod fault;
mod ledger;
mod memory;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::measure::{PingReport, PingRun, ping};
use cyphonic_lab::{Lab, Machine, Topology};

use self::fault::{Fault, Plan, Scene};
use self::ledger::Ledger;
use self::memory::Memory;
use self::report::{Outcome, Passage, Report};
use crate::overlay::{
    AgentSettings, DIRECT, Device, Overlay, Pair, Programs, Progress, RELAYED, become_root, conclude,
    watch_signals,
};
use crate::page;

/// Where devices are enrolled meanwhile: one that is in neither pair.
const NEWCOMERS: &str = "d";
/// Between pings.
const INTERVAL: Duration = Duration::from_millis(20);
/// Pings before a fault, and after it, unless nothing is answered by then.
const LEAD: Duration = Duration::from_millis(300);
const TAIL: Duration = Duration::from_secs(4);
/// For a pair to reach each other again.
const RECOVERY: Duration = Duration::from_secs(40);
/// Ages of tunnels are told in whole seconds.
const ROUNDING: Duration = Duration::from_secs(2);

/// Unless told otherwise.
const FAULTS: usize = 60;
/// Ring and relay, unless told otherwise.
const AUTO: &str = "auto";

/// How to run it.
#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    /// What to draw the faults from [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How many.
    #[arg(long, default_value_t = FAULTS)]
    faults: usize,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write docs/chaos.md, about no fewer faults than are usual.
    #[arg(long)]
    document: bool,
    /// The lab's name.
    #[arg(long, default_value = "chaos")]
    name: String,
    /// The topology file [default: vagrant/topology.yaml]
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// The encapsulation ring of all agents.
    #[arg(long, default_value = AUTO, value_parser = [AUTO, "xdp", "offload"])]
    ring: String,
    /// How the TRS relays.
    #[arg(long, default_value = AUTO, value_parser = [AUTO, "native", "generic", "userspace"])]
    relay: String,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl ChaosArgs {
    /// What makes it another run than its page shows. A seed does not: the page tells it.
    pub(crate) fn partial(&self) -> Vec<&'static str> {
        page::given([
            ("--faults", self.faults < FAULTS),
            ("--ring", self.ring != AUTO),
            ("--relay", self.relay != AUTO),
            ("--topology", self.topology.is_some()),
            ("--programs", self.programs.is_some()),
        ])
    }
}

/// Runs the verb.
pub(crate) fn run(args: &ChaosArgs) -> Result<()> {
    if args.document {
        page::demand_whole("chaos.md", &args.partial())?;
    }
    let cancel = watch_signals()?;
    let topology = crate::lab::topology(args.topology.clone(), None)?;
    let programs = Programs::choose(args.programs.as_deref(), false)?;
    become_root(&programs)?;
    let progress = Progress::start();
    let report = chaos(args, &topology, &programs, &progress, &cancel)?;
    report.print();
    if let Some(file) = &args.json {
        report.figures().write(file)?;
        println!("Figures are in {}.", file.display());
    }
    if args.document {
        println!("The table is in {}.", report.write_document()?.display());
    }
    conclude(&report.broken())
}

fn chaos(
    args: &ChaosArgs,
    topology: &Topology,
    programs: &Programs,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let lab = crate::lab::build(topology, &args.name, "zero", None)?;
    progress.done(&format!("{}; {} faults from the seed {seed}", crate::lab::describe(&lab), args.faults));
    let settings = AgentSettings { ring: args.ring.clone(), ..AgentSettings::default() };
    let mut overlay = Overlay::new(settings, &args.relay);
    overlay.start(&lab, topology, programs, progress, cancel).inspect_err(|error| overlay.explain(error))?;
    let ledger = start_ledger(&lab, &overlay, programs)?;
    let mut report = Report::new(seed);
    let endured = endure(args, seed, &lab, &mut overlay, progress, cancel, &mut report);
    let endured = endured.inspect_err(|error| overlay.explain(error));
    let written = ledger.finish();
    endured?;
    let administration = overlay.cloud().context("there is no cloud")?.administration();
    report.add_writes(written.count(), written.lost(administration, cancel)?);
    if !report.broken().is_empty() {
        overlay.show_logs();
    }
    overlay.end(lab)?;
    Ok(report)
}

fn start_ledger(lab: &Lab, overlay: &Overlay, programs: &Programs) -> Result<Ledger> {
    let cloud = overlay.cloud().context("there is no cloud")?;
    let home = lab.node_dir(NEWCOMERS)?.join("newcomers");
    let machine = lab.machine(NEWCOMERS)?;
    Ledger::start(cloud.administration().clone(), cloud.addresses(), machine, programs, home)
}

fn endure(
    args: &ChaosArgs,
    seed: u64,
    lab: &Lab,
    overlay: &mut Overlay,
    progress: &Progress,
    cancel: &Cancel,
    report: &mut Report,
) -> Result<()> {
    for pair in [DIRECT, RELAYED] {
        let (from, to) = devices(overlay, pair)?;
        from.resolve(to, cancel)?;
    }
    let mut memory = Memory::default();
    for (number, (fault, length)) in Plan::new(seed).take(args.faults).enumerate() {
        cancel.check()?;
        memory.look(overlay);
        let outcome = strike(lab, overlay, fault, length, cancel);
        let outcome = outcome.with_context(|| format!("fault {number}, {fault} for {length:?}"))?;
        progress.done(&format!("{number:>3} {fault:<28} for {:4} ms: {outcome}", length.as_millis()));
        report.add(fault, outcome);
    }
    memory.look(overlay);
    report.add_memory(memory.growth());
    Ok(())
}

/// One fault under traffic, and what came of it.
fn strike(
    lab: &Lab,
    overlay: &mut Overlay,
    fault: Fault,
    length: Duration,
    cancel: &Cancel,
) -> Result<Outcome> {
    let traffic = [Traffic::of(overlay, DIRECT, cancel)?, Traffic::of(overlay, RELAYED, cancel)?];
    let (reports, ended) = std::thread::scope(|scope| -> Result<_> {
        let pings =
            traffic.each_ref().map(|traffic| scope.spawn(|| traffic.ping(LEAD + length + TAIL, cancel)));
        std::thread::sleep(LEAD);
        let mut scene = Scene { lab, overlay, cancel };
        fault.begin(&mut scene)?;
        std::thread::sleep(length);
        fault.end(&mut scene)?;
        let ended = (SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?, Instant::now());
        let reports = pings.map(|ping| ping.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok((reports, ended))
    })?;
    let mut passages = Vec::new();
    for (traffic, report) in traffic.iter().zip(reports) {
        passages.push(traffic.passage(overlay, &report?, ended, fault, cancel)?);
    }
    let [direct, relayed] = passages.try_into().ok().context("two pairs")?;
    Ok(Outcome { direct, relayed })
}

/// What goes through a pair's tunnel.
struct Traffic {
    pair: Pair,
    machine: Machine,
    target: String,
    /// The tunnel's age, and when it was told.
    age: Duration,
    told: Instant,
}

impl Traffic {
    fn of(overlay: &Overlay, pair: Pair, cancel: &Cancel) -> Result<Self> {
        let (from, to) = devices(overlay, pair)?;
        let target = to.address().context("an agent without an address")?.to_string();
        let age = age(from, to, cancel)?.context("the pair has no tunnel")?;
        Ok(Self { pair, machine: from.machine().clone(), target, age, told: Instant::now() })
    }

    fn ping(&self, length: Duration, cancel: &Cancel) -> Result<PingReport> {
        let count = (length.as_millis() / INTERVAL.as_millis()).try_into().unwrap_or(u32::MAX);
        let run = PingRun { interval: INTERVAL, through_errors: true, ..PingRun::new(&self.target, count) };
        Ok(ping(&self.machine, &run, cancel)?)
    }

    fn passage(
        &self,
        overlay: &Overlay,
        report: &PingReport,
        (ended, since): (Duration, Instant),
        fault: Fault,
        cancel: &Cancel,
    ) -> Result<Passage> {
        let (recovery, silence) = match report.first_answer_after(ended) {
            Some(recovery) => (Some(recovery), report.longest_silence()),
            None => {
                let recovery = self.await_answer(since, cancel)?;
                (recovery, silence(report, ended, recovery))
            }
        };
        let (from, to) = devices(overlay, self.pair)?;
        let expected = (self.age + self.told.elapsed()).saturating_sub(ROUNDING);
        let stands = age(from, to, cancel)?.is_some_and(|age| age >= expected);
        if recovery.is_some() {
            // A tunnel that is gone is set up, so that the next fault meets one.
            from.resolve(to, cancel)?;
        }
        let replaceable = fault.may_replace_tunnels_of(self.pair);
        Ok(Passage { lost: report.lost(), silence, recovery, stands, replaceable })
    }

    /// Until one is answered; none if it takes too long.
    fn await_answer(&self, since: Instant, cancel: &Cancel) -> Result<Option<Duration>> {
        while since.elapsed() < RECOVERY {
            let run = PingRun { wait: Duration::from_secs(1), ..PingRun::new(&self.target, 1) };
            if ping(&self.machine, &run, cancel)?.received > 0 {
                return Ok(Some(since.elapsed()));
            }
        }
        Ok(None)
    }
}

/// The longest one where no ping of the run was answered after the fault's end, but another one was later.
fn silence(report: &PingReport, ended: Duration, recovery: Option<Duration>) -> Duration {
    let recovery = recovery.unwrap_or(RECOVERY);
    report.longest_silence_until(ended + recovery).max(recovery)
}

fn devices(overlay: &Overlay, (from, to): Pair) -> Result<(&Device, &Device)> {
    let device = |node: &str| {
        let device = overlay.devices().iter().find(|device| device.node() == node);
        device.with_context(|| format!("there is no device called `{node}` in the topology"))
    };
    Ok((device(from)?, device(to)?))
}

/// How long the tunnel from one to another has been there.
fn age(from: &Device, to: &Device, cancel: &Cancel) -> Result<Option<Duration>> {
    let peer = from.peer(to, cancel)?;
    Ok(peer.and_then(|peer| peer["since_s"].as_u64()).map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_that_came_after_the_pings_was_an_interruption() {
        let ms = Duration::from_millis;
        // A fault from 300 to 1,300 ms: what was sent until then is answered, and nothing more.
        let report = PingReport {
            address: None,
            sent: 265,
            received: 15,
            errors: 0,
            sequence: (1..=15).collect(),
            rtts_ms: vec![1.0; 15],
            sent_at: (0..15).map(|number| INTERVAL * number).collect(),
            summary: None,
        };
        let passage = |ended, recovery| Passage {
            lost: report.lost(),
            silence: silence(&report, ended, recovery),
            recovery,
            stands: true,
            replaceable: false,
        };
        let late = passage(ms(1_300), Some(ms(12_000)));
        assert_eq!(late.silence, ms(1_300 + 12_000 - 281));
        assert_eq!(late.to_string(), "250 lost, back after 12000 ms");
        let held = passage(ms(9_000), Some(ms(5)));
        assert_eq!(held.to_string(), "250 lost, back after 5 ms", "the pings were over before the fault");
        assert_eq!(passage(ms(1_300), None).to_string(), "250 lost, NOT BACK");
    }
}
