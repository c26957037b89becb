//! The packet path: the virtual interface, the UDP port's sockets, the eBPF programs and the rings, chosen
//! and put together, with a reason for each choice that `status` can show.
//!
//! It is built in two steps, because the port must be there before QUIC is, and the ring after it.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use cyphonic_common::InterfaceConfig;
use cyphonic_common::limits::MAX_INNER_MTU;
use cyphonic_dataplane::bpf::{AttachKind, BpfError, EgressClassifier, Options, Programs};
use cyphonic_dataplane::netdevice;
use cyphonic_dataplane::ring::{
    AwakeRequest, EarlyPackets, EncapRing, EventSink, HoldLimits, OffloadRing, RingConfig, RingError,
    Underlay, VethPair, XdpQueue, XdpRing,
};
use cyphonic_dataplane::shard::ShardedRing;
use cyphonic_dataplane::tun::{TunDevice, TunOffloads};
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};
use cyphonic_proto::address::Prefix;
use cyphonic_proto::node::first_inner;

use super::cards::{Cards, Probed, worth_xdp};
use super::guards::Guards;
use super::report::{Kernel, KernelFigures};
use super::start::failed;
use crate::config::{self, Config, RingChoice, UnderlayChoice, Workers};
use crate::control::report::{ClassifierReport, RingReport};
use crate::daemon::DaemonError;
use crate::netlink::{Netlink, far_end};
use crate::state::StateDir;

/// Measured by `cargo xtask bench`: what super-packets save in bulk transfers is more than AF_XDP saves while
/// it copies (docs/decisions/0012-underlay-by-af-xdp.md).
const AUTO_WHY: &str = "it carries bulk transfers as super-packets";
/// Who asks a controller waits for that one.
const BESIDE: &str = "network cards' queues are the host's own agent's";
/// What needs no other reason.
const FORCED: &str = "forced by the configuration";

/// The ring `xdp` has packets of up to this size in its memory, unless told otherwise: what paths of 1,500
/// bytes carry fits, and a frame is 2 KiB.
const XDP_INNER_MTU: u16 = 1_500;

/// How often the programs' messages are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

/// The virtual interface, as the ring takes it.
enum Device {
    Tun(Vec<TunDevice>),
    Veth(Box<XdpQueue>),
}

/// The first step: everything that stands below the rings.
pub(super) struct Ground {
    device: Device,
    ports: Vec<Arc<UdpPort>>,
    programs: Result<Programs, String>,
    underlay: UnderlayChoice,
    keep_awake: config::KeepAwake,
    /// The largest inner packet that the interface and the ring take.
    pub(super) most_inner: u16,
    ring_why: String,
    workers_why: String,
}

/// The second step: all of it.
pub(super) struct DataPath {
    pub(super) ring: Arc<dyn EncapRing>,
    pub(super) ring_report: RingReport,
    pub(super) kernel: Arc<dyn Kernel>,
    /// The network cards, to be told of as they come and go.
    pub(super) cards: Cards,
    /// What keeps the overlay's addresses out elsewhere, to be told likewise.
    pub(super) guards: Guards,
    /// Fetches the programs' messages for as long as it is polled.
    pub(super) kernel_log: Option<Arc<Classifier>>,
}

/// What a ring is told.
pub(super) struct Wiring {
    pub(super) sink: Arc<dyn SignallingSink>,
    pub(super) own: Ipv6Addr,
    pub(super) prefix: Prefix,
    pub(super) events: EventSink,
    pub(super) early: Arc<EarlyPackets>,
}

impl Ground {
    /// Loads the programs, makes the interface and opens the port.
    ///
    /// # Errors
    /// Says what could not be had. That there is no eBPF is an error only for a ring that cannot be without.
    pub(super) async fn lay(
        config: &Config,
        state: &StateDir,
        netlink: &Netlink,
        overlay: InterfaceConfig,
        prefix: Prefix,
    ) -> Result<Self, DaemonError> {
        let options = Options { kind: None, log_drops: config.log_drops };
        let load = || Programs::load(overlay, options).map_err(|error| error.to_string());
        // Of a daemon that was killed, perhaps under another name or with another ring: it has this device's
        // address, and its routes are more specific than those of the new interface.
        if netlink.remove_pairs_of(state.id()).await? {
            tracing::info!("a virtual interface that a daemon left behind was removed");
        }
        match config.ring {
            RingChoice::Xdp => Self::lay_veth(config, state, netlink, load(), FORCED).await,
            RingChoice::Offload => Self::lay_tun(config, state, load(), FORCED),
            // A card's AF_XDP queues are one program's: the host's own agent's.
            RingChoice::Auto if config.stands_for.is_some() => Self::lay_tun(config, state, load(), BESIDE),
            RingChoice::Auto => {
                let programs = load();
                let present = netlink.cards(prefix, &config.interface).await?;
                let cards: Vec<_> = present.usable.iter().map(|card| Probed::of(&card.name)).collect();
                let why_not = match worth_xdp(&cards, programs.as_ref().err()) {
                    Err(why_not) => return Self::lay_tun(config, state, programs, &chosen(&why_not)),
                    Ok(why) => match Self::lay_veth(config, state, netlink, programs, &why).await {
                        Ok(ground) => return Ok(ground),
                        Err(error) => error.to_string(),
                    },
                };
                tracing::warn!(why_not, "the ring `xdp` would be worth it here, but does not start");
                netlink.remove_pairs_of(state.id()).await?;
                Self::lay_tun(config, state, load(), &chosen(&why_not))
            }
        }
    }

