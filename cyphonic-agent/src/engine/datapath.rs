//! The packet path: the virtual interface, the UDP port's sockets, the eBPF programs and the rings, chosen and put
//! together, with a reason for each choice that `status` can show.
//!
//! It is built in two steps, because the port must be there before QUIC is, and the ring after it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyphonic_common::InterfaceConfig;
use cyphonic_dataplane::bpf::{EgressClassifier, KernelTables, Options, Programs};
use cyphonic_dataplane::ring::{EncapRing, EventSink, HoldLimits, OffloadConfig, OffloadRing};
use cyphonic_dataplane::shard::ShardedRing;
use cyphonic_dataplane::tun::{TunDevice, TunOffloads};
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};
use cyphonic_proto::address::Prefix;

use super::report::{Kernel, KernelFigures};
use super::start::failed;
use crate::config::{Config, RingChoice, Workers};
use crate::control::report::{ClassifierReport, RingReport};
use crate::daemon::DaemonError;
use crate::state::StateDir;

/// How often the programs' messages are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

/// The first step: everything that stands below the rings.
pub(super) struct Ground {
    queues: Vec<TunDevice>,
    ports: Vec<Arc<UdpPort>>,
    programs: Result<Programs, String>,
    ring_why: String,
    workers_why: String,
}

/// The second step: all of it.
pub(super) struct DataPath {
    pub(super) ring: Arc<dyn EncapRing>,
    pub(super) ring_report: RingReport,
    pub(super) kernel: Arc<dyn Kernel>,
    /// Fetches the programs' messages for as long as it is polled.
    pub(super) kernel_log: Option<Arc<Classifier>>,
}

/// What a ring is told.
pub(super) struct Wiring {
    pub(super) sink: Arc<dyn SignallingSink>,
    pub(super) own: Ipv6Addr,
    pub(super) prefix: Prefix,
    pub(super) events: EventSink,
}

impl Ground {
    /// Loads the programs, makes the interface and opens the port.
    ///
    /// # Errors
    /// Says what could not be had. That there is no eBPF is no error.
    pub(super) fn lay(
        config: &Config,
        state: &StateDir,
        overlay: InterfaceConfig,
        mtu: u16,
    ) -> Result<Self, DaemonError> {
        let ring_why = choose_ring(config.ring)?;
        let options = Options { kind: None, log_drops: config.log_drops };
        let mut programs = Programs::load(overlay, options).map_err(|error| error.to_string());
        let (wanted, why) = wanted_workers(config.workers, programs.as_ref().err());
        let queues = make_queues(config, mtu, wanted)?;
        let ports = open_port(config, state, wanted)?;
        let mut ground = Self { queues, ports, programs: Err(String::new()), ring_why, workers_why: why };
        if wanted > 1
            && let Ok(loaded) = &mut programs
            && let Err(error) = loaded.steer(&ground.queues, &ground.ports)
        {
            tracing::warn!(%error, "one worker carries all packets");
            // The interface goes with its last queue, the port with its last socket.
            (ground.queues, ground.ports) = (Vec::new(), Vec::new());
            ground.queues = make_queues(config, mtu, 1)?;
            ground.ports = open_port(config, state, 1)?;
            ground.workers_why = error.to_string();
        }
        ground.programs = programs;
        Ok(ground)
    }

    /// The socket that signalling is sent from.
    pub(super) fn port(&self) -> Result<Arc<UdpPort>, DaemonError> {
        self.ports.first().cloned().ok_or_else(|| failed("the UDP port", "it has no socket"))
    }

    /// Attaches the programs and starts the rings.
    ///
    /// # Errors
    /// Says which ring could not start.
    pub(super) fn build(self, interface: &str, wiring: &Wiring) -> Result<DataPath, DaemonError> {
        let classifier = self.programs.and_then(|programs| {
            let tables = programs.tables();
            programs.attach(interface).map(|attached| (attached, tables)).map_err(|error| error.to_string())
        });
        let tables = classifier.as_ref().ok().map(|(_, tables)| Arc::clone(tables));
        let offloads = self.queues.first().map(TunDevice::offloads);
        let workers = self.queues.len();
        let ring = rings(self.queues, &self.ports, tables, wiring)?;
        let ring_report = RingReport {
            kind: ring.kind().to_string(),
            why: format!("{}; {}", self.ring_why, offloads_found(offloads)),
            workers,
            workers_why: self.workers_why,
        };
        let (kernel, kernel_log): (Arc<dyn Kernel>, _) = match classifier {
            Ok((attached, _)) => {
                let classifier = Arc::new(Classifier(Mutex::new(attached)));
                (Arc::<Classifier>::clone(&classifier), Some(classifier))
            }
            Err(why) => {
                tracing::warn!(%why, "no eBPF classifier: the tunnel works without it, packets are checked later");
                (Arc::new(NoClassifier(why)), None)
            }
        };
        Ok(DataPath { ring: Arc::new(ring), ring_report, kernel, kernel_log })
    }
}

