//! The cable between the relay's host and the world, and the processors that work at its two ends.
//!
//! ```text
//!   world                                  relay
//!   generator ─► gPID ═══════ veth ═══════ rPID 192.0.2.1 ─► what is measured
//!   sink      ◄─                                           ◄─
//!   CPU 0                                  the last CPU
//! ```
//!
//! Both ends poll in kernel threads (threaded NAPI), so that what receiving costs the relay's side is known
//! exactly: it is the time of a thread. The world's thread goes first on its processor, so that the generator
//! never overflows the sink.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::namespace::Namespace;

/// The relay's address.
pub(crate) const RELAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The world's router, through which all senders and receivers are reached.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The relay's UDP port.
pub(crate) const PORT: u16 = 4443;
/// The first receiver's address; binding `i` has the one `i` further.
pub(crate) const FIRST_RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// All ends' UDP port.
pub(crate) const END_PORT: u16 = 5000;

pub(crate) const WORLD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) struct Cable {
    pub(crate) world: Namespace,
    pub(crate) relay: Namespace,
    pub(crate) world_device: String,
    pub(crate) relay_device: String,
}

impl Cable {
    pub(crate) fn new() -> Result<Self> {
        let (world, relay) = (Namespace::new()?, Namespace::new()?);
        let (w, r) = (format!("g{}", std::process::id()), format!("r{}", std::process::id()));
        let tid = relay.tid();
        world.sh(&format!(
            "ip link add {w} numrxqueues 1 numtxqueues 1 address 02:00:00:00:00:02 type veth \
             peer name {r} numrxqueues 1 numtxqueues 1 address 02:00:00:00:00:01 netns {tid}
             ip addr add {ROUTER}/24 dev {w}; ip link set {w} up
             ethtool -K {w} gro on; echo 1 > /sys/class/net/{w}/threaded
             ip neigh replace {RELAY} lladdr 02:00:00:00:00:01 dev {w} nud permanent
             ip route add local 10.0.0.0/9 dev lo"
        ))?;
        relay.sh(&format!(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.all.disable_ipv6=1
             ip addr add {RELAY}/24 dev {r}; ip link set {r} up
             ethtool -K {r} gro on; echo 1 > /sys/class/net/{r}/threaded
             ip neigh replace {ROUTER} lladdr 02:00:00:00:00:02 dev {r} nud permanent
             ip route add 10.0.0.0/8 via {ROUTER}"
        ))?;
        Ok(Self { world, relay, world_device: w, relay_device: r })
    }

    /// The relay's kernel thread, on the last processor. There is one once the device polls.
    pub(crate) fn relay_thread(&self) -> Result<u32> {
        let pid = kernel_thread(&self.relay_device)?;
        pin(pid, relay_cpu())?;
        Ok(pid)
    }

    /// Has the world's kernel thread go first on the first processor.
    pub(crate) fn prefer_sink(&self) -> Result<()> {
        let pid = kernel_thread(&self.world_device)?;
        pin(pid, 0)?;
        let status = Command::new("chrt").args(["-f", "-p", "50", &pid.to_string()]).status();
        ensure!(
            status.context("chrt is part of util-linux")?.success(),
            "cannot give a kernel thread priority"
        );
        Ok(())
    }
}

/// The processor that does the relay's work: not the generator's, if there are two.
pub(crate) fn relay_cpu() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) - 1
}

/// Keeps a process or thread on one processor.
pub(crate) fn pin(tid: u32, cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let pid = rustix::process::Pid::from_raw(tid.cast_signed());
    rustix::thread::sched_setaffinity(pid, &set).with_context(|| format!("cannot pin {tid} to CPU {cpu}"))
}

fn kernel_thread(device: &str) -> Result<u32> {
    let prefix = format!("napi/{device}-");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        for entry in fs::read_dir("/proc")?.flatten() {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.starts_with(&prefix)
                && let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                return Ok(pid);
            }
        }
        if Instant::now() > deadline {
            bail!(
                "no kernel thread polls {device}: this kernel has no threaded NAPI, or its process ids are not ours"
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The processor time that threads have used, by the scheduler's clock.
pub(crate) fn cpu_time(tids: &[u32]) -> Result<Duration> {
    let of = |tid: &u32| -> Result<u64> {
        let path = format!("/proc/{tid}/schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        text.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat has another form")
    };
    tids.iter().map(of).sum::<Result<u64>>().map(Duration::from_nanos)
}
