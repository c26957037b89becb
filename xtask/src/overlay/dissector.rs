//! The independent dissector, told that UDP carries QUIC and STUN alone.
//!
//! By itself it believes well-known ports before contents: STUN behind a NAT that happened to draw port 11211
//! would be memcached, and malformed at that.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::{Cancel, check};

/// What it may find in UDP; TLS is what QUIC's handshake consists of.
const SPOKEN: [&str; 3] = ["quic", "stun", "tls"];
const READING: Duration = Duration::from_secs(300);

/// tshark on one capture.
pub(super) struct Dissector {
    file: PathBuf,
    /// Every other protocol that it would look for in UDP.
    unspoken: Vec<String>,
}

impl Dissector {
    /// For the capture in `file`.
    pub(super) fn new(file: PathBuf, cancel: &Cancel) -> Result<Self> {
        let mut unspoken = Vec::new();
        // Their tables: the one above, the protocol, whether it is tried; and the one above, the port, the
        // protocol.
        for (tables, above, column) in [("heuristic-decodes", "udp", 1), ("decodes", "udp.port", 2)] {
            let listed = check(Command::new("tshark").args(["-G", tables]), READING, cancel)
                .context("tshark does not say which protocols it knows")?;
            let rows = listed.lines().map(|line| line.split('\t').collect::<Vec<_>>());
            unspoken.extend(
                rows.filter(|row| row.first() == Some(&above))
                    .filter_map(|row| row.get(column).map(|name| (*name).to_owned()))
                    .filter(|name| !SPOKEN.contains(&name.as_str())),
            );
        }
        if unspoken.is_empty() {
            bail!("tshark lists no protocols over UDP: its output is not understood");
        }
        unspoken.sort_unstable();
        unspoken.dedup();
        Ok(Self { file, unspoken })
    }

    /// How many frames `filter` finds.
    pub(super) fn count(&self, filter: &str, cancel: &Cancel) -> Result<usize> {
        Ok(self.fields(filter, &["frame.number"], cancel)?.lines().count())
    }

    /// These `fields` of each frame that `filter` finds, a frame a line.
    pub(super) fn fields(&self, filter: &str, fields: &[&str], cancel: &Cancel) -> Result<String> {
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&self.file);
        tshark.args(["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]);
        for protocol in &self.unspoken {
            tshark.args(["--disable-protocol", protocol]);
        }
        tshark.args(["-Y", filter, "-T", "fields"]);
        for field in fields {
            tshark.args(["-e", field]);
        }
        check(&mut tshark, READING, cancel).context("tshark cannot read the capture")
    }
}
