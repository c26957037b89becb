//! The overlay in the guest: what is put there, and what came out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kernels::guest::Disk;
use crate::target::Target;

const PROGRAMS: [&str; 3] = ["cyphonic-cloud", "cyphonicd", "cyphonic"];
/// Pairs that ping each other, how their packets must go, and what the first one must find that the path
/// carries: all links carry 1,500 bytes, but beyond the relay the outer header is IPv6's, 20 bytes longer
/// than IPv4's.
const PAIRS: [(&str, &str, &str, u64); 2] = [("a", "b", "direct", 1_500), ("a", "d", "relay", 1_480)];
/// Since then kernels tell what drivers can do for XDP; since then they have tcx links.
const TELLS_FEATURES: (u32, u32) = (6, 3);
const HAS_TCX: (u32, u32) = (6, 6);
/// Why XDP is generic, and why the ring is not AF_XDP's.
const NO_NATIVE: &str = "its driver has no native XDP";
/// What an idle agent may hold of memory.
const MOST_RESIDENT_MB: f64 = 15.0;

/// Puts the programs on a disk, and returns the lines of the guest's script that run them.
pub(super) fn install(disk: &Disk, programs: &Path, target: Target) -> Result<String> {
    for tool in ["ip", "ethtool", "sysctl"] {
        disk.tool(tool)?;
    }
    for program in PROGRAMS {
        disk.stripped(&programs.join(program), &format!("programs/{program}"), target)?;
    }
    disk.text(include_str!("overlay.sh"), "tests/overlay.sh")?;
    // The emulated machine's clock is not every kernel's to read, and certificates have a time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?;
    Ok(format!("NOW={} sh /tests/overlay.sh 2>&1\n", now.as_secs()))
}

/// What the overlay said.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Of an agent without tunnels.
    pub(super) resident_mb: f64,
    /// `cyphonic status --json`, by node.
    status: BTreeMap<String, Value>,
    /// What `ping` said at its end, by pair.
    pings: BTreeMap<(String, String), String>,
    /// What the relay's XDP program forwarded.
    forwarded: u64,
    /// Where the relay's status says it is, and why so: `generic` and a reason, for each interface.
    places: Vec<(String, String)>,
    /// What the relay told of itself.
    relay_log: Vec<String>,
}

impl Findings {
    /// Reads the lines of the script that begin with `@`.
    pub(super) fn read(said: &str) -> Result<Self> {
        let mut found = Self::default();
        for line in said.lines().filter_map(|line| line.trim_end().strip_prefix('@')) {
            let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            match what {
                "rss" => found.resident_mb = kilobytes(value).context("the guest told no VmRSS")? / 1e3,
                "status" => {
                    let status = serde_json::from_str(value)
                        .with_context(|| format!("the status of {name} is no JSON: {value}"))?;
                    found.status.insert(name.to_owned(), status);
                }
                "ping" => {
                    let (to, said) = value.split_once(' ').unwrap_or((value, ""));
                    found.pings.insert((name.to_owned(), to.to_owned()), said.to_owned());
                }
                "trs-status" => {
                    let status: Value = serde_json::from_str(rest)
                        .with_context(|| format!("the status of the relay is no JSON: {rest}"))?;
                    let relays = status["xdp"].as_array().cloned().unwrap_or_default();
                    found.forwarded =
                        relays.iter().filter_map(|relay| relay["forwarded_packets"].as_u64()).sum();
                    let places = relays.iter().filter_map(|relay| relay["interfaces"].as_array()).flatten();
                    found.places = places
                        .map(|place| (text(&place["mode"]).to_owned(), text(&place["why"]).to_owned()))
                        .collect();
                }
                "trs-log" => found.relay_log.push(rest.to_owned()),
                _ => {}
            }
        }
        if found.status.is_empty() {
            bail!("the overlay did not come up in the guest: its log says why");
        }
        Ok(found)
    }

