//! Gateways that map ports, played by miniupnpd on A's router: real servers of UPnP IGD, NAT-PMP and PCP. A's
//! NAT is symmetric and C's is port-restricted, so that only a mapped port lets them be direct.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::process::Daemon;
use serde_json::Value;

use crate::overlay::{LIMIT, Overlay, RECOVERY};

/// A's router, and its networks.
const ROUTER: &str = "lab-nat";
const OUTSIDE: &str = "university";
const INSIDE: &str = "lab-lan";
/// The address that it maps ports of: miniupnpd takes none that is reserved for documentation, as all of the
/// lab's are. Nothing of it leaves the lab.
const PUBLIC: &str = "11.0.0.2";

#[test]
fn a_gateway_that_speaks_upnp_makes_a_symmetric_nat_no_matter() {
    a_mapped_device_is_direct("enable_natpmp=no\nenable_upnp=yes");
}

#[test]
fn a_gateway_that_speaks_pcp_makes_a_symmetric_nat_no_matter() {
    a_mapped_device_is_direct("enable_natpmp=yes\nenable_upnp=no");
}

fn a_mapped_device_is_direct(protocols: &str) {
    let mut gateway = None;
    let mut overlay = Overlay::start_with(|lab| gateway = Some(start_gateway(lab, protocols)));
    let gateway = gateway.unwrap();
    let told = |what: &str| format!("{what}\n{}\n{}", gateway.log_tail(20), overlay.logs());

    assert!(soon(|| mapped_port(&overlay).is_some()), "{}", told("the gateway grants nothing"));
    let (port, rules_now) = (mapped_port(&overlay).unwrap(), rules(&overlay.lab));
    assert!(rules_now.contains(&format!("dport {port} dnat")), "{port}: {rules_now}");

    overlay.reach("c", "a");
    let direct = || overlay.peer("c", "a")["route"]["kind"] == "direct";
    assert!(soon(direct), "{:#}\n{}", overlay.peer("c", "a"), told("C reaches A through the relay"));

    // A stopped agent leaves nothing open.
    overlay.agents[0].stop().unwrap();
    let rules = rules(&overlay.lab);
    assert!(!rules.contains("dnat"), "{rules}");
}

/// A router that maps ports for those behind it.
fn start_gateway(lab: &Lab, protocols: &str) -> Daemon {
    let run = |node: &str, words: &str| {
        let mut words = words.split(' ');
        let mut command = lab.command(node, words.next().unwrap()).unwrap();
        check(command.args(words), LIMIT, &Cancel::default()).unwrap();
    };
    run(ROUTER, &format!("ip address add {PUBLIC}/32 dev {OUTSIDE}"));
    run("core", &format!("ip route add {PUBLIC}/32 via 198.51.100.2"));
    let chains = [
        "add table inet gateway",
        "add chain inet gateway forward { type filter hook forward priority -1 ; }",
        "add chain inet gateway prerouting { type nat hook prerouting priority dstnat ; }",
        "add chain inet gateway postrouting { type nat hook postrouting priority srcnat ; }",
    ];
    let mut nft = lab.command(ROUTER, "nft").unwrap();
    check(nft.arg(chains.join("; ")), LIMIT, &Cancel::default()).unwrap();
    let file = lab.node_dir(ROUTER).unwrap().join("miniupnpd.conf");
    let text = format!(
        "ext_ifname={OUTSIDE}\next_ip={PUBLIC}\nlistening_ip={INSIDE}\n{protocols}\nsecure_mode=yes\n\
         upnp_table_name=gateway\nupnp_nat_table_name=gateway\nupnp_forward_chain=forward\n\
         upnp_nat_chain=prerouting\nupnp_nat_postrouting_chain=postrouting\n\
         uuid=5ac2b8f7-0f2c-4f4e-a2a2-3d1b1b1f0c5e\nallow 1024-65535 0.0.0.0/0 1024-65535\n"
    );
    fs::write(&file, text).unwrap();
    let mut gateway = lab.command(ROUTER, "miniupnpd").unwrap();
    let pid = file.with_extension("pid");
    lab.spawn(ROUTER, "gateway", gateway.arg("-d").arg("-f").arg(&file).arg("-P").arg(pid)).unwrap()
}

/// The port that A knows the gateway to map to it.
fn mapped_port(overlay: &Overlay) -> Option<u16> {
    let found: Value = serde_json::from_str(&overlay.cyphonic("a", &["netcheck", "--json"])).unwrap();
    let endpoint: SocketAddr = found["ipv4"]["port_mapped"][0].as_str()?.parse().unwrap();
    assert_eq!(endpoint.ip().to_string(), PUBLIC);
    Some(endpoint.port())
}

fn rules(lab: &Lab) -> String {
    let mut nft = lab.command(ROUTER, "nft").unwrap();
    check(nft.args(["list", "table", "inet", "gateway"]), LIMIT, &Cancel::default()).unwrap()
}

fn soon(done: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > RECOVERY {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    true
}
