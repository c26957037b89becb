//! What is measured, and what it is held to.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures, Statistic};
use cyphonic_lab::measure::{IperfRun, IperfServer, PingRun, Summary, Transport};
use cyphonic_lab::{Lab, Role, Topology};

use crate::overlay::{Device, Progress, Route};

/// The paper's stream: 1,360 bytes at 30 Mbit/s.
const STREAM: Transport = Transport::Udp { bits_per_second: 30_000_000, bytes: 1360 };
const PINGS: u32 = 100;
/// The devices of Fig. 5 by their nodes' names: C and B reach each other, A and C do not.
const DIRECT: (&str, &str) = ("c", "b");
const RELAYED: (&str, &str) = ("a", "c");
/// Beyond the round trips of the network.
const SETUP_OVERHEAD_MS: f64 = 5.0;
/// What a tunnel may add to a round trip (medians).
const ADDED: [(&str, f64); 2] = [("direct", 0.3), ("relay", 0.5)];

pub(super) struct Experiments<'a> {
    lab: &'a Lab,
    topology: &'a Topology,
    devices: &'a mut [Device],
    progress: &'a Progress,
    cancel: &'a Cancel,
    quick: bool,
    figures: Figures,
    broken: Vec<String>,
}

/// The statistics of one route's pings, and their median.
struct RoundTrip {
    summary: Summary,
    median: f64,
}

impl<'a> Experiments<'a> {
    pub(super) fn new(
        lab: &'a Lab,
        topology: &'a Topology,
        devices: &'a mut [Device],
        progress: &'a Progress,
        cancel: &'a Cancel,
        quick: bool,
    ) -> Self {
        let (figures, broken) = (Figures::new("paper"), Vec::new());
        Self { lab, topology, devices, progress, cancel, quick, figures, broken }
    }

    /// The figures, and the promises broken; those of time only if it is `timed`.
    pub(super) fn run(mut self, timed: bool) -> Result<(Figures, Vec<String>)> {
        self.round_trips(timed)?;
        self.signalling(timed)?;
        self.streams()?;
        Ok((self.figures, self.broken))
    }

    /// Table II.
    fn round_trips(&mut self, timed: bool) -> Result<()> {
        let trs = self.topology.hosts_with(Role::Trs).next().context("there is no TRS")?.0;
        let (trs, b) = (self.ipv4(trs)?, self.ipv4(DIRECT.1)?);
        let direct = self.plain(DIRECT.0, b)?;
        let legs = [self.plain(RELAYED.0, trs)?, self.plain(RELAYED.1, trs)?];
        let relay = joined(&legs);
        for ((route, most), pair, general) in [(ADDED[0], DIRECT, direct), (ADDED[1], RELAYED, relay)] {
            let proposed = self.overlay(pair)?;
            let added = proposed.median - general.median;
            self.insert_round_trip(&format!("general_{route}"), &general);
            self.insert_round_trip(&format!("proposed_{route}"), &proposed);
            self.insert(&format!("rtt_added_{route}_ms"), added);
            self.progress.done(&format!(
                "round trip {route}: {:.3} ms plain, {:.3} ms in the overlay",
                general.summary.avg_ms, proposed.summary.avg_ms
            ));
            self.promise(!timed || added < most, || {
                format!("the tunnel adds {added:.3} ms to a round trip ({route}), not less than {most} ms")
            });
        }
        Ok(())
    }

    /// Fig. 6. The start-up is that of the whole agent from cached state: the process, its interface and its eBPF programs
    /// too. What its signalling alone may cost is asserted in round trips under virtual time (`cyphonic-proto`), so here it
    /// is not held to anything.
    fn signalling(&mut self, timed: bool) -> Result<()> {
        let (many, few) = if self.quick { (10, 2) } else { (50, 10) };
        let direct = self.setups(DIRECT, many)?;
        let warm = self.setups(RELAYED, many)?;
        let (mut starts, mut cold) = (Vec::new(), Vec::new());
        for _ in 0..few {
            for node in [RELAYED.0, RELAYED.1] {
                let (lab, cancel) = (self.lab, self.cancel);
                starts.push(milliseconds(self.device_mut(node)?.restart(lab, cancel)?));
            }
            let (a, c) = (self.device(RELAYED.0)?, self.device(RELAYED.1)?);
            cold.push(milliseconds(a.resolve(c, self.cancel)?.time));
        }
        let (cloud, _) = self.topology.hosts_with(Role::Nms).next().context("there is no NMS")?;
        let to_cloud = self.plain(RELAYED.0, self.ipv4(cloud)?)?.median;
        let path = |figures: &Figures, route: &str| {
            figures.get(&format!("general_{route}_rtt_median_ms")).map(|figure| figure.value)
        };
        let (near, far) = (path(&self.figures, "direct"), path(&self.figures, "relay"));
        let (near, far) = (near.context("no direct round trip")?, far.context("no relayed round trip")?);
        let kinds = [
            ("direct", direct, near, Some(2.0)),
            ("relay_warm", warm, far, Some(2.0)),
            ("relay_cold", cold, far, Some(3.0)),
            ("startup", starts, to_cloud, None),
        ];
        for (kind, samples, round_trip, most) in kinds {
            let figure = Figure::of(&samples, Statistic::Median, "ms").context("nothing was measured")?;
            let (median, trips) = (figure.value, figure.value / round_trip);
            self.figures.insert(&format!("signalling_{kind}_ms"), figure);
            self.insert_as(&format!("signalling_{kind}_round_trips"), trips, "");
            self.progress.done(&format!("signalling, {kind}: {median:.1} ms, {trips:.2} round trips"));
            let Some(most) = most else { continue };
            let limit = most * round_trip + SETUP_OVERHEAD_MS;
            self.promise(!timed || median <= limit, || {
                format!("signalling ({kind}) takes {median:.1} ms, more than {limit:.1} ms")
            });
        }
        Ok(())
    }

