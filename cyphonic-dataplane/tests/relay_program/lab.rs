//! A relay with two interfaces in a network namespace of its own.
//!
//! ```text
//!   192.0.2.10, .11      ─ rel0 ── relay ── rel1 ─  198.51.100.20, .30 (path of 1,300 bytes), .254 ─ 203.0.113.0/24
//!   2001:db8::10, ::11                              2001:db8:1::20, ::30 (1,320), ::fe ─ 2001:db8:ffff::/64
//! ```
//!
//! A third interface, `rel2`, is not one that frames may be redirected to. Nobody answers: all neighbours are
//! entered by hand, but `.99`.

#![expect(unsafe_code, reason = "namespaces are made by system calls, and aya copies values as bytes")]

use std::cell::RefCell;
use std::process::Command;
use std::{fs, io};

use aya::maps::{Array, DevMapHash, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use cyphonic_common::relay::map::name;
use cyphonic_common::relay::watch::ticks;
use cyphonic_common::relay::{
    Departure, Family, Hop, Leg, LegEntry, PassReason, RelayConfig, RelayCounterIndex, RelayState,
    RelayWatch, Verdict,
};
use cyphonic_common::{ConnectionId, Counter};
use cyphonic_dataplane::relay::xdp::legs::Legs;

pub(crate) const PORT: u16 = 4433;
/// Of the legs' table: few, so that legs get into one another's way.
const PAIRS: u32 = 16;
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// Link addresses of the nodes at `rel0` and `rel1`, and of the gateway.
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub(crate) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const SETUP: &str = "
    link set lo up
    link add rel0 type veth peer name peer0
    link add rel1 type veth peer name peer1
    link add rel2 type veth peer name peer2
    link set rel0 up
    link set peer0 up
    link set rel1 up
    link set peer1 up
    link set rel2 up
    link set peer2 up
    addr add 192.0.2.1/24 dev rel0
    addr add 2001:db8::1/64 dev rel0 nodad
    addr add 198.51.100.1/24 dev rel1
    addr add 2001:db8:1::1/64 dev rel1 nodad
    addr add 192.168.77.1/24 dev rel2
    neigh add 192.0.2.11 lladdr 02:00:00:00:00:0a dev rel0 nud permanent
    neigh add 2001:db8::11 lladdr 02:00:00:00:00:0a dev rel0 nud permanent
    neigh add 198.51.100.20 lladdr 02:00:00:00:00:0a dev rel1 nud permanent
    neigh add 2001:db8:1::20 lladdr 02:00:00:00:00:0a dev rel1 nud permanent
    neigh add 198.51.100.30 lladdr 02:00:00:00:00:0a dev rel1 nud permanent
    neigh add 2001:db8:1::30 lladdr 02:00:00:00:00:0a dev rel1 nud permanent
    neigh add 198.51.100.254 lladdr 02:00:00:00:00:fe dev rel1 nud permanent
    neigh add 2001:db8:1::fe lladdr 02:00:00:00:00:fe dev rel1 nud permanent
    neigh add 192.168.77.7 lladdr 02:00:00:00:00:0a dev rel2 nud permanent
    route add 203.0.113.0/24 via 198.51.100.254
    route add 2001:db8:ffff::/64 via 2001:db8:1::fe
    route add 198.51.100.30/32 dev rel1 mtu lock 1300
    route add 2001:db8:1::30/128 dev rel1 mtu lock 1320
    route add blackhole 198.18.0.0/24
";

/// `struct xdp_md` of the kernel's UAPI.
const XDP_MD_LEN: usize = 24;
const DATA_END: usize = 4;
const INGRESS: usize = 12;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay"));

/// A value as aya copies it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value<T>(T);

// SAFETY: it is `repr(C)`, consists of integers and byte arrays, and has no padding (asserted beside its
// definition).
unsafe impl Pod for Value<RelayConfig> {}
// SAFETY: two `u32`.
unsafe impl Pod for Value<RelayWatch> {}
// SAFETY: two `u64`.
unsafe impl Pod for Value<Counter> {}

/// The program, attached to `rel0` and configured.
pub(crate) struct Lab {
    ebpf: RefCell<Ebpf>,
    pub(crate) legs: RefCell<Legs>,
    macs: [[u8; 6]; 2],
    indices: [u32; 2],
}

impl Lab {
    /// Runs `test` on a thread in a network namespace of its own, which ends with the thread.
    pub(crate) fn run_in(test: impl FnOnce(&Self) + Send) {
        let run = || {
            // SAFETY: it takes no pointers, and only this short-lived thread changes its namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            SETUP.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(ip);
            set_loopback_forwarding(true);
            test(&Self::attach());
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }

    fn attach() -> Self {
        let mut ebpf = load(PAIRS);
        let legs = Legs::take(&mut ebpf).unwrap();
        let program: &mut Xdp = ebpf.program_mut(name::PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
        // A test run in an interface's name needs its receive queue, which veth has while a program is
        // attached.
        program.attach("rel0", XdpMode::Driver).unwrap();
        let indices = ["rel0", "rel1"].map(index);
        let mut egress: DevMapHash<_> = ebpf.map_mut(name::EGRESS).unwrap().try_into().unwrap();
        for index in indices {
            egress.insert(index, index, None, 0).unwrap();
        }
        let this = Self { ebpf: ebpf.into(), legs: legs.into(), macs: ["rel0", "rel1"].map(mac), indices };
        this.configure(config(false));
        this
    }

    /// The next hop of nodes at `rel1`.
    pub(crate) fn across(&self) -> Hop {
        Hop::new(NODE, self.macs[1], Some(self.indices[1]))
    }

    /// The next hop of nodes at `rel0`.
    pub(crate) fn back(&self) -> Hop {
        Hop::new(NODE, self.macs[0], None)
    }

    pub(crate) fn configure(&self, config: RelayConfig) {
        let mut ebpf = self.ebpf.borrow_mut();
        let mut map: Array<_, Value<RelayConfig>> = ebpf.map_mut(name::CONFIG).unwrap().try_into().unwrap();
        map.set(0, Value(config), 0).unwrap();
    }

    pub(crate) fn bind(&self, cid: ConnectionId, leg: &Leg) {
        self.bind_with(cid, leg, RelayState::default());
    }

    pub(crate) fn bind_with(&self, cid: ConnectionId, leg: &Leg, state: RelayState) {
        let mut legs = self.legs.borrow_mut();
        legs.insert(cid, leg, state).unwrap();
        legs.settle();
    }

    /// Puts another leg in a bound one's place.
    pub(crate) fn replace(&self, cid: ConnectionId, leg: &Leg) {
        let mut legs = self.legs.borrow_mut();
        legs.replace(cid, leg).unwrap();
        legs.settle();
    }

    /// Removes a leg and returns what became of it.
    pub(crate) fn unbind(&self, cid: ConnectionId) -> Option<LegEntry> {
        self.legs.borrow_mut().remove(cid)
    }

    /// As a watcher does: somebody is there, and something changed at `changed_ns`.
    pub(crate) fn watch(&self, changed_ns: u64) {
        let mut ebpf = self.ebpf.borrow_mut();
        let mut map: Array<_, Value<RelayWatch>> = ebpf.map_mut(name::WATCH).unwrap().try_into().unwrap();
        let watch = RelayWatch { changed: ticks(changed_ns), seen: ticks(monotonic_ns()) };
        map.set(0, Value(watch), 0).unwrap();
    }

    pub(crate) fn counter(&self, index: RelayCounterIndex) -> Counter {
        let ebpf = self.ebpf.borrow();
        let map: PerCpuArray<_, Value<Counter>> = ebpf.map(name::COUNTERS).unwrap().try_into().unwrap();
        let values = map.get(&index.index(), 0).unwrap();
        values.iter().fold(Counter::default(), |sum, value| sum.plus(value.0))
    }

    /// Runs the program on a frame that comes in by `rel0`; returns its answer and what became of the frame.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut context = [0; XDP_MD_LEN];
        context[DATA_END..][..4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[INGRESS..][..4].copy_from_slice(&self.indices[0].to_ne_bytes());
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let mut ebpf = self.ebpf.borrow_mut();
        let program: &mut Xdp = ebpf.program_mut(name::PROGRAM).unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// What the namespace's routing table says, said once more.
    pub(crate) fn model_route(&self, departure: &Departure) -> Result<Hop, PassReason> {
        let bytes = departure.destination.to_bytes();
        let host = bytes[15];
        let (at_rel0, at_rel1) = match departure.family {
            Family::V4 => (bytes[12..15] == [192, 0, 2], bytes[12..15] == [198, 51, 100]),
            Family::V6 => {
                let subnet = |low: u8| bytes[..8] == [0x20, 1, 0xd, 0xb8, 0, low, 0, 0];
                (subnet(0), subnet(1))
            }
        };
        match (at_rel0, at_rel1, host) {
            (true, _, 11 | 0x11) => Ok(self.back()),
            (_, true, 20 | 0x20) if departure.ip_len > 1500 => Err(PassReason::TooBig),
            (_, true, 20 | 0x20) => Ok(self.across()),
            (_, true, 99 | 0x99) => Err(PassReason::NoNeighbour),
            _ => Err(PassReason::NoRoute),
        }
    }
}

/// The object with a table of so many pairs, in the kernel and attached to nothing.
pub(crate) fn load(pairs: u32) -> Ebpf {
    assert!(!OBJECT.is_empty(), "no eBPF object: run `cargo xtask build`");
    EbpfLoader::new().map_max_entries(name::LEGS, pairs).load(OBJECT).unwrap()
}

pub(crate) fn config(merged: bool) -> RelayConfig {
    RelayConfig::new(PORT, merged).with_pairs(PAIRS)
}

/// What the program answers for a verdict.
pub(crate) fn action(verdict: &Verdict) -> u32 {
    match verdict {
        Verdict::Forward { redirect: None, .. } => XDP_TX,
        Verdict::Forward { redirect: Some(_), .. } => XDP_REDIRECT,
        Verdict::Pass(_) => XDP_PASS,
        Verdict::Drop(_) => XDP_DROP,
    }
}

/// `/proc/sys/net` is that of the reading thread's namespace.
pub(crate) fn set_loopback_forwarding(on: bool) {
    for family in ["ipv4", "ipv6"] {
        fs::write(format!("/proc/sys/net/{family}/conf/lo/forwarding"), if on { "1" } else { "0" }).unwrap();
    }
}

/// The clock that the program reads.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` to a pointer to a live one.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// `/sys` shows the namespace it was mounted in, so these two come from `ip`.
fn show(interface: &str) -> String {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn index(interface: &str) -> u32 {
    show(interface).split(':').next().unwrap().parse().unwrap()
}

fn mac(interface: &str) -> [u8; 6] {
    let line = show(interface);
    let text = line.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}
