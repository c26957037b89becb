//! Two nodes in two network namespaces, joined by a veth pair.
//!
//! ```text
//!   namespace A                                   namespace B
//!   cyph0 fd00:7::a ── ring ── veth 10.77.0.1 ───── 10.77.0.2 veth ── ring ── cyph0 fd00:7::b
//!                                   fd77::1 ───── fd77::2
//! ```
//!
//! The rings may be of any [`Kind`]: a test that takes [`Kinds`] and is named to [`with_every_kind`] runs
//! with all.
//!
//! A namespace lives as long as its thread and what was made in it, so nothing is left behind, however a test
//! ends.

#![expect(unsafe_code, reason = "namespaces are made by system calls")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of it")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cyphonic_common::{ConnectionId, DropReason, InterfaceConfig};
use cyphonic_dataplane::bpf::{EgressClassifier, Options, Programs};
use cyphonic_dataplane::protect::{Secret, Suite};
use cyphonic_dataplane::ring::{
    AwakeRequest, Card, CardError, Division, EarlyPackets, EncapRing, HoldLimits, OffloadRing, Path,
    RingConfig, RingEvent, TunnelId, TunnelInstall, Underlay, VethPair, XdpQueue, XdpRing,
};
use cyphonic_dataplane::shard::ShardedRing;
use cyphonic_dataplane::tun::TunDevice;
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};
use cyphonic_dataplane::xsk::CopyMode;

/// Long enough for any machine; a passing test never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const INTERFACE: &str = "cyph0";
pub const PREFIX: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0), 48);
pub const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xa);
pub const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0xb);
pub const MTU: u16 = 1420;
/// The other end of the virtual interface where that is a veth pair.
pub const FAR_END: &str = "cyph0x";

/// What a ring is built from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Offload,
    /// The same, with the second thread in use from the start.
    Divided,
    /// AF_XDP on the virtual side alone.
    Xdp,
    /// AF_XDP on both sides.
    Underlay,
}

impl Kind {
    /// Whether the virtual side has super-packets.
    pub fn is_offload(self) -> bool {
        matches!(self, Self::Offload | Self::Divided)
    }
}

/// The rings of A and B.
pub type Kinds = (Kind, Kind);

pub const OFFLOAD: Kinds = (Kind::Offload, Kind::Offload);
pub const DIVIDED: Kinds = (Kind::Divided, Kind::Divided);
pub const XDP: Kinds = (Kind::Xdp, Kind::Xdp);
pub const UNDERLAY: Kinds = (Kind::Underlay, Kind::Underlay);
pub const MIXED: Kinds = (Kind::Xdp, Kind::Offload);
pub const MIXED_BACK: Kinds = (Kind::Offload, Kind::Xdp);
pub const UNDERLAY_MIXED: Kinds = (Kind::Underlay, Kind::Offload);

