//! The relay in XDP between real sockets, its death, and its successor.
//!
//! ```text
//!   a ─ ra ── relay ── rb ─ b        192.0.2.0/24, 2001:db8::/64 at ra; 198.51.100.0/24, 2001:db8:1::/64 at rb
//! ```
//!
//! Needs root and the eBPF objects, and fails where one is missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cyphonic_common::relay::PassReason;
use cyphonic_common::{ConnectionId, DropReason};
use cyphonic_dataplane::relay::xdp::{Hook, Mode, XdpOptions, XdpRelay, running_relays};
use cyphonic_dataplane::relay::{Leg, RelayMap, RelayMapError, UserspaceRelay};
use cyphonic_dataplane::udp::{SignallingSink, UdpPort};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

const PORT: u16 = 4433;
const PATIENCE: Duration = Duration::from_secs(10);
/// A namespace begins with the IPv4 settings of the machine's first: forwarding may be on there.
const SETUP: &str = "
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
fn isolated(test: impl FnOnce(PathBuf) + Send) {
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

fn shell(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A socket in another network namespace.
fn socket(namespace: &str, address: &str) -> UdpSocket {
    let open = || {
        setns(File::open(format!("/run/netns/{namespace}")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind(address).unwrap()
    };
    let socket = std::thread::scope(|scope| scope.spawn(open).join()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn options(pins: PathBuf) -> XdpOptions {
    XdpOptions {
        mode: Mode::Native,
        interfaces: Some(vec!["ra".to_owned(), "rb".to_owned()]),
        addresses: Vec::new(),
        listen: ([0; 4], PORT).into(),
        legs: 16,
        pins: Some(pins),
    }
}

struct Nobody;

impl SignallingSink for Nobody {
    fn deliver(&self, _: SocketAddr, _: Option<IpAddr>, _: Option<u8>, _: &[u8], _: usize) {}
}

/// A relay process, as far as it matters here.
struct Process {
    xdp: XdpRelay,
    port: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<std::io::Result<()>>,
}

impl Process {
    fn start(options: &XdpOptions) -> Self {
        let (relay, port) = (Arc::new(UserspaceRelay::new(options.legs)), UdpPort::bind(PORT).unwrap());
        let xdp = XdpRelay::start(options, Arc::clone(&relay)).unwrap();
        let (port, stop) = (Arc::new(port), Arc::new(AtomicBool::new(false)));
        let (its_port, its_stop) = (Arc::clone(&port), Arc::clone(&stop));
        let worker = std::thread::spawn(move || relay.run(its_port, Arc::new(Nobody), its_stop));
        Self { xdp, port, stop, worker }
    }

    /// As SIGKILL does: nothing is tidied up.
    fn kill(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        self.worker.join().unwrap().unwrap();
    }
}

fn cid(byte: u8) -> ConnectionId {
    ConnectionId::from_random_data([byte; 8])
}

fn packet(cid: ConnectionId, number: u32) -> Vec<u8> {
    let mut packet = vec![0x43; 200];
    packet[1..9].copy_from_slice(cid.as_bytes());
    packet[9..13].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Sends one packet, which comes out as it should.
fn passes(
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

#[test]
fn a_relay_forwards_in_xdp_also_while_its_process_is_dead() {
    isolated(|pins| {
        let options = options(pins.clone());
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "[2001:db8:1::20]:2000"));
        let there = Leg {
            local: Some("192.0.2.1".parse().unwrap()),
            source: Some("2001:db8:1::1".parse().unwrap()),
            ..Leg::new(a.local_addr().unwrap(), b.local_addr().unwrap(), cid(0xb1))
        };
        let back = Leg {
            local: there.source,
            source: there.local,
            ..Leg::new(b.local_addr().unwrap(), a.local_addr().unwrap(), cid(0xa1))
        };
        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.hook == Hook::Native && at.pinned && !at.adopted)
        );
        process.xdp.insert(cid(0xb0), there).unwrap();
        process.xdp.insert(cid(0xa0), back).unwrap();
        assert_eq!(process.xdp.insert(cid(0xb0), there), Err(RelayMapError::AlreadyBound(cid(0xb0))));

        // The first goes by userspace, which finds the neighbours; all count.
        for number in 0..100 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            passes(&b, "[2001:db8:1::1]:4433", &a, cid(0xa0), cid(0xa1), number);
        }
        let counters = process.xdp.counters();
        assert!(counters.forwarded.packets >= 190, "{counters:?}");
        for cid in [cid(0xb0), cid(0xa0)] {
            // Userspace counts what it has sent.
            let deadline = Instant::now() + PATIENCE;
            while process.xdp.stats(cid).unwrap().packets < 100 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            let stats = process.xdp.stats(cid).unwrap();
            assert_eq!((stats.packets, stats.bytes), (100, 20_000));
            assert!(stats.last_seen.is_some_and(|seen| seen.elapsed() < PATIENCE));
        }
        // To another of the relay's addresses, and from another port.
        let stranger = socket("a", "192.0.2.10:1001");
        stranger.send_to(&packet(cid(0xb0), 7), "192.0.2.1:4433").unwrap();
        a.send_to(&packet(cid(0xb0), 7), "198.51.100.1:4433").unwrap_err();
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 100);
        assert_eq!(process.xdp.counters().dropped, [], "userspace judges");
        let deadline = Instant::now() + PATIENCE;
        while process.xdp.userspace().counters().dropped(DropReason::UnboundSource) < 1 {
            assert!(Instant::now() < deadline, "the stranger's packet is not counted");
            std::thread::sleep(Duration::from_millis(1));
        }

        process.kill();
        for number in 101..120 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        assert!(running_relays().unwrap().iter().any(|relay| relay.port == PORT && relay.legs == 16));

        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.hook == Hook::Native && at.pinned && at.adopted)
        );
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 120);
        assert!(process.xdp.counters().forwarded.packets >= 1, "the new program forwards");
        let mut adopted = process.xdp.adopted();
        adopted.sort_by_key(|(cid, _)| *cid);
        assert_eq!(adopted, [(cid(0xa0), back), (cid(0xb0), there)]);
        let other = Leg { real_cid: cid(0xcc), ..there };
        assert_eq!(process.xdp.insert(cid(0xb0), other), Err(RelayMapError::AlreadyBound(cid(0xb0))));
        process.xdp.insert(cid(0xb0), there).unwrap();
        assert!(process.xdp.stats(cid(0xb0)).unwrap().packets >= 119);
        assert_eq!((process.xdp.remove_adopted(), process.xdp.len()), (1, 1));
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 121);

        // It follows a node that moved.
        let moved = socket("a", "[2001:db8::10]:1002");
        let leg =
            Leg { from: moved.local_addr().unwrap(), local: Some("2001:db8::1".parse().unwrap()), ..there };
        process.xdp.replace(cid(0xb0), leg).unwrap();
        passes(&moved, "[2001:db8::1]:4433", &b, cid(0xb0), cid(0xb1), 122);

        process.xdp.stop();
        process.kill();
        let cyphonic = std::fs::read_dir(pins.join("cyphonic")).unwrap();
        assert_eq!(cyphonic.count(), 0, "nothing stays pinned");
        assert_eq!(routing_is_on(), [false; 2]);
    });
}

