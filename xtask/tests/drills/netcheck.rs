//! What real agents find out about the NATs of the topology.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::overlay::{Overlay, RECOVERY};

/// What `node` finds, once `done`.
fn findings(overlay: &Overlay, node: &str, done: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let found: Value = serde_json::from_str(&overlay.cyphonic(node, &["netcheck", "--json"])).unwrap();
        if done(&found) {
            return found;
        }
        assert!(started.elapsed() < RECOVERY, "{node} has found only {found:#}\n{}", overlay.logs());
        sleep(Duration::from_millis(200));
    }
}

/// A is behind a symmetric NAT, C behind a port-restricted one with a stateful firewall for IPv6, B has a
/// public address.
#[test]
fn agents_find_out_what_the_topology_says() {
    let overlay = Overlay::start();
    let known = |found: &Value| found["ipv4"]["filtering"] != "unknown";
    let a = findings(&overlay, "a", known);
    assert_eq!(a["ipv4"]["mapping"], "address- and port-dependent (symmetric)", "{a:#}");
    assert_eq!(a["ipv4"]["filtering"], "address- and port-dependent", "{a:#}");
    let b = findings(&overlay, "b", known);
    assert_eq!(b["ipv4"]["mapping"], "no NAT", "{b:#}");
    assert_eq!(b["ipv4"]["filtering"], "endpoint-independent (open)", "{b:#}");
    assert_eq!(b["udp"], true, "{b:#}");
    let c = findings(&overlay, "c", |found| found["ipv4"]["lifetime_ms"].as_u64() >= Some(4_000));
    assert_eq!(c["ipv4"]["mapping"], "endpoint-independent", "{c:#}");
    assert_eq!(c["ipv4"]["filtering"], "address- and port-dependent", "{c:#}");
    for found in [&a, &b, &c] {
        let relays = found["relays"].as_array().unwrap();
        assert!(relays.len() == 1 && relays.iter().all(|relay| relay["rtt_ms"].is_number()), "{found:#}");
    }
    let shown = overlay.cyphonic("a", &["netcheck"]);
    assert!(shown.contains("mapping      address- and port-dependent (symmetric)"), "{shown}");
}