    fn lay_tun(
        config: &Config,
        state: &StateDir,
        mut programs: Result<Programs, String>,
        why: &str,
    ) -> Result<Self, DaemonError> {
        let most_inner = config.mtu.or(MAX_INNER_MTU as u16);
        let mtu = first_inner(most_inner);
        let (wanted, mut workers_why) = wanted_workers(config.workers, programs.as_ref().err());
        let mut queues = make_queues(config, mtu, wanted)?;
        let mut ports = open_port(config, state, wanted)?;
        if wanted > 1
            && let Ok(loaded) = &mut programs
            && let Err(error) = loaded.steer(&queues, &ports)
        {
            tracing::warn!(%error, "one worker carries all packets");
            workers_why = error.to_string();
            // The interface goes with its last queue, the port with its last socket.
            drop((queues, ports));
            queues = make_queues(config, mtu, 1)?;
            ports = open_port(config, state, 1)?;
        }
        let found = offloads_found(queues.first().map(TunDevice::offloads));
        let ring_why = format!("{why}; {found}");
        Ok(Self {
            device: Device::Tun(queues),
            ports,
            programs,
            underlay: config.underlay,
            keep_awake: config.keep_awake,
            most_inner,
            ring_why,
            workers_why,
        })
    }

    async fn lay_veth(
        config: &Config,
        state: &StateDir,
        netlink: &Netlink,
        programs: Result<Programs, String>,
        why: &str,
    ) -> Result<Self, DaemonError> {
        let no_ring =
            |error: String| failed("the ring `xdp`", format!("{error}; `ring: auto` works without"));
        let mut programs = programs.map_err(no_ring)?;
        let most_inner = config.mtu.or(XDP_INNER_MTU);
        let ports = open_port(config, state, 1)?;
        let (near, far) = (config.interface.as_str(), far_end(&config.interface));
        netlink.create_pair(near, state.id(), u32::from(most_inner)).await?;
        netdevice::complete_checksums(near)
            .map_err(|error| no_ring(format!("checksum offload stays on: {error}")))?;
        programs.attach_virtual(&far).map_err(|error| no_ring(error.to_string()))?;
        let queue = XdpQueue::open(VethPair { near, far: &far }, 0, most_inner);
        let queue = queue.map_err(|error| no_ring(error.to_string()))?;
        programs.set_virtual_socket(0, queue.socket()).map_err(|error| no_ring(error.to_string()))?;
        netlink.bring_up_far_end(near).await?;
        let copies = if queue.is_zero_copy() { "without copying" } else { "copying: veth has no other way" };
        Ok(Self {
            device: Device::Veth(Box::new(queue)),
            ports,
            programs: Ok(programs),
            underlay: config.underlay,
            keep_awake: config.keep_awake,
            most_inner,
            ring_why: format!(
                "{why}; on the virtual interface AF_XDP {copies}, packets of at most {most_inner} bytes"
            ),
            workers_why: "this ring has one".to_owned(),
        })
    }

    /// The socket that signalling is sent from.
    pub(super) fn port(&self) -> Result<Arc<UdpPort>, DaemonError> {
        self.ports.first().cloned().ok_or_else(|| failed("the UDP port", "it has no socket"))
    }

    /// The least MTU that the interface must have for what peers send: a TUN device takes packets of any size
    /// from its ring, an end of a veth pair none above its MTU.
    pub(super) fn least_mtu(&self) -> u16 {
        match self.device {
            Device::Tun(_) => first_inner(self.most_inner),
            Device::Veth(_) => self.most_inner,
        }
    }