/// Whether routes may be looked up for the program, by IPv4 and IPv6.
fn routing_is_on() -> [bool; 2] {
    ["ipv4", "ipv6"].map(|family| {
        let value = std::fs::read_to_string(format!("/proc/sys/net/{family}/conf/lo/forwarding"));
        value.unwrap().trim() == "1"
    })
}

/// A leg from one host to another.
fn leg_between(a: &UdpSocket, b: &UdpSocket) -> Leg {
    Leg {
        local: Some("192.0.2.1".parse().unwrap()),
        source: Some("198.51.100.1".parse().unwrap()),
        ..Leg::new(a.local_addr().unwrap(), b.local_addr().unwrap(), cid(0xb1))
    }
}

/// A leg that XDP has carried packets of, and the sockets at its ends.
fn in_use(process: &Process) -> (UdpSocket, UdpSocket, Leg) {
    let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
    let leg = leg_between(&a, &b);
    process.xdp.insert(cid(0xb0), leg).unwrap();
    for number in 0..20 {
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
    }
    assert!(process.xdp.counters().forwarded.packets > 0);
    (a, b, leg)
}

/// The list of the relay's own addresses only grows.
#[test]
fn a_leg_whose_new_address_has_no_number_goes_its_new_way_in_userspace_and_counts_on() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, _b, leg) = in_use(&process);
        process.xdp.insert(cid(0xc0), leg).unwrap();
        for number in 0..=255 {
            let other = Leg { source: Some(IpAddr::from([10, 0, 0, number])), ..leg };
            process.xdp.replace(cid(0xc0), other).unwrap();
        }

        shell("ip addr add 198.51.100.2/24 dev rb");
        let moved = socket("b", "198.51.100.20:2001");
        let forwarded = process.xdp.counters().forwarded.packets;
        let new =
            Leg { source: Some("198.51.100.2".parse().unwrap()), to: moved.local_addr().unwrap(), ..leg };
        let before = process.xdp.stats(cid(0xb0)).unwrap();
        process.xdp.replace(cid(0xb0), new).unwrap();
        // Userspace may still be counting the first, which found the neighbour.
        let after = process.xdp.stats(cid(0xb0)).unwrap();
        assert!(after.packets >= before.packets && after.bytes >= before.bytes, "{after:?} {before:?}");
        assert!(after.last_seen >= before.last_seen, "{after:?} {before:?}");
        for number in 20..30 {
            passes(&a, "192.0.2.1:4433", &moved, cid(0xb0), cid(0xb1), number);
        }
        assert_eq!(process.xdp.counters().forwarded.packets, forwarded, "in userspace");
        let deadline = Instant::now() + PATIENCE;
        while process.xdp.stats(cid(0xb0)).unwrap().packets < 30 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(process.xdp.stats(cid(0xb0)).unwrap().packets, 30);
        assert_eq!(process.xdp.remove(cid(0xb0)).unwrap().packets, 30);
        process.xdp.stop();
        process.kill();
    });
}

