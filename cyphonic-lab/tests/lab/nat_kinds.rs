//! Each NAT kind, probed from outside and inside with real datagrams, as RFC 5780 does.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use cyphonic_lab::{Lab, Topology};

use crate::common::{hears, hears_nothing, receive, socket, up};

const INSIDE: u16 = 5000;
const SERVER: u16 = 7000;

/// Two servers on one public network, and a device behind a NAT of each kind.
fn topology() -> Topology {
    let kinds = ["full-cone", "address-restricted", "port-restricted", "symmetric"];
    let mut networks = String::from("  wan: { ipv4: 198.51.100.0/24 }\n");
    let (mut routers, mut hosts) = (String::new(), String::new());
    for (index, kind) in kinds.iter().enumerate() {
        let outside = 101 + index;
        networks += &format!("  lan{index}: {{ ipv4: 192.168.0.0/24 }}\n");
        routers += &format!(
            "  {kind}:\n    nat: {{ kind: {kind}, outside: wan }}\n    interfaces:\n      \
             - {{ network: wan, ipv4: 198.51.100.{outside} }}\n      - {{ network: lan{index}, ipv4: 192.168.0.1 }}\n"
        );
        hosts += &format!(
            "  in-{kind}:\n    gateway: {kind}\n    interfaces: [ {{ network: lan{index}, ipv4: 192.168.0.2 }} ]\n"
        );
    }
    for (name, last) in [("one", 1), ("two", 2)] {
        hosts += &format!("  {name}: {{ interfaces: [ {{ network: wan, ipv4: 198.51.100.{last} }} ] }}\n");
    }
    let text = format!(
        "version: 1\nnetworks:\n{networks}routers:\n{routers}hosts:\n{hosts}profiles: {{ zero: {{}} }}\n"
    );
    Topology::parse(&text).unwrap()
}

/// What a NAT was seen to do.
#[derive(Debug, PartialEq, Eq)]
struct Behaviour {
    same_mapping_for_another_address: bool,
    same_mapping_for_another_port: bool,
    admits_the_contacted: bool,
    admits_another_port: bool,
    admits_another_address: bool,
}

/// With the patience for what is expected.
fn probe(lab: &Lab, kind: &str, expected: &Behaviour) -> Behaviour {
    let inside = socket(lab, &format!("in-{kind}"), "192.168.0.2", INSIDE);
    let first = socket(lab, "one", "198.51.100.1", SERVER);
    let other_port = socket(lab, "one", "198.51.100.1", SERVER + 1);
    let other_address = socket(lab, "two", "198.51.100.2", SERVER);

    let mapped = contact(&inside, &first);
    let admits = |server: &UdpSocket, expected| {
        server.send_to(b"in", mapped).unwrap();
        hears(&inside, expected)
    };
    Behaviour {
        admits_another_address: admits(&other_address, expected.admits_another_address),
        admits_another_port: admits(&other_port, expected.admits_another_port),
        admits_the_contacted: admits(&first, expected.admits_the_contacted),
        same_mapping_for_another_port: contact(&inside, &other_port) == mapped,
        same_mapping_for_another_address: contact(&inside, &other_address) == mapped,
    }
}

/// Sends to a server and returns the address it saw.
fn contact(inside: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    inside.send_to(b"out", server.local_addr().unwrap()).unwrap();
    receive(server).expect("what goes out arrives")
}

#[test]
fn each_kind_maps_and_filters_as_its_name_says() {
    let lab = up(&topology(), "kinds", "zero");
    let cone = |admits_another_port, admits_another_address| Behaviour {
        same_mapping_for_another_address: true,
        same_mapping_for_another_port: true,
        admits_the_contacted: true,
        admits_another_port,
        admits_another_address,
    };
    let symmetric = Behaviour {
        same_mapping_for_another_address: false,
        same_mapping_for_another_port: false,
        ..cone(false, false)
    };
    for (kind, expected) in [
        ("full-cone", cone(true, true)),
        ("address-restricted", cone(true, false)),
        ("port-restricted", cone(false, false)),
        ("symmetric", symmetric),
    ] {
        assert_eq!(probe(&lab, kind, &expected), expected, "{kind}");
    }
}

