//! A device: its agent, and what an application on it does.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::measure::{DnsAnswer, DnsQuery, PingReport, PingRun, dig, ping};
use cyphonic_lab::process::Daemon;
use cyphonic_lab::{Lab, Machine, Namespace};
use serde_json::Value;

use super::ZONE;
use super::programs::Programs;
use super::service::{Service, Unit};

/// Where each agent serves the overlay's zone: its default.
const DNS: &str = "127.0.0.55:53";
/// For a command to the agent, and for the agent to come online.
const LIMIT: Duration = Duration::from_secs(15);

/// What an agent's configuration says beside where things are.
#[derive(Debug, Clone)]
pub(crate) struct AgentSettings {
    /// Its encapsulation ring.
    pub(crate) ring: String,
    /// Further lines, as the user would write them.
    pub(crate) lines: Vec<String>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self { ring: "auto".to_owned(), lines: Vec::new() }
    }
}

/// A device and its agent.
pub(crate) struct Device {
    node: String,
    fqdn: String,
    machine: Machine,
    places: Places,
    /// Where this machine reaches its socket.
    near: PathBuf,
    programs: Programs,
    /// The package's unit, where there is one.
    unit: Option<Unit>,
    service: Option<Service>,
    address: Option<Ipv6Addr>,
}

/// Where an agent has its files.
#[derive(Debug, Clone)]
struct Places {
    config: PathBuf,
    socket: PathBuf,
    token: PathBuf,
    state: PathBuf,
}

/// How packets reach a peer, as the agent tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Direct { how: String },
    Relay { trs: String, why: String },
    None,
}

impl Route {
    /// That of an entry of `peers` in an agent's status.
    pub(crate) fn of_peer(peer: &Value) -> Self {
        let Some(route) = peer.get("route") else { return Self::None };
        match text(route, "kind").as_str() {
            "direct" => Self::Direct { how: text(route, "how") },
            "relay" => Self::Relay { trs: text(route, "trs"), why: text(route, "why") },
            _ => Self::None,
        }
    }

    /// For people, who know which zone they are in.
    pub(crate) fn describe(&self) -> String {
        let text = match self {
            Self::Direct { how } if how == "direct" => "direct".to_owned(),
            Self::Direct { how } => format!("direct ({how})"),
            Self::Relay { trs, why } => format!("{why}, through {trs}"),
            Self::None => "no tunnel".to_owned(),
        };
        text.replace(&format!(".svc.{ZONE}"), "").replace(&format!(".{ZONE}"), "")
    }
}

impl Device {
    /// Writes the device's configuration and starts its agent, which enrols itself with the token.
    pub(crate) fn enrol(
        lab: &Lab,
        node: &str,
        name: &str,
        token: &str,
        cloud: &[SocketAddr],
        settings: &AgentSettings,
        programs: &Programs,
    ) -> Result<Self> {
        let machine = lab.machine(node)?;
        let unit = Unit::find(&machine, "cyphonicd")?;
        let places = match &unit {
            Some(_) => Places::installed(),
            None => Places::within(&lab.node_dir(node)?),
        };
        if let Some(unit) = &unit {
            unit.stop()?;
        }
        if machine.is_remote() {
            // What an earlier run enrolled belongs to an overlay that is gone.
            let mut remove = machine.command("rm");
            check(remove.arg("-rf").args([&places.state, &places.socket]), LIMIT, &Cancel::default())?;
        }
        machine.write(&places.token, &format!("{token}\n"), true)?;
        machine.write(&places.config, &configuration(&places, unit.is_some(), cloud, settings), false)?;
        let mut device = Self {
            node: node.to_owned(),
            fqdn: format!("{name}.{ZONE}"),
            near: machine.near(&places.socket)?,
            machine,
            places,
            programs: programs.clone(),
            unit,
            service: None,
            address: None,
        };
        device.start(lab)?;
        Ok(device)
    }

    /// Starts its agent.
    fn start(&mut self, lab: &Lab) -> Result<()> {
        if let Some(unit) = &self.unit {
            self.service = Some(unit.restart(false)?);
            return Ok(());
        }
        let mut command = self.machine.command(&self.programs.daemon);
        command.arg("--config").arg(&self.places.config);
        self.service = Some(Service::Process(lab.spawn(&self.node, "cyphonicd", &mut command)?));
        Ok(())
    }

    /// Gives a key of its agent's configuration another value, from its next start on.
    pub(crate) fn configure(&self, key: &str, value: &str) -> Result<()> {
        let text = self.machine.read(&self.places.config)?;
        let others = text.lines().filter(|line| line.split_once(':').is_none_or(|(old, _)| old != key));
        let text: String = others.map(|line| format!("{line}\n")).collect();
        let text = format!("{text}{key}: {value}\n");
        Ok(self.machine.write(&self.places.config, &text, false)?)
    }

