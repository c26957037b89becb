//! Agents whose clock is decades wrong, as on a board without a battery. The clock is wrong for the whole
//! process (libfaketime): what asks the C library for the time gets the wrong one. Clocks that nobody sets go
//! on as they are.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::Daemon;

use crate::overlay::{LIMIT, Overlay};

/// Of libfaketime: relative to the right time.
const WRONG: [&str; 2] = ["-30y", "+20y"];
/// Longer than devices' certificates live, shorter than the services'.
const AFTER_THE_DEVICES: &str = "+100d";
/// Until an agent has been refused and says so.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn an_agent_with_a_wrong_clock_recovers_and_one_that_is_revoked_or_has_ended_does_not() {
    let mut overlay = Overlay::start();
    for clock in WRONG {
        a_restart_with_a_wrong_clock_is_overcome(&mut overlay, clock);
    }
    for clock in WRONG {
        enrolment_needs_no_right_clock(&mut overlay, clock);
    }
    a_certificate_that_has_ended_is_not_accepted(&mut overlay);
    overlay.cloud_command(&["device", "revoke", "b"]);
    for clock in WRONG {
        stays_out(&mut overlay, clock, "not-admitted", "revoked");
    }
}

fn a_restart_with_a_wrong_clock_is_overcome(overlay: &mut Overlay, clock: &str) {
    restart(overlay, Some(clock));
    overlay.wait_online("b");
    overlay.reach("b", "c");
    overlay.reach("a", "b");
    let complaint = complaint(overlay, "clock-wrong").unwrap();
    assert!(complaint.contains("years"), "{complaint}");
}

fn enrolment_needs_no_right_clock(overlay: &mut Overlay, clock: &str) {
    let home = overlay.lab.node_dir("b").unwrap();
    overlay.agents[1].stop().unwrap();
    fs::remove_dir_all(home.join("state")).unwrap();
    let token = overlay.cloud_command(&["token", "create", "--name", "b", "--replace"]);
    fs::write(home.join("token"), token).unwrap();
    restart(overlay, Some(clock));
    overlay.wait_online("b");
    overlay.reach("b", "c");
}

/// It is the cloud that lives after the end of devices' certificates here, and knows it.
fn a_certificate_that_has_ended_is_not_accepted(overlay: &mut Overlay) {
    overlay.cloud.stop().unwrap();
    let mut service = overlay.lab.command("cloud", overlay.programs.join("cyphonic-cloud")).unwrap();
    service.args(["run", "--config"]).arg(overlay.lab.node_dir("cloud").unwrap().join("service/cloud.yaml"));
    turn_clock(&mut service, AFTER_THE_DEVICES);
    overlay.cloud =
        overlay.lab.spawn_ready("cloud", "service", &mut service, LIMIT, &Cancel::default()).unwrap();
    for clock in WRONG {
        stays_out(overlay, clock, "nms-unreachable", "xpired");
    }
    overlay.cloud.stop().unwrap();
    overlay.cloud = crate::overlay::start_service(&overlay.lab, &overlay.programs, "cloud");
    // What the agent was told before is gone with its process.
    restart(overlay, None);
    overlay.wait_online("b");
}

fn stays_out(overlay: &mut Overlay, clock: &str, id: &str, why: &str) {
    restart(overlay, Some(clock));
    let started = Instant::now();
    loop {
        let complaint = complaint(overlay, id);
        if complaint.as_ref().is_some_and(|complaint| complaint.contains(why)) {
            break;
        }
        assert!(started.elapsed() < SOON, "with the clock at {clock}: {complaint:?}\n{}", overlay.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Restarts the agent of `b`, by the right clock where none is given.
fn restart(overlay: &mut Overlay, clock: Option<&str>) {
    overlay.agents[1].stop().unwrap();
    overlay.agents[1] = start(overlay, clock);
}

fn start(overlay: &Overlay, clock: Option<&str>) -> Daemon {
    let mut command = overlay.lab.command("b", overlay.programs.join("cyphonicd")).unwrap();
    command.arg("--config").arg(overlay.lab.node_dir("b").unwrap().join("agent.yaml"));
    if let Some(clock) = clock {
        turn_clock(&mut command, clock);
    }
    overlay.lab.spawn_ready("b", "agent", &mut command, LIMIT, &Cancel::default()).unwrap()
}

fn turn_clock(command: &mut Command, clock: &str) {
    command.env("LD_PRELOAD", library()).env("FAKETIME", clock).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Debian's `faketime` would stay between the lab and the process that it starts.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut found =
        folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).filter(|file| file.is_file());
    found.next().expect("install the package faketime (`cargo xtask setup` does)")
}

fn complaint(overlay: &Overlay, id: &str) -> Option<String> {
    let status = overlay.cyphonic("b", &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let health = status["health"].as_array().unwrap();
    let check = health.iter().find(|check| check["id"] == id)?;
    Some(check["message"].as_str().unwrap().to_owned())
}

impl Overlay {
    /// A command of the cloud's operator.
    pub(crate) fn cloud_command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.programs.join("cyphonic-cloud"));
        command.args(&arguments[..2]).arg("--config");
        command.arg(self.lab.node_dir("cloud").unwrap().join("service/cloud.yaml")).args(&arguments[2..]);
        check(&mut command, LIMIT, &Cancel::default()).unwrap()
    }
}
