//! What is measured, and what it is held to.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::Role;
use cyphonic_lab::figures::Figures;
use cyphonic_lab::measure::{IperfServer, Summary};

use crate::overlay::{DIRECT, Fig5, RELAYED, RoundTrips, STREAM, Verdict, median};

/// The paper's 100 pings, in rounds.
const ROUNDS: u32 = 4;
const PINGS: u32 = 25;
/// What a set-up may take beyond the round trips of the network, milliseconds.
const SETUP_OVERHEAD_MS: f64 = 5.0;
/// What a start-up may: two services' handshakes are verified, and the NMS writes the registration down.
const START_UP_OVERHEAD_MS: f64 = 15.0;
/// What a tunnel may add to a round trip (medians).
const ADDED: [(&str, f64); 2] = [("direct", 0.3), ("relay", 0.5)];

/// A kind of signalling: times in milliseconds, and what it is held to.
struct Signalling {
    name: &'static str,
    samples: Vec<f64>,
    /// Of the path that it is told in, milliseconds.
    round_trip: f64,
    most_round_trips: f64,
    overhead: f64,
}

pub(super) struct Experiments<'a> {
    fig5: Fig5<'a>,
    quick: bool,
    timed: bool,
    verdict: Verdict<'a>,
}

impl<'a> Experiments<'a> {
    /// Promises of time count only if it is `timed`.
    pub(super) fn new(fig5: Fig5<'a>, quick: bool, timed: bool) -> Self {
        let verdict = Verdict::new("paper", fig5.progress);
        Self { fig5, quick, timed, verdict }
    }

    /// The figures, and the promises broken.
    pub(super) fn run(mut self) -> Result<(Figures, Vec<String>)> {
        let direct = self.fig5.direct_round_trips(ROUNDS, PINGS)?;
        let near = self.round_trips(ADDED[0], &direct)?;
        let relayed = self.fig5.relayed_round_trips(ROUNDS, PINGS)?;
        let far = self.round_trips(ADDED[1], &relayed)?;
        self.signalling(near, far)?;
        self.streams()?;
        Ok((self.verdict.figures, self.verdict.broken))
    }

    /// Table II. The median round trip of the plain network, milliseconds.
    fn round_trips(&mut self, (route, most): (&str, f64), found: &RoundTrips) -> Result<f64> {
        if found.lost > 0 {
            bail!("{} pings in the overlay were lost ({route})", found.lost);
        }
        let (general, plain) = joined(&found.legs).context("no ping of the plain network was answered")?;
        let proposed = Summary::of(&found.overlay).context("no ping was answered")?;
        let overlay = median(&found.overlay).context("no ping was answered")?;
        let added = overlay - plain;
        for (name, summary, median) in [("general", general, plain), ("proposed", proposed, overlay)] {
            let Summary { min_ms, avg_ms, max_ms, mdev_ms } = summary;
            let values =
                [("min", min_ms), ("avg", avg_ms), ("max", max_ms), ("mdev", mdev_ms), ("median", median)];
            for (what, value) in values {
                self.verdict.single(&format!("{name}_{route}_rtt_{what}_ms"), value, "ms");
            }
        }
        self.verdict.single(&format!("rtt_added_{route}_ms"), added, "ms");
        self.fig5.progress.done(&format!(
            "round trip {route}: {:.3} ms plain, {:.3} ms in the overlay",
            general.avg_ms, proposed.avg_ms
        ));
        self.verdict.promise(!self.timed || added < most, || {
            format!("the tunnel adds {added:.3} ms to a round trip ({route}), not less than {most} ms")
        });
        Ok(plain)
    }