    /// Prints them for people.
    pub(super) fn tell(&self) {
        let status = |name: &str, part: &str| {
            let part = &self.status.get(name).unwrap_or(&Value::Null)[part];
            format!("{} ({})", text(&part["kind"]), text(&part["why"]))
        };
        println!("\nan agent without tunnels holds {:.1} MB", self.resident_mb);
        for part in ["cipher", "ring", "classifier"] {
            println!("{part:<12} {}", status("a", part));
        }
        for line in &self.relay_log {
            println!("relay        {line}");
        }
        for (mode, why) in &self.places {
            println!("relay        its status says: {mode} ({why})");
        }
        println!("relay        {} packets forwarded in XDP", self.forwarded);
        for (from, to, ..) in PAIRS {
            let (route, path) = (self.route(from, to), self.path_mtu(from, to));
            println!("{from} - {to}        {route}, a path of {path}; {}", self.ping(from, to));
        }
    }

    /// What should be and is not, on a kernel of this version.
    pub(super) fn broken_promises(&self, kernel: (u32, u32)) -> Vec<String> {
        // What only the driver's own refusal tells on an older kernel, where it is known to whoever tried.
        let no_native = if kernel >= TELLS_FEATURES { NO_NATIVE } else { "Linux 6.3" };
        let (classifier, why_classifier) =
            if kernel >= HAS_TCX { ("tcx", "") } else { ("clsact", "tcx needs Linux 6.6") };
        let mut broken = Vec::new();
        let mut promise = |holds: bool, why: String| broken.extend((!holds).then_some(why));
        for (name, status) in &self.status {
            let (cipher, why) = (text(&status["cipher"]["kind"]), text(&status["cipher"]["why"]));
            let no_aes = cipher == "ChaCha20-Poly1305" && why.contains("no AES");
            promise(no_aes, format!("{name} prefers {cipher} ({why}) on a processor without AES"));
            let (kind, why) = (text(&status["classifier"]["kind"]), text(&status["classifier"]["why"]));
            let as_expected = kind == classifier && why.contains(why_classifier);
            promise(as_expected, format!("{name} has the classifier {kind} ({why}), not {classifier}"));
            let why = text(&status["ring"]["why"]);
            promise(why.contains(no_native), format!("{name} does not say `{no_native}` of its ring: {why}"));
        }
        for (from, to, kind, carries) in PAIRS {
            let (route, path, ping) = (self.route(from, to), self.path_mtu(from, to), self.ping(from, to));
            promise(
                path == carries,
                format!("{from} finds a path of {path} bytes to {to}, not of {carries}"),
            );
            promise(route == kind, format!("{from} reaches {to} by {route}, not by {kind}"));
            promise(ping.contains(" 0% packet loss"), format!("{from} pings {to}: {ping}"));
        }
        let log = &self.relay_log;
        let generic = log.iter().any(|line| line.contains("generic") && line.contains(NO_NATIVE));
        promise(generic, format!("the relay's log does not say `generic` and `{NO_NATIVE}`: {log:?}"));
        let places = &self.places;
        let generic = places.iter().any(|(mode, why)| mode == "generic" && why.contains(no_native));
        promise(generic, format!("the relay's status does not say `generic` and `{no_native}`: {places:?}"));
        promise(self.forwarded > 0, "the relay forwarded nothing in XDP".to_owned());
        broken
    }

    /// Whether an idle agent, optimised as it is shipped, holds more memory than it may.
    pub(super) fn too_large(&self) -> Option<String> {
        let resident = self.resident_mb;
        let fits = resident > 0.0 && resident <= MOST_RESIDENT_MB;
        (!fits).then(|| format!("an idle agent holds {resident:.1} MB, more than {MOST_RESIDENT_MB}"))
    }

    /// `direct`, `relay` or `none`.
    fn route(&self, from: &str, to: &str) -> String {
        let peer = self.peer(from, to);
        peer.map_or_else(|| "none".to_owned(), |peer| text(&peer["route"]["kind"]).to_owned())
    }

    /// 0 while it is not known.
    fn path_mtu(&self, from: &str, to: &str) -> u64 {
        let known = self.peer(from, to).filter(|peer| peer["path_known"] == true);
        known.and_then(|peer| peer["path_mtu"].as_u64()).unwrap_or(0)
    }

    fn peer(&self, from: &str, to: &str) -> Option<&Value> {
        let mut peers = self.status.get(from)?["peers"].as_array()?.iter();
        peers.find(|peer| text(&peer["name"]).starts_with(&format!("{to}.")))
    }

