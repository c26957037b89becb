//! `cargo xtask nat-grid`: a few kinds of network, all pairs; and tunnels that nobody uses for a while. Who
//! connects, by which way, and that nothing is lost counts.

use super::run::Run;

#[test]
fn every_pair_connects_and_is_direct_where_its_networks_allow() {
    let grid = Run::of("nat-grid", ["--quick"]);
    let (value, said) = (|name| grid.value(name), &grid.said);
    assert_eq!((value("pairs"), value("connected")), (30.0, 30.0), "{said}");
    assert_eq!(value("punchable_direct"), value("punchable"), "{said}");
    assert!(value("punchable") >= 16.0, "{said}");
    assert_eq!(value("upgrade_packets_lost"), 0.0, "{said}");
}

#[test]
fn kept_tunnels_deliver_the_first_packet_after_silence_behind_short_mappings() {
    let idle = Run::of("nat-grid", ["--idle", "25s"]);
    assert_eq!(idle.value("first_packets_lost"), 0.0, "{}", idle.said);
    assert!(idle.value("idle_packets") > 0.0, "something holds the mappings: {}", idle.said);
}
