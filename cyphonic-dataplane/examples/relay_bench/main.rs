//! How fast one relay forwards on one processor: a single measurement, as a line of JSON. Needs root.
//!
//! ```text
//! relay_bench --mode xdp --bindings 1000 --payload 64 --seconds 1 --objects target/bpf
//! ```
//!
//! `cargo xtask bench relay` runs it for every mode in turn and makes the figures. The packets come from a
//! generator in the kernel and go to a sink in the kernel (`generator`), over a cable (`cable`); the relay
//! has a processor of its own where there are two. What it costs is the processor time of the threads that
//! work for it: the kernel's polling thread of its network interface, and its own if it has any. Packets per
//! second and processor are those that arrived, divided by that time.
//!
//! An overloaded relay may deliver less than one with a little less to do. So unless `--rate` says how many
//! packets to offer, rates are tried upwards from what an unpaced generator got through, and the best one is
//! measured.

#![expect(unsafe_code, reason = "namespaces are made by system calls, and aya copies values as bytes")]
#![expect(clippy::print_stdout, reason = "a measuring program's output")]

mod cable;
mod coturn;
mod generator;
mod namespace;
mod relays;
mod sample;
#[expect(dead_code, reason = "shared with the generator's program, which uses more of it")]
#[path = "../../../cyphonic-ebpf/src/bench/traffic.rs"]
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::XdpMode;
use cable::{Cable, cpu_time};
use clap::{Parser, ValueEnum};
use coturn::Coturn;
use generator::{Traffic, World};
use relays::{Kernel, Userspace};

/// Measures one relay.
#[derive(Debug, Parser)]
struct Args {
    /// What relays.
    #[arg(long)]
    mode: Mode,
    /// How many bindings the packets are spread over.
    #[arg(long, default_value_t = 1)]
    bindings: u32,
    /// How many packets of one binding follow each other, as senders' segmentation offload makes them.
    #[arg(long, default_value_t = 1)]
    train: u32,
    /// Bytes of UDP payload.
    #[arg(long, default_value_t = 64)]
    payload: u16,
    /// How long to measure.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Packets per second to offer; 0 is as many as the generator can make. Searched for without it.
    #[arg(long)]
    rate: Option<f64>,
    /// Where the eBPF objects are.
    #[arg(long, default_value = "target/bpf")]
    objects: PathBuf,
    /// Measure the program alone, without driver and cable.
    #[arg(long)]
    program: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Mode {
    Xdp,
    XdpGeneric,
    Userspace,
    Coturn,
    BareXdpForward,
}

/// Keeps the relay going.
enum Relay {
    Kernel(Box<Kernel>),
    Userspace(Userspace),
    Coturn(Coturn),
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.payload >= 22, "the generator makes packets of at least 22 bytes");
    let cable = Cable::new()?;
    let traffic = match args.mode {
        Mode::Coturn => Coturn::traffic(args.bindings, args.payload),
        _ => Traffic { train: args.train.max(1), ..Traffic::tunnel(args.bindings, args.payload) },
    };
    let mut relay = start(&cable, &args, traffic)?;
    let mut world = World::attach(&cable, &args.objects, traffic)?;
    if let Relay::Kernel(kernel) = &mut relay {
        // A binding's first packet is another matter: the routing table is asked for it.
        let cost = generator::program_cost(&cable, &args.objects, traffic, kernel.fd()?)?;
        if args.program {
            println!("{{\"program_ns\": {}}}", cost.as_nanos());
            return Ok(());
        }
    }
    ensure!(!args.program, "{:?} has no program", args.mode);
    let mut threads = vec![cable.relay_thread()?];
    match &relay {
        Relay::Kernel(_) => {}
        Relay::Userspace(relay) => threads.push(relay.thread()),
        Relay::Coturn(relay) => threads.extend(relay.threads()?),
    }
    for _ in 0..WARM_UPS {
        (world, _) = world.send(&cable, WARM_UP, Some(10_000.0))?;
        if world.sunk()?.packets > 0 {
            break;
        }
    }
    sample::check(&world.sample()?, args.bindings, matches!(relay, Relay::Kernel(_)))
        .context("what came out of the relay is not what went in")?;
    let mut bench = Bench { cable: &cable, world: Some(world), threads };
    let rate = match args.rate {
        Some(rate) => rate,
        None => bench.search()?,
    };
    let run = bench.run(Duration::from_secs_f64(args.seconds), rate)?;
    println!("{}", run.json(rate));
    Ok(())
}

