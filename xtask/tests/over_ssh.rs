//! The scenarios on machines of their own: a verb that reaches its nodes by SSH, held to what it is held to in namespaces.
//!
//! Needs root, and fails without. A machine is played by a namespace that is cabled, set up and reached as a virtual machine
//! of `vagrant/` is; only its kernel, its systemd and its packages are not its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/programs.rs"]
mod programs;

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use self::programs::programs;

/// Labs measure, so there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a verb on a scene's machines, after `before`, and returns the figures it wrote.
fn verb(scene: &str, before: &str, verb: &str) -> serde_json::Value {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = programs();
    let name = format!("ssh-{}-{scene}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let xtask = env!("CARGO_BIN_EXE_xtask");
    let script = format!(
        "{before}exec {xtask} {verb} --name {name} --ssh \"$CYPHONIC_SSH_CONFIG\" --programs {} --json {}",
        programs.display(),
        figures.display()
    );
    let mut rehearsal = Command::new(xtask);
    rehearsal.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "vagrant-rehearse",
        "--scene",
        scene,
        "--programs",
    ]);
    let output = rehearsal.arg(&programs).args(["sh", "-c", &script]).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("machines reached over SSH"), "{said}");
    let written = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    written
}

fn value(figures: &serde_json::Value, name: &str) -> f64 {
    figures["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {figures}"))
}

#[test]
fn the_demo_keeps_its_promises_on_machines_reached_over_ssh() {
    // By the cable for management a machine is reached with SSH, and with nothing else.
    let closed =
        "! ping -c 1 -W 1 169.254.37.2 >/dev/null || { echo 'reached around the topology'; exit 1; }; ";
    let figures = verb("paper", closed, "demo --untimed");
    assert_eq!((value(&figures, "pings_lost"), value(&figures, "first_packets_lost")), (0.0, 0.0));
    assert!(value(&figures, "startup_ms") > 0.0 && value(&figures, "tcp_relay_gbps") > 0.0);
}

#[test]
fn pairs_behind_nats_of_rfc_4787_connect_on_machines_reached_over_ssh() {
    let figures = verb("nat-grid-quick", "", "nat-grid --quick");
    assert_eq!((value(&figures, "pairs"), value(&figures, "connected")), (30.0, 30.0));
    assert_eq!(value(&figures, "punchable_direct"), value(&figures, "punchable"));
    assert_eq!(value(&figures, "upgrade_packets_lost"), 0.0);
}

#[test]
fn transfers_outlive_moves_of_machines_reached_over_ssh() {
    let figures = verb("roam", "", "roam --quick --untimed --only relayed");
    assert_eq!((value(&figures, "cells"), value(&figures, "flows_lost")), (3.0, 0.0));
}
