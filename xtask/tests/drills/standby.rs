//! The machine with AS and NMS is lost, and an NMS on another one stands in.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::Daemon;
use serde_json::Value;

use crate::overlay::{LIMIT, Overlay, ZONE, start_service};
use crate::programs::programs;

/// Beside the relay.
const STANDBY: &str = "192.0.2.18:4443";

/// For every device to notice, by silence alone if it asks for nothing (45 s), and to be served again.
const NOTICED: Duration = Duration::from_secs(90);

#[test]
fn devices_meet_at_a_standby_while_the_cloud_is_lost() {
    let mut overlay = Overlay::start_with(make);
    let mut standby = start(&overlay);
    wait(&overlay, "the standby has a copy", LIMIT, || standby.log_tail(50).contains("is whole"));
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let (direct, relayed) = overlay.meanwhile(|overlay| overlay.cloud.kill());
    // A single packet is what a busy machine may lose.
    assert!(direct.lost() <= 1 && relayed.lost() <= 1, "{}", overlay.logs());
    let lost = Instant::now();
    for node in ["a", "b", "c"] {
        wait(&overlay, "it turns to the standby", NOTICED, || nms(&overlay, node) == Some(at("nms2")));
    }
    println!("all devices were at the standby {:?} after the cloud was lost", lost.elapsed());
    // A pair that has no tunnel yet, and one that sets its tunnel up anew.
    overlay.reach("a", "b");
    overlay.cyphonic("c", &["tunnel", "reset", "--all"]);
    overlay.reach("c", "b");
    let shown = overlay.cyphonic("a", &["status"]);
    assert!(shown.contains("stands in for the cloud's own NMS"), "{shown}");

    overlay.cloud = start_service(&overlay.lab, &overlay.programs, "cloud");
    for node in ["a", "b", "c"] {
        wait(&overlay, "it is back", LIMIT, || nms(&overlay, node) == Some(at("nms")));
    }
    overlay.cyphonic("b", &["tunnel", "reset", "--all"]);
    overlay.reach("b", "a");
    overlay.reach("c", "a");
    assert!(!overlay.cyphonic("a", &["status"]).contains("stands in"), "{}", overlay.logs());
    assert!(standby.stop().unwrap().success(), "{}", standby.log_tail(50));
}

/// A standby that the overlay's own NMS knows.
fn make(lab: &Lab) {
    let cloud = lab.node_dir("cloud").unwrap().join("service");
    let text = fs::read_to_string(cloud.join("cloud.yaml")).unwrap();
    let listed = format!("{text}\nstandbys: [{{name: nms2, addresses: [\"{STANDBY}\"]}}]\n");
    fs::write(cloud.join("cloud.yaml"), listed).unwrap();
    let mut credentials = Command::new(programs().join("cyphonic-cloud"));
    credentials
        .arg("standby-credentials")
        .arg("--dir")
        .arg(cloud)
        .args(["--name", "nms2", "--listen", STANDBY]);
    credentials.arg("--out").arg(lab.node_dir("trs").unwrap().join("standby"));
    check(&mut credentials, LIMIT, &Cancel::default()).unwrap();
}

fn start(overlay: &Overlay) -> Daemon {
    let mut command = overlay.lab.command("trs", overlay.programs.join("cyphonic-cloud")).unwrap();
    let config = overlay.lab.node_dir("trs").unwrap().join("standby/cloud.yaml");
    command.args(["run", "--config"]).arg(config);
    overlay.lab.spawn_ready("trs", "standby", &mut command, LIMIT, &Cancel::default()).unwrap()
}

fn at(nms: &str) -> String {
    format!("{nms}.svc.{ZONE}")
}

/// Where a device is registered.
fn nms(overlay: &Overlay, node: &str) -> Option<String> {
    let status: Value = serde_json::from_str(&overlay.cyphonic(node, &["status", "--json"])).unwrap();
    let services = status["services"].as_array().unwrap();
    let nms = services.iter().find(|service| service["kind"] == "nms")?;
    (nms["state"] == "ready").then(|| nms["name"].as_str().unwrap().to_owned())
}

fn wait(overlay: &Overlay, what: &str, limit: Duration, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}\n{}", overlay.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}
