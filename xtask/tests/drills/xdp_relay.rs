//! The relay forwards in XDP, and its process dies under load: nothing that it relays ends, or even waits.
//!
//! The kernel holds the program and the legs while no process does (docs/decisions/0009). What is asserted is
//! what was forwarded meanwhile, and in which order things came back; times are only told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::measure::{IperfServer, PingReport, PingRun, ping};
use cyphonic_lab::process::wait_until;
use serde_json::Value;

use crate::overlay::{INTERVAL, LIMIT, Overlay, start_agent, start_service};

/// Frames that XDP must forward where forwarding is to be shown: more than stray signalling.
const ENOUGH: u64 = 2_000;
/// How long TCP and pings go on. The relay dies and comes back well within.
const TRAFFIC: Duration = Duration::from_secs(20);
/// How long the relay is gone at least: whoever cannot do without would be missed.
const GONE: Duration = Duration::from_secs(3);
/// Of a thousand pings, beside a stream that fills every queue on a machine that does other things too.
const FEW: u32 = 50;
/// For the nodes to notice that their connections to the relay are dead: they speak on them every 14 s, and
/// are told then.
const NOTICED: Duration = Duration::from_secs(60);

#[test]
fn a_killed_xdp_relay_forwards_on_and_its_successor_takes_over() {
    let pins = Pins::mount();
    let mut untouched = Vec::new();
    let mut overlay = Overlay::start_with(|lab| {
        prepare(lab, &pins.0);
        untouched = forwards_on_loopback(lab);
    });
    overlay.reach("a", "c");
    let (before_a, before_c) = (overlay.peer("a", "c"), overlay.peer("c", "a"));
    assert_eq!(before_a["route"]["kind"], "relay", "{before_a}");
    let first = program(&overlay).unwrap();
    assert_eq!(pins.relays(), 1, "{}", overlay.logs());

    let started = Instant::now();
    let (mut second, mut gone) = (0, Duration::ZERO);
    let (pings, transfer) = under_load(&mut overlay, |overlay| {
        forwards(overlay, first);
        let killed = Instant::now();
        overlay.relay.kill();
        assert!(overlay.relay.exit_status().is_some());
        std::thread::sleep(GONE);
        assert_eq!(program(overlay), Some(first), "the kernel keeps it");
        forwards(overlay, first);
        overlay.relay = start_service(&overlay.lab, &overlay.programs, "trs");
        gone = killed.elapsed();
        second = program(overlay).unwrap();
        assert_ne!(second, first, "the successor's own");
        forwards(overlay, second);
    });

    let gap = pings.longest_gap(INTERVAL);
    println!(
        "the relay's process was gone for {gone:?}; {} of {} pings lost, at most {gap:?} without; TCP {:.0} Mbit/s",
        pings.lost(),
        pings.sent,
        transfer.bits_per_second / 1e6
    );
    assert!(pings.lost() <= FEW, "{} pings lost\n{}", pings.lost(), overlay.logs());
    assert!(gap < gone, "interrupted for {gap:?}\n{}", overlay.logs());
    assert!(transfer.never_stalled, "TCP carried nothing for a whole interval\n{}", overlay.logs());
    let log = overlay.relay.log();
    assert!(log.contains("(native, taken over)") && log.contains("legs=2"), "{log}");
    // Nothing was bound or set up anew. Ages are whole seconds.
    let since = started.elapsed().saturating_sub(Duration::from_secs(2));
    for (node, peer, before) in [("a", "c", before_a), ("c", "a", before_c)] {
        let after = overlay.peer(node, peer);
        // Why it is relayed may be better known by now.
        let way = |peer: &Value| (peer["route"]["kind"].clone(), peer["route"]["trs"].clone());
        assert_eq!(way(&after), way(&before));
        assert!(age(&after) >= age(&before) + since, "set up anew: {before} {after}\n{}", overlay.logs());
    }

    the_nodes_come_back_and_own_their_legs(&mut overlay);
    a_relay_that_is_stopped_leaves_nothing(&mut overlay, &pins, &untouched);
}

/// Legs are their nodes' again: they go with them, having counted through the relay's death.
fn the_nodes_come_back_and_own_their_legs(overlay: &mut Overlay) {
    let connected = |overlay: &Overlay| {
        let log = overlay.relay.log();
        ["a", "b", "c"]
            .iter()
            .all(|node| log.contains(&format!("a device connected to the TRS fqdn=\"{node}.")))
    };
    assert!(wait_until(NOTICED, || connected(overlay)), "{}", overlay.logs());
    overlay.reach("a", "c");
    assert!(overlay.agents[0].stop().unwrap().success(), "{}", overlay.logs());
    let carried = |overlay: &Overlay| -> Vec<u64> {
        let log = overlay.relay.log();
        let unbound = log.lines().filter_map(|line| line.split_once("a leg was unbound packets="));
        unbound.map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap()).collect()
    };
    assert!(wait_until(LIMIT, || carried(overlay).len() == 2), "{}", overlay.logs());
    assert!(carried(overlay).iter().all(|packets| *packets > ENOUGH), "{:?}", carried(overlay));
    overlay.agents[0] = start_agent(&overlay.lab, &overlay.programs, "a");
    overlay.wait_online("a");
    overlay.reach("a", "c");
}