    /// Attaches the programs and starts the rings.
    ///
    /// # Errors
    /// Says which ring could not start.
    pub(super) fn build(self, interface: &str, wiring: &Wiring) -> Result<DataPath, DaemonError> {
        let on_veth = matches!(self.device, Device::Veth(_));
        let classifier = self.programs.and_then(|programs| {
            let tables = programs.tables();
            let attached =
                if on_veth { programs.attach_near_end(interface) } else { programs.attach(interface) };
            attached.map(|attached| (attached, tables)).map_err(|error| error.to_string())
        });
        let tables = classifier.as_ref().ok().map(|(_, tables)| Arc::clone(tables));
        let group = self.ports.first().and_then(|port| port.group()).cloned();
        let (wishes, awake) = wishes(self.keep_awake, self.ports.len());
        let rings = match self.device {
            Device::Tun(queues) => {
                offload_rings(queues, &self.ports, wishes, wiring).map(|rings| (rings, None))
            }
            Device::Veth(queue) => xdp_ring(*queue, &self.ports, wishes, wiring)
                .map(|ring| (vec![Box::new(ring.0) as Box<dyn EncapRing>], Some(ring.1))),
        };
        let not_started = |error| failed("the encapsulation ring", error);
        let (rings, underlay) = rings.map_err(not_started)?;
        let ring = ShardedRing::new(rings, group, tables).map_err(not_started)?;
        let ring_report = RingReport {
            kind: ring.kind().to_string(),
            why: self.ring_why,
            workers: ring.workers(),
            workers_why: self.workers_why,
            awake,
            cards: Vec::new(),
        };
        tracing::info!(ring = ring_report.kind, why = ring_report.why, "the encapsulation ring is chosen");
        let (kernel, kernel_log): (Arc<dyn Kernel>, _) = match classifier {
            Ok((attached, _)) => {
                let classifier = Arc::new(Classifier::new(attached));
                (Arc::<Classifier>::clone(&classifier), Some(classifier))
            }
            Err(why) => {
                tracing::warn!(%why, "no eBPF classifier: the tunnel works without it, packets are checked later");
                (Arc::new(NoClassifier(why)), None)
            }
        };
        let cards = Cards::new(self.underlay, underlay.zip(kernel_log.clone()));
        let guards = Guards::new(kernel_log.clone());
        Ok(DataPath { ring: Arc::new(ring), ring_report, kernel, cards, guards, kernel_log })
    }
}

fn ring_config(port: &Arc<UdpPort>, awake: Option<AwakeRequest>, wiring: &Wiring) -> RingConfig {
    RingConfig {
        port: Arc::clone(port),
        sink: Arc::clone(&wiring.sink),
        own: wiring.own,
        prefix: (wiring.prefix.address(), Prefix::LENGTH),
        events: Arc::clone(&wiring.events),
        hold: HoldLimits::default(),
        early: Arc::clone(&wiring.early),
        awake,
    }
}

fn offload_rings(
    queues: Vec<TunDevice>,
    ports: &[Arc<UdpPort>],
    wishes: Vec<AwakeRequest>,
    wiring: &Wiring,
) -> Result<Vec<Box<dyn EncapRing>>, RingError> {
    let mut wishes = wishes.into_iter();
    let start = |(tun, port)| {
        let ring = OffloadRing::start(tun, ring_config(port, wishes.next(), wiring));
        ring.map(|ring| Box::new(ring) as Box<dyn EncapRing>)
    };
    queues.into_iter().zip(ports).map(start).collect()
}

fn xdp_ring(
    queue: XdpQueue,
    ports: &[Arc<UdpPort>],
    wishes: Vec<AwakeRequest>,
    wiring: &Wiring,
) -> Result<(XdpRing, Underlay), RingError> {
    let port = ports.first().ok_or(RingError::Stopped("the port has no socket"))?;
    let ring = XdpRing::start(queue, ring_config(port, wishes.into_iter().next(), wiring))?;
    let underlay = ring.underlay();
    Ok((ring, underlay))
}

/// Each ring's wish that processors stay awake, and what `status` says of it: a node without it works, so it
/// starts.
fn wishes(keep_awake: config::KeepAwake, rings: usize) -> (Vec<AwakeRequest>, String) {
    let config::KeepAwake::For(window) = keep_awake else { return (Vec::new(), String::new()) };
    let wishes: io::Result<_> = (0..rings).map(|_| AwakeRequest::after_packets(window)).collect();
    // What may not be asked for is told first: that can be mended.
    match wishes.and_then(|wishes| AwakeRequest::would_be_heeded().map(|()| wishes)) {
        Ok(wishes) => (wishes, format!("kept awake for {keep_awake} after a packet")),
        Err(error) => {
            tracing::warn!(%error, "processors are not kept awake");
            (Vec::new(), format!("not kept awake: {error}"))
        }
    }
}

