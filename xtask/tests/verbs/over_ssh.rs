//! The scenarios on machines of their own: a verb that reaches its nodes by SSH, held to what it is held to
//! in namespaces.
//!
//! A machine is played by a namespace that is cabled, set up and reached as a virtual machine of `vagrant/`
//! is; only its kernel, its systemd and its packages are not its own.

use std::process::Command;

use super::programs::programs;
use super::run::Run;

/// Runs a verb on a scene's machines, after `before`.
fn over_ssh(scene: &str, before: &str, verb: &str) -> Run {
    let programs = programs();
    let run = Run::of_command(&format!("ssh-{scene}"), |name, figures| {
        let xtask = env!("CARGO_BIN_EXE_xtask");
        let script = format!(
            "{before}exec {xtask} {verb} --name {name} --ssh \"$CYPHONIC_SSH_CONFIG\" --programs {} --json {figures}",
            programs.display(),
        );
        let mut rehearsal = Command::new(xtask);
        rehearsal.args(["vagrant-rehearse", "--scene", scene, "--programs"]).arg(&programs);
        rehearsal.args(["sh", "-c", &script]);
        rehearsal
    });
    assert!(run.said.contains("machines reached over SSH"), "{}", run.said);
    run
}

#[test]
fn the_demo_keeps_its_promises_on_machines_reached_over_ssh() {
    // By the cable for management a machine is reached with SSH, and with nothing else.
    let closed =
        "! ping -c 1 -W 1 169.254.37.2 >/dev/null || { echo 'reached around the topology'; exit 1; }; ";
    let demo = over_ssh("paper", closed, "demo --untimed");
    let lost = (demo.value("pings_lost"), demo.value("first_packets_lost"));
    assert_eq!(lost, (0.0, 0.0), "{}", demo.said);
    assert!(demo.value("startup_ms") > 0.0 && demo.value("tcp_relay_gbps") > 0.0);
}

#[test]
fn pairs_behind_nats_of_rfc_4787_connect_on_machines_reached_over_ssh() {
    let grid = over_ssh("nat-grid-quick", "", "nat-grid --quick");
    let (value, said) = (|name| grid.value(name), &grid.said);
    assert_eq!((value("pairs"), value("connected")), (30.0, 30.0), "{said}");
    assert_eq!(value("punchable_direct"), value("punchable"), "{said}");
    assert_eq!(value("upgrade_packets_lost"), 0.0, "{said}");
}

#[test]
fn transfers_outlive_moves_of_machines_reached_over_ssh() {
    let roam = over_ssh("roam", "", "roam --quick --untimed --only relayed");
    assert_eq!((roam.value("cells"), roam.value("flows_lost")), (3.0, 0.0), "{}", roam.said);
}