/// An entry of the table is not used again at once, and the kernel's hash map takes nothing at once either.
#[test]
fn a_leg_that_moves_often_is_relayed_all_the_time_and_soon_in_xdp_again() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, leg) = in_use(&process);
        let others = ["198.51.100.20:2001", "198.51.100.20:2002"].map(|address| socket("b", address));
        for round in 0..20u32 {
            let to = &others[round as usize % 2];
            process.xdp.replace(cid(0xb0), Leg { to: to.local_addr().unwrap(), ..leg }).unwrap();
            passes(&a, "192.0.2.1:4433", to, cid(0xb0), cid(0xb1), round);
        }
        process.xdp.replace(cid(0xb0), leg).unwrap();
        let deadline = Instant::now() + PATIENCE;
        for number in 100.. {
            let before = process.xdp.counters().forwarded.packets;
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            if process.xdp.counters().forwarded.packets > before {
                break;
            }
            assert!(Instant::now() < deadline, "it stays in userspace");
        }
        process.xdp.stop();
        process.kill();
    });
}

/// Legs are bound to what the relay's socket sees, and XDP comes before the host's NAT.
#[test]
fn behind_the_hosts_own_nat_userspace_relays() {
    isolated(|pins| {
        shell("ip addr add 192.0.2.5/24 dev ra");
        shell("nft add table ip nat");
        shell("nft add chain ip nat in { type nat hook prerouting priority dstnat ; }");
        shell("nft add rule ip nat in ip daddr 192.0.2.5 dnat to 192.0.2.1");
        let process = Process::start(&options(pins));
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
        process.xdp.insert(cid(0xb0), leg_between(&a, &b)).unwrap();
        for number in 0..10 {
            passes(&a, "192.0.2.5:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        let passed = process.xdp.counters().passed;
        let unbound = passed.iter().find(|(reason, _)| *reason == PassReason::UnboundSource);
        assert_eq!(unbound.map(|(_, counter)| counter.packets), Some(10), "{passed:?}");
        process.xdp.stop();
        process.kill();
    });
}

/// A driver that takes no redirected frames, as that of a virtual cable whose far end merges none, drops them
/// silently.
#[test]
fn what_a_driver_would_lose_is_relayed_in_userspace() {
    isolated(|pins| {
        shell("ip netns exec b ethtool -K nb gro off");
        let process = Process::start(&options(pins));
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
        let other = socket("b", "198.51.100.20:2001");
        process.xdp.insert(cid(0xb0), leg_between(&a, &b)).unwrap();
        let back = Leg { local: Some("198.51.100.1".parse().unwrap()), ..leg_between(&other, &b) };
        process.xdp.insert(cid(0xc0), back).unwrap();
        for number in 0..10 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            // Back by the interface that it came by.
            passes(&other, "198.51.100.1:4433", &b, cid(0xc0), cid(0xb1), number);
        }
        let counters = process.xdp.counters();
        assert_eq!(counters.forwarded.packets, 0, "{counters:?}");
        process.xdp.stop();
        process.kill();
    });
}

/// An answer of the routing table would last ten minutes.
#[test]
fn a_neighbour_that_moves_is_noticed_while_the_process_lives() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, _) = in_use(&process);
        b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let arrives = || {
            a.send_to(&packet(cid(0xb0), 99), "192.0.2.1:4433").unwrap();
            b.recv_from(&mut [0; 2048]).is_ok()
        };
        let until = |wanted: bool| {
            let deadline = Instant::now() + PATIENCE;
            while arrives() != wanted {
                assert!(Instant::now() < deadline, "still {}", !wanted);
            }
        };
        shell("ip neigh replace 198.51.100.20 lladdr 02:00:00:00:00:99 dev rb nud permanent");
        until(false);
        shell("ip neigh del 198.51.100.20 dev rb");
        until(true);
        process.xdp.stop();
        process.kill();
    });
}

