//! What is measured of a system while it runs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::measure::{
    IperfRun, IperfServer, PingRun, RateSearch, Transport, busy_time, ping, resident_bytes,
};

use super::samples::Samples;
use super::site::{Side, Site};
use super::system::Running;

/// Where datagrams are counted.
const PORT: u16 = 5300;
/// Where the search for a rate begins, in datagrams per second, if nothing is known.
const FIRST_RATE: f64 = 40_000.0;
/// Between the pings that see the network idle, and those that see it loaded.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);
const LOADED_INTERVAL: Duration = Duration::from_millis(25);

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Seconds of a TCP transfer.
    pub(super) seconds: u64,
    /// Pings through the idle network.
    pub(super) pings: u32,
    /// How long a rate of datagrams is tried.
    pub(super) trial: Duration,
    /// Rates tried in the first visit; a later one begins where the one before ended, and needs fewer.
    pub(super) trials: u32,
}

/// Measures a running system and adds what came out to its samples.
pub(super) fn measure(
    site: &Site<'_>,
    running: &Running,
    effort: Effort,
    samples: &mut Samples,
) -> Result<()> {
    idle(site, running, effort, samples).context("round trips")?;
    bulk(site, running, effort, samples).context("TCP")?;
    for (name, bytes) in [("udp1360_kpps", 1360), ("udp64_kpps", 64)] {
        datagrams(site, running, effort, samples, name, bytes).context("datagrams")?;
    }
    // Both ends run the same; the larger is what a device must have.
    if let Some(bytes) = running.pids().filter_map(resident_bytes).max() {
        samples.add("rss_mb", bytes as f64 / 1e6);
    }
    Ok(())
}

fn idle(site: &Site<'_>, running: &Running, effort: Effort, samples: &mut Samples) -> Result<()> {
    let namespace = site.lab.namespace(Side::A.node())?;
    let run = PingRun { interval: IDLE_INTERVAL, ..PingRun::new(running.target, effort.pings) };
    // The first round trips of a path are those of caches that fill.
    ping(&namespace, &PingRun::new(running.target, 5), site.cancel)?;
    let report = ping(&namespace, &run, site.cancel)?;
    report.rtts_ms.iter().for_each(|ms| samples.add("rtt_idle_us", ms * 1e3));
    Ok(())
}

fn bulk(site: &Site<'_>, running: &Running, effort: Effort, samples: &mut Samples) -> Result<()> {
    let namespace = site.lab.namespace(Side::A.node())?;
    let _server = IperfServer::start(&site.lab, Side::B.node())?;
    let time = Duration::from_secs(effort.seconds);
    let run = |streams| IperfRun {
        target: running.target.to_string(),
        transport: Transport::Tcp { streams },
        time,
    };
    let count = (time.as_millis() / LOADED_INTERVAL.as_millis()).try_into().unwrap_or(100);
    let pings = PingRun { interval: LOADED_INTERVAL, ..PingRun::new(running.target, count) };
    let before = busy_time();
    let (transfer, report) = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| ping(&namespace, &pings, site.cancel));
        (run(1).run(&namespace, site.cancel), pinging.join())
    });
    let busy = busy_time().zip(before).map(|(after, before)| after.saturating_sub(before));
    let transfer = transfer?;
    samples.add("tcp1_gbps", transfer.bits_per_second / 1e9);
    let gigabytes = transfer.bits_per_second * time.as_secs_f64() / 8e9;
    if let Some(busy) = busy.filter(|_| gigabytes > 0.0) {
        samples.add("cpu_s_per_gb", busy.as_secs_f64() / gigabytes);
    }
    let report = report.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let report = report.context("pings beside the stream")?;
    report.rtts_ms.iter().for_each(|ms| samples.add("rtt_loaded_us", ms * 1e3));
    let transfer = run(4).run(&namespace, site.cancel)?;
    samples.add("tcp4_gbps", transfer.bits_per_second / 1e9);
    Ok(())
}

fn datagrams(
    site: &Site<'_>,
    running: &Running,
    effort: Effort,
    samples: &mut Samples,
    name: &'static str,
    bytes: usize,
) -> Result<()> {
    let known = samples.last(name).map(|kpps| kpps * 1e3);
    let search = RateSearch {
        program: &site.programs.datagrams,
        nodes: (Side::A.node(), Side::B.node()),
        to: SocketAddr::new(running.target, PORT),
        bytes,
        time: effort.trial,
        first: known.unwrap_or(FIRST_RATE),
        trials: if known.is_some() { effort.trials.saturating_sub(2).max(3) } else { effort.trials },
    };
    if let Some(rate) = search.run(&site.lab, site.cancel)? {
        samples.add(name, rate / 1e3);
    }
    Ok(())
}
