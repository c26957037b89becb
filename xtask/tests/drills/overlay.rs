//! An overlay in a lab, each of its processes separate, to be killed and started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cyphonic_lab::command::{Cancel, check, run};
use cyphonic_lab::measure::{PingReport, PingRun, ping};
use cyphonic_lab::process::Daemon;
use cyphonic_lab::{Lab, LabConfig, Topology};

use crate::programs::programs;

pub(crate) const ZONE: &str = "drill.internal";
/// AS and NMS, and the TRS, as the topology places them.
const CLOUD: &str = "192.0.2.2:443";
const RELAY: &str = "192.0.2.18:443";

/// For a command, and for a program to come up.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// For a device to find out that something died, and to be served again. Far more than it takes on an idle
/// machine, and less than the idle time-out of a connection (45 s): who restarts must be noticed sooner.
pub(crate) const RECOVERY: Duration = Duration::from_secs(35);
/// Between the pings that go on while something dies.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);
/// Labs measure, so there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The paper's three devices and their cloud.
pub(crate) struct Overlay {
    // Dropped before the lab, which would end them less gently.
    pub(crate) agents: Vec<Daemon>,
    pub(crate) cloud: Daemon,
    pub(crate) relay: Daemon,
    pub(crate) programs: PathBuf,
    /// What `/etc/resolv.conf` held before there were agents.
    pub(crate) untouched: String,
    pub(crate) lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

impl Overlay {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// After `prepare` had its way with the lab and the services' configuration.
    pub(crate) fn start_with(prepare: impl FnOnce(&Lab)) -> Self {
        // Whoever failed has left nothing behind.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = programs();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let topology = Topology::load(&root.join("vagrant/topology.yaml")).unwrap().default_scene().unwrap();
        let lab =
            Lab::up(&topology, &LabConfig::new(format!("drill-t{}", std::process::id()), "zero")).unwrap();
        found(&lab, &programs);
        prepare(&lab);
        let cloud = start_service(&lab, &programs, "cloud");
        let relay = start_service(&lab, &programs, "trs");
        let untouched = resolv_conf(&lab, "c");
        let agents = ["a", "b", "c"].map(|node| {
            enrol(&lab, &programs, node, &lab.node_dir(node).unwrap(), "dns: { resolver: resolv-conf }\n");
            start_agent(&lab, &programs, node)
        });
        let overlay = Self { agents: agents.into(), cloud, relay, programs, untouched, lab, _turn: turn };
        for node in ["a", "b", "c"] {
            overlay.wait_online(node);
        }
        overlay
    }

    /// Pings over the direct and the relayed tunnel for six seconds, while `event` happens.
    pub(crate) fn meanwhile(&mut self, event: impl FnOnce(&mut Self)) -> (PingReport, PingReport) {
        let (a, b) = (self.lab.namespace("a").unwrap(), self.lab.namespace("b").unwrap());
        let mut what = PingRun::new(self.address("c"), 300);
        what.interval = INTERVAL;
        std::thread::scope(|scope| {
            let direct = scope.spawn(|| ping(&b, &what, &Cancel::default()).unwrap());
            let relayed = scope.spawn(|| ping(&a, &what, &Cancel::default()).unwrap());
            std::thread::sleep(Duration::from_millis(500));
            event(self);
            (direct.join().unwrap(), relayed.join().unwrap())
        })
    }

