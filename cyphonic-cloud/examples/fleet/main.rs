//! What one `cyphonic-cloud` bears: a fleet of devices around a real one, measured once, as a line of JSON.
//! Needs a network of its own.
//!
//! ```text
//! fleet nodes --cloud target/release/cyphonic-cloud --dir DIR --address 192.0.2.2:443 --sources 198.18.0.1 --nodes 10000
//! fleet register --cloud target/release/cyphonic-cloud --dir DIR --address 192.0.2.2:443 --devices 1000000
//! ```
//!
//! `cargo xtask scale` runs it and makes the figures. The cloud is the program, founded in `DIR` as by
//! `init`, in a process of its own: AS and NMS, with a relay that is elsewhere. Devices get their
//! certificates from the overlay's authority and their place in the register without tokens, many at once.
//! Their connections are real: the transport and the messages of agents, from many addresses, since the
//! services limit what comes from one.

#![expect(clippy::print_stdout, reason = "a measuring program's output")]

mod cloud;
mod load;
mod node;
mod overlay;
mod source;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser};
use serde::Serialize;

use crate::cloud::Cloud;
use crate::node::Node;
use crate::overlay::Overlay;
use crate::source::Source;

/// Nodes of one address. The NMS lets 64 of them shake hands at the same time.
const NODES_OF_SOURCE: usize = 256;
/// How many connect at once: more than the processors of this machine can be busy with.
const CONNECTING: usize = 32;

/// Measures one thing.
#[derive(Debug, Parser)]
enum Command {
    /// Nodes that are connected to the NMS, and set-ups between them.
    Nodes(NodesArgs),
    /// A register with so many devices, and a cloud that starts with it.
    Register(RegisterArgs),
}

/// Where the cloud is.
#[derive(Debug, Args)]
struct Place {
    /// The program.
    #[arg(long)]
    cloud: PathBuf,
    /// A folder that does not exist.
    #[arg(long)]
    dir: PathBuf,
    /// Where it listens.
    #[arg(long)]
    address: SocketAddr,
}

#[derive(Debug, Args)]
struct NodesArgs {
    #[command(flatten)]
    place: Place,
    /// How many.
    #[arg(long)]
    nodes: usize,
    /// The first of their addresses, all of which this host has.
    #[arg(long)]
    sources: Ipv4Addr,
    /// Before anything is measured that lasts: what starting and connecting took is given back by then.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    settle: Duration,
    /// How long nobody asks for anything. Keep-alives come every 14 s.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    idle: Duration,
    /// How long they ask for each other.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    load: Duration,
    /// How many ask at the same time, each for the next as soon as it is answered.
    #[arg(long, default_value_t = 32)]
    asking: usize,
}

#[derive(Debug, Args)]
struct RegisterArgs {
    #[command(flatten)]
    place: Place,
    /// How many.
    #[arg(long)]
    devices: usize,
    /// How often the cloud is started.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Before its memory is looked at.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "3s")]
    settle: Duration,
}

/// What nodes cost. Sizes are in bytes, times in seconds.
#[derive(Debug, Serialize)]
struct Nodes {
    nodes: usize,
    /// Of the cloud's process: without nodes, with them, and after the load.
    resident: [u64; 3],
    connecting: Spent,
    idle: Spent,
    load: Spent,
    setups: usize,
    /// Of each.
    setup_ms: Vec<f64>,
}

/// What a register costs.
#[derive(Debug, Serialize)]
struct Registered {
    devices: usize,
    bytes: u64,
    /// Of each start.
    start_s: Vec<f64>,
    resident: Vec<u64>,
}

/// A span of time.
#[derive(Debug, Serialize)]
struct Spent {
    seconds: f64,
    /// Of this, the time that processors worked for the cloud.
    cloud_cpu: f64,
}

impl Spent {
    /// What `work` takes.
    async fn by<T>(cloud: &Cloud, work: impl Future<Output = Result<T>>) -> Result<(Self, T)> {
        let (start, before) = (Instant::now(), cloud.cpu_time()?);
        let done = work.await?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cloud.cpu_time()?.saturating_sub(before));
        Ok((Self { seconds, cloud_cpu: cpu.as_secs_f64() }, done))
    }
}

fn main() -> Result<()> {
    let line = match Command::parse() {
        Command::Nodes(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.context("cannot start the asynchronous runtime")?;
            serde_json::to_string(&runtime.block_on(nodes(&args))?)
        }
        Command::Register(args) => serde_json::to_string(&register(&args)?),
    };
    println!("{}", line?);
    Ok(())
}

async fn nodes(args: &NodesArgs) -> Result<Nodes> {
    let overlay = Arc::new(Overlay::found(&args.place.dir, args.place.address)?);
    let devices = overlay.add_devices_with_keys(args.nodes)?;
    let mut cloud = Cloud::start(&args.place.cloud, &overlay)?;
    tokio::time::sleep(args.settle).await;
    let before = cloud.resident()?;

    let first = u32::from(args.sources);
    let last = first + u32::try_from(args.nodes.div_ceil(NODES_OF_SOURCE)).context("too many nodes")?;
    let sources = (first..last).map(|ip| Ok(Arc::new(Source::open(ip.into())?)));
    let sources: Vec<Arc<Source>> = sources.collect::<Result<_>>()?;
    let devices = devices.into_iter().zip(sources.iter().cloned().cycle()).collect();
    let (connecting, nodes) = Spent::by(&cloud, Node::connect_all(&overlay, devices, CONNECTING)).await?;
    let nodes = Arc::new(nodes);

    tokio::time::sleep(args.settle).await;
    let silence = async {
        tokio::time::sleep(args.idle).await;
        Ok(())
    };
    let (idle, ()) = Spent::by(&cloud, silence).await?;
    let connected = cloud.resident()?;
    let (load, asked) = Spent::by(&cloud, load::ask(&nodes, args.asking, args.load)).await?;
    load::settle(&nodes, asked.begun).await?;
    cloud.check_alive()?;
    let resident = [before, connected, cloud.resident()?];
    let lost = nodes.iter().filter_map(Node::lost).collect::<Vec<_>>();
    ensure!(
        lost.is_empty(),
        "{} of {} nodes are not connected any more: {}",
        lost.len(),
        nodes.len(),
        lost[0]
    );
    Ok(Nodes {
        nodes: nodes.len(),
        resident,
        connecting,
        idle,
        load,
        setups: asked.begun,
        setup_ms: asked.waited_ms,
    })
}

fn register(args: &RegisterArgs) -> Result<Registered> {
    let overlay = Overlay::found(&args.place.dir, args.place.address)?;
    overlay.add_devices(args.devices)?;
    let (mut start_s, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..args.starts {
        let start = Instant::now();
        let mut cloud = Cloud::start(&args.place.cloud, &overlay)?;
        start_s.push(start.elapsed().as_secs_f64());
        std::thread::sleep(args.settle);
        cloud.check_alive()?;
        resident.push(cloud.resident()?);
    }
    Ok(Registered { devices: args.devices, bytes: overlay.register_bytes()?, start_s, resident })
}
