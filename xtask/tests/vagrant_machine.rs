//! A machine of `vagrant/` for real, but for Vagrant: an emulated Debian that is provisioned, and a scenario over SSH.
//!
//! Needs root, and fails without.

use std::process::Command;

/// Checks that the machine makes: fewer would be a script that ends too early.
const LEAST: u32 = 13;

#[test]
fn provisioning_makes_a_node_whose_agent_systemd_resolved_serves() {
    let mut verb = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = verb.args(["test-vagrant", "--debug"]).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let held = said.lines().find_map(|line| {
        line.strip_prefix("test-vagrant: ")?.strip_suffix(" checks hold")?.parse::<u32>().ok()
    });
    assert!(held.is_some_and(|held| held >= LEAST), "{held:?}\n{said}");
}
