//! The demo as a test: the whole system, in separate processes and network namespaces, from enrolment to figures.
//!
//! Needs root, and fails without. Programs are not optimised here and the machine may be busy, so promises of time are
//! left to `cargo xtask demo` itself; every other one counts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/programs.rs"]
mod programs;

use std::path::Path;
use std::process::Command;

use self::programs::programs;

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing() {
    let name = format!("demo-t{}", std::process::id());
    let figures = std::env::temp_dir().join(format!("{name}.json"));
    let capture = std::env::temp_dir().join(format!("{name}.pcapng"));
    let mut demo = Command::new(env!("CARGO_BIN_EXE_xtask"));
    demo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["demo", "--untimed", "--name", &name, "--programs"]);
    demo.arg(programs()).arg("--json").arg(&figures).arg("--capture").arg(&capture);
    let output = demo.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");

    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    std::fs::remove_file(&figures).unwrap();
    std::fs::remove_file(&capture).unwrap();
    let figure = |name: &str| {
        written["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"))
    };
    for name in
        ["startup_ms", "setup_direct_ms", "setup_relay_cold_ms", "setup_relay_warm_ms", "tcp_direct_gbps"]
    {
        assert!(figure(name) > 0.0, "{name}");
    }
    assert_eq!((figure("pings_lost"), figure("first_packets_lost")), (0.0, 0.0), "{said}");

    let namespaces =
        std::fs::read_dir("/run/netns").map(|entries| entries.flatten().collect()).unwrap_or_else(|_| vec![]);
    let left =
        namespaces.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)).count();
    assert_eq!((left, Path::new("/run/cyphonic-lab").join(&name).exists()), (0, false));
}
