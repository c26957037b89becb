//! The cloud: AS and NMS on one host, the TRS on another.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::wait_until;
use cyphonic_lab::{Lab, Machine, Role, Topology};
use serde_json::Value;

use super::ZONE;
use super::programs::Programs;
use super::progress::Progress;
use super::service::{Service, Unit};

/// QUIC's port: the one the paper's firewalls let through.
const PORT: u16 = 443;
const RELAY: &str = "trs1";
/// Where the package's unit looks.
const INSTALLED: &str = "/var/lib/cyphonic-cloud";
/// For each of the cloud's own commands, and for a service to come up.
const LIMIT: Duration = Duration::from_secs(15);

/// The running services.
pub(crate) struct Cloud {
    services: Service,
    relay: Service,
    seats: [Seat; 2],
    programs: Programs,
    administration: Administration,
    addresses: Vec<SocketAddr>,
}

/// What of it is one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// AS and NMS.
    Services,
    /// The TRS.
    Relay,
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
        let (cloud, relay) = (Seat::of(lab, cloud)?, Seat::of(lab, relay)?);

        let mut init = cloud.machine.command(&programs.cloud);
        init.arg("init").arg("--dir").arg(&cloud.home).args(["--zone", ZONE]);
        for address in &addresses {
            init.args(["--public", &address.to_string()]);
        }
        let list = relay_addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        check(init.args(["--trs", &format!("{RELAY}={list}")]), LIMIT, cancel)
            .context("cannot found the overlay")?;
        // Made by the cloud, and carried to the relay.
        let out = if lab.is_remote() { lab.node_dir(&cloud.node)?.join(RELAY) } else { relay.home.clone() };
        let mut credentials = cloud.machine.command(&programs.cloud);
        credentials.arg("trs-credentials").arg("--dir").arg(&cloud.home).args(["--name", RELAY]);
        check(credentials.arg("--out").arg(&out), LIMIT, cancel)
            .context("cannot make the TRS's credentials")?;
        if lab.is_remote() {
            cloud.machine.carry(&out, &relay.machine, &relay.home)?;
            check(cloud.machine.command("rm").arg("-r").arg(&out), LIMIT, cancel)?;
        }
        progress.done(&format!("overlay founded: CA, zone {ZONE}, register, and credentials for {RELAY}"));

        let services = cloud.start(lab, programs, cancel)?;
        let relay_config = relay.home.join("cloud.yaml");
        if mode != "auto" {
            let text = relay.machine.read(&relay_config)?;
            let text = text.replace("  mode: auto", &format!("  mode: {mode}"));
            relay.machine.write(&relay_config, &text, false)?;
        }
        if matches!(mode, "native" | "generic") && !lab.is_remote() {
            lab.prepare_for_xdp(&relay.node, cancel)?;
        }
        let running = relay.start(lab, programs, cancel)?;
        progress.done("AS and NMS run on one host, the TRS on another");
        let administration = Administration {
            machine: cloud.machine.clone(),
            program: programs.cloud.clone(),
            config: cloud.home.join("cloud.yaml"),
        };
        let (seats, programs) = ([cloud, relay], programs.clone());
        Ok(Self { services, relay: running, seats, programs, administration, addresses })
    }

    /// Its operator's commands.
    pub(crate) fn administration(&self) -> &Administration {
        &self.administration
    }

    /// A part's process.
    pub(crate) fn part(&self, part: Part) -> &Service {
        match part {
            Part::Services => &self.services,
            Part::Relay => &self.relay,
        }
    }

    /// Where a part runs.
    pub(crate) fn machine(&self, part: Part) -> &Machine {
        let [services, relay] = &self.seats;
        match part {
            Part::Services => &services.machine,
            Part::Relay => &relay.machine,
        }
    }

    /// Kills a part as a crash would.
    pub(crate) fn kill(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Services => self.services.kill(),
            Part::Relay => self.relay.kill(),
        }
    }

    /// Starts a part that was killed; returns when it is ready.
    pub(crate) fn start_again(&mut self, part: Part, lab: &Lab, cancel: &Cancel) -> Result<()> {
        let [services, relay] = &self.seats;
        match part {
            Part::Services => self.services = services.start(lab, &self.programs, cancel)?,
            Part::Relay => self.relay = relay.start(lab, &self.programs, cancel)?,
        }
        Ok(())
    }

    /// Where devices reach the AS.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What runs.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        [&self.services, &self.relay].into_iter()
    }

    /// Says what the TRS has relayed in XDP; returns the promises that broke.
    pub(crate) fn xdp_promises(
        &self,
        mode: &str,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<String>> {
        let mut command = self.seats[1].machine.outside(&self.programs.cloud);
        let status = check(command.args(["trs-status", "--json"]), LIMIT, cancel)?;
        let status: Value = serde_json::from_str(&status).context("trs-status says no JSON")?;
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

/// The commands of a cloud's operator.
#[derive(Debug, Clone)]
pub(crate) struct Administration {
    machine: Machine,
    program: PathBuf,
    config: PathBuf,
}

impl Administration {
    /// A one-time token for the device that will be called `name`.
    pub(crate) fn create_token(&self, name: &str, cancel: &Cancel) -> Result<String> {
        let output = self.run(&["token", "create"], &["--name", name], cancel);
        let output = output.with_context(|| format!("cannot make a token for {name}"))?;
        Ok(output.trim().to_owned())
    }

    /// Revokes a device.
    pub(crate) fn revoke(&self, name: &str, cancel: &Cancel) -> Result<()> {
        self.run(&["device", "revoke"], &[name], cancel).map(drop)
    }

    /// What there is of `kind`, `device` or `token`.
    pub(crate) fn list(&self, kind: &str, cancel: &Cancel) -> Result<Vec<Value>> {
        let said = self.run(&[kind, "list"], &["--json"], cancel)?;
        let mut said: Value =
            serde_json::from_str(&said).with_context(|| format!("`{kind} list`: {said}"))?;
        match said[format!("{kind}s")].take() {
            Value::Array(list) => Ok(list),
            other => bail!("`{kind} list` has no list, but {other}"),
        }
    }

    fn run(&self, verb: &[&str], arguments: &[&str], cancel: &Cancel) -> Result<String> {
        let mut command = self.machine.outside(&self.program);
        command.args(verb).arg("--config").arg(&self.config).args(arguments);
        Ok(check(&mut command, LIMIT, cancel)?)
    }
}

/// A host on which a service will run.
struct Seat {
    node: String,
    machine: Machine,
    unit: Option<Unit>,
    /// The folder of keys and configuration.
    home: PathBuf,
}

impl Seat {
    /// A node without a service, and without what another run left of one.
    fn of(lab: &Lab, node: &str) -> Result<Self> {
        let machine = lab.machine(node)?;
        let unit = Unit::find(&machine, "cyphonic-cloud")?;
        let home = match &unit {
            Some(unit) => {
                unit.stop()?;
                PathBuf::from(INSTALLED)
            }
            None => lab.node_dir(node)?.join("cloud"),
        };
        if machine.is_remote() {
            check(machine.command("rm").arg("-rf").arg(&home), LIMIT, &Cancel::default())?;
        }
        Ok(Self { node: node.to_owned(), machine, unit, home })
    }

    fn start(&self, lab: &Lab, programs: &Programs, cancel: &Cancel) -> Result<Service> {
        if let Some(unit) = &self.unit {
            return unit.restart(true);
        }
        let mut command = self.machine.command(&programs.cloud);
        command.arg("run").arg("--config").arg(self.home.join("cloud.yaml"));
        let label = "cyphonic-cloud";
        if !self.machine.is_remote() {
            let daemon = lab.spawn_ready(&self.node, label, &mut command, LIMIT, cancel)?;
            return Ok(Service::Process(daemon));
        }
        // Nobody there hears it say that it is ready; it is once it has its port.
        let mut daemon = lab.spawn(&self.node, label, &mut command)?;
        let has_port = || {
            let mut sockets = self.machine.command("ss");
            let said = check(sockets.args(["-Hlun", &format!("sport = :{PORT}")]), LIMIT, cancel);
            said.is_ok_and(|said| !said.trim().is_empty())
        };
        if wait_until(LIMIT, || has_port() || daemon.exit_status().is_some())
            && daemon.exit_status().is_none()
        {
            return Ok(Service::Process(daemon));
        }
        bail!("{} did not start:\n{}", daemon.name(), daemon.log_tail(15))
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