/// Runs tests with rings of every kind, the same at both ends.
#[macro_export]
macro_rules! with_each_kind {
    ($($test:ident,)+) => {
        mod offload {
            $(#[test] fn $test() { super::$test($crate::ring_lab::OFFLOAD); })+
        }
        mod xdp {
            $(#[test] fn $test() { super::$test($crate::ring_lab::XDP); })+
        }
        mod underlay {
            $(#[test] fn $test() { super::$test($crate::ring_lab::UNDERLAY); })+
        }
    };
}

/// Runs tests with rings of every kind, and with different ones at the two ends.
#[macro_export]
macro_rules! with_every_kind {
    ($($test:ident,)+) => {
        mod offload {
            $(#[test] fn $test() { super::$test($crate::ring_lab::OFFLOAD); })+
        }
        mod xdp {
            $(#[test] fn $test() { super::$test($crate::ring_lab::XDP); })+
        }
        mod underlay {
            $(#[test] fn $test() { super::$test($crate::ring_lab::UNDERLAY); })+
        }
        mod divided {
            $(#[test] fn $test() { super::$test($crate::ring_lab::DIVIDED); })+
        }
        mod mixed {
            $(#[test] fn $test() { super::$test($crate::ring_lab::MIXED); })+
        }
        mod underlay_mixed {
            $(#[test] fn $test() { super::$test($crate::ring_lab::UNDERLAY_MIXED); })+
        }
    };
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that is in it.
pub struct Namespace {
    tid: i32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, todo) = channel::<Job>();
        let (started, starting) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: it takes no pointers, and only this thread changes its namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            // SAFETY: it takes no arguments and cannot fail.
            started.send(unsafe { libc::gettid() }).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let tid = starting.recv().expect("root can make a network namespace");
        let this = Self { tid, jobs: Some(jobs), thread: Some(thread) };
        this.ip("link set lo up");
        this
    }

    /// Runs something in the namespace and waits for it. Threads and processes it starts are in it as well.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, result) = channel();
        let job = move || drop(done.send(work()));
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result.recv().expect("what runs in the namespace does not panic")
    }

    /// [`run`](Self::run) with what the caller has borrowed: it waits here until the work is done.
    pub fn run_scoped<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let tid = self.tid;
        std::thread::scope(|scope| {
            let job = move || {
                enter(tid);
                work()
            };
            scope.spawn(job).join().expect("what runs in the namespace does not panic")
        })
    }

    pub fn reaches(&self, address: &str) -> bool {
        let address = address.to_owned();
        self.run(move || {
            let ping = Command::new("ping").args(["-q", "-n", "-c1", "-W1", &address]).output();
            ping.expect("iputils-ping is installed").status.success()
        })
    }

    fn has_local_route(&self, address: Ipv6Addr) -> bool {
        self.run(move || {
            let routes = Command::new("ip").args("-6 route show table local".split(' ')).output();
            let routes = String::from_utf8(routes.expect("iproute2 is installed").stdout).unwrap();
            routes.contains(&format!("local {address} "))
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.succeeds("ip", arguments);
    }

    /// Has what leaves by an interface leave at this rate, and what waits for that wait for as long as it
    /// takes.
    pub fn limit(&self, interface: &str, rate: &str) {
        self.succeeds("tc", &format!("qdisc add dev {interface} root tbf rate {rate} burst 64kb limit 1gb"));
    }

    fn succeeds(&self, program: &'static str, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || {
            let status = Command::new(program).args(arguments.split(' ')).status();
            let status = status.expect("iproute2 is installed");
            assert!(status.success(), "{program} {arguments}: {status}");
        });
    }
}

/// Moves the calling thread into another's network namespace.
fn enter(tid: i32) {
    let namespace = std::fs::File::open(format!("/proc/self/task/{tid}/ns/net")).unwrap();
    // SAFETY: it takes no pointers, and only the calling thread, which was made for this, changes its
    // namespace.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The end of the wire, in each namespace.
pub const WIRE: &str = "under0";
/// That of a second one, where there is one.
pub const SECOND_WIRE: &str = "under1";

/// Two namespaces with a wire between them.
pub fn wire() -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    lay_wire(&a, &b, 1);
    (a, b)
}

/// Joins two namespaces by a wire with as many queues.
pub fn lay_wire(a: &Namespace, b: &Namespace, queues: u32) {
    lay(a, b, WIRE, 77, queues);
}

/// Joins them by another wire, whose addresses have 78 where the first one's have 77.
pub fn lay_second_wire(a: &Namespace, b: &Namespace) {
    lay(a, b, SECOND_WIRE, 78, 1);
}

fn lay(a: &Namespace, b: &Namespace, name: &str, net: u8, queues: u32) {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    a.ip(&format!("link add {name} {queues} type veth peer name {name} {queues} netns {}", b.tid));
    for (namespace, host) in [(a, 1), (b, 2)] {
        // No link-local address, so that no duplicate address detection delays the first packets.
        namespace.ip(&format!("link set {name} addrgenmode none"));
        namespace.ip(&format!("addr add 10.{net}.0.{host}/24 dev {name}"));
        namespace.ip(&format!("-6 addr add fd{net}::{host}/64 dev {name} nodad"));
        namespace.ip(&format!("link set {name} up"));
    }
    // The kernel takes up to a second to believe that a link is up, and drops what is sent before.
    for (namespace, host) in [(a, 2), (b, 1)] {
        for address in [format!("10.{net}.0.{host}"), format!("fd{net}::{host}")] {
            eventually("the wire carries packets", || namespace.reaches(&address));
        }
    }
}

/// What signalling received: from where, and each datagram.
#[derive(Default)]
pub struct Collector(pub Mutex<Vec<(SocketAddr, Vec<u8>)>>);

impl SignallingSink for Collector {
    fn deliver(&self, from: SocketAddr, _: Option<IpAddr>, _: Option<u8>, payload: &[u8], stride: usize) {
        let mut all = self.0.lock().unwrap();
        all.extend(payload.chunks(stride).map(|datagram| (from, datagram.to_vec())));
    }
}

/// A running ring and all around it.
pub struct Node {
    /// Goes before the ring, whose cards it has.
    pub outside: Option<Mutex<Outside>>,
    pub ring: Box<dyn EncapRing>,
    pub events: Mutex<Receiver<RingEvent>>,
    pub signalling: Arc<Collector>,
    pub port: u16,
    pub udp: Arc<UdpPort>,
    pub own: Ipv6Addr,
    pub namespace: Namespace,
}

/// What a ring on a veth pair has besides: its cards, and its programs.
pub struct Outside {
    pub underlay: Underlay,
    /// Attached for as long as the ring runs.
    pub programs: EgressClassifier,
}

impl Outside {
    pub fn attach(&mut self) -> Result<Card, CardError> {
        self.attach_to(WIRE)
    }

    pub fn attach_to(&mut self, wire: &str) -> Result<Card, CardError> {
        self.underlay.attach(&mut self.programs, wire, CopyMode::Auto).cloned()
    }
}

impl Node {
    /// Does something with the ring's cards, in its namespace.
    pub fn outside<R: Send>(&self, work: impl FnOnce(&mut Outside) -> R + Send) -> R {
        let outside = self.outside.as_ref().expect("a ring on a veth pair");
        self.namespace.run_scoped(|| work(&mut outside.lock().unwrap()))
    }

    pub fn start(kind: Kind, namespace: Namespace, own: Ipv6Addr) -> Self {
        Self::start_with(kind, namespace, own, HoldLimits::default(), None)
    }

    pub fn start_with(
        kind: Kind,
        namespace: Namespace,
        own: Ipv6Addr,
        hold: HoldLimits,
        awake: Option<AwakeRequest>,
    ) -> Self {
        let interface = match kind {
            Kind::Offload | Kind::Divided => Interface::tun(&namespace),
            Kind::Xdp | Kind::Underlay => Interface::veth(&namespace, own),
        };
        namespace.ip(&format!("-6 addr add {own}/{} dev {INTERFACE} nodad", PREFIX.1));
        // Even without duplicate address detection the kernel takes packets for the address only a little
        // later.
        eventually("the address is the host's", || namespace.has_local_route(own));
        let port = namespace.run(|| Arc::new(UdpPort::bind(0).unwrap()));
        let (tell, events) = channel();
        let tell = Mutex::new(tell);
        let signalling = Arc::new(Collector::default());
        let (number, udp) = (port.local_port(), Arc::clone(&port));
        let sink: Arc<dyn SignallingSink> = Arc::<Collector>::clone(&signalling);
        let events_of_ring = Arc::new(move |event| drop(tell.lock().unwrap().send(event)));
        let (prefix, early) = (PREFIX, early());
        let config = RingConfig { port, sink, own, prefix, events: events_of_ring, hold, early, awake };
        let (ring, outside): (Box<dyn EncapRing>, _) = match interface {
            Interface::Tun(tun) => {
                let ring = OffloadRing::start(tun, config).unwrap();
                if kind == Kind::Divided {
                    ring.divide(Division::Always);
                }
                (Box::new(ring), None)
            }
            Interface::Veth(queue, programs) => {
                let ring = XdpRing::start(*queue, config).unwrap();
                let outside = Outside { underlay: ring.underlay(), programs: *programs };
                // It tells the programs of the tunnels' connection IDs.
                let tables = Some(outside.programs.tables());
                let ring = ShardedRing::new(vec![Box::new(ring)], None, tables).unwrap();
                (Box::new(ring), Some(Mutex::new(outside)))
            }
        };
        let events = Mutex::new(events);
        let node = Self { outside, ring, events, signalling, port: number, udp, own, namespace };
        if kind == Kind::Underlay {
            node.outside(Outside::attach).unwrap();
        }
        node
    }

    /// The next event that `select` takes; others are passed over.
    pub fn event<R>(&self, select: impl Fn(&RingEvent) -> Option<R>) -> R {
        let end = Instant::now() + PATIENCE;
        let events = self.events.lock().unwrap();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = events.recv_timeout(left).expect("the event comes");
            if let Some(found) = select(&event) {
                return found;
            }
        }
    }

    /// Bytes in the port's send buffer, as the kernel counts.
    pub fn queued(&self) -> usize {
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one `int`, which `queued` is and which outlives the call.
        let result = unsafe { libc::ioctl(self.udp.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        queued.try_into().unwrap()
    }

    /// Packets that the policy denied, whoever enforces it.
    pub fn denied(&self) -> u64 {
        let by_programs = self.outside.as_ref().map_or(0, |outside| {
            outside.lock().unwrap().programs.counters().unwrap().dropped(DropReason::Denied).packets
        });
        by_programs + self.ring.counters().dropped(DropReason::Denied)
    }

    pub fn unknown_destination(&self) -> Ipv6Addr {
        self.event(|event| match event {
            RingEvent::UnknownDestination { dst } => Some(*dst),
            _ => None,
        })
    }
}

/// What comes early is kept for as long as a busy machine may take.
fn early() -> Arc<EarlyPackets> {
    Arc::new(EarlyPackets::with_age(PATIENCE))
}

/// The virtual interface, up and without an address.
enum Interface {
    Tun(TunDevice),
    Veth(Box<XdpQueue>, Box<EgressClassifier>),
}

impl Interface {
    fn tun(namespace: &Namespace) -> Self {
        let tun = namespace.run(|| TunDevice::create(INTERFACE, MTU).unwrap());
        namespace.ip(&format!("link set {INTERFACE} up"));
        Self::Tun(tun)
    }

    fn veth(namespace: &Namespace, own: Ipv6Addr) -> Self {
        namespace.ip(&format!("link add {INTERFACE} mtu {MTU} type veth peer name {FAR_END} mtu {MTU}"));
        namespace.ip(&format!("link set {INTERFACE} arp off addrgenmode none"));
        namespace.ip(&format!("link set {FAR_END} arp off addrgenmode none"));
        namespace.run(|| {
            let status = Command::new("ethtool").args(["-K", INTERFACE, "tx", "off"]).output();
            assert!(status.expect("ethtool is installed").status.success());
        });
        let config = InterfaceConfig::new(own.octets(), PREFIX.0.octets(), PREFIX.1).unwrap();
        let (queue, programs) = namespace.run(move || {
            let mut programs = Programs::load(config, Options::default()).unwrap();
            programs.attach_virtual(FAR_END).unwrap();
            let pair = VethPair { near: INTERFACE, far: FAR_END };
            let queue = XdpQueue::open(pair, 0, MTU).unwrap();
            programs.set_virtual_socket(0, queue.socket()).unwrap();
            (Box::new(queue), Box::new(programs.attach_near_end(INTERFACE).unwrap()))
        });
        namespace.ip(&format!("link set {FAR_END} up"));
        namespace.ip(&format!("link set {INTERFACE} up"));
        Self::Veth(queue, programs)
    }
}

/// The underlay addresses of both nodes.
pub fn outer(ipv6: bool, host: u16, port: u16) -> SocketAddr {
    if ipv6 {
        SocketAddr::from((Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host), port))
    } else {
        SocketAddr::from((Ipv4Addr::new(10, 77, 0, host as u8), port))
    }
}

/// The data connection ID by which `host` is reached on tunnel `id`.
pub fn cid(host: u8, id: u64) -> ConnectionId {
    let mut bytes = id.to_be_bytes();
    bytes[1] = host;
    ConnectionId::from_random_data(bytes)
}

/// A tunnel as `host` (1 or 2) installs it; the secrets of both ends fit.
pub fn tunnel(id: u64, host: u8, peer: Ipv6Addr, remote: SocketAddr, confirmed: bool) -> TunnelInstall {
    let other = 3 - host;
    let secret = |host: u8| {
        let mut bytes = [host; 32];
        bytes[..8].copy_from_slice(&id.to_be_bytes());
        Secret::new(bytes)
    };
    TunnelInstall {
        id: TunnelId(id),
        precedence: id.into(),
        peer,
        local_cid: cid(host, id),
        remote_cid: cid(other, id),
        path: Path { remote, wire_cid: cid(other, id) },
        suite: Suite::Aes128Gcm,
        send: secret(host),
        recv: secret(other),
        mtu: cyphonic_dataplane::ring::PathMtu::carrying(MTU),
        class: 0,
        confirmed,
    }
}

/// Two nodes with a tunnel between them; the first one dials.
pub fn joined(kinds: Kinds, ipv6: bool) -> (Node, Node) {
    let (a, b) = started(kinds);
    join(&a, &b, 1, ipv6);
    (a, b)
}

/// Two nodes without a tunnel.
pub fn started((kind_a, kind_b): Kinds) -> (Node, Node) {
    let (a, b) = wire();
    (Node::start(kind_a, a, A), Node::start(kind_b, b, B))
}

/// Installs tunnel `id` at both ends.
pub fn join(a: &Node, b: &Node, id: u64, ipv6: bool) {
    b.ring.install(tunnel(id, 2, a.own, outer(ipv6, 1, a.port), false)).unwrap();
    a.ring.install(tunnel(id, 1, b.own, outer(ipv6, 2, b.port), true)).unwrap();
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Repeats what a signal interrupted, as sockets with a time-out do not by themselves.
pub fn uninterrupted<R>(mut call: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
