//! Two hosts, each in a namespace of its own, with a relay between them.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cyphonic_common::ConnectionId;
use cyphonic_dataplane::relay::xdp::{Mode, XdpOptions, XdpRelay};
use cyphonic_dataplane::relay::{Leg, RelayMap, UserspaceRelay};
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

pub(crate) const PORT: u16 = 4433;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// A namespace begins with the IPv4 settings of the machine's first: forwarding may be on there.
pub(crate) const SETUP: &str = "
    sysctl -qw net.ipv4.ip_forward=0
    ip netns add a
    ip netns add b
    ip link set lo up
    ip link add ra type veth peer name na netns a
    ip link add rb type veth peer name nb netns b
    ip addr add 192.0.2.1/24 dev ra
    ip addr add 2001:db8::1/64 dev ra nodad
    ip addr add 198.51.100.1/24 dev rb
    ip addr add 2001:db8:1::1/64 dev rb nodad
    ip link set ra up
    ip link set rb up
    ip -n a addr add 192.0.2.10/24 dev na
    ip -n a addr add 2001:db8::10/64 dev na nodad
    ip -n b addr add 198.51.100.20/24 dev nb
    ip -n b addr add 2001:db8:1::20/64 dev nb nodad
    ip -n a link set na up
    ip -n b link set nb up
    ip netns exec a ethtool -K na tx off gro on
    ip netns exec b ethtool -K nb tx off gro on
";

/// Runs `test` on a thread with network and mounts of its own, which end with it.
pub(crate) fn isolated(test: impl FnOnce(PathBuf) + Send) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pins = std::env::temp_dir().join(format!("cyphonic-pins-{}-{number}", std::process::id()));
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        std::fs::create_dir_all("/run/netns").unwrap();
        mount("none", "/run/netns", "tmpfs", MountFlags::empty(), None).unwrap();
        std::fs::create_dir_all(&pins).unwrap();
        SETUP.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(shell);
        test(pins.clone());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    std::fs::remove_dir(&pins).unwrap();
}

pub(crate) fn shell(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A socket in another network namespace.
pub(crate) fn socket(namespace: &str, address: &str) -> UdpSocket {
    let open = || {
        setns(File::open(format!("/run/netns/{namespace}")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind(address).unwrap()
    };
    let socket = std::thread::scope(|scope| scope.spawn(open).join()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(crate) fn options(pins: PathBuf) -> XdpOptions {
    XdpOptions {
        mode: Mode::Native,
        interfaces: Some(vec!["ra".to_owned(), "rb".to_owned()]),
        addresses: Vec::new(),
        listen: ([0; 4], PORT).into(),
        legs: 16,
        pins: Some(pins),
    }
}

pub(crate) struct Nobody;

impl SignallingSink for Nobody {
    fn deliver(&self, _: SocketAddr, _: Option<IpAddr>, _: Option<u8>, _: &[u8], _: usize) {}
}

/// A relay process, as far as it matters here.
pub(crate) struct Process {
    pub(crate) xdp: XdpRelay,
    port: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<std::io::Result<()>>,
}

impl Process {
    pub(crate) fn start(options: &XdpOptions) -> Self {
        let (relay, port) = (Arc::new(UserspaceRelay::new(options.legs)), UdpPort::bind(PORT).unwrap());
        let xdp = XdpRelay::start(options, Arc::clone(&relay)).unwrap();
        let (port, stop) = (Arc::new(port), Arc::new(AtomicBool::new(false)));
        let (its_port, its_stop) = (Arc::clone(&port), Arc::clone(&stop));
        let worker = std::thread::spawn(move || relay.run(its_port, Arc::new(Nobody), its_stop));
        Self { xdp, port, stop, worker }
    }

    /// As SIGKILL does: nothing is tidied up.
    pub(crate) fn kill(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        self.worker.join().unwrap().unwrap();
    }
}

pub(crate) fn cid(byte: u8) -> ConnectionId {
    ConnectionId::from_random_data([byte; 8])
}

pub(crate) fn packet(cid: ConnectionId, number: u32) -> Vec<u8> {
    let mut packet = vec![0x43; 200];
    packet[1..9].copy_from_slice(cid.as_bytes());
    packet[9..13].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Sends one packet, which comes out as it should.
pub(crate) fn passes(
    from: &UdpSocket,
    relay: &str,
    to: &UdpSocket,
    virtual_cid: ConnectionId,
    real: ConnectionId,
    number: u32,
) {
    from.send_to(&packet(virtual_cid, number), relay).unwrap();
    let mut buffer = [0; 2048];
    let (len, source) = to.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], source.port()), (&packet(real, number)[..], PORT));
}

/// Whether routes may be looked up for the program, by IPv4 and IPv6.
pub(crate) fn routing_is_on() -> [bool; 2] {
    ["ipv4", "ipv6"].map(|family| {
        let value = std::fs::read_to_string(format!("/proc/sys/net/{family}/conf/lo/forwarding"));
        value.unwrap().trim() == "1"
    })
}

/// A leg from one host to another.
pub(crate) fn leg_between(a: &UdpSocket, b: &UdpSocket) -> Leg {
    Leg {
        local: Some("192.0.2.1".parse().unwrap()),
        source: Some("198.51.100.1".parse().unwrap()),
        ..Leg::new(a.local_addr().unwrap(), b.local_addr().unwrap(), cid(0xb1))
    }
}

/// A leg that XDP has carried packets of, and the sockets at its ends.
pub(crate) fn in_use(process: &Process) -> (UdpSocket, UdpSocket, Leg) {
    let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
    let leg = leg_between(&a, &b);
    process.xdp.insert(cid(0xb0), leg).unwrap();
    for number in 0..20 {
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
    }
    assert!(process.xdp.counters().forwarded.packets > 0);
    (a, b, leg)
}