    /// Table III.
    fn streams(&mut self) -> Result<()> {
        let time = Duration::from_secs(if self.quick { 5 } else { 60 });
        for (route, (from, to)) in [("direct", DIRECT), ("relay", RELAYED)] {
            let _server = IperfServer::start(self.lab, to)?;
            let run = IperfRun { target: self.device(to)?.fqdn().to_owned(), transport: STREAM, time };
            let stream = run.run(self.device(from)?.namespace(), self.cancel)?;
            self.insert_as(&format!("udp30_{route}_mbps"), stream.bits_per_second / 1e6, "Mbit/s");
            if let Some(jitter) = stream.jitter_ms {
                self.insert(&format!("udp30_{route}_jitter_ms"), jitter);
            }
            if let Some(lost) = stream.lost_percent {
                self.insert_as(&format!("udp30_{route}_lost_percent"), lost, "%");
            }
            self.progress.done(&format!("{route}: {:.2} of 30 Mbit/s", stream.bits_per_second / 1e6));
        }
        Ok(())
    }

    /// Takes a tunnel down and sets it up again so many times; milliseconds from query to answer.
    fn setups(&self, (from, to): (&str, &str), count: usize) -> Result<Vec<f64>> {
        let (source, target) = (self.device(from)?, self.device(to)?);
        source.resolve(target, self.cancel)?;
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            source.reset_tunnel(target, self.cancel)?;
            // Otherwise the time of a mere lookup would pass for that of a set-up.
            if number == 0 && source.route_to(target, self.cancel)? != Route::None {
                bail!("`cyphonic tunnel reset` on {from} left the tunnel to {to} standing");
            }
            times.push(milliseconds(source.resolve(target, self.cancel)?.time));
        }
        Ok(times)
    }

    fn plain(&self, from: &str, to: IpAddr) -> Result<RoundTrip> {
        self.ping(from, &PingRun::new(to, PINGS))
    }

    fn overlay(&mut self, (from, to): (&str, &str)) -> Result<RoundTrip> {
        let (source, target) = (self.device(from)?, self.device(to)?);
        source.resolve(target, self.cancel)?;
        self.ping(from, &PingRun::new(target.fqdn(), PINGS))
    }

    fn ping(&self, from: &str, run: &PingRun) -> Result<RoundTrip> {
        let report = self.device(from)?.ping(run, self.cancel)?;
        if report.lost() > 0 {
            bail!("{} of {} pings from {from} to {} were lost", report.lost(), report.sent, run.target);
        }
        let summary = report.summary.context("ping gave no summary")?;
        let median =
            Figure::of(&report.rtts_ms, Statistic::Median, "ms").context("no ping was answered")?.value;
        Ok(RoundTrip { summary, median })
    }

    fn insert_round_trip(&mut self, name: &str, round_trip: &RoundTrip) {
        let Summary { min_ms, avg_ms, max_ms, mdev_ms } = round_trip.summary;
        let values = [("min", min_ms), ("avg", avg_ms), ("max", max_ms), ("mdev", mdev_ms)];
        for (what, value) in values.into_iter().chain([("median", round_trip.median)]) {
            self.insert(&format!("{name}_rtt_{what}_ms"), value);
        }
    }

    fn insert(&mut self, name: &str, value: f64) {
        self.insert_as(name, value, "ms");
    }

    fn insert_as(&mut self, name: &str, value: f64, unit: &'static str) {
        self.figures.insert(name, Figure::single(value, unit));
    }

    fn ipv4(&self, node: &str) -> Result<IpAddr> {
        let addresses = self.topology.hosts.get(node).into_iter().flat_map(|host| host.addresses());
        addresses.into_iter().find(IpAddr::is_ipv4).with_context(|| format!("{node} has no IPv4 address"))
    }

    fn device(&self, node: &str) -> Result<&Device> {
        let device = self.devices.iter().find(|device| device.node() == node);
        device.with_context(|| format!("the topology has no device `{node}`"))
    }

    fn device_mut(&mut self, node: &str) -> Result<&mut Device> {
        let device = self.devices.iter_mut().find(|device| device.node() == node);
        device.with_context(|| format!("the topology has no device `{node}`"))
    }

    fn promise(&mut self, kept: bool, what: impl FnOnce() -> String) {
        if !kept {
            let what = what();
            self.progress.done(&format!("BROKEN: {what}"));
            self.broken.push(what);
        }
    }
}

/// Two legs one after the other, as the paper adds them.
fn joined([a, b]: &[RoundTrip; 2]) -> RoundTrip {
    let (x, y) = (&a.summary, &b.summary);
    let summary = Summary {
        min_ms: x.min_ms + y.min_ms,
        avg_ms: x.avg_ms + y.avg_ms,
        max_ms: x.max_ms + y.max_ms,
        mdev_ms: x.mdev_ms.hypot(y.mdev_ms),
    };
    RoundTrip { summary, median: a.median + b.median }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
