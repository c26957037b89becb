//! `cargo xtask scale`: two hundred nodes of a fleet connect to one cloud and ask for each other. That all
//! connect and no set-up fails counts, and that what was not measured is not told.

use super::run::Run;

#[test]
fn a_fleet_connects_to_one_cloud_and_every_set_up_is_confirmed() {
    let scale = Run::of("scale", ["--quick"]);
    let said = &scale.said;
    assert_eq!(scale.value("nodes"), 200.0, "{said}");
    for measured in ["nms_kb_per_node", "connect_per_s", "setups_per_s", "setup_p99_ms"] {
        assert!(scale.value(measured) > 0.0, "no {measured}: {said}");
    }
    assert_eq!(scale.figure("register_start_s_at_1m"), None, "{said}");
    assert!(scale.note("register").is_some(), "{said}");
}
