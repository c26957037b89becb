//! Building, using and removing a lab.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Cancel, configure};
use crate::emulator::{Emulator, Tap, Wire, Work};
use crate::link::{Bridge, Cable, End, Plan};
use crate::machine::Machine;
use crate::nat::gate::Gate;
use crate::process::{Daemon, Readiness, stop_all, wait_until};
use crate::remote::{Fleet, Launcher};
use crate::topology::validate::SWITCH;
use crate::topology::{Profile, Router, Topology, Way};
use crate::{LabError, LabState, Namespace, congestion, netns, node};

/// What a host's resolver is configured to at first, as where systemd-resolved runs. There is no DNS in the
/// lab until something starts one; an agent edits this as it would on any host.
const RESOLV_CONF: &str = "nameserver 127.0.0.53\noptions timeout:5 attempts:1\n";
/// The kernel needs milliseconds for what is waited for with this limit; a busy machine may need longer.
const SETTLE: Duration = Duration::from_secs(10);
/// Interface numbers of veth cables start here, out of the way of those that the kernel gives.
const FIRST_INDEX: usize = 1_000;
/// Frames a TAP device holds while the emulator is busy; the default of 500 is less than one TCP window.
const TAP_QUEUE: u32 = 10_000;

/// How to build a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabConfig {
    /// Its name; several labs run side by side under different names.
    pub name: String,
    /// Which of the topology's profiles its links get.
    pub profile: String,
    /// What joins the links that have properties.
    pub emulator: Emulator,
}

impl LabConfig {
    /// A lab called `name` with links of `profile`.
    pub fn new(name: impl Into<String>, profile: impl Into<String>) -> Self {
        Self { name: name.into(), profile: profile.into(), emulator: Emulator::default() }
    }
}

/// A lab that is up. Dropping it removes it, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct Lab {
    state: LabState,
    /// The connections to its nodes, where they are machines of their own.
    fleet: Option<Fleet>,
    removed: bool,
}

impl Lab {
    /// Builds the lab; when this returns, every node reaches whatever its routes and NATs let it reach.
    ///
    /// Labs whose owner died without removing them are removed first. What else has the name of one of its
    /// namespaces is somebody's: it stays.
    ///
    /// # Errors
    /// Not root, a program is missing, the name is in use, or the kernel refused something. What had been
    /// made is removed again.
    pub fn up(topology: &Topology, config: &LabConfig) -> Result<Self, LabError> {
        if !is_root() {
            return Err(LabError::NotRoot);
        }
        let profile = topology.profile(&config.profile)?;
        sweep();
        let nodes = topology.nodes().map(str::to_owned).collect();
        let state = LabState::new(&config.name, &config.profile, nodes)?;
        state.claim()?;
        // From here on everything of these names is taken for the lab's, and goes with it.
        let taken: Vec<PathBuf> = state.namespaces().iter().flat_map(Namespace::present).collect();
        if !taken.is_empty() {
            state.forget()?;
            let taken: Vec<_> = taken.iter().map(|path| path.display().to_string()).collect();
            return Err(LabError::Taken(taken.join(", ")));
        }
        let lab = Self { state, fleet: None, removed: false };
        lab.build(topology, profile, &config.emulator)?;
        Ok(lab)
    }

