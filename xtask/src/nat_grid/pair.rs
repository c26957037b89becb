//! One pair: a tunnel from nothing, the first packets over it, and the way it takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::measure::PingRun;
use serde_json::{Value, json};

use crate::overlay::{Device, Route};

/// A pair that can meet without a relay does so within this time of its first packet.
pub(super) const DIRECT_WITHIN: Duration = Duration::from_secs(3);
/// Between the pings that go on while the path changes.
const INTERVAL: Duration = Duration::from_millis(20);
/// How many: as many as are sent while the path may change, and enough to see that the tunnel carries.
const PINGS_MEETING: u32 = 160;
const PINGS_RELAYED: u32 = 50;
const POLL: Duration = Duration::from_millis(50);

/// What became of a pair.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) from: String,
    pub(super) to: String,
    /// Whether the networks' kinds allow a direct path.
    pub(super) punchable: bool,
    pub(super) way: Way,
    /// From the query to the answer.
    pub(super) setup_ms: Option<f64>,
    /// From the set-up through a relay to the direct path.
    pub(super) upgrade_ms: Option<f64>,
    pub(super) lost: u32,
    /// Which, of the first pings of the tunnel.
    pub(super) missing: Vec<u32>,
    /// Why it is relayed or failed, as the agent words it.
    pub(super) why: String,
}

/// How packets go at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Relayed,
    Failed,
}

impl Outcome {
    /// Whether it did what its networks allow.
    pub(super) fn is_as_promised(&self) -> bool {
        self.way != Way::Failed && (!self.punchable || self.way == Way::Direct)
    }

    fn failed(from: &Device, to: &Device, punchable: bool, why: String) -> Self {
        Self {
            from: site(from),
            to: site(to),
            punchable,
            way: Way::Failed,
            setup_ms: None,
            upgrade_ms: None,
            lost: 0,
            missing: Vec::new(),
            why,
        }
    }
}

/// A device is called as its site is: the first label of its name.
pub(super) fn site(device: &Device) -> String {
    device.fqdn().split('.').next().unwrap_or_default().to_owned()
}

/// Takes the pair's tunnel down, sets it up by a query, pings through it at once, and waits for its way.
pub(super) fn measure(from: &Device, to: &Device, punchable: bool, cancel: &Cancel) -> Result<Outcome> {
    for (device, peer) in [(from, to), (to, from)] {
        // There may be none.
        let _ = device.ask(json!({ "op": "reset", "target": { "peer": peer.fqdn() } }));
    }
    cancel.check()?;
    let begun = Instant::now();
    let resolved = match from.ask(json!({ "op": "resolve", "name": to.fqdn() })) {
        Ok(resolved) => resolved,
        Err(error) => return Ok(Outcome::failed(from, to, punchable, format!("{error:#}"))),
    };
    let address = resolved["address"].as_str().unwrap_or_default().to_owned();
    let count = if punchable { PINGS_MEETING } else { PINGS_RELAYED };
    let report = from.ping(&PingRun { interval: INTERVAL, ..PingRun::new(address, count) }, cancel)?;
    if report.received == 0 {
        return Ok(Outcome::failed(from, to, punchable, "no ping was answered".to_owned()));
    }
    let mut peer = peer(from, to)?;
    while punchable && way(&peer) != Way::Direct && begun.elapsed() < DIRECT_WITHIN {
        std::thread::sleep(POLL);
        peer = self::peer(from, to)?;
    }
    let upgrade_ms = peer["upgraded_after_ms"].as_f64().filter(|_| way(&peer) == Way::Direct);
    let late = upgrade_ms.is_some_and(|time| time > DIRECT_WITHIN.as_secs_f64() * 1e3);
    let way = if late { Way::Relayed } else { way(&peer) };
    let why = match Route::of_peer(&peer) {
        Route::Relay { why, .. } => why,
        Route::Direct { how } if how != "direct" => how,
        Route::Direct { .. } | Route::None => String::new(),
    };
    Ok(Outcome {
        from: site(from),
        to: site(to),
        punchable,
        way,
        setup_ms: resolved["took_ms"].as_f64(),
        upgrade_ms,
        lost: report.lost(),
        missing: report.missing(),
        why,
    })
}

/// What one device's agent tells of another.
pub(super) fn peer(from: &Device, to: &Device) -> Result<Value> {
    let status = from.ask(json!({ "op": "status" }))?;
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named =
        |peer: &&Value| peer["name"].as_str().is_some_and(|name| name.trim_end_matches('.') == to.fqdn());
    Ok(peers.iter().find(named).cloned().unwrap_or_default())
}

fn way(peer: &Value) -> Way {
    match Route::of_peer(peer) {
        Route::Direct { .. } => Way::Direct,
        Route::Relay { .. } => Way::Relayed,
        Route::None => Way::Failed,
    }
}
