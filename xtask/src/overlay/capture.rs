//! What an observer on the core router sees: QUIC, and the STUN and punches that open its way, whole and with
//! right checksums, or a promise is broken.
//!
//! An independent dissector reads the capture. On virtual links the kernel leaves checksums to hardware that
//! is not there, so they are switched off on every interface first: what is captured is what a cable would
//! carry.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::{Daemon, wait_until};

use super::dissector::Dissector;
use super::progress::Progress;

/// Where everything between two sites passes.
const OBSERVER: &str = "core";
/// The transfers at the demo's end would fill disks: what comes before them, and their start, is enough.
const LONGEST_KB: &str = "filesize:65536";
/// dumpcap has its interfaces open after this long, or is not going to.
const START: Duration = Duration::from_secs(10);
/// Bytes of a punch.
const PUNCH_LEN: usize = 21;
/// A PATH_CHALLENGE or PATH_RESPONSE on a path where no handshake was seen, so that the dissector cannot know
/// what it is: a UDP datagram of 1,200 bytes with a short header and a data connection ID (docs/protocol.md
/// §2).
const PROBE: &str = r#"udp.length == 1208 && udp.payload matches "^[\x40-\x7f][\x80-\xff]""#;
/// What is said of a datagram that should not be there.
const TOLD: [&str; 8] =
    ["frame.number", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport", "udp.dstport", "udp.payload"];
const OFFLOADS: Duration = Duration::from_secs(10);

/// A running capture.
pub(crate) struct Capture {
    recorder: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Starts recording into `file`.
    pub(crate) fn start(lab: &Lab, file: &Path, cancel: &Cancel) -> Result<Self> {
        complete_checksums(lab, cancel)?;
        let mut command = lab.command(OBSERVER, "dumpcap")?;
        command.args(["-q", "-i", "any", "-f", "udp", "-a", LONGEST_KB, "-w"]).arg(file);
        let mut recorder = lab.spawn(OBSERVER, "capture", &mut command)?;
        let started = || file.metadata().is_ok_and(|file| file.len() > 0);
        if !wait_until(START, started) || recorder.exit_status().is_some() {
            bail!("nothing is recorded: {}", recorder.log_tail(5));
        }
        Ok(Self { recorder, file: file.to_owned() })
    }

    /// Ends recording, and returns what is wrong with it.
    pub(crate) fn finish(mut self, progress: &Progress, cancel: &Cancel) -> Result<Vec<String>> {
        self.recorder.stop();
        let dissector = Dissector::new(self.file.clone(), cancel)?;
        let all = dissector.count("udp", cancel)?;
        let quic = dissector.count("quic", cancel)?;
        let stun = dissector.count("stun", cancel)?;
        let probes = dissector.count(&format!("!quic && !stun && {PROBE}"), cancel)?;
        // A punch opens a path before the first packet of a connection: zeros, docs/protocol.md §2.
        let punch = ["00"; PUNCH_LEN].join(":");
        let other = format!("udp && !(quic || stun || udp.payload == {punch} || ({PROBE}))");
        let faults = [
            (other.as_str(), "neither QUIC nor STUN"),
            ("udp.checksum.status == 0 || ip.checksum.status == 0", "with bad checksums"),
            ("_ws.malformed", "malformed"),
        ];
        let mut seen = format!(
            "{all} datagrams crossed the core router: {quic} QUIC, {probes} probes of new paths, {stun} STUN"
        );
        let mut wrong = Vec::new();
        if quic == 0 {
            wrong.push("the dissector found no QUIC".to_owned());
        }
        for (filter, what) in faults {
            let found = dissector.fields(filter, &TOLD, cancel)?;
            let count = found.lines().count();
            seen.push_str(&format!(", {count} {what}"));
            if let Some(first) = found.lines().next() {
                wrong.push(format!(
                    "{count} datagrams on the wire are {what}: see {}, the first is {first}",
                    self.file.display()
                ));
            }
        }
        progress.done(&seen);
        Ok(wrong)
    }
}

/// The kernel's own software computes them, instead of hardware that does not exist.
fn complete_checksums(lab: &Lab, cancel: &Cancel) -> Result<()> {
    for node in &lab.state().nodes {
        let mut list = lab.command(node, "ls")?;
        let interfaces = check(list.arg("/sys/class/net"), OFFLOADS, cancel)?;
        for interface in interfaces.split_whitespace().filter(|name| *name != "lo") {
            let mut ethtool = lab.command(node, "ethtool")?;
            check(ethtool.args(["-K", interface, "tx", "off"]), OFFLOADS, cancel)
                .with_context(|| format!("cannot have {node} complete checksums on {interface}"))?;
        }
    }
    Ok(())
}
