//! The overlay in the guest: what is put there, and what came out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kernels::guest::Disk;
use crate::target::Target;

const PROGRAMS: [&str; 3] = ["cyphonic-cloud", "cyphonicd", "cyphonic"];
/// Pairs that ping each other, and how their packets must go.
const PAIRS: [(&str, &str, &str); 2] = [("a", "b", "direct"), ("a", "d", "relay")];
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
    /// What the relay told of itself.
    relay_log: Vec<String>,
}

impl Findings {
    /// Reads the lines of the script that begin with `@`.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut found = Self::default();
        for line in text.lines().filter_map(|line| line.trim_end().strip_prefix('@')) {
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
        println!("relay        {} packets forwarded in XDP", self.forwarded);
        for (from, to, _) in PAIRS {
            println!("{from} - {to}        {}; {}", self.route(from, to), self.ping(from, to));
        }
    }

    /// What should be and is not.
    pub(super) fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut promise = |holds: bool, why: String| broken.extend((!holds).then_some(why));
        for (name, status) in &self.status {
            let (cipher, why) = (text(&status["cipher"]["kind"]), text(&status["cipher"]["why"]));
            let no_aes = cipher == "ChaCha20-Poly1305" && why.contains("no AES");
            promise(no_aes, format!("{name} prefers {cipher} ({why}) on a processor without AES"));
            let classifier = text(&status["classifier"]["kind"]);
            promise(classifier != "none" && !classifier.is_empty(), format!("{name} has no eBPF classifier"));
            let why = text(&status["ring"]["why"]);
            promise(!why.is_empty(), format!("{name} does not say why it has its ring"));
        }
        for (from, to, kind) in PAIRS {
            let (route, ping) = (self.route(from, to), self.ping(from, to));
            promise(route == kind, format!("{from} reaches {to} by {route}, not by {kind}"));
            promise(ping.contains(" 0% packet loss"), format!("{from} pings {to}: {ping}"));
        }
        let generic = self.relay_log.iter().any(|line| line.contains("generic"));
        promise(generic, format!("the relay is not in generic XDP: {:?}", self.relay_log));
        promise(self.forwarded > 0, "the relay forwarded nothing in XDP".to_owned());
        let resident = self.resident_mb;
        promise(
            resident > 0.0 && resident <= MOST_RESIDENT_MB,
            format!("an idle agent holds {resident:.1} MB, more than {MOST_RESIDENT_MB}"),
        );
        broken
    }

    /// `direct`, `relay` or `none`.
    fn route(&self, from: &str, to: &str) -> String {
        let peers = self.status.get(from).and_then(|status| status["peers"].as_array());
        let peer =
            peers.into_iter().flatten().find(|peer| text(&peer["name"]).starts_with(&format!("{to}.")));
        peer.map_or_else(|| "none".to_owned(), |peer| text(&peer["route"]["kind"]).to_owned())
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

    fn status(cipher: &str) -> String {
        format!(
            "{{\"cipher\":{{\"kind\":\"{cipher}\",\"why\":\"this CPU has no AES instructions\"}},\
             \"classifier\":{{\"kind\":\"clsact\"}},\"ring\":{{\"kind\":\"offload\",\"why\":\"because\"}},\
             \"peers\":[{{\"name\":\"b.pi.internal\",\"route\":{{\"kind\":\"direct\"}}}},\
             {{\"name\":\"d.pi.internal\",\"route\":{{\"kind\":\"relay\"}}}}]}}"
        )
    }

    fn said(cipher: &str) -> String {
        format!(
            "boot\r\n@rss a VmRSS:\t    9000 kB\r\n@status a {}\r\n\
             @ping a b 10 packets transmitted, 10 packets received, 0% packet loss\r\n\
             @ping a d 10 packets transmitted, 10 packets received, 0% packet loss\r\n\
             @trs-status {{\"xdp\":[{{\"forwarded_packets\":20}}]}}\r\n@trs-log relaying in XDP on eth0 (generic)\r\n",
            status(cipher)
        )
    }

    #[test]
    fn an_overlay_as_it_should_be_breaks_no_promise() {
        let findings = Findings::read(&said("ChaCha20-Poly1305")).unwrap();
        assert_eq!(findings.broken_promises(), Vec::<String>::new());
        assert!((findings.resident_mb - 9.0).abs() < 1e-9);
    }

    #[test]
    fn every_broken_promise_is_told() {
        let aes = Findings::read(&said("AES-128-GCM")).unwrap().broken_promises();
        assert_eq!(aes.len(), 1, "{aes:?}");
        let lost =
            said("ChaCha20-Poly1305").replacen("10 packets received, 0%", "9 packets received, 10%", 1);
        let lost = Findings::read(&lost).unwrap().broken_promises();
        assert!(lost.len() == 1 && lost[0].contains("a pings b"), "{lost:?}");
        let unused = said("ChaCha20-Poly1305").replace("20}", "0}").replace("generic", "native");
        assert_eq!(Findings::read(&unused).unwrap().broken_promises().len(), 2);
        assert!(Findings::read("kernel panic").is_err());
    }
}