    /// Until one reaches the other by name, as a user would try again.
    pub(crate) fn reach(&self, from: &str, to: &str) {
        let name = format!("{to}.{ZONE}");
        let started = Instant::now();
        loop {
            let mut command = self.lab.command(from, "ping").unwrap();
            let output = run(command.args(["-c", "1", "-W", "1", &name]), LIMIT, &Cancel::default()).unwrap();
            if output.status.success() {
                return;
            }
            assert!(
                started.elapsed() < RECOVERY,
                "{from} does not reach {to}: {}\n{}",
                output.stderr,
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn ping(&self, from: &str, target: &str, count: u32) -> PingReport {
        let what = PingRun::new(target, count);
        ping(&self.lab.namespace(from).unwrap(), &what, &Cancel::default()).unwrap()
    }

    pub(crate) fn address(&self, node: &str) -> String {
        self.cyphonic(node, &["ip"]).trim().to_owned()
    }

    pub(crate) fn cyphonic(&self, node: &str, arguments: &[&str]) -> String {
        check(&mut self.command(node, arguments), LIMIT, &Cancel::default()).unwrap()
    }

    /// Until the device is online.
    pub(crate) fn wait_online(&self, node: &str) {
        let mut command = self.command(node, &["wait", "--timeout", &LIMIT.as_secs().to_string()]);
        // Who waits in vain is to say what is missing.
        let waited = check(&mut command, LIMIT * 2, &Cancel::default());
        assert!(waited.is_ok(), "{node}: {waited:?}\n{}", self.logs());
    }

    pub(crate) fn command(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command = self.lab.command(node, self.programs.join("cyphonic")).unwrap();
        command.arg("--socket").arg(self.lab.node_dir(node).unwrap().join("cyphonic.sock")).args(arguments);
        command
    }

    /// What one says of its tunnel to another.
    pub(crate) fn peer(&self, node: &str, peer: &str) -> serde_json::Value {
        let status: serde_json::Value =
            serde_json::from_str(&self.cyphonic(node, &["status", "--json"])).unwrap();
        let name = format!("{peer}.{ZONE}");
        let mut peers = status["peers"].as_array().unwrap().iter();
        peers.find(|peer| peer["name"] == name.as_str()).unwrap().clone()
    }

    pub(crate) fn resolv_conf(&self, node: &str) -> String {
        resolv_conf(&self.lab, node)
    }

    pub(crate) fn logs(&self) -> String {
        let daemons = self.agents.iter().chain([&self.cloud, &self.relay]);
        daemons.map(|daemon| format!("--- {}\n{}\n", daemon.name(), daemon.log_tail(20))).collect()
    }
}

fn found(lab: &Lab, programs: &Path) {
    let (home, relay) = (lab.node_dir("cloud").unwrap(), lab.node_dir("trs").unwrap());
    let mut init = Command::new(programs.join("cyphonic-cloud"));
    init.arg("init").arg("--dir").arg(home.join("service")).args(["--zone", ZONE, "--public", CLOUD]);
    check(init.args(["--trs", &format!("trs1={RELAY}")]), LIMIT, &Cancel::default()).unwrap();
    let mut credentials = Command::new(programs.join("cyphonic-cloud"));
    credentials.arg("trs-credentials").arg("--dir").arg(home.join("service")).args(["--name", "trs1"]);
    check(credentials.arg("--out").arg(relay.join("service")), LIMIT, &Cancel::default()).unwrap();
}

pub(crate) fn start_service(lab: &Lab, programs: &Path, node: &str) -> Daemon {
    let mut command = lab.command(node, programs.join("cyphonic-cloud")).unwrap();
    command.args(["run", "--config"]).arg(lab.node_dir(node).unwrap().join("service/cloud.yaml"));
    lab.spawn_ready(node, "service", &mut command, LIMIT, &Cancel::default()).unwrap()
}

/// Prepares an agent whose files are in `home`: a token for a device called `name`, and a configuration that
/// says `more`, too.
pub(crate) fn enrol(lab: &Lab, programs: &Path, name: &str, home: &Path, more: &str) {
    let cloud = lab.node_dir("cloud").unwrap().join("service/cloud.yaml");
    let mut create = Command::new(programs.join("cyphonic-cloud"));
    create.args(["token", "create", "--name", name, "--config"]).arg(cloud);
    fs::write(home.join("token"), check(&mut create, LIMIT, &Cancel::default()).unwrap()).unwrap();
    let (state, socket, token) = (home.join("state"), home.join("cyphonic.sock"), home.join("token"));
    let text = format!(
        "state_dir: {}\nsocket: {}\ntoken_file: {}\ncloud: [\"{CLOUD}\"]\n{more}",
        state.display(),
        socket.display(),
        token.display()
    );
    fs::write(home.join("agent.yaml"), text).unwrap();
}

pub(crate) fn start_agent(lab: &Lab, programs: &Path, node: &str) -> Daemon {
    start_agent_of(lab, programs, node, &lab.node_dir(node).unwrap())
}

/// The agent on `node` whose files are in `home`.
pub(crate) fn start_agent_of(lab: &Lab, programs: &Path, node: &str, home: &Path) -> Daemon {
    let mut command = lab.command(node, programs.join("cyphonicd")).unwrap();
    command.arg("--config").arg(home.join("agent.yaml"));
    let name = home.file_name().unwrap().to_str().unwrap();
    let name = if name == node { "agent" } else { name };
    lab.spawn_ready(node, name, &mut command, LIMIT, &Cancel::default()).unwrap()
}

fn resolv_conf(lab: &Lab, node: &str) -> String {
    let mut cat = lab.command(node, "cat").unwrap();
    check(cat.arg("/etc/resolv.conf"), LIMIT, &Cancel::default()).unwrap()
}