    fn ping(&self, from: &str, to: &str) -> &str {
        self.pings.get(&(from.to_owned(), to.to_owned())).map_or("no answer", String::as_str)
    }
}

/// `VmRSS:     9000 kB`
fn kilobytes(text: &str) -> Option<f64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: (u32, u32) = (6, 1);
    const NEW: (u32, u32) = (6, 12);

    fn status(cipher: &str) -> String {
        format!(
            "{{\"cipher\":{{\"kind\":\"{cipher}\",\"why\":\"this CPU has no AES instructions\"}},\
             \"classifier\":{{\"kind\":\"tcx\",\"why\":\"the best\"}},\
             \"ring\":{{\"kind\":\"offload\",\"why\":\"eth0: its driver has no native XDP\"}},\
             \"peers\":[{{\"name\":\"b.pi.internal\",\"route\":{{\"kind\":\"direct\"}},\
             \"path_mtu\":1500,\"path_known\":true}},\
             {{\"name\":\"d.pi.internal\",\"route\":{{\"kind\":\"relay\"}},\
             \"path_mtu\":1480,\"path_known\":true}}]}}"
        )
    }

    fn said(cipher: &str) -> String {
        format!(
            "boot\r\n@rss a VmRSS:\t    9000 kB\r\n@status a {}\r\n\
             @ping a b 10 packets transmitted, 10 packets received, 0% packet loss\r\n\
             @ping a d 10 packets transmitted, 10 packets received, 0% packet loss\r\n\
             @trs-status {{\"xdp\":[{{\"forwarded_packets\":20,\"interfaces\":\
             [{{\"name\":\"eth0\",\"mode\":\"generic\",\"why\":\"its driver has no native XDP\"}}]}}]}}\r\n\
             @trs-log relaying in XDP on eth0 (generic: its driver has no native XDP)\r\n",
            status(cipher)
        )
    }

    #[test]
    fn an_overlay_as_it_should_be_breaks_no_promise() {
        let findings = Findings::read(&said("ChaCha20-Poly1305")).unwrap();
        assert_eq!(findings.broken_promises(NEW), Vec::<String>::new());
        assert!((findings.resident_mb - 9.0).abs() < 1e-9);
        assert_eq!(findings.too_large(), None);
        let large = said("ChaCha20-Poly1305").replace("9000 kB", "15001 kB");
        assert!(Findings::read(&large).unwrap().too_large().unwrap().contains("15.0 MB"));
    }

    #[test]
    fn every_broken_promise_is_told() {
        let broken = |text: &str, kernel| Findings::read(text).unwrap().broken_promises(kernel);
        let aes = broken(&said("AES-128-GCM"), NEW);
        assert_eq!(aes.len(), 1, "{aes:?}");
        let good = said("ChaCha20-Poly1305");
        let lost = broken(&good.replacen("10 packets received, 0%", "9 packets received, 10%", 1), NEW);
        assert!(lost.len() == 1 && lost[0].contains("a pings b"), "{lost:?}");
        let narrow = broken(&good.replace("1480", "1276"), NEW);
        assert!(narrow.len() == 1 && narrow[0].contains("1276"), "{narrow:?}");
        let unknown = broken(&good.replacen("\"path_known\":true", "\"path_known\":false", 1), NEW);
        assert!(unknown.len() == 1 && unknown[0].contains("path of 0 bytes to b"), "{unknown:?}");
        let unused = broken(&good.replace("20,", "0,").replace("generic", "native"), NEW);
        assert_eq!(unused.len(), 3, "{unused:?}");
        let unexplained = broken(&good.replace(NO_NATIVE, "because"), NEW);
        assert_eq!(unexplained.len(), 3, "ring, log and status: {unexplained:?}");
        assert!(Findings::read("kernel panic").is_err());
    }

    #[test]
    fn an_old_kernel_is_to_be_named_as_the_reason() {
        let findings = Findings::read(&said("ChaCha20-Poly1305")).unwrap();
        let broken = findings.broken_promises(OLD);
        assert_eq!(broken.len(), 3, "the classifier, the ring and the relay's status: {broken:?}");
    }
}
