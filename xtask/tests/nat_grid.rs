//! `cargo xtask nat-grid` as tests: a few kinds of network, all pairs; and tunnels that nobody uses for a while.
//!
//! Needs root, and fails without. Who connects, by which way, and that nothing is lost counts; how fast is told by the verb.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use self::programs::programs;

#[path = "common/programs.rs"]
mod programs;

/// Labs measure, so there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Runs the verb, and returns the figures it wrote.
fn nat_grid(what: &str, arguments: &[&str]) -> serde_json::Value {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("{what}-t{}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let mut verb = Command::new(env!("CARGO_BIN_EXE_xtask"));
    verb.current_dir(env!("CARGO_MANIFEST_DIR")).args(["nat-grid", "--name", &name]).args(arguments);
    let output = verb.arg("--programs").arg(programs()).arg("--json").arg(&figures).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let written = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    written
}

fn value(figures: &serde_json::Value, name: &str) -> f64 {
    figures["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {figures}"))
}

#[test]
fn every_pair_connects_and_is_direct_where_its_networks_allow() {
    let figures = nat_grid("grid", &["--quick"]);
    let value = |name| value(&figures, name);
    assert_eq!((value("pairs"), value("connected")), (30.0, 30.0));
    assert_eq!(value("punchable_direct"), value("punchable"));
    assert!(value("punchable") >= 16.0);
    assert_eq!(value("upgrade_packets_lost"), 0.0);
}

#[test]
fn kept_tunnels_deliver_the_first_packet_after_silence_behind_short_mappings() {
    let figures = nat_grid("idle", &["--idle", "25s"]);
    assert_eq!(value(&figures, "first_packets_lost"), 0.0);
    assert!(value(&figures, "idle_packets") > 0.0, "something holds the mappings");
}