/// One ring a worker, and what makes them look like one.
fn rings(
    queues: Vec<TunDevice>,
    ports: &[Arc<UdpPort>],
    tables: Option<Arc<KernelTables>>,
    wiring: &Wiring,
) -> Result<ShardedRing, DaemonError> {
    let start = |(tun, port): (TunDevice, &Arc<UdpPort>)| {
        let ring = OffloadRing::start(OffloadConfig {
            tun,
            port: Arc::clone(port),
            sink: Arc::clone(&wiring.sink),
            own: wiring.own,
            prefix: (wiring.prefix.address(), Prefix::LENGTH),
            events: Arc::clone(&wiring.events),
            hold: HoldLimits::default(),
        });
        ring.map(|ring| Box::new(ring) as Box<dyn EncapRing>)
    };
    let group = ports.first().and_then(|port| port.group()).cloned();
    let rings = queues.into_iter().zip(ports).map(start).collect::<Result<_, _>>();
    rings
        .and_then(|rings| ShardedRing::new(rings, group, tables))
        .map_err(|error| failed("the encapsulation ring", error))
}

/// Why the ring that will be used is the one.
fn choose_ring(choice: RingChoice) -> Result<String, DaemonError> {
    match choice {
        RingChoice::Auto => {
            Ok("the fastest for bulk transfers where no network card takes frames without copying".into())
        }
        RingChoice::Offload => Ok("forced by the configuration".into()),
        RingChoice::Xdp => {
            Err(failed("the encapsulation ring", "this version has no ring `xdp`: use auto or offload"))
        }
    }
}

fn wanted_workers(configured: Workers, no_programs: Option<&String>) -> (usize, String) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = configured.on(cpus);
    match (configured, no_programs) {
        (_, Some(_)) if wanted > 1 => (1, format!("{wanted} need eBPF to tell packets apart")),
        (Workers::Auto, _) => (wanted, format!("for {cpus} CPUs")),
        (Workers::Number(_), _) => (wanted, "as configured".to_owned()),
    }
}

fn make_queues(config: &Config, mtu: u16, workers: usize) -> Result<Vec<TunDevice>, DaemonError> {
    TunDevice::create_queues(&config.interface, mtu, workers).map_err(|error| failed("the interface", error))
}

/// The configured port, else that of earlier starts, so that NAT mappings and firewall rules keep their meaning.
fn open_port(config: &Config, state: &StateDir, workers: usize) -> Result<Vec<Arc<UdpPort>>, DaemonError> {
    let remembered = (config.port == 0).then(|| state.port()).flatten();
    let open = |port| UdpPort::bind_group(port, workers);
    let ports = match remembered.map(open) {
        Some(Ok(ports)) => ports,
        Some(Err(error)) => {
            tracing::warn!(%error, "the UDP port of earlier starts is taken: using another");
            open(0).map_err(|error| failed("the UDP port", error))?
        }
        None => open(config.port).map_err(|error| failed("the UDP port", error))?,
    };
    if let Some(port) = ports.first() {
        state.save_port(port.local_port())?;
    }
    Ok(ports.into_iter().map(Arc::new).collect())
}

fn offloads_found(offloads: Option<TunOffloads>) -> &'static str {
    match offloads {
        Some(TunOffloads { tcp: true, udp: true }) => "TCP and UDP super-packets",
        Some(TunOffloads { tcp: true, udp: false }) => "TCP super-packets (UDP ones need Linux 6.2)",
        Some(TunOffloads { tcp: false, .. }) | None => {
            "no super-packets: the kernel refuses them on this interface"
        }
    }
}

/// The attached programs.
pub(super) struct Classifier(Mutex<EgressClassifier>);

impl Classifier {
    /// Brings what the programs say into the log, until it is dropped.
    pub(super) async fn follow_log(self: Arc<Self>) {
        let mut pace = tokio::time::interval(LOG_INTERVAL);
        loop {
            pace.tick().await;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).flush_log();
        }
    }
}

impl Kernel for Classifier {
    fn figures(&self) -> KernelFigures {
        let classifier = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = ClassifierReport {
            kind: classifier.attach_kind().to_string(),
            why: "the best this kernel offers".to_owned(),
            ..ClassifierReport::default()
        };
        match classifier.counters() {
            Ok(counters) => KernelFigures {
                drops: counters.drops().map(|(reason, n)| (reason.name().to_owned(), n.packets)).collect(),
                report: ClassifierReport {
                    unknown: counters.unknown.packets,
                    dead: counters.dead.packets,
                    ..report
                },
            },
            Err(error) => {
                tracing::debug!(%error, "the classifier's counters cannot be read");
                KernelFigures { report, drops: BTreeMap::new() }
            }
        }
    }
}

/// Where there are none, and why.
struct NoClassifier(String);

impl Kernel for NoClassifier {
    fn figures(&self) -> KernelFigures {
        let report =
            ClassifierReport { kind: "none".into(), why: self.0.clone(), ..ClassifierReport::default() };
        KernelFigures { report, drops: BTreeMap::new() }
    }
}
