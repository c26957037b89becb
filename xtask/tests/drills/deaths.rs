//! Every process dies once, and the relay forwards in userspace: its tunnels are interrupted while it is
//! gone.

use std::time::{Duration, Instant};

use crate::overlay::{INTERVAL, Overlay, start_agent, start_service};

/// How much longer than its relay a relayed tunnel may be gone: two handshakes and some round trips of the
/// lab, on a machine that does other things too. Half of what a node needs to notice by silence.
const SLACK: Duration = Duration::from_millis(2500);

#[test]
fn tunnels_outlive_the_cloud_and_everything_that_dies_comes_back() {
    let mut overlay = Overlay::start();
    first_packets_to_a_bare_address_are_not_lost(&overlay);
    tunnels_outlive_as_and_nms(&mut overlay);
    relayed_tunnels_outlive_the_trs(&mut overlay);
    a_killed_agent_comes_back_and_leaves_the_host_as_it_was(&mut overlay);
}

/// Traffic without a DNS query before it sets the tunnel up, direct and relayed.
fn first_packets_to_a_bare_address_are_not_lost(overlay: &Overlay) {
    let target = overlay.address("c");
    for round in 0..10 {
        for from in ["a", "b"] {
            overlay.cyphonic(from, &["tunnel", "reset", "--all"]);
            let report = overlay.ping(from, &target, 1);
            assert_eq!(report.lost(), 0, "round {round} from {from}: {}", overlay.logs());
        }
    }
}

fn tunnels_outlive_as_and_nms(overlay: &mut Overlay) {
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let (direct, relayed) = overlay.meanwhile(|overlay| {
        overlay.cloud.kill();
        std::thread::sleep(Duration::from_secs(1));
        overlay.cloud = start_service(&overlay.lab, &overlay.programs, "cloud");
    });
    // A single packet is what a busy machine may lose.
    assert!(direct.lost() <= 1 && relayed.lost() <= 1, "{}", overlay.logs());
    // A pair that has no tunnel yet: both ends have to be registered anew.
    overlay.reach("a", "b");
}

/// The relay dies without a word under traffic and comes back a second later. The tunnel through it stays the
/// same one, and is interrupted for little longer than the relay is gone.
fn relayed_tunnels_outlive_the_trs(overlay: &mut Overlay) {
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    let before = overlay.peer("a", "c");
    assert_eq!(before["route"]["kind"], "relay", "{before}");
    let started = Instant::now();
    let mut gone = Duration::ZERO;
    let (direct, relayed) = overlay.meanwhile(|overlay| {
        let killed = Instant::now();
        overlay.relay.kill();
        std::thread::sleep(Duration::from_secs(1));
        overlay.relay = start_service(&overlay.lab, &overlay.programs, "trs");
        gone = killed.elapsed();
    });
    let gap = relayed.longest_gap(INTERVAL);
    println!("the relay was gone for {gone:?}; the relayed tunnel was interrupted for {gap:?}");
    // A single packet is what a busy machine may lose.
    assert!(direct.lost() <= 1, "the direct tunnel lost {:?}\n{}", direct.missing(), overlay.logs());
    assert!(gap < gone + SLACK, "gone for {gone:?}, interrupted for {gap:?}\n{}", overlay.logs());
    let after = overlay.peer("a", "c");
    let age = |peer: &serde_json::Value| Duration::from_secs(peer["since_s"].as_u64().unwrap());
    // Ages are whole seconds.
    let expected = age(&before) + started.elapsed().saturating_sub(Duration::from_secs(2));
    assert!(age(&after) >= expected, "the tunnel was set up anew: {before} {after}\n{}", overlay.logs());
    overlay.reach("a", "c");
}

fn a_killed_agent_comes_back_and_leaves_the_host_as_it_was(overlay: &mut Overlay) {
    let ours = overlay.resolv_conf("c");
    overlay.agents[2].kill();
    assert_eq!(overlay.resolv_conf("c"), ours, "nobody was left to restore it");
    overlay.agents[2] = start_agent(&overlay.lab, &overlay.programs, "c");
    overlay.wait_online("c");
    assert_eq!(overlay.resolv_conf("c"), ours, "applied once, not to its own work");
    // Those who still have tunnels to the dead process find out; others are not disturbed.
    overlay.reach("a", "c");
    overlay.reach("b", "c");
    overlay.reach("c", "a");
    assert!(overlay.agents[2].stop().unwrap().success(), "{}", overlay.logs());
    assert_eq!(overlay.resolv_conf("c"), overlay.untouched, "{}", overlay.logs());
}
