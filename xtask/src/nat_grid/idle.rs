//! Tunnels without traffic: those that are kept open still deliver the first packet that comes in, and cost
//! nothing but what holds their NATs' mappings; others end, and the first packet from either side sets them
//! up again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::figures::{Figure, Figures};
use cyphonic_lab::measure::PingRun;
use serde_json::Value;

use super::pair::{peer, site};
use crate::overlay::{AgentSettings, Device, Progress, Route, ZONE, conclude};

/// Tunnels that are kept open: to a NAT that forgets after 2 seconds, and one that does after 30, direct and
/// relayed.
const KEPT: [(&str, &str); 3] = [("short", "port"), ("short", "symmetric"), ("port", "symmetric")];
/// One that is not, and ends after this without use.
const UNUSED: (&str, &str) = ("open", "cone");
const ENDS_AFTER: Duration = Duration::from_secs(300);
/// For tunnels to stand, and to have found their best paths.
const SETTLE: Duration = Duration::from_secs(20);
/// Beside what ends it, a tunnel takes this long to be noticed gone.
const SLACK: Duration = Duration::from_secs(60);
/// A device behind a NAT of 2 seconds holds its mappings to two services and two peers by a packet each every
/// 1.5 seconds, and once a tunnel's probes have come to rest that is nearly all; twice as much is promised.
const MOST_PACKETS_PER_SECOND: f64 = 8.0;
const LIMIT: Duration = Duration::from_secs(10);

/// Every agent keeps its tunnels to these devices open.
pub(super) fn settings() -> AgentSettings {
    let names = ["short", "port", "symmetric"].map(|site| format!("{site}.grid.{ZONE}")).join(", ");
    AgentSettings { lines: vec![format!("keep_open: [{names}]")], ..AgentSettings::default() }
}

/// Waits for `time` and looks what is left.
pub(super) fn run(
    lab: &Lab,
    devices: &[Device],
    time: Duration,
    json: Option<&Path>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let find = |name: &str| {
        let device = devices.iter().find(|device| site(device) == name);
        device.with_context(|| format!("the scene has no site `{name}`"))
    };
    settle(&find, progress, cancel)?;
    let before: Vec<Value> = KEPT.iter().map(|(a, b)| peer(find(a)?, find(b)?)).collect::<Result<_>>()?;
    let (sent, started) = (transmitted(lab, "short", cancel)?, Instant::now());
    sleep(time, cancel)?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = (transmitted(lab, "short", cancel)? - sent) as f64 / seconds;
    progress.done(&format!(
        "{seconds:.0} s without traffic: the device behind the NAT of 2 s sent {rate:.2} packets a second"
    ));

    let (mut broken, mut lost) = (Vec::new(), 0);
    for ((a, b), before) in KEPT.iter().zip(&before) {
        let (a, b) = (find(a)?, find(b)?);
        let after = peer(a, b)?;
        for counter in ["tx_packets", "rx_packets"] {
            if after[counter] != before[counter] {
                broken.push(format!(
                    "{} to {}: {counter} was {} and is {}",
                    site(a),
                    site(b),
                    before[counter],
                    after[counter]
                ));
            }
        }
        // From the side that is not behind the shorter time-out first: its packet is the one that must find a
        // mapping.
        for (from, to) in [(b, a), (a, b)] {
            let report = from.ping(&PingRun::new(address(to)?, 1), cancel)?;
            lost += report.lost();
            let line = format!(
                "the first packet from {} to {}: {} ({})",
                site(from),
                site(to),
                if report.lost() == 0 { "arrived" } else { "LOST" },
                from.route_to(to, cancel)?.describe()
            );
            progress.done(&line);
            if report.lost() > 0 {
                broken.push(line);
            }
        }
    }
    if rate > MOST_PACKETS_PER_SECOND {
        broken.push(format!(
            "{rate:.1} packets a second are more than hold two peers' and two services' mappings"
        ));
    }
    if time > ENDS_AFTER + SLACK {
        broken.extend(unused(find(UNUSED.0)?, find(UNUSED.1)?, progress, cancel)?);
    }
    let mut figures = Figures::new("nat-grid-idle");
    figures.insert("idle_s", Figure::single(seconds, "s"));
    figures.insert("idle_packets", Figure::single(rate * seconds, ""));
    figures.insert("first_packets_lost", Figure::count(lost));
    if let Some(file) = json {
        figures.write(file)?;
        println!("Figures are in {}.", file.display());
    }
    conclude(&broken)
}

/// Waits until kept tunnels stand by themselves, and pings through each and the unused one once.
fn settle<'a>(
    find: &impl Fn(&str) -> Result<&'a Device>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let started = Instant::now();
    for (a, b) in KEPT {
        let (a, b) = (find(a)?, find(b)?);
        while a.route_to(b, cancel)? == Route::None {
            if started.elapsed() > SETTLE {
                bail!(
                    "the tunnel between {} and {}, which is to be kept open, does not stand",
                    site(a),
                    site(b)
                );
            }
            sleep(Duration::from_millis(200), cancel)?;
        }
    }
    progress.done("the tunnels that are kept open stand, without a query");
    for (a, b) in KEPT.into_iter().chain([UNUSED]) {
        let (a, b) = (find(a)?, find(b)?);
        a.resolve(b, cancel)?;
        let report = a.ping(&PingRun::new(address(b)?, 50), cancel)?;
        if report.lost() > 0 {
            bail!("{} of {} pings from {} to {} were lost", report.lost(), report.sent, site(a), site(b));
        }
    }
    sleep(SETTLE.saturating_sub(started.elapsed()).min(Duration::from_secs(5)), cancel)?;
    for (a, b) in KEPT.into_iter().chain([UNUSED]) {
        let (a, b) = (find(a)?, find(b)?);
        progress.detail(&format!("{} and {}: {}", site(a), site(b), a.route_to(b, cancel)?.describe()));
    }
    Ok(())
}

/// A tunnel that nobody uses has ended at both ends; either end's first packet sets it up.
fn unused(a: &Device, b: &Device, progress: &Progress, cancel: &Cancel) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        for (one, other) in [(a, b), (b, a)] {
            if one.route_to(other, cancel)? != Route::None {
                broken.push(format!(
                    "{} still has a tunnel to {}, which nobody used",
                    site(one),
                    site(other)
                ));
            }
        }
        let report = from.ping(&PingRun::new(address(to)?, 1), cancel)?;
        progress.done(&format!(
            "a packet from {} to {} found no tunnel: {} lost",
            site(from),
            site(to),
            report.lost()
        ));
        if report.lost() > 0 {
            broken.push(format!(
                "the first packet from {} to {} did not set a tunnel up",
                site(from),
                site(to)
            ));
        }
        from.reset_tunnel(to, cancel)?;
    }
    Ok(broken)
}

fn address(device: &Device) -> Result<String> {
    let address = device.address().with_context(|| format!("{} has no address", site(device)))?;
    Ok(address.to_string())
}

/// Packets that a device's interface has sent.
fn transmitted(lab: &Lab, node: &str, cancel: &Cancel) -> Result<u64> {
    let mut ip = lab.command(node, "ip")?;
    let said = check(ip.args(["-j", "-s", "link", "show", "lan0"]), LIMIT, cancel)?;
    let links: Value = serde_json::from_str(&said).context("`ip` says no JSON")?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context("`ip` tells no packets")
}

fn sleep(time: Duration, cancel: &Cancel) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < time {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(50).min(time));
    }
    Ok(())
}