    /// Stops its agent.
    pub(crate) fn stop(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.stop();
        }
    }

    /// Kills its agent as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.service.as_mut().map_or(Ok(()), Service::kill)
    }

    /// Stops its agent, starts it again, and returns how long it took from there to being online.
    pub(crate) fn restart(&mut self, lab: &Lab, cancel: &Cancel) -> Result<Duration> {
        self.stop();
        // One left by a daemon that was killed would look like that of the next.
        self.machine.remove(&self.places.socket)?;
        let started = Instant::now();
        self.start(lab)?;
        self.wait_online(cancel)?;
        Ok(started.elapsed())
    }

    /// Has its agent start next as if it had never met its cloud: it asks the AS first.
    pub(crate) fn forget_cloud(&self) -> Result<()> {
        Ok(self.machine.remove(&self.places.state.join("node.bin"))?)
    }

    /// Waits until the agent is registered.
    pub(crate) fn wait_online(&mut self, cancel: &Cancel) -> Result<()> {
        let started = Instant::now();
        // The command needs the agent's socket, which is there a moment after its process.
        while !self.machine.has(&self.places.socket) {
            cancel.check()?;
            let ended = self.service.as_mut().is_some_and(Service::has_ended);
            if ended || started.elapsed() > LIMIT {
                bail!("the agent on {} did not start:\n{}", self.node, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let seconds = LIMIT.as_secs();
        let waited =
            check(self.command().args(["wait", "--timeout", &seconds.to_string()]), LIMIT * 2, cancel);
        waited.map(drop).with_context(|| format!("{} did not come online:\n{}", self.node, self.log_tail()))
    }

    /// Asks the agent for its virtual address.
    pub(crate) fn learn_address(&mut self, cancel: &Cancel) -> Result<Ipv6Addr> {
        let status = self.status(cancel)?;
        let (name, address) = (text(&status, "fqdn"), text(&status, "virtual_address"));
        if name.trim_end_matches('.') != self.fqdn {
            bail!("{} is called {name:?}, not {}", self.node, self.fqdn);
        }
        let address =
            address.parse().with_context(|| format!("{} has no virtual address: {address:?}", self.node))?;
        self.address = Some(address);
        Ok(address)
    }

    /// Which encapsulation ring its agent has chosen.
    pub(crate) fn ring(&self, cancel: &Cancel) -> Result<String> {
        let status = self.status(cancel)?;
        Ok(status.get("ring").map(|ring| text(ring, "kind")).unwrap_or_default())
    }

    /// Fails if its agent runs without its eBPF programs: it works, but not as what is shipped does.
    pub(crate) fn check_programs(&self, cancel: &Cancel) -> Result<()> {
        let status = self.status(cancel)?;
        let classifier = status.get("classifier").context("the status does not tell of a classifier")?;
        if text(classifier, "kind") == "none" {
            bail!("the agent on {} runs without its eBPF programs: {}", self.node, text(classifier, "why"));
        }
        Ok(())
    }

    /// Fails if its agent is to keep processors awake and cannot.
    pub(crate) fn check_awake(&self, cancel: &Cancel) -> Result<()> {
        let status = self.status(cancel)?;
        let awake = text(status.get("ring").context("the status does not tell of a ring")?, "awake");
        if !awake.starts_with("kept awake") {
            bail!("the agent on {} does not keep processors awake: {awake:?}", self.node);
        }
        Ok(())
    }

    /// How this device's packets reach a peer now.
    pub(crate) fn route_to(&self, peer: &Self, cancel: &Cancel) -> Result<Route> {
        Ok(self.peer(peer, cancel)?.as_ref().map_or(Route::None, Route::of_peer))
    }

    /// What its agent tells of a peer, if it has a tunnel to it.
    pub(crate) fn peer(&self, peer: &Self, cancel: &Cancel) -> Result<Option<Value>> {
        let status = self.status(cancel)?;
        let peers = status.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(peers.iter().find(|entry| text(entry, "name").trim_end_matches('.') == peer.fqdn).cloned())
    }

    /// Takes the tunnel to a peer down.
    pub(crate) fn reset_tunnel(&self, peer: &Self, cancel: &Cancel) -> Result<()> {
        check(self.command().args(["tunnel", "reset", &peer.fqdn]), LIMIT, cancel)?;
        Ok(())
    }

    /// Asks the agent's DNS for a peer, which sets a tunnel up if there is none.
    pub(crate) fn resolve(&self, peer: &Self, cancel: &Cancel) -> Result<DnsAnswer> {
        let server: SocketAddr = DNS.parse()?;
        let query = DnsQuery { server, name: peer.fqdn.clone(), kind: "AAAA", wait: Duration::from_secs(10) };
        let answer = dig(&self.machine, &query, cancel)?;
        if answer.status != "NOERROR" || answer.addresses != peer.address.map(IpAddr::V6).as_slice() {
            let why = answer.extended_error.clone().unwrap_or_default();
            bail!(
                "{} asked for {} and was answered {} {:?} {why}",
                self.node,
                peer.fqdn,
                answer.status,
                answer.addresses
            );
        }
        Ok(answer)
    }

    /// Pings a name or an address as an application would.
    pub(crate) fn ping(&self, run: &PingRun, cancel: &Cancel) -> Result<PingReport> {
        Ok(ping(&self.machine, run, cancel)?)
    }

    /// Its agent's status.
    pub(crate) fn status(&self, cancel: &Cancel) -> Result<Value> {
        let output = check(self.command().args(["status", "--json"]), LIMIT, cancel)?;
        serde_json::from_str(&output).with_context(|| format!("the status of {} is no JSON", self.node))
    }

    /// Asks its agent without a process in between, as in `{"op":"status"}`.
    pub(crate) fn ask(&self, request: Value) -> Result<Value> {
        super::control::ask(&self.near, request)
    }

    /// A command to its agent, as the user would give it, to which the verb is to be added.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.machine.command(&self.programs.cyphonic);
        command.arg("--socket").arg(&self.places.socket);
        command
    }

    /// A program of the lab's on this device, to which its verb is to be added: the one that is there, or
    /// this one.
    pub(crate) fn tool(&self) -> Result<Command> {
        if self.machine.is_remote() {
            return Ok(self.machine.command(&self.programs.node));
        }
        let mut own =
            self.machine.command(std::env::current_exe().context("cannot find this program's own file")?);
        own.arg("lab");
        Ok(own)
    }

    fn log_tail(&self) -> String {
        self.service.as_ref().map(|service| service.log_tail(15)).unwrap_or_default()
    }

    /// Its virtual address, once it was learnt.
    pub(crate) fn address(&self) -> Option<Ipv6Addr> {
        self.address
    }

    /// The node it runs on.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Its name in the overlay.
    pub(crate) fn fqdn(&self) -> &str {
        &self.fqdn
    }

    /// Where its agent takes commands.
    pub(crate) fn socket(&self) -> &Path {
        &self.places.socket
    }

    /// Where its programs run.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Where its programs run, for what only a namespace of this machine allows.
    pub(crate) fn namespace(&self) -> Result<&Namespace> {
        match &self.machine {
            Machine::Namespace(namespace) => Ok(namespace),
            Machine::Own | Machine::Remote(_) => bail!("{} is a machine of its own", self.node),
        }
    }

    /// Its agent, if it runs.
    pub(crate) fn service(&self) -> Option<&Service> {
        self.service.as_ref()
    }

    /// Its agent's process, if it runs as one that was started here.
    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        self.service.as_ref().and_then(Service::daemon)
    }

    /// Lets the agent run on.
    pub(crate) fn release(self) {
        if let Some(service) = self.service {
            service.release();
        }
    }
}

