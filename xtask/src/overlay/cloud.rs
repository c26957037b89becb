//! The cloud: AS and NMS on one host, the TRS on another.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::Daemon;
use cyphonic_lab::{Lab, Role, Topology};

use super::ZONE;
use super::programs::Programs;
use super::progress::Progress;

/// QUIC's port: the one the paper's firewalls let through.
const PORT: u16 = 443;
const RELAY: &str = "trs1";
/// For each of the cloud's own commands, and for a service to come up.
const LIMIT: Duration = Duration::from_secs(15);

/// The running services.
pub(crate) struct Cloud {
    services: Daemon,
    relay: Daemon,
    program: PathBuf,
    config: PathBuf,
    addresses: Vec<SocketAddr>,
}

impl Cloud {
    /// Founds an overlay and starts its services.
    pub(crate) fn start(
        lab: &Lab,
        topology: &Topology,
        programs: &Programs,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Self> {
        Self::start_with(lab, topology, programs, "auto", progress, cancel)
    }

    /// The same, with a TRS that relays by `mode` (`relay.mode` of its configuration).
    pub(crate) fn start_with(
        lab: &Lab,
        topology: &Topology,
        programs: &Programs,
        mode: &str,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Self> {
        let (cloud, relay) = (host(topology, Role::As)?, host(topology, Role::Trs)?);
        let (addresses, relay_addresses) = (addresses(topology, cloud), addresses(topology, relay));
        let home = lab.node_dir(cloud)?.join("cloud");
        let relay_home = lab.node_dir(relay)?.join("cloud");
        let config = home.join("cloud.yaml");

        let mut init = lab.command(cloud, &programs.cloud)?;
        init.arg("init").arg("--dir").arg(&home).args(["--zone", ZONE]);
        for address in &addresses {
            init.args(["--public", &address.to_string()]);
        }
        let list = relay_addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        check(init.args(["--trs", &format!("{RELAY}={list}")]), LIMIT, cancel)
            .context("cannot found the overlay")?;
        let mut credentials = lab.command(cloud, &programs.cloud)?;
        credentials.arg("trs-credentials").arg("--dir").arg(&home).args(["--name", RELAY]);
        check(credentials.arg("--out").arg(&relay_home), LIMIT, cancel)
            .context("cannot make the TRS's credentials")?;
        progress.done(&format!("overlay founded: CA, zone {ZONE}, register, and credentials for {RELAY}"));

        let start = |node: &str, config: &PathBuf| -> Result<Daemon> {
            let mut command = lab.command(node, &programs.cloud)?;
            command.arg("run").arg("--config").arg(config);
            Ok(lab.spawn_ready(node, "cyphonic-cloud", &mut command, LIMIT, cancel)?)
        };
        let services = start(cloud, &config)?;
        let relay_config = relay_home.join("cloud.yaml");
        if mode != "auto" {
            let text =
                std::fs::read_to_string(&relay_config)?.replace("  mode: auto", &format!("  mode: {mode}"));
            std::fs::write(&relay_config, text)?;
        }
        if mode == "native" || mode == "generic" {
            lab.prepare_for_xdp(relay, cancel)?;
        }
        let relay = start(relay, &relay_config)?;
        progress.done("AS and NMS run on one host, the TRS on another");
        Ok(Self { services, relay, program: programs.cloud.clone(), config, addresses })
    }

    /// A one-time token for the device that will be called `name`.
    pub(crate) fn create_token(&self, name: &str, cancel: &Cancel) -> Result<String> {
        let mut command = std::process::Command::new(&self.program);
        command.args(["token", "create", "--config"]).arg(&self.config).args(["--name", name]);
        let output =
            check(&mut command, LIMIT, cancel).with_context(|| format!("cannot make a token for {name}"))?;
        Ok(output.trim().to_owned())
    }

    /// Where devices reach the AS.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The services' processes.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        [&self.services, &self.relay].into_iter()
    }

    /// Says what the TRS has relayed in XDP; returns the promises that broke.
    pub(crate) fn xdp_promises(
        &self,
        mode: &str,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<String>> {
        let mut command = std::process::Command::new(&self.program);
        let status = check(command.args(["trs-status", "--json"]), LIMIT, cancel)?;
        let status: serde_json::Value = serde_json::from_str(&status).context("trs-status says no JSON")?;
        let relays = status["xdp"].as_array().cloned().unwrap_or_default();
        let ours = relays.iter().filter(|relay| relay["port"] == PORT);
        let forwarded: u64 = ours.filter_map(|relay| relay["forwarded_packets"].as_u64()).sum();
        if mode == "native" || mode == "generic" {
            progress.done(&format!("the TRS relayed {forwarded} packets in XDP ({mode})"));
            if forwarded == 0 {
                return Ok(vec![format!(
                    "the TRS should relay in XDP ({mode}), and nothing passed there: {status}"
                )]);
            }
        }
        Ok(Vec::new())
    }

    /// Lets the services run on.
    pub(crate) fn release(self) {
        self.services.release();
        self.relay.release();
    }
}

fn host(topology: &Topology, role: Role) -> Result<&str> {
    let host = topology.hosts_with(role).next().map(|(name, _)| name);
    host.with_context(|| format!("the topology has no host with the role {role:?}"))
}

fn addresses(topology: &Topology, host: &str) -> Vec<SocketAddr> {
    let addresses = topology.hosts.get(host).into_iter().flat_map(|host| host.addresses());
    addresses.map(|address: IpAddr| SocketAddr::new(address, PORT)).collect()
}