fn a_relay_that_is_stopped_leaves_nothing(overlay: &mut Overlay, pins: &Pins, untouched: &[String]) {
    assert!(overlay.relay.stop().unwrap().success(), "{}", overlay.logs());
    assert_eq!((program(overlay), pins.relays()), (None, 0), "{}", overlay.logs());
    assert_eq!(forwards_on_loopback(&overlay.lab), untouched);
}

fn prepare(lab: &Lab, pins: &Path) {
    let file = lab.node_dir("trs").unwrap().join("service/cloud.yaml");
    let mut text = fs::read_to_string(&file).unwrap();
    let pins = format!("  pins: {}", pins.display());
    // At debug it tells of connections and legs.
    let log = "log: info,cyphonic_cloud::server::relay=debug";
    for (from, to) in [("  mode: auto", "  mode: native"), ("  pins: /sys/fs/bpf", &pins), ("log: info", log)]
    {
        assert!(text.contains(from), "{text}");
        text = text.replace(from, to);
    }
    fs::write(&file, text).unwrap();
    lab.prepare_for_xdp("trs", &Cancel::default()).unwrap();
}

/// A BPF file system that outlives the relay's process. `ip netns exec` gives each program mounts of its own,
/// so the one that a relay would mount for itself would not.
struct Pins(PathBuf);

impl Pins {
    fn mount() -> Self {
        let folder = std::env::temp_dir().join(format!("cyphonic-drill-bpf-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut mount = Command::new("mount");
        check(mount.args(["-t", "bpf", "bpf"]).arg(&folder), LIMIT, &Cancel::default()).unwrap();
        Self(folder)
    }

    /// How many relays have something here.
    fn relays(&self) -> usize {
        fs::read_dir(self.0.join("cyphonic")).unwrap().count()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = check(Command::new("umount").arg("--lazy").arg(&self.0), LIMIT, &Cancel::default());
        let _ = fs::remove_dir(&self.0);
    }
}

/// The number of the program on the relay's cable.
pub(crate) fn program(overlay: &Overlay) -> Option<u64> {
    let cables = overlay.lab.cables("trs", &Cancel::default()).unwrap();
    cables.iter().find_map(|cable| cable["xdp"]["prog"]["id"].as_u64())
}

/// Waits until a program has forwarded enough from now on, or fails.
fn forwards(overlay: &Overlay, program: u64) {
    let forwarded = || {
        let mut status = Command::new(overlay.programs.join("cyphonic-cloud"));
        let said = check(status.args(["trs-status", "--json"]), LIMIT, &Cancel::default()).unwrap();
        let status: Value = serde_json::from_str(&said).unwrap();
        let relays = status["xdp"].as_array().unwrap().clone();
        let ours = relays.iter().find(|relay| relay["program"] == program);
        ours.unwrap_or_else(|| panic!("no program {program}: {status}"))["forwarded_packets"]
            .as_u64()
            .unwrap()
    };
    let before = forwarded();
    let enough = wait_until(LIMIT, || forwarded() >= before + ENOUGH);
    assert!(enough, "{} of {ENOUGH} frames forwarded\n{}", forwarded() - before, overlay.logs());
}

/// What a TCP stream carried.
struct Transferred {
    bits_per_second: f64,
    /// Whether every interval of two seconds carried something.
    never_stalled: bool,
}

/// Pings from a to c, which is relayed, and TCP as fast as it goes, while `event` happens.
fn under_load(overlay: &mut Overlay, event: impl FnOnce(&mut Overlay)) -> (PingReport, Transferred) {
    let _server = IperfServer::start(&overlay.lab, "c").unwrap();
    let target = overlay.address("c");
    let a = overlay.lab.namespace("a").unwrap();
    let count = u32::try_from(TRAFFIC.as_millis() / INTERVAL.as_millis()).unwrap();
    let what = PingRun { interval: INTERVAL, ..PingRun::new(&target, count) };
    let mut iperf = a.command("iperf3");
    iperf.args(["--json", "-6", "-c", &target, "-i", "2"]);
    iperf.args(["-t", &TRAFFIC.as_secs().to_string()]);
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping(&a, &what, &Cancel::default()).unwrap());
        let tcp = scope.spawn(|| check(&mut iperf, TRAFFIC + LIMIT, &Cancel::default()).unwrap());
        event(overlay);
        let report: Value = serde_json::from_str(&tcp.join().unwrap()).unwrap();
        let intervals = report["intervals"].as_array().unwrap();
        let transferred = Transferred {
            bits_per_second: report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap(),
            never_stalled: intervals.iter().all(|interval| interval["sum"]["bytes"].as_u64() > Some(0)),
        };
        (pings.join().unwrap(), transferred)
    })
}

fn age(peer: &Value) -> Duration {
    Duration::from_secs(peer["since_s"].as_u64().unwrap())
}

/// The settings that the relay in XDP changes while it runs.
fn forwards_on_loopback(lab: &Lab) -> Vec<String> {
    let read = |family| {
        let file = format!("/proc/sys/net/{family}/conf/lo/forwarding");
        check(lab.command("trs", "cat").unwrap().arg(file), LIMIT, &Cancel::default()).unwrap()
    };
    ["ipv4", "ipv6"].map(read).to_vec()
}
