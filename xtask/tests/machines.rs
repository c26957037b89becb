//! What takes an emulated machine with a whole Debian: the packages with the documentation's commands, and a
//! machine of `vagrant/`.
//!
//! Needs root, and fails without.

use std::process::Command;

/// Runs a verb, which must succeed, and each of whose parts must say that this many checks held, or more:
/// fewer would be a script that ended too early.
#[track_caller]
fn checks_hold(verb: &str, parts: &[(&str, u32)]) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args([verb, "--debug"]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start xtask: {error}"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for &(part, least) in parts {
        let held = said.lines().find_map(|line| {
            line.strip_prefix(part)?.strip_prefix(": ")?.strip_suffix(" checks hold")?.parse::<u32>().ok()
        });
        assert!(held.is_some_and(|held| held >= least), "{part}: {held:?}\n{said}");
    }
}

/// By this name `cargo xtask test` knows what it runs beside the other tests.
mod emulated {
    use super::checks_hold;

    #[test]
    fn packages_come_and_go_without_a_trace_and_the_documentation_is_right() {
        checks_hold("test-packages", &[("test-packages", 60), ("test-packages (docs)", 40)]);
    }

    /// For real, but for Vagrant: an emulated Debian that is provisioned, and a scenario over SSH.
    #[test]
    fn provisioning_makes_a_node_whose_agent_systemd_resolved_serves() {
        checks_hold("test-vagrant", &[("test-vagrant", 13)]);
    }
}