/// Whoever switches it off for the host switches it off for each interface.
#[test]
fn forwarding_that_somebody_switches_off_is_on_again() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, _) = in_use(&process);
        assert_eq!(routing_is_on(), [true; 2]);
        for family in ["ipv4", "ipv6"] {
            for value in ["1", "0"] {
                std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), value).unwrap();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while routing_is_on() != [true; 2] {
            assert!(Instant::now() < deadline, "{:?}", routing_is_on());
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut number, before) = (20, process.xdp.counters().forwarded.packets);
        while process.xdp.counters().forwarded.packets == before {
            assert!(Instant::now() < deadline + PATIENCE, "still relayed in userspace");
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            number += 1;
        }
        process.xdp.stop();
        process.kill();
        assert_eq!(routing_is_on(), [false; 2], "as it was");
    });
}

#[test]
fn an_interface_that_is_made_anew_is_relayed_on_in_xdp_again() {
    isolated(|pins| {
        let options = options(pins);
        let process = Process::start(&options);
        let (a, b, _) = in_use(&process);
        let names = |process: &Process| -> Vec<_> {
            process.xdp.attachments().into_iter().map(|at| at.interface).collect()
        };
        let await_names = |expected: &[&str]| {
            let deadline = Instant::now() + PATIENCE;
            while names(&process) != expected {
                assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", names(&process));
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        shell("ip link del rb");
        await_names(&["ra"]);
        let made_anew = SETUP.lines().map(str::trim).filter(|line| {
            let words: Vec<_> = line.split(' ').collect();
            !line.contains("netns add") && (words.contains(&"rb") || words.contains(&"nb"))
        });
        made_anew.for_each(shell);
        await_names(&["ra", "rb"]);
        let before = process.xdp.counters().forwarded.packets;
        // The first finds the neighbour, in userspace.
        for number in 20..30 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        assert!(process.xdp.counters().forwarded.packets > before);

        process.kill();
        for number in 30..40 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.adopted),
            "the new link is pinned, the old is gone"
        );
        process.xdp.stop();
        process.kill();
    });
}

