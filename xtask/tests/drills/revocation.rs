//! A device is lost and revoked while it talks to others.

use std::time::{Duration, Instant};

use crate::overlay::Overlay;

/// The NMS looks for revocations twice a second, and tells all nodes at once; the rest is for a busy machine.
const TOLD: Duration = Duration::from_secs(10);

#[test]
fn a_revoked_device_loses_its_tunnels_and_others_keep_theirs() {
    let mut overlay = Overlay::start();
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let target = overlay.address("c");
    let (of_b, of_a) = overlay.meanwhile(|overlay| {
        overlay.cloud_command(&["device", "revoke", "b"]);
        let revoked = Instant::now();
        // It sends on all the time: that its tunnel is not used is no reason.
        while !overlay.peer("c", "b")["route"].is_null() {
            assert!(revoked.elapsed() < TOLD, "{}", overlay.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("the tunnel stood for {:?} after the revocation", revoked.elapsed());
    });
    assert!(!of_b.sequence.is_empty(), "it never had a tunnel: {}", overlay.logs());
    // A single packet is what a busy machine may lose.
    assert!(of_a.lost() <= 1, "{}", overlay.logs());
    assert!(overlay.ping("b", &target, 3).sequence.is_empty(), "{}", overlay.logs());
    overlay.reach("a", "c");
}
