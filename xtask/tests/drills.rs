//! What an operator will meet: services and agents die at any time and come back, in one lab with separate processes.
//!
//! Needs root, and fails without. How quickly things recover is not promised here, only that they do while a patient
//! user still waits; the figures are the demo's.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it measured"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_lab::command::{Cancel, check, run};
use cyphonic_lab::measure::{PingReport, PingRun, ping};
use cyphonic_lab::process::Daemon;
use cyphonic_lab::{Lab, LabConfig, Topology};

const ZONE: &str = "drill.internal";
/// AS and NMS, and the TRS, as the topology places them.
const CLOUD: &str = "192.0.2.2:443";
const RELAY: &str = "192.0.2.18:443";

/// For a command, and for a program to come up.
const LIMIT: Duration = Duration::from_secs(20);
/// For a device to find out that something died, and to be served again. Far more than it takes on an idle machine, and
/// less than the idle time-out of a connection (45 s): who restarts must be noticed sooner.
const RECOVERY: Duration = Duration::from_secs(35);
/// Between the pings that go on while something dies.
const INTERVAL: Duration = Duration::from_millis(20);
/// How much longer than its relay a relayed tunnel may be gone: two handshakes and some round trips of the lab, on a machine
/// that does other things too. Half of what a node needs to notice by silence.
const SLACK: Duration = Duration::from_millis(2500);

#[test]
fn tunnels_outlive_the_cloud_and_everything_that_dies_comes_back() {
    let mut overlay = Overlay::start();
    first_packets_to_a_bare_address_are_not_lost(&overlay);
    tunnels_outlive_as_and_nms(&mut overlay);
    relayed_tunnels_outlive_the_trs(&mut overlay);
    a_killed_agent_comes_back_and_leaves_the_host_as_it_was(&mut overlay);
}

/// Traffic without a DNS query before it sets the tunnel up, direct and relayed.
fn first_packets_to_a_bare_address_are_not_lost(overlay: &Overlay) {
    let target = overlay.address("c");
    for round in 0..10 {
        for from in ["a", "b"] {
            overlay.cyphonic(from, &["tunnel", "reset", "--all"]);
            let report = overlay.ping(from, &target, 1);
            assert_eq!(report.lost(), 0, "round {round} from {from}: {}", overlay.logs());
        }
    }
}

fn tunnels_outlive_as_and_nms(overlay: &mut Overlay) {
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let (direct, relayed) = overlay.meanwhile(|overlay| {
        overlay.cloud.kill();
        std::thread::sleep(Duration::from_secs(1));
        overlay.cloud = start_service(&overlay.lab, &overlay.programs, "cloud");
    });
    assert_eq!((direct.lost(), relayed.lost()), (0, 0), "{}", overlay.logs());
    // A pair that has no tunnel yet: both ends have to be registered anew.
    overlay.reach("a", "b");
}

/// The relay dies without a word under traffic and comes back a second later. The tunnel through it stays the same one, and
/// is interrupted for little longer than the relay is gone.
fn relayed_tunnels_outlive_the_trs(overlay: &mut Overlay) {
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let before = overlay.peer("a", "c");
    assert_eq!(before["route"]["kind"], "relay", "{before}");
    let started = Instant::now();
    let mut gone = Duration::ZERO;
    let (direct, relayed) = overlay.meanwhile(|overlay| {
        let killed = Instant::now();
        overlay.relay.kill();
        std::thread::sleep(Duration::from_secs(1));
        overlay.relay = start_service(&overlay.lab, &overlay.programs, "trs");
        gone = killed.elapsed();
    });
    let gap = longest_gap(&relayed);
    println!("the relay was gone for {gone:?}; the relayed tunnel was interrupted for {gap:?}");
    // A single packet is what a busy machine may lose.
    let disturbance = longest_gap(&direct);
    assert!(
        disturbance <= INTERVAL,
        "the direct tunnel was interrupted for {disturbance:?}\n{}",
        overlay.logs()
    );
    assert!(gap < gone + SLACK, "gone for {gone:?}, interrupted for {gap:?}\n{}", overlay.logs());
    let after = overlay.peer("a", "c");
    let age = |peer: &serde_json::Value| Duration::from_secs(peer["since_s"].as_u64().unwrap());
    // Ages are whole seconds.
    let expected = age(&before) + started.elapsed().saturating_sub(Duration::from_secs(2));
    assert!(age(&after) >= expected, "the tunnel was set up anew: {before} {after}\n{}", overlay.logs());
    overlay.reach("a", "c");
}

/// The longest time between answers, by the requests that went without.
fn longest_gap(report: &PingReport) -> Duration {
    let mut answered = report.sequence.clone();
    answered.extend([0, report.sent + 1]);
    answered.sort_unstable();
    let most = answered.windows(2).map(|pair| pair[1] - pair[0] - 1).max().unwrap();
    INTERVAL * most
}

fn a_killed_agent_comes_back_and_leaves_the_host_as_it_was(overlay: &mut Overlay) {
    let ours = overlay.resolv_conf("c");
    overlay.agents[2].kill();
    assert_eq!(overlay.resolv_conf("c"), ours, "nobody was left to restore it");
    overlay.agents[2] = start_agent(&overlay.lab, &overlay.programs, "c");
    overlay.cyphonic("c", &["wait", "--timeout", "20"]);
    assert_eq!(overlay.resolv_conf("c"), ours, "applied once, not to its own work");
    // Those who still have tunnels to the dead process find out; others are not disturbed.
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    overlay.reach("c", "a");
    assert!(overlay.agents[2].stop().unwrap().success(), "{}", overlay.logs());
    assert_eq!(overlay.resolv_conf("c"), overlay.untouched, "{}", overlay.logs());
}

