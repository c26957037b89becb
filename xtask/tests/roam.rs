//! `cargo xtask roam` as a test: two devices change networks under traffic, in separate processes and namespaces.
//!
//! Needs root, and fails without. Programs are not optimised here and the machine may be busy, so how long a gap may be is
//! left to the verb itself; that no transfer is lost counts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use self::programs::programs;

#[path = "common/programs.rs"]
mod programs;

#[test]
fn transfers_outlive_moves_between_networks_and_families() {
    let name = format!("roam-t{}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let mut roam = Command::new(env!("CARGO_BIN_EXE_xtask"));
    roam.current_dir(env!("CARGO_MANIFEST_DIR")).args(["roam", "--quick", "--untimed"]);
    roam.args(["--name", &name, "--programs"]).arg(programs()).arg("--json").arg(&figures);
    let output = roam.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    let figure = |name: &str| {
        written["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"))
    };
    assert_eq!((figure("cells"), figure("flows_lost")), (6.0, 0.0), "{said}");
}
