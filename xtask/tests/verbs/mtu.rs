//! `cargo xtask mtu`: real tunnels over paths of 1,280 to 9,000 bytes. How long a transfer stands still when
//! a path becomes narrower is not judged here.

use super::run::Run;

#[test]
fn no_path_swallows_what_a_tunnel_promises_to_carry() {
    let mtu = Run::of("mtu", ["--quick", "--untimed"]);
    assert_eq!(mtu.value("outer_mtus"), 4.0, "{}", mtu.said);
    let wrong = (mtu.value("black_holes"), mtu.value("wrong_packet_too_big"));
    assert_eq!(wrong, (0.0, 0.0), "{}", mtu.said);
}
