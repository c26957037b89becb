//! A device in a network that passes nothing but TCP 443: enrolled, found, reached; out of the detour as soon
//! as UDP passes, and back in it when it does not any more, under a transfer that goes on.

use std::time::{Duration, Instant};

use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::flow::Flow;
use cyphonic_lab::measure::{IperfRun, IperfServer, Transport};

use crate::overlay::{LIMIT, Overlay};
use crate::xdp_relay::program;

/// Behind the wall; its only way to the others' networks is through `ROUTER`.
const INSIDE: &str = "b";
const ADDRESS: &str = "198.51.100.10";
const ROUTER: &str = "core";
/// An attempt to leave the detour comes once a minute at least.
const LEAVES: Duration = Duration::from_secs(90);
/// Silence of 5 s is noticed, a second is waited for an answer; the rest is for a busy machine.
const NOTICES: Duration = Duration::from_secs(30);
/// A transfer that is lost is silent for longer: leaving the detour costs it nothing, falling back what is
/// said above. TCP inside tries at intervals that double, so it may find a way that stands only after as long
/// again.
const SILENCE: Duration = Duration::from_secs(2 * NOTICES.as_secs() + 10);

#[test]
fn a_device_without_udp_takes_part_and_leaves_the_detour_under_a_running_transfer() {
    let overlay = Overlay::start_with(|lab| wall(lab, true));
    the_device_is_there_by_tcp(&overlay);
    throughput(&overlay, "through TCP");
    a_transfer_outlives_both_changes(&overlay);
}

/// A leg whose receiver is on loopback is not for the relay's program: it passes such packets to the process.
#[test]
fn a_relay_in_xdp_serves_a_device_without_udp() {
    let overlay = Overlay::start_with(|lab| {
        let file = lab.node_dir("trs").unwrap().join("service/cloud.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("  mode: auto"), "{text}");
        std::fs::write(&file, text.replace("  mode: auto", "  mode: native")).unwrap();
        lab.prepare_for_xdp("trs", &Cancel::default()).unwrap();
        wall(lab, true);
    });
    assert!(program(&overlay).is_some(), "{}", overlay.logs());
    the_device_is_there_by_tcp(&overlay);
    throughput(&overlay, "through TCP and beside XDP");
}

/// It enrolled, registered and has its relay, all by TCP; others find it, and it them.
fn the_device_is_there_by_tcp(overlay: &Overlay) {
    wait_for(overlay, true, LIMIT);
    let status = status(overlay);
    let health = status["health"].as_array().unwrap();
    assert!(health.iter().any(|check| check["id"] == "udp-blocked"), "{status}");
    overlay.reach(INSIDE, "c");
    assert_eq!(overlay.peer(INSIDE, "c")["route"]["kind"], "relay", "{}", overlay.logs());
    overlay.reach("a", INSIDE);
    let report = overlay.ping(INSIDE, &overlay.address("c"), 20);
    assert_eq!(report.lost(), 0, "{}", overlay.logs());
}

fn throughput(overlay: &Overlay, what: &str) {
    let _server = IperfServer::start(&overlay.lab, "c").unwrap();
    let transfer = transfer(overlay, Duration::from_secs(5));
    assert!(transfer > 1e6, "{transfer} bit/s");
    println!("{what}, unoptimised programs: {:.0} Mbit/s", transfer / 1e6);
}

/// UDP passes, and then it does not; meanwhile one TCP connection inside carries data, and is never silent
/// for long.
fn a_transfer_outlives_both_changes(overlay: &Overlay) {
    let tool = |node: &str| overlay.lab.command(node, overlay.programs.join("cyphonic-lab-node")).unwrap();
    let address = overlay.address("c").parse().unwrap();
    let flow = Flow::start(tool(INSIDE).arg("flow"), tool("c").arg("flow"), address, SILENCE).unwrap();
    assert!(flow.goes_on(), "{}", overlay.logs());
    for (by_tcp, limit) in [(false, LEAVES), (true, NOTICES)] {
        wall(&overlay.lab, by_tcp);
        let begun = Instant::now();
        wait_for(overlay, by_tcp, limit);
        println!("by TCP: {by_tcp} after {:?}", begun.elapsed());
        assert!(flow.goes_on(), "by TCP: {by_tcp}\n{}", overlay.logs());
    }
    assert_eq!(flow.finish(), Ok(()), "{}", overlay.logs());
    overlay.reach(INSIDE, "c");
}

fn transfer(overlay: &Overlay, time: Duration) -> f64 {
    let run = IperfRun { target: overlay.address("c"), transport: Transport::Tcp { streams: 1 }, time };
    run.run(&overlay.lab.namespace(INSIDE).unwrap(), &Cancel::default()).unwrap().bits_per_second
}

/// Whether all services of the device stand, by TCP or over UDP.
fn stands(overlay: &Overlay, by_tcp: bool) -> bool {
    let status = status(overlay);
    let services = status["services"].as_array().unwrap().iter();
    let mut ready = services.filter(|service| service["kind"] != "as");
    ready.all(|service| service["state"] == "ready" && service["by_tcp"] == by_tcp)
}

fn wait_for(overlay: &Overlay, by_tcp: bool, limit: Duration) {
    let started = Instant::now();
    while !stands(overlay, by_tcp) {
        assert!(started.elapsed() < limit, "by TCP: not {by_tcp}: {}\n{}", status(overlay), overlay.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status(overlay: &Overlay) -> serde_json::Value {
    serde_json::from_str(&overlay.cyphonic(INSIDE, &["status", "--json"])).unwrap()
}

/// Lets nothing but TCP 443 of the device through, or everything.
fn wall(lab: &Lab, stands: bool) {
    let of_it = [format!("ip saddr {ADDRESS}"), format!("ip daddr {ADDRESS}")];
    let rules: String = of_it.iter().map(|of_it| format!("{of_it} ip protocol != tcp drop; ")).collect();
    let chain = format!(
        "chain forward {{ type filter hook forward priority 0; {rules} ip saddr {ADDRESS} tcp dport != 443 drop; }}"
    );
    let table = if stands { format!("table ip wall {{\n{chain}\n}}") } else { String::new() };
    // Made first, so that it can be deleted whether it was there or not.
    let script = format!("table ip wall {{ }}\ndelete table ip wall\n{table}\n");
    let file = lab.node_dir(ROUTER).unwrap().join("wall.nft");
    std::fs::write(&file, script).unwrap();
    check(lab.command(ROUTER, "nft").unwrap().arg("-f").arg(&file), LIMIT, &Cancel::default()).unwrap();
}
