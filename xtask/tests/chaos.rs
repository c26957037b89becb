//! `cargo xtask chaos` as a test: a few faults, drawn from a seed that has one of each sort.
//!
//! Needs root, and fails without. That things recover and nothing is lost counts; how fast is told by the verb.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use self::programs::programs;

#[path = "common/programs.rs"]
mod programs;

/// The TRS is killed, AS and NMS are, and a device of the direct pair is unplugged.
const SEED: &str = "5";

#[test]
fn tunnels_and_what_was_acknowledged_outlive_faults() {
    let name = format!("chaos-t{}", std::process::id());
    let file = std::env::temp_dir().join(format!("{name}.json"));
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_xtask"));
    chaos.current_dir(env!("CARGO_MANIFEST_DIR")).args(["chaos", "--faults", "3", "--seed", SEED]);
    let output = chaos
        .args(["--name", &name, "--programs"])
        .arg(programs())
        .arg("--json")
        .arg(&file)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let value = |name: &str| {
        figures["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"))
    };
    assert_eq!((value("faults"), value("direct_tunnels_lost")), (3.0, 0.0), "{said}");
    assert_eq!(value("acknowledged_writes_lost"), 0.0, "{said}");
    assert!(value("acknowledged_writes") > 0.0, "{said}");
    assert!(value("direct_recovery_p99_ms") > 0.0, "the device was unplugged: {said}");
}