    /// Fig. 6. Set-ups are held to round trips of the pair's own path, start-ups to those to the cloud.
    fn signalling(&mut self, near: f64, far: f64) -> Result<()> {
        let (many, few) = if self.quick { (10, 2) } else { (50, 10) };
        let direct = self.fig5.setups(DIRECT, many)?;
        let warm = self.fig5.setups(RELAYED, many)?;
        let (agents, cold) = self.fig5.cold_setups(RELAYED, few)?;
        let cloud = self.fig5.server(Role::Nms)?;
        let cloud =
            median(&self.fig5.plain(RELAYED.0, cloud, PINGS)?).context("the cloud answers no ping")?;
        let (first, cached) = self.start_ups(few)?;
        self.verdict.median("agent_start_ms", &agents);
        let kinds = [
            ("direct", direct, near, 2.0, SETUP_OVERHEAD_MS),
            ("relay_warm", warm, far, 2.0, SETUP_OVERHEAD_MS),
            ("relay_cold", cold, far, 3.0, SETUP_OVERHEAD_MS),
            ("startup", first, cloud, 4.0, START_UP_OVERHEAD_MS),
            ("startup_cached", cached, cloud, 2.0, START_UP_OVERHEAD_MS),
        ];
        for (name, samples, round_trip, most_round_trips, overhead) in kinds {
            self.hold(&Signalling { name, samples, round_trip, most_round_trips, overhead })?;
        }
        Ok(())
    }

    /// What signalling costs a device until it is registered, as its agent tells it: when it has never met
    /// its cloud, and from what it remembers of it. The process, its interface and its eBPF programs come
    /// before and are not in it.
    fn start_ups(&mut self, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut first, mut cached) = (Vec::new(), Vec::new());
        for _ in 0..count {
            for (times, forget) in [(&mut first, true), (&mut cached, false)] {
                let (lab, cancel) = (self.fig5.lab, self.fig5.cancel);
                let device = self.fig5.device_mut(RELAYED.0)?;
                device.stop();
                if forget {
                    device.forget_cloud()?;
                }
                device.restart(lab, cancel)?;
                let status = device.status(cancel)?;
                let time = status.get("start_up_ms").and_then(serde_json::Value::as_f64);
                times.push(time.context("the agent does not tell how long its start-up took")?);
            }
        }
        Ok((first, cached))
    }

    fn hold(&mut self, kind: &Signalling) -> Result<()> {
        let Signalling { name, samples, round_trip, most_round_trips, overhead } = kind;
        let median = self.verdict.median(&format!("signalling_{name}_ms"), samples);
        let median = median.context("no signalling was measured")?;
        let trips = median / round_trip;
        self.verdict.single(&format!("signalling_{name}_round_trips"), trips, "");
        self.fig5.progress.done(&format!("signalling, {name}: {median:.1} ms, {trips:.2} round trips"));
        let limit = most_round_trips * round_trip + overhead;
        self.verdict.promise(!self.timed || median <= limit, || {
            format!("signalling ({name}) takes {median:.1} ms, more than {limit:.1} ms")
        });
        Ok(())
    }

    /// Table III.
    fn streams(&mut self) -> Result<()> {
        let time = Duration::from_secs(if self.quick { 5 } else { 60 });
        for (route, pair) in [("direct", DIRECT), ("relay", RELAYED)] {
            let _server = IperfServer::start(self.fig5.lab, pair.1)?;
            let stream = self.fig5.iperf(pair, STREAM, time)?;
            let rate = stream.bits_per_second / 1e6;
            self.verdict.single(&format!("udp30_{route}_mbps"), rate, "Mbit/s");
            if let Some(jitter) = stream.jitter_ms {
                self.verdict.single(&format!("udp30_{route}_jitter_ms"), jitter, "ms");
            }
            if let Some(lost) = stream.lost_percent {
                self.verdict.single(&format!("udp30_{route}_lost_percent"), lost, "%");
            }
            self.fig5.progress.done(&format!("{route}: {rate:.2} of 30 Mbit/s"));
        }
        Ok(())
    }
}

/// Legs one after the other, as the paper adds them: their statistics, and the sum of their medians.
fn joined(legs: &[Vec<f64>]) -> Option<(Summary, f64)> {
    let mut all = Summary { min_ms: 0.0, avg_ms: 0.0, max_ms: 0.0, mdev_ms: 0.0 };
    let mut medians = 0.0;
    for leg in legs {
        let summary = Summary::of(leg)?;
        all.min_ms += summary.min_ms;
        all.avg_ms += summary.avg_ms;
        all.max_ms += summary.max_ms;
        all.mdev_ms = all.mdev_ms.hypot(summary.mdev_ms);
        medians += median(leg)?;
    }
    Some((all, medians))
}
