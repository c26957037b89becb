//! `cargo xtask chaos`: a few faults, drawn from a seed that has one of each sort.

use super::run::Run;

/// The TRS is killed, AS and NMS are, and a device of the direct pair is unplugged.
const SEED: &str = "5";

#[test]
fn tunnels_and_what_was_acknowledged_outlive_faults() {
    let chaos = Run::of("chaos", ["--faults", "3", "--seed", SEED]);
    let (value, said) = (|name| chaos.value(name), &chaos.said);
    assert_eq!((value("faults"), value("direct_tunnels_lost")), (3.0, 0.0), "{said}");
    assert_eq!(value("acknowledged_writes_lost"), 0.0, "{said}");
    assert!(value("acknowledged_writes") > 0.0, "{said}");
    assert!(value("direct_recovery_p99_ms") > 0.0, "the device was unplugged: {said}");
}
