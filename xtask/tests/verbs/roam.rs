//! `cargo xtask roam`: two devices change networks under traffic, in separate processes and namespaces. How
//! long a gap may be is not judged here; that no transfer is lost counts.

use super::run::Run;

#[test]
fn transfers_outlive_moves_between_networks_and_families() {
    let roam = Run::of("roam", ["--quick", "--untimed"]);
    assert_eq!((roam.value("cells"), roam.value("flows_lost")), (6.0, 0.0), "{}", roam.said);
}
