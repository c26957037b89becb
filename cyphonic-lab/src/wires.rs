//! Cables that are like wires, for XDP at one of their ends.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Cancel, check};
use crate::{Lab, LabError, Namespace};

/// For each tool that is asked or told.
const LIMIT: Duration = Duration::from_secs(15);

impl Lab {
    /// Prepares the far ends of a node's cables for XDP in the driver at the node's own. They take what XDP
    /// redirects only with GRO on, and hand on checksums that nobody has computed, and super-packets,
    /// unless transmit offloads are off.
    ///
    /// # Errors
    /// The lab has no such node, or `ip` or `ethtool` failed.
    pub fn prepare_for_xdp(&self, node: &str, cancel: &Cancel) -> Result<(), LabError> {
        for (other, device) in self.far_ends(node, cancel)? {
            let mut ethtool = other.command("ethtool");
            check(ethtool.args(["-K", &device, "tx", "off", "gro", "on"]), LIMIT, cancel)?;
        }
        Ok(())
    }

    /// Pulls a host's cables out at their far ends, or plugs them in again. The host sees its carrier go, and
    /// keeps its addresses; so does a router at the other end, and its routes to the host's network.
    ///
    /// # Errors
    /// The lab has no such node, or `ip` or `sysctl` failed.
    pub fn plug(&self, node: &str, plugged: bool, cancel: &Cancel) -> Result<(), LabError> {
        for (other, device) in self.far_ends(node, cancel)? {
            // Without it, IPv6 addresses go when an interface goes down.
            let keep = format!("net.ipv6.conf.{device}.keep_addr_on_down=1");
            check(other.command("sysctl").args(["-qw", &keep]), LIMIT, cancel)?;
            let state = if plugged { "up" } else { "down" };
            check(other.command("ip").args(["link", "set", &device, state]), LIMIT, cancel)?;
        }
        Ok(())
    }

    /// The other ends of a node's cables: where they are (on a node, or on the switch), and what they are
    /// called there.
    fn far_ends(&self, node: &str, cancel: &Cancel) -> Result<Vec<(Namespace, String)>, LabError> {
        let own: Vec<Value> = self.cables(node, cancel)?.into_iter().filter(leads_elsewhere).collect();
        let mut found = Vec::new();
        for namespace in self.state().namespaces() {
            let ends = cables_of(namespace.command("ip"), cancel)?;
            // The lab numbers its cables' ends, so that an index is one interface's in all of it.
            let is_far = |end: &&Value| {
                own.iter()
                    .any(|own| end["ifindex"] == own["link_index"] && end["link_index"] == own["ifindex"])
            };
            let devices = ends.iter().filter(is_far).filter_map(|end| end["ifname"].as_str());
            found.extend(devices.map(|device| (namespace.clone(), device.to_owned())));
        }
        if found.len() == own.len() {
            return Ok(found);
        }
        Err(LabError::Output {
            program: "ip",
            problem: format!("not each of the cables of {node} has another end"),
            output: format!("{found:?}"),
        })
    }

    /// The ends of a node's cables, as `ip` describes them.
    ///
    /// # Errors
    /// The lab has no such node, or `ip` failed.
    pub fn cables(&self, node: &str, cancel: &Cancel) -> Result<Vec<Value>, LabError> {
        cables_of(self.command(node, "ip")?, cancel)
    }
}

/// Whether the other end is in another namespace: an agent's virtual interface has both in its own.
fn leads_elsewhere(end: &Value) -> bool {
    end["link_netnsid"].is_number()
}

fn cables_of(mut ip: Command, cancel: &Cancel) -> Result<Vec<Value>, LabError> {
    let said = check(ip.args(["-j", "link", "show", "type", "veth"]), LIMIT, cancel)?;
    serde_json::from_str(&said).map_err(|error| LabError::Output {
        program: "ip",
        problem: format!("no JSON: {error}"),
        output: said,
    })
}