    /// A lab that is up already; it stays up when this value is dropped.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn attach(name: &str) -> Result<Self, LabError> {
        Ok(Self { state: LabState::load(name)?, fleet: None, removed: true })
    }

    /// A lab whose nodes are machines that make nodes of themselves (see [`node`]), reached over SSH: each is
    /// called as its node is in the OpenSSH configuration `config`, and the lab is called `name`. They
    /// stay up when this value is dropped.
    ///
    /// # Errors
    /// One of them lets nobody in as root.
    pub fn over_ssh(
        topology: &Topology,
        name: &str,
        config: &Path,
        launcher: Launcher,
    ) -> Result<Self, LabError> {
        let nodes: Vec<String> = topology.nodes().map(str::to_owned).collect();
        let fleet = Fleet::connect(config, launcher, &nodes)?;
        Ok(Self { state: LabState::new(name, "", nodes)?, fleet: Some(fleet), removed: true })
    }

    /// Whether its nodes are machines of their own.
    pub fn is_remote(&self) -> bool {
        self.fleet.is_some()
    }

    /// What is known about it.
    pub fn state(&self) -> &LabState {
        &self.state
    }

    /// The namespace of a node.
    ///
    /// # Errors
    /// The lab has no such node, or the node is a machine of its own.
    pub fn namespace(&self, node: &str) -> Result<Namespace, LabError> {
        match self.machine(node)? {
            Machine::Namespace(namespace) => Ok(namespace),
            Machine::Own | Machine::Remote(_) => Err(LabError::NotHere(node.to_owned())),
        }
    }

    /// Where a node is.
    ///
    /// # Errors
    /// The lab has no such node.
    pub fn machine(&self, node: &str) -> Result<Machine, LabError> {
        if self.state.nodes.iter().any(|known| known == node) {
            let namespace = || Machine::Namespace(self.state.namespace(node));
            return Ok(self.fleet.as_ref().map_or_else(namespace, |fleet| fleet.machine(node)));
        }
        Err(LabError::NoSuchNode { name: node.to_owned(), known: self.state.nodes.join(", ") })
    }

    /// A command that runs `program` on a node.
    ///
    /// # Errors
    /// The lab has no such node.
    pub fn command(&self, node: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, LabError> {
        Ok(self.machine(node)?.command(program))
    }

    /// A folder on a node for its files, which goes when the lab does.
    ///
    /// # Errors
    /// The lab has no such node, or the folder cannot be made.
    pub fn node_dir(&self, node: &str) -> Result<PathBuf, LabError> {
        let machine = self.machine(node)?;
        let dir = self.state.dir().join(node);
        if machine.is_remote() {
            configure(machine.command("install").args(["-d", "-m", "700"]).arg(&dir), "")?;
            return Ok(dir);
        }
        fs::create_dir_all(&dir).map_err(LabError::file("create", &dir))?;
        Ok(dir)
    }

    /// Starts a program that goes on running, by a [command](Self::command) of this node; its output is
    /// logged in the node's folder as `LABEL.log`.
    ///
    /// # Errors
    /// The lab has no such node, or the program does not start there.
    pub fn spawn(&self, node: &str, label: &str, command: &mut Command) -> Result<Daemon, LabError> {
        let name = format!("{label} on {node}");
        let namespace = match (self.machine(node)?, &self.fleet) {
            (Machine::Remote(remote), Some(fleet)) => {
                let log = fleet.dir().join(format!("{node}-{label}.log"));
                return Daemon::start_held(&mut remote.held(command), name, log);
            }
            _ => self.namespace(node)?,
        };
        let log = self.node_dir(node)?.join(format!("{label}.log"));
        let mut daemon = Daemon::start(command, name, log)?;
        // Only what is inside is found when the lab goes.
        if wait_until(SETTLE, || namespace.holds(daemon.pid()) || daemon.exit_status().is_some()) {
            return Ok(daemon);
        }
        Err(daemon.not_ready(format!("did not enter the namespace {}", namespace.name())))
    }

    /// Like [`Self::spawn`], for a program that reports to systemd when it is ready: returns once it has.
    ///
    /// # Errors
    /// As [`Self::spawn`], or it ended or said nothing within `limit`, and has been stopped then; or the node
    /// is a machine of its own, where nobody hears it.
    pub fn spawn_ready(
        &self,
        node: &str,
        label: &str,
        command: &mut Command,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Daemon, LabError> {
        self.namespace(node)?;
        let readiness = Readiness::new(&self.node_dir(node)?, label)?;
        readiness.announce_in(command);
        let mut daemon = self.spawn(node, label, command)?;
        readiness.wait(&mut daemon, limit, cancel)?;
        Ok(daemon)
    }

    /// Lets the lab stay up when this process ends, until [`down`] is called.
    ///
    /// # Errors
    /// The state file cannot be written; the lab is then removed as usual.
    pub fn keep(mut self) -> Result<LabState, LabError> {
        self.state.kept = true;
        self.state.save()?;
        self.removed = true;
        Ok(self.state.clone())
    }

    /// Removes it and everything in it; machines of their own stay.
    ///
    /// # Errors
    /// Something could not be removed; the state file stays, so that another try can follow.
    pub fn down(mut self) -> Result<(), LabError> {
        self.removed = true;
        if self.is_remote() {
            return Ok(());
        }
        remove(&self.state)
    }

    fn build(&self, topology: &Topology, profile: &Profile, emulator: &Emulator) -> Result<(), LabError> {
        congestion::allow()?;
        netns::create(&self.state.namespaces())?;
        for name in topology.nodes() {
            let router = topology.routers.get(name);
            self.namespace(name)?.sysctl(&node::sysctls(router.is_some()))?;
        }
        self.switch().sysctl(&["net.ipv6.conf.default.disable_ipv6=1".to_owned()])?;
        let plan = Plan::new(topology, profile);
        let gates = self.gates(topology);
        self.lay_cables(&plan.cables, &gates, emulator)?;
        self.switch().ip(&bridges(&plan.bridges))?;
        for name in topology.nodes() {
            self.namespace(name)?.ip(&node::addresses(topology, name))?;
        }
        for (name, router) in &topology.routers {
            node::filter(
                &Machine::Namespace(self.namespace(name)?),
                router,
                self.gate(topology, name, router).as_ref(),
            )?;
        }
        for (name, host) in &topology.hosts {
            let server = node::nameserver(topology, host);
            let text = server.map_or_else(|| RESOLV_CONF.to_owned(), |server| node::resolv_conf(&server));
            self.namespace(name)?.write_resolv_conf(&text)?;
        }
        self.settle(&plan.cables)
    }

    /// Waits until both ends of every cable carry packets.
    fn settle(&self, cables: &[Cable]) -> Result<(), LabError> {
        for node in self.state.nodes.iter().map(String::as_str).chain(std::iter::once(SWITCH)) {
            let ends = cables.iter().flat_map(|cable| &cable.ends).filter(|end| end.node == node);
            let devices: Vec<&str> = ends.map(|end| end.device.as_str()).collect();
            let namespace = self.state.namespace(node);
            if !wait_until(SETTLE, || namespace.carries(&devices)) {
                return Err(LabError::Down(namespace.name().to_owned(), SETTLE));
            }
        }
        Ok(())
    }

    /// The NATs in userspace.
    fn gates(&self, topology: &Topology) -> Vec<Gate> {
        let routers = topology.routers.iter();
        routers.filter_map(|(name, router)| self.gate(topology, name, router)).collect()
    }

    fn gate(&self, topology: &Topology, name: &str, router: &Router) -> Option<Gate> {
        node::gate(topology, router, self.state.namespace(name).path())
    }

    fn lay_cables(&self, cables: &[Cable], gates: &[Gate], emulator: &Emulator) -> Result<(), LabError> {
        let netem = cables.iter().any(|cable| !cable.is_plain()) && self.has_netem();
        // Its jitter reorders, and its order of what skips the delay is its own.
        let exact = |cable: &Cable| {
            cable.ways.iter().all(|way| way.jitter.is_zero() && way.reorder.fraction() == 0.0)
        };
        let (wires, veths): (Vec<&Cable>, Vec<&Cable>) =
            cables.iter().partition(|cable| !(cable.is_plain() || netem && exact(cable)));
        let batch: String =
            veths.iter().enumerate().map(|(number, cable)| self.veth(number, cable)).collect();
        configure(Command::new("ip").args(["-batch", "-"]), &batch)?;
        for cable in veths.iter().filter(|cable| !cable.is_plain()) {
            cable.ends.iter().zip(&cable.ways).try_for_each(|(end, way)| self.impair(end, way, cable.mtu))?;
        }
        if wires.is_empty() && gates.is_empty() {
            return Ok(());
        }
        let dir = self.state.dir();
        let work =
            Work { wires: wires.iter().map(|cable| self.wire(cable)).collect(), gates: gates.to_vec() };
        emulator.start(&self.switch(), &work, &dir.join("emulator.json"), &dir.join("emulator.log"))?;
        wires.iter().flat_map(|cable| &cable.ends).try_for_each(|end| {
            self.state
                .namespace(&end.node)
                .ip(&format!("link set dev {} txqueuelen {TAP_QUEUE}\n", end.device))
        })
    }

    /// Interface numbers are given, and different at both ends: where they happen to be equal, the kernel
    /// takes the pair for one device and needs up to a second to notice that it has been plugged in
    /// (`linkwatch_urgent_event`).
    fn veth(&self, number: usize, cable: &Cable) -> String {
        let end = |end: &End, index: usize| {
            let (device, mtu, namespace) = (&end.device, cable.mtu, self.state.namespace(&end.node));
            format!("name {device} mtu {mtu} index {index} netns {}", namespace.name())
        };
        let [a, b] = &cable.ends;
        let index = FIRST_INDEX + 2 * number;
        format!("link add {} type veth peer {}\n", end(a, index), end(b, index + 1))
    }

    fn wire(&self, cable: &Cable) -> Wire {
        let tap =
            |end: &End| Tap { namespace: self.state.namespace(&end.node).path(), device: end.device.clone() };
        let [a, b] = &cable.ends;
        Wire { ends: [tap(a), tap(b)], mtu: cable.mtu, impairments: cable.ways.map(Into::into) }
    }

    fn has_netem(&self) -> bool {
        let qdisc = |action: &str| {
            let mut command = self.switch().command("tc");
            command.args(["qdisc", action, "dev", "lo", "root", "netem", "delay", "1ms"]);
            configure(&mut command, "").is_ok()
        };
        qdisc("add") && qdisc("del")
    }

    /// Gives what leaves through `end` its way's properties, by netem. Super-packets would count as one
    /// frame.
    fn impair(&self, end: &End, way: &Way, mtu: u16) -> Result<(), LabError> {
        let namespace = self.state.namespace(&end.node);
        configure(namespace.command("ethtool").args(["-K", &end.device, "tso", "off", "gso", "off"]), "")?;
        let mut tc = namespace.command("tc");
        tc.args(["qdisc", "replace", "dev", &end.device, "root"]).args(node::netem(way, mtu));
        configure(&mut tc, "").map(drop)
    }

    fn switch(&self) -> Namespace {
        self.state.namespace(SWITCH)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.removed {
            // What cannot be removed now stays in the state file and is tried again by the next lab.
            let _ = remove(&self.state);
        }
    }
}

/// Removes the lab called `name`, whoever made it.
///
/// # Errors
/// There is none of that name, or something could not be removed.
pub fn down(name: &str) -> Result<(), LabError> {
    remove(&LabState::load(name)?)
}

/// All labs that are up, by name.
pub fn list() -> Vec<LabState> {
    LabState::all()
}

/// Removes labs that were not kept and whose owner is gone.
pub fn sweep() {
    for state in LabState::all().iter().filter(|state| state.is_stale()) {
        // Another process may be removing it at this moment; what is left is tried again next time.
        let _ = remove(state);
    }
}

fn remove(state: &LabState) -> Result<(), LabError> {
    let namespaces = state.namespaces();
    stop_all(&namespaces);
    namespaces.iter().try_for_each(Namespace::delete)?;
    state.forget()
}

fn bridges(bridges: &[Bridge]) -> String {
    let mut batch = String::from("link set lo up\n");
    for Bridge { network, mtu, ports } in bridges {
        let _ =
            writeln!(batch, "link add name {network} mtu {mtu} type bridge forward_delay 0 mcast_snooping 0");
        let _ = writeln!(batch, "link set dev {network} up");
        for port in ports {
            let _ = writeln!(batch, "link set dev {port} master {network}\nlink set dev {port} up");
        }
    }
    batch
}

/// The topology file that the repository ships, for programs that run inside its tree.
///
/// # Errors
/// No folder above the current one has `vagrant/topology.yaml`.
pub fn default_topology() -> Result<PathBuf, LabError> {
    let here = std::env::current_dir().map_err(LabError::file("find", "."))?;
    let found = here.ancestors().map(|dir| dir.join("vagrant/topology.yaml")).find(|file| file.is_file());
    found.ok_or_else(|| {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        LabError::File {
            action: "find",
            path: Path::new("vagrant/topology.yaml").to_owned(),
            source: missing,
        }
    })
}

/// Whether this process may build labs.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
