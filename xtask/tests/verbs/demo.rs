//! The demo: the whole system, in separate processes and network namespaces, from enrolment to figures.

use std::fs;
use std::path::Path;

use super::run::Run;

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing() {
    let capture = std::env::temp_dir().join(format!("demo-t{}.pcapng", std::process::id()));
    let demo = Run::of("demo", ["--untimed", "--capture", capture.to_str().unwrap()]);
    fs::remove_file(&capture).unwrap();
    for name in
        ["startup_ms", "setup_direct_ms", "setup_relay_cold_ms", "setup_relay_warm_ms", "tcp_direct_gbps"]
    {
        assert!(demo.value(name) > 0.0, "{name}");
    }
    let lost = (demo.value("pings_lost"), demo.value("first_packets_lost"));
    assert_eq!(lost, (0.0, 0.0), "{}", demo.said);

    let namespaces =
        fs::read_dir("/run/netns").map(|entries| entries.flatten().collect()).unwrap_or_else(|_| vec![]);
    let left =
        namespaces.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(&demo.name)).count();
    assert_eq!((left, Path::new("/run/cyphonic-lab").join(&demo.name).exists()), (0, false));
}
