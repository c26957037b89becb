//! What is measured: something that relays at the relay's end of the cable.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use aya::maps::Array;
use aya::programs::{ProgramFd, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use cyphonic_common::ConnectionId;
use cyphonic_common::relay::map::name;
use cyphonic_common::relay::place::pairs_for;
use cyphonic_common::relay::{Leg, RelayConfig, RelayRate, RelayState};
use cyphonic_dataplane::relay::xdp::legs::Legs;
use cyphonic_dataplane::relay::xdp::watch::Watcher;
use cyphonic_dataplane::relay::{RelayMap, UserspaceRelay};
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};

use crate::cable::{Cable, END_PORT, FIRST_RECEIVER, PORT, RELAY, pin, relay_cpu};
use crate::generator::program;
use crate::traffic::{FIRST_SENDER, real_cid, virtual_cid};

/// The relay's program, attached.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    program: &'static str,
    /// As a relay has them.
    _userspace: Option<(Legs, Watcher)>,
}

/// A value as aya copies it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value<T>(T);

// SAFETY: it is `repr(C)`, consists of integers and byte arrays, and has no padding (asserted beside its
// definition).
unsafe impl Pod for Value<RelayConfig> {}

impl Kernel {
    /// The relay's own program with so many legs.
    pub(crate) fn relay(cable: &Cable, objects: &Path, bindings: u32, mode: XdpMode) -> Result<Self> {
        let mut ebpf = load(&objects.join("relay"), bindings)?;
        let config = RelayConfig::new(PORT, matches!(mode, XdpMode::Skb)).with_pairs(pairs_for(bindings));
        let mut configs: Array<_, Value<RelayConfig>> =
            Array::try_from(ebpf.map_mut(name::CONFIG).context("the relay's configuration")?)?;
        configs.set(0, Value(config), 0)?;
        let mut legs = Legs::take(&mut ebpf)?;
        for number in 0..bindings {
            let cid = ConnectionId::from_bytes(virtual_cid(number));
            legs.insert(cid, &binding(number), RelayState::default())?;
        }
        // The program looks routes up in the name of the loopback interface.
        cable.relay.sh("sysctl -qw net.ipv4.conf.lo.forwarding=1")?;
        Self::attach(cable, ebpf, name::PROGRAM, mode, Some(legs))
    }

    /// The forwarder that looks nothing up.
    pub(crate) fn bare(cable: &Cable, ebpf: Ebpf) -> Result<Self> {
        Self::attach(cable, ebpf, "bench_forward", XdpMode::Driver, None)
    }

    fn attach(
        cable: &Cable,
        mut ebpf: Ebpf,
        called: &'static str,
        mode: XdpMode,
        legs: Option<Legs>,
    ) -> Result<Self> {
        let device = cable.relay_device.clone();
        let (ebpf, userspace) = cable.relay.run(move || {
            let program = program(&mut ebpf, called)?;
            program.load()?;
            program.attach(&device, mode)?;
            let userspace = legs.map(|legs| anyhow::Ok((legs, Watcher::start(&mut ebpf)?)));
            Ok((ebpf, userspace.transpose()?))
        })?;
        Ok(Self { ebpf, program: called, _userspace: userspace })
    }

    /// For running it alone.
    pub(crate) fn fd(&mut self) -> Result<ProgramFd> {
        Ok(program(&mut self.ebpf, self.program)?.fd()?.try_clone()?)
    }
}

fn load(object: &Path, bindings: u32) -> Result<Ebpf> {
    let bytes = std::fs::read(object)
        .with_context(|| format!("cannot read {}: run `cargo xtask build`", object.display()))?;
    Ok(EbpfLoader::new()
        .map_max_entries(name::LEGS, pairs_for(bindings))
        .map_max_entries(name::OVERFLOW, bindings.max(1))
        .load(&bytes)?)
}

/// The relay in userspace: one worker.
pub(crate) struct Userspace {
    port: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<std::io::Result<()>>>,
    tid: u32,
}

/// The generator sends no signalling.
struct NoSignalling;

impl SignallingSink for NoSignalling {
    fn deliver(&self, _: SocketAddr, _: Option<std::net::IpAddr>, _: Option<u8>, _: &[u8], _: usize) {}
}

impl Userspace {
    pub(crate) fn start(cable: &Cable, bindings: u32) -> Result<Self> {
        let relay = UserspaceRelay::new(bindings as usize);
        for number in 0..bindings {
            relay.insert(ConnectionId::from_bytes(virtual_cid(number)), binding(number))?;
        }
        cable.relay.run(move || {
            let port = Arc::new(UdpPort::bind(PORT)?);
            let stop = Arc::new(AtomicBool::new(false));
            let (told, tid) = std::sync::mpsc::channel();
            let (worker_port, worker_stop) = (Arc::clone(&port), Arc::clone(&stop));
            let worker = std::thread::spawn(move || {
                let _ = told.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
                relay.run(worker_port, Arc::new(NoSignalling), worker_stop)
            });
            let tid = tid.recv()?;
            pin(tid, relay_cpu())?;
            Ok(Self { port, stop, worker: Some(worker), tid })
        })
    }

    pub(crate) fn thread(&self) -> u32 {
        self.tid
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn binding(number: u32) -> Leg {
    let end = |first: u32| SocketAddr::from((Ipv4Addr::from(first + number), END_PORT));
    Leg {
        from: end(FIRST_SENDER),
        local: Some(RELAY.into()),
        to: end(u32::from(FIRST_RECEIVER)),
        source: Some(RELAY.into()),
        real_cid: ConnectionId::from_bytes(real_cid(number)),
        rate: RelayRate::UNLIMITED,
    }
}