/// The paper's three devices and their cloud.
struct Overlay {
    // Dropped before the lab, which would end them less gently.
    agents: Vec<Daemon>,
    cloud: Daemon,
    relay: Daemon,
    programs: PathBuf,
    /// What `/etc/resolv.conf` held before there were agents.
    untouched: String,
    lab: Lab,
}

impl Overlay {
    fn start() -> Self {
        let programs = programs();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let topology = Topology::load(&root.join("vagrant/topology.yaml")).unwrap();
        let lab =
            Lab::up(&topology, &LabConfig::new(format!("drill-t{}", std::process::id()), "zero")).unwrap();
        found(&lab, &programs);
        let cloud = start_service(&lab, &programs, "cloud");
        let relay = start_service(&lab, &programs, "trs");
        let untouched = resolv_conf(&lab, "c");
        let agents = ["a", "b", "c"].map(|node| {
            enrol(&lab, &programs, node);
            start_agent(&lab, &programs, node)
        });
        let overlay = Self { agents: agents.into(), cloud, relay, programs, untouched, lab };
        for node in ["a", "b", "c"] {
            overlay.cyphonic(node, &["wait", "--timeout", "20"]);
        }
        overlay
    }

    /// Pings over the direct and the relayed tunnel for six seconds, while `event` happens.
    fn meanwhile(&mut self, event: impl FnOnce(&mut Self)) -> (PingReport, PingReport) {
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
    fn reach(&self, from: &str, to: &str) {
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

    fn ping(&self, from: &str, target: &str, count: u32) -> PingReport {
        let what = PingRun::new(target, count);
        ping(&self.lab.namespace(from).unwrap(), &what, &Cancel::default()).unwrap()
    }

    fn address(&self, node: &str) -> String {
        self.cyphonic(node, &["ip"]).trim().to_owned()
    }

    fn cyphonic(&self, node: &str, arguments: &[&str]) -> String {
        let mut command = self.lab.command(node, self.programs.join("cyphonic")).unwrap();
        command.arg("--socket").arg(self.lab.node_dir(node).unwrap().join("cyphonic.sock")).args(arguments);
        check(&mut command, LIMIT, &Cancel::default()).unwrap()
    }

    /// What one says of its tunnel to another.
    fn peer(&self, node: &str, peer: &str) -> serde_json::Value {
        let status: serde_json::Value =
            serde_json::from_str(&self.cyphonic(node, &["status", "--json"])).unwrap();
        let name = format!("{peer}.{ZONE}");
        let mut peers = status["peers"].as_array().unwrap().iter();
        peers.find(|peer| peer["name"] == name.as_str()).unwrap().clone()
    }

    fn resolv_conf(&self, node: &str) -> String {
        resolv_conf(&self.lab, node)
    }

    fn logs(&self) -> String {
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

fn start_service(lab: &Lab, programs: &Path, node: &str) -> Daemon {
    let mut command = lab.command(node, programs.join("cyphonic-cloud")).unwrap();
    command.args(["run", "--config"]).arg(lab.node_dir(node).unwrap().join("service/cloud.yaml"));
    lab.spawn_ready(node, "service", &mut command, LIMIT, &Cancel::default()).unwrap()
}

fn enrol(lab: &Lab, programs: &Path, node: &str) {
    let home = lab.node_dir(node).unwrap();
    let cloud = lab.node_dir("cloud").unwrap().join("service/cloud.yaml");
    let mut create = Command::new(programs.join("cyphonic-cloud"));
    create.args(["token", "create", "--name", node, "--config"]).arg(cloud);
    fs::write(home.join("token"), check(&mut create, LIMIT, &Cancel::default()).unwrap()).unwrap();
    let (state, socket, token) = (home.join("state"), home.join("cyphonic.sock"), home.join("token"));
    let text = format!(
        "state_dir: {}\nsocket: {}\ntoken_file: {}\ncloud: [\"{CLOUD}\"]\ndns: {{ resolver: resolv-conf }}\n",
        state.display(),
        socket.display(),
        token.display()
    );
    fs::write(home.join("agent.yaml"), text).unwrap();
}

fn start_agent(lab: &Lab, programs: &Path, node: &str) -> Daemon {
    let mut command = lab.command(node, programs.join("cyphonicd")).unwrap();
    command.arg("--config").arg(lab.node_dir(node).unwrap().join("agent.yaml"));
    lab.spawn_ready(node, "agent", &mut command, LIMIT, &Cancel::default()).unwrap()
}

fn resolv_conf(lab: &Lab, node: &str) -> String {
    let mut cat = lab.command(node, "cat").unwrap();
    check(cat.arg("/etc/resolv.conf"), LIMIT, &Cancel::default()).unwrap()
}

/// The folder of the programs, built as `cargo test` builds.
fn programs() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_xtask")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", "cyphonic-cloud", "-p", "cyphonic-agent", "--bins"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", folder.parent().unwrap());
    assert!(cargo.status().unwrap().success(), "the programs do not build");
    folder.to_owned()
}