impl Places {
    /// Those of the package's unit. The token is a credential that the unit loads.
    fn installed() -> Self {
        Self {
            config: "/etc/cyphonic/agent.yaml".into(),
            socket: "/run/cyphonic/cyphonic.sock".into(),
            token: "/etc/credstore/cyphonic.token".into(),
            state: "/var/lib/cyphonic".into(),
        }
    }

    /// Those of a process, in a folder of its node.
    fn within(home: &Path) -> Self {
        Self {
            config: home.join("agent.yaml"),
            socket: home.join("cyphonic.sock"),
            token: home.join("token"),
            state: home.join("state"),
        }
    }
}

/// The agent's configuration file, as a user would write it. A process gets its places, and `resolver:
/// resolv-conf`: the machine's systemd-resolved, which an agent could see from inside a namespace, is none of
/// the lab's business.
fn configuration(places: &Places, unit: bool, cloud: &[SocketAddr], settings: &AgentSettings) -> String {
    let mut text = String::new();
    if !unit {
        let Places { socket, token, state, .. } = places;
        let _ = write!(
            text,
            "state_dir: {}\nsocket: {}\ntoken_file: {}\n",
            state.display(),
            socket.display(),
            token.display()
        );
    }
    let _ = write!(text, "interface: cyph0\nring: {}\ncloud:\n", settings.ring);
    for address in cloud {
        let _ = writeln!(text, "  - \"{address}\"");
    }
    let resolver = if unit { "auto" } else { "resolv-conf" };
    let _ = write!(text, "dns:\n  listen: \"{DNS}\"\n  resolver: {resolver}\n");
    for line in &settings.lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// A string of a JSON object; empty if it has none.
fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
