//! `cargo xtask scale` as a test: two hundred nodes of a fleet connect to one cloud and ask for each other.
//!
//! Needs root, and fails without. Programs are not optimised here and the machine may be busy, so what it costs is left to the verb
//! itself; that all connect and no set-up fails counts, and that what was not measured is not told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use self::programs::programs;

#[path = "common/programs.rs"]
mod programs;

#[test]
fn a_fleet_connects_to_one_cloud_and_every_set_up_is_confirmed() {
    let name = format!("scale-t{}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let mut scale = Command::new(env!("CARGO_BIN_EXE_xtask"));
    scale.current_dir(env!("CARGO_MANIFEST_DIR")).args(["scale", "--quick", "--name", &name]);
    scale.arg("--programs").arg(programs()).arg("--json").arg(&figures);
    let output = scale.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    let figure = |name: &str| written["figures"][name]["value"].as_f64();
    assert_eq!(figure("nodes"), Some(200.0), "{said}");
    for measured in ["nms_kb_per_node", "connect_per_s", "setups_per_s", "setup_p99_ms"] {
        assert!(figure(measured) > Some(0.0), "no {measured}: {said}");
    }
    assert_eq!(figure("register_start_s_at_1m"), None, "{said}");
    assert!(written["notes"]["register"].is_string(), "{said}");
}