#[test]
fn what_a_killed_relay_left_goes_when_its_successor_relays_in_userspace_or_with_another_size() {
    isolated(|pins| {
        let mut options = options(pins.clone());
        let relay = || Arc::new(UserspaceRelay::new(16));
        let first = XdpRelay::start(&options, relay()).unwrap();
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        first.insert(cid(2), leg).unwrap();
        drop(first);
        options.legs = 32;
        let second = XdpRelay::start(&options, relay()).unwrap();
        assert_eq!((second.adopted(), second.len()), (Vec::new(), 0));
        drop(second);
        XdpRelay::remove_leftovers(&pins, options.listen);
        assert_eq!(std::fs::read_dir(pins.join("cyphonic")).unwrap().count(), 0);
        // The kernel frees what nobody holds any more when it gets to it.
        let attached = || {
            let link = Command::new("ip").args(["link", "show", "ra"]).output().unwrap();
            String::from_utf8_lossy(&link.stdout).contains("xdp")
        };
        let start = Instant::now();
        while attached() {
            assert!(start.elapsed() < PATIENCE, "the program is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_killed_relay_whose_mode_was_changed_goes_on_with_its_legs() {
    isolated(|pins| {
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        let mut adopted = Vec::new();
        for (mode, hook) in
            [(Mode::Native, Hook::Native), (Mode::Generic, Hook::Generic), (Mode::Native, Hook::Native)]
        {
            let options = XdpOptions { mode, ..options(pins.clone()) };
            let relay = XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
            assert!(relay.attachments().iter().all(|at| at.hook == hook && at.pinned), "{hook}");
            assert_eq!(relay.adopted(), adopted, "{hook}");
            if adopted.is_empty() {
                relay.insert(cid(2), leg).unwrap();
                adopted.push((cid(2), leg));
            }
            drop(relay);
        }
        XdpRelay::remove_leftovers(&pins, options(pins.clone()).listen);
    });
}

#[test]
fn relays_with_one_port_at_different_addresses_leave_each_other_alone() {
    isolated(|pins| {
        let at = |address: &str, interface: &str| XdpOptions {
            listen: SocketAddr::new(address.parse().unwrap(), PORT),
            interfaces: Some(vec![interface.to_owned()]),
            ..options(pins.clone())
        };
        let start = |options: &XdpOptions| XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
        let (a, b) = (at("192.0.2.1", "ra"), at("2001:db8:1::1", "rb"));
        let first = start(&a).unwrap();
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        first.insert(cid(2), leg).unwrap();
        let refused = start(&at("198.51.100.1", "ra")).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("another XDP program"), "{refused}");
        let second = start(&b).unwrap();
        assert_eq!(second.adopted(), []);
        assert!(second.attachments().iter().all(|at| at.pinned && !at.adopted));
        second.stop();

        // Whose processes are killed find what is theirs, also where an earlier version named it.
        let folder = || {
            let folders: Vec<_> = std::fs::read_dir(pins.join("cyphonic")).unwrap().collect();
            assert_eq!(folders.len(), 1);
            folders.into_iter().next().unwrap().unwrap().path()
        };
        let named = folder();
        let former = named.to_str().unwrap().strip_suffix("-c0000201").unwrap();
        std::fs::rename(&named, former).unwrap();
        start(&a).map(|_| ()).unwrap_err();
        assert_eq!(folder().to_str(), Some(former), "its process lives");
        drop(first);
        // A command that starts at this moment may hold the lock.
        let deadline = Instant::now() + 3 * PATIENCE;
        let successor = loop {
            match start(&a) {
                Ok(successor) => break successor,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((successor.adopted(), folder()), (vec![(cid(2), leg)], named));
        assert!(successor.attachments().iter().all(|at| at.adopted));
        successor.stop();
    });
}

#[test]
fn what_a_killed_relay_left_goes_where_one_with_another_port_needs_the_interface() {
    isolated(|pins| {
        let start = |options: &XdpOptions| XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
        let folders = || std::fs::read_dir(pins.join("cyphonic")).unwrap().count();
        let with = |port, interface: &str, mode| XdpOptions {
            listen: ([0; 4], port).into(),
            interfaces: Some(vec![interface.to_owned()]),
            mode,
            ..options(pins.clone())
        };
        drop(start(&with(1, "ra", Mode::Native)).unwrap());
        // One that is on another interface, and may still have a successor.
        let elsewhere = with(9, "rb", Mode::Native);
        drop(start(&elsewhere).unwrap());
        for (port, mode, hook) in [(2, Mode::Generic, Hook::Generic), (3, Mode::Native, Hook::Native)] {
            // A command that starts at this moment may hold the dead one's lock.
            let deadline = Instant::now() + 3 * PATIENCE;
            let relay = loop {
                match start(&with(port, "ra", mode)) {
                    Ok(relay) => break relay,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            let attachments = relay.attachments();
            assert!(attachments.iter().all(|at| at.hook == hook && at.pinned && !at.adopted));
            assert_eq!((folders(), routing_is_on()), (2, [true; 2]), "its own and the other's");
            if port == 3 {
                relay.stop();
                assert_eq!((folders(), routing_is_on()), (1, [false; 2]), "as the first one found it");
            }
        }
        let successor = start(&elsewhere).unwrap();
        assert!(successor.attachments().iter().all(|at| at.adopted));
        successor.stop();
    });
}

#[test]
fn what_a_killed_relay_left_goes_with_its_network_namespace() {
    isolated(|pins| {
        let folders = || std::fs::read_dir(pins.join("cyphonic")).unwrap().count();
        let start =
            |options: XdpOptions| XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
        let (ready, is_ready) = channel();
        let (leave, may_leave) = channel::<()>();
        std::thread::scope(|scope| {
            let there = options(pins.clone());
            scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                shell("ip link add card0 type bridge");
                shell("ip link set card0 up");
                let interfaces = Some(vec!["card0".to_owned()]);
                drop(start(XdpOptions { interfaces, mode: Mode::Generic, ..there }));
                ready.send(()).unwrap();
                may_leave.recv().unwrap();
            });
            is_ready.recv().unwrap();
            start(options(pins.clone())).stop();
            assert_eq!(folders(), 1, "its interface is there");
            leave.send(()).unwrap();
        });
        // The kernel takes a namespace down when it gets to it.
        let deadline = Instant::now() + PATIENCE;
        while folders() > 0 {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(Duration::from_millis(50));
            start(options(pins.clone())).stop();
        }
    });
}

#[test]
fn interfaces_that_cannot_are_told_with_what_to_do() {
    isolated(|pins| {
        let start = |options: &XdpOptions| {
            let without_pins = XdpOptions { pins: None, ..options.clone() };
            let before = routing_is_on();
            for options in [options, &without_pins] {
                let started = XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
                started.map(|_| ()).unwrap_err();
                assert_eq!(routing_is_on(), before);
            }
            let started = XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
            started.map(|_| ()).unwrap_err().to_string()
        };
        let good = options(pins.clone());
        let named =
            |name: &str, mode| XdpOptions { interfaces: Some(vec![name.into()]), mode, ..good.clone() };
        assert!(start(&named("eth77", Mode::Native)).contains("relay.interfaces"));
        assert!(start(&named("ra", Mode::Auto)).contains("virtual cable"));
        let none = XdpOptions { interfaces: None, mode: Mode::Generic, ..good.clone() };
        assert!(start(&none).contains("name some in `relay.interfaces`"));
        shell("ip -n a link set na mtu 9000");
        shell("ip link set ra mtu 9000");
        assert!(start(&named("ra", Mode::Native)).contains("MTU"));
        shell("ip link set ra mtu 1500");
        shell("ip -n a link set na mtu 1500");
        let first = XdpRelay::start(&named("ra", Mode::Native), Arc::new(UserspaceRelay::new(16))).unwrap();
        let other = XdpOptions { listen: ([0; 4], 5555).into(), ..named("ra", Mode::Native) };
        assert!(start(&other).contains("another XDP program"), "{}", start(&other));
        first.stop();
        let by_address = XdpOptions { addresses: vec!["198.51.100.1".parse().unwrap()], ..none };
        let second = XdpRelay::start(&by_address, Arc::new(UserspaceRelay::new(16))).unwrap();
        let attachments = second.attachments();
        let places: Vec<_> = attachments.iter().map(|at| (at.interface.as_str(), at.hook)).collect();
        assert_eq!(places, [("rb", Hook::Generic)]);
        second.stop();
    });
}

#[test]
fn behind_a_driver_without_native_xdp_the_relay_and_the_status_say_why() {
    isolated(|pins| {
        // A bridge takes programs behind its driver only, as many a network card does.
        shell("ip link add card0 type bridge");
        shell("ip link set card0 up");
        let options =
            XdpOptions { interfaces: Some(vec!["card0".into()]), mode: Mode::Auto, ..options(pins) };
        let relay = XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
        let expected = ("card0", Hook::Generic, "its driver has no native XDP");
        let attachments = relay.attachments();
        let told: Vec<_> =
            attachments.iter().map(|at| (at.interface.as_str(), at.hook, at.why.as_str())).collect();
        assert_eq!(told, [expected]);
        let running = running_relays().unwrap();
        let places = running.iter().flat_map(|relay| &relay.interfaces);
        let asked: Vec<_> =
            places.map(|place| (place.interface.as_str(), place.hook, place.why.as_str())).collect();
        assert_eq!(asked, [expected]);
        relay.stop();
    });
}

#[test]
fn a_million_legs_fit() {
    const LEGS: u32 = 1_000_000;
    isolated(|pins| {
        let options = XdpOptions { legs: LEGS as usize, pins: None, ..options(pins) };
        let before = resident();
        // With its worker, which has a table of its own.
        let process = Process::start(&options);
        let xdp = &process.xdp;
        let start = Instant::now();
        let id = |number: u32| {
            let mut bytes = [0xff; 8];
            bytes[4..].copy_from_slice(&number.to_be_bytes());
            ConnectionId::from_random_data(bytes)
        };
        let node = |number: u32| SocketAddr::from((number.to_be_bytes(), 1000));
        for number in 0..LEGS {
            let number = number + (10 << 24);
            xdp.insert(id(number), Leg::new(node(number), node(number ^ 1), id(number ^ 1))).unwrap();
        }
        let filled = start.elapsed();
        let one_more = xdp.insert(id(1), Leg::new(node(10 << 24), node(11 << 24), id(2)));
        assert_eq!(one_more, Err(RelayMapError::Full { capacity: LEGS as usize }));
        let per_leg = (resident() - before) / u64::from(LEGS);
        println!("{LEGS} legs: {filled:?}, {per_leg} bytes a leg in this process");
        assert!(per_leg < 1_000, "{per_leg} bytes a leg");
        assert_eq!(xdp.len(), LEGS as usize);
        xdp.stop();
        process.kill();
    });
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