#[test]
fn devices_behind_port_restricted_nats_can_punch_through_to_each_other() {
    let lab = up(&topology(), "punch", "zero");
    let left = socket(&lab, "in-port-restricted", "192.168.0.2", INSIDE);
    let right = socket(&lab, "in-address-restricted", "192.168.0.2", INSIDE);
    let server = socket(&lab, "one", "198.51.100.1", SERVER);
    let (left_outside, right_outside) = (contact(&left, &server), contact(&right, &server));

    // The first packet comes before the way is open. It must be lost and nothing else: a NAT that remembered
    // it would give the answer another port.
    left.send_to(b"early", right_outside).unwrap();
    assert!(hears_nothing(&right));
    right.send_to(b"punch", left_outside).unwrap();
    assert_eq!(receive(&left), Some(right_outside));
    left.send_to(b"through", right_outside).unwrap();
    assert_eq!(receive(&right), Some(left_outside));
}

#[test]
fn a_full_cone_admits_strangers_to_each_device_behind_it() {
    let text = "version: 1
networks: { wan: { ipv4: 198.51.100.0/24 }, lan: { ipv4: 192.168.0.0/24 } }
routers:
  nat:
    nat: { kind: full-cone, outside: wan }
    interfaces: [ { network: wan, ipv4: 198.51.100.9 }, { network: lan, ipv4: 192.168.0.1 } ]
hosts:
  x: { gateway: nat, interfaces: [ { network: lan, ipv4: 192.168.0.2 } ] }
  y: { gateway: nat, interfaces: [ { network: lan, ipv4: 192.168.0.3 } ] }
  one: { interfaces: [ { network: wan, ipv4: 198.51.100.1 } ] }
  two: { interfaces: [ { network: wan, ipv4: 198.51.100.2 } ] }
profiles: { zero: {} }
";
    let lab = up(&Topology::parse(text).unwrap(), "twocones", "zero");
    let server = socket(&lab, "one", "198.51.100.1", SERVER);
    let stranger = socket(&lab, "two", "198.51.100.2", SERVER);
    // Both use the same port inside, so that the NAT has to give one of them another outside.
    for (node, address) in [("x", "192.168.0.2"), ("y", "192.168.0.3")] {
        let inside = socket(&lab, node, address, INSIDE);
        let mapped = contact(&inside, &server);
        stranger.send_to(b"hello", mapped).unwrap();
        assert_eq!(receive(&inside), stranger.local_addr().ok(), "{node} at {mapped}");
    }
}

#[test]
fn a_mapping_lives_as_long_as_the_topology_says() {
    let text = "version: 1
networks: { wan: { ipv4: 198.51.100.0/24 }, lan: { ipv4: 192.168.0.0/24 } }
routers:
  nat:
    nat: { kind: port-restricted, outside: wan, udp_timeout: 2s, udp_timeout_stream: 2s }
    interfaces: [ { network: wan, ipv4: 198.51.100.9 }, { network: lan, ipv4: 192.168.0.1 } ]
hosts:
  x: { gateway: nat, interfaces: [ { network: lan, ipv4: 192.168.0.2 } ] }
  one: { interfaces: [ { network: wan, ipv4: 198.51.100.1 } ] }
profiles: { zero: {} }
";
    let lab = up(&Topology::parse(text).unwrap(), "life", "zero");
    let server = socket(&lab, "one", "198.51.100.1", SERVER);
    let inside = socket(&lab, "x", "192.168.0.2", INSIDE);
    let mapped = contact(&inside, &server);
    server.send_to(b"in time", mapped).unwrap();
    assert!(receive(&inside).is_some());
    std::thread::sleep(Duration::from_secs(4));
    server.send_to(b"too late", mapped).unwrap();
    assert!(hears_nothing(&inside));
}
