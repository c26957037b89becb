//! The short form of `cargo xtask mtu`: real tunnels over paths of 1,280 to 9,000 bytes. Needs root, and fails without.
//!
//! How long a transfer stands still when a path becomes narrower is left to `cargo xtask mtu` itself: the machine may be
//! busy here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/programs.rs"]
mod programs;

use std::process::Command;

use self::programs::programs;

#[test]
fn no_path_swallows_what_a_tunnel_promises_to_carry() {
    let name = format!("mtu-t{}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let mut mtu = Command::new(env!("CARGO_BIN_EXE_xtask"));
    mtu.current_dir(env!("CARGO_MANIFEST_DIR")).args(["mtu", "--quick", "--untimed", "--name", &name]);
    mtu.arg("--programs").arg(programs()).arg("--json").arg(&figures);
    let output = mtu.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    let figure = |name: &str| written["figures"][name]["value"].as_f64();
    assert_eq!(figure("outer_mtus"), Some(4.0), "{said}");
    assert_eq!((figure("black_holes"), figure("wrong_packet_too_big")), (Some(0.0), Some(0.0)), "{said}");
}