/// Why `auto` is the ring for bulk transfers.
fn chosen(why_not_xdp: &str) -> String {
    format!("{AUTO_WHY}; not xdp: {why_not_xdp}")
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

/// The configured port, else that of earlier starts, so that NAT mappings and firewall rules keep their
/// meaning.
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
    if let Some(port) = ports.first()
        && let Err(error) = state.save_port(port.local_port())
    {
        tracing::warn!(%error, "the UDP port is not remembered: the next start may have another one");
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

/// The attached programs. They are held for as long as a network card's driver is waited for, which the
/// runtime's threads do not wait for.
pub(super) struct Classifier {
    attached: Mutex<EgressClassifier>,
    /// Without what was counted.
    report: ClassifierReport,
    last: LastFigures,
}

impl Classifier {
    fn new(attached: EgressClassifier) -> Self {
        let report = ClassifierReport {
            kind: attached.attach_kind().to_string(),
            why: attached_why(attached.attach_kind()).to_owned(),
            ..ClassifierReport::default()
        };
        Self { attached: Mutex::new(attached), report, last: LastFigures::default() }
    }

    /// Whole after every call, so a panic elsewhere does not spoil it. It may wait for drivers.
    pub(super) fn lock(&self) -> MutexGuard<'_, EgressClassifier> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what the programs say into the log, until it is dropped.
    pub(super) async fn follow_log(self: Arc<Self>) {
        let mut pace = tokio::time::interval(LOG_INTERVAL);
        loop {
            pace.tick().await;
            if let Some(mut attached) = try_lock(&self.attached) {
                attached.flush_log();
            }
        }
    }
}

impl Kernel for Classifier {
    fn figures(&self) -> KernelFigures {
        self.last.read(&self.attached, &self.report, |attached| {
            let counters = attached.counters()?;
            Ok(KernelFigures {
                drops: counters.drops().map(|(reason, n)| (reason.name().to_owned(), n.packets)).collect(),
                report: ClassifierReport {
                    unknown: counters.unknown.packets,
                    dead: counters.dead.packets,
                    ..self.report.clone()
                },
            })
        })
    }
}

/// None if somebody has it, of whom nobody knows for how long.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// What was read last: counters that fall to nothing for a moment count everything again for who sums them
/// up.
#[derive(Default)]
struct LastFigures(Mutex<Option<KernelFigures>>);

impl LastFigures {
    /// Reads those of the programs if they can be had and read; where none were read yet, there is only their
    /// report.
    fn read<T>(
        &self,
        attached: &Mutex<T>,
        report: &ClassifierReport,
        read: impl FnOnce(&T) -> Result<KernelFigures, BpfError>,
    ) -> KernelFigures {
        let figures = try_lock(attached).and_then(|attached| {
            let figures = read(&attached);
            figures
                .inspect_err(|error| tracing::debug!(%error, "the classifier's counters cannot be read"))
                .ok()
        });
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if figures.is_some() {
            *last = figures;
        }
        let none = || KernelFigures { report: report.clone(), drops: BTreeMap::new() };
        last.clone().unwrap_or_else(none)
    }
}

/// tcx is tried first: anything else is what this kernel has in its place.
fn attached_why(kind: AttachKind) -> &'static str {
    match kind {
        AttachKind::Tcx => "the best this kernel offers",
        AttachKind::Clsact => "the best this kernel offers: tcx needs Linux 6.6",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_cannot_be_read_stay_as_they_were_and_nobody_waits_for_who_has_the_programs() {
        let (programs, last) = (Arc::new(Mutex::new(())), Arc::new(LastFigures::default()));
        let denied =
            |n| KernelFigures { drops: [("denied".to_owned(), n)].into(), ..KernelFigures::default() };
        let read = {
            let (programs, last) = (Arc::clone(&programs), Arc::clone(&last));
            move |read: Option<u64>| {
                let read = |(): &()| read.map(denied).ok_or(BpfError::NotBuilt);
                last.read(&programs, &ClassifierReport::default(), read).drops.get("denied").copied()
            }
        };
        assert_eq!([read(None), read(Some(7)), read(None)], [None, Some(7), Some(7)]);
        let _driver_is_waited_for = programs.lock();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(read(Some(8))));
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(Some(7)));
    }

    #[test]
    fn a_port_that_cannot_be_remembered_is_used_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        // Nothing can be put in its place, as on a full disk.
        std::fs::create_dir(dir.path().join("port")).unwrap();
        assert!(state.save_port(1).is_err());
        let ports = open_port(&Config::default(), &state, 1).unwrap();
        assert_ne!(ports[0].local_port(), 0);
    }
}
