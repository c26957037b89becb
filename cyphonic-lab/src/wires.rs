//! Cables that are like wires, for XDP at one of their ends.

use std::time::Duration;

use serde_json::Value;

use crate::command::{Cancel, check};
use crate::{Lab, LabError};

/// For each tool that is asked or told.
const LIMIT: Duration = Duration::from_secs(15);

impl Lab {
    /// Prepares the far ends of a node's cables for XDP in the driver at the node's own. They take what XDP redirects only
    /// with GRO on, and hand on checksums that nobody has computed, and super-packets, unless transmit offloads are off.
    ///
    /// # Errors
    /// The lab has no such node, or `ip` or `ethtool` failed.
    pub fn prepare_for_xdp(&self, node: &str, cancel: &Cancel) -> Result<(), LabError> {
        for own in self.cables(node, cancel)? {
            // The lab numbers its cables' ends, so that an index is one interface's in all of it.
            for other in &self.state().nodes {
                let ends = self.cables(other, cancel)?;
                let far = ends
                    .iter()
                    .find(|end| end["ifindex"] == own["link_index"] && end["link_index"] == own["ifindex"]);
                if let Some(device) = far.and_then(|end| end["ifname"].as_str()) {
                    let mut ethtool = self.command(other, "ethtool")?;
                    check(ethtool.args(["-K", device, "tx", "off", "gro", "on"]), LIMIT, cancel)?;
                }
            }
        }
        Ok(())
    }

    /// The ends of a node's cables, as `ip` describes them.
    ///
    /// # Errors
    /// The lab has no such node, or `ip` failed.
    pub fn cables(&self, node: &str, cancel: &Cancel) -> Result<Vec<Value>, LabError> {
        let said =
            check(self.command(node, "ip")?.args(["-j", "link", "show", "type", "veth"]), LIMIT, cancel)?;
        serde_json::from_str(&said).map_err(|error| LabError::Output {
            program: "ip",
            problem: format!("no JSON: {error}"),
            output: said,
        })
    }
}