fn start(cable: &Cable, args: &Args, traffic: Traffic) -> Result<Relay> {
    let kernel = |mode| Kernel::relay(cable, &args.objects, args.bindings, mode);
    Ok(match args.mode {
        Mode::Xdp => Relay::Kernel(Box::new(kernel(XdpMode::Driver)?)),
        Mode::XdpGeneric => Relay::Kernel(Box::new(kernel(XdpMode::Skb)?)),
        Mode::BareXdpForward => {
            Relay::Kernel(Box::new(Kernel::bare(cable, generator::load(&args.objects, traffic)?)?))
        }
        Mode::Userspace => Relay::Userspace(Userspace::start(cable, args.bindings)?),
        Mode::Coturn => Relay::Coturn(Coturn::start(cable, args.bindings)?),
    })
}

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(100);
/// The most of them: a relay in userspace learns a million bindings first, which takes it a second or two.
const WARM_UPS: u32 = 100;
/// For one step of the search.
const TRIAL: Duration = Duration::from_millis(200);
/// From one rate to the next.
const STEP: f64 = 1.15;

struct Bench<'a> {
    cable: &'a Cable,
    world: Option<World>,
    threads: Vec<u32>,
}

/// What a run found.
struct Run {
    offered: u64,
    delivered: u64,
    bytes: u64,
    others: u64,
    elapsed: Duration,
    relay_cpu: Duration,
}

impl Bench<'_> {
    /// The rate at which most gets through; 0 if that is what an unpaced generator offers.
    fn search(&mut self) -> Result<f64> {
        let unpaced = self.run(TRIAL, 0.0)?;
        let (mut best, mut rate) = (unpaced.rate(), 0.0);
        let mut offer = best * STEP;
        while offer < unpaced.offered as f64 / unpaced.elapsed.as_secs_f64() {
            let delivered = self.run(TRIAL, offer)?.rate();
            if delivered < best * 1.02 {
                break;
            }
            (best, rate) = (delivered, offer);
            offer *= STEP;
        }
        Ok(rate)
    }

    fn run(&mut self, length: Duration, rate: f64) -> Result<Run> {
        let world = self.world.take().context("an earlier run failed")?;
        let (before, cpu) = (world.sunk()?, cpu_time(&self.threads)?);
        let (world, sent) = world.send(self.cable, length, (rate > 0.0).then_some(rate))?;
        // What is under way arrives.
        std::thread::sleep(Duration::from_millis(20));
        let (after, relay_cpu) = (world.sunk()?, cpu_time(&self.threads)?.saturating_sub(cpu));
        self.world = Some(world);
        Ok(Run {
            offered: sent.offered,
            delivered: after.packets - before.packets,
            bytes: after.bytes - before.bytes,
            others: after.others - before.others,
            elapsed: sent.elapsed,
            relay_cpu,
        })
    }
}

impl Run {
    fn rate(&self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64()
    }

    fn json(&self, rate: f64) -> String {
        let Self { offered, delivered, bytes, others, elapsed, relay_cpu } = self;
        let (elapsed, cpu) = (elapsed.as_secs_f64(), relay_cpu.as_secs_f64());
        format!(
            "{{\"rate\": {rate}, \"offered\": {offered}, \"delivered\": {delivered}, \"bytes\": {bytes}, \
             \"others\": {others}, \"seconds\": {elapsed}, \"relay_cpu_s\": {cpu}}}"
        )
    }
}
