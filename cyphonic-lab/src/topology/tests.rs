//! What a topology file may say, and what is said about one that is wrong.

use super::*;

const SHIPPED: &str = include_str!("../../../vagrant/topology.yaml");

const SMALL: &str = "version: 1
networks:
  wan: { ipv4: 198.51.100.0/24, ipv6: \"2001:db8::/64\" }
  lan: { ipv4: 192.168.0.0/24 }
routers:
  nat:
    nat: { kind: symmetric, outside: wan }
    interfaces:
      - { network: wan, ipv4: 198.51.100.1 }
      - { network: lan, ipv4: 192.168.0.1 }
hosts:
  x:
    roles: [device]
    device: x.lab
    gateway: nat
    interfaces:
      - { network: lan, ipv4: 192.168.0.2 }
profiles:
  slow:
    x@lan: { delay: 5ms }
";

/// The error for `SMALL` with `from` replaced by `to`.
fn error(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "nothing to replace: {from}");
    Topology::parse(&SMALL.replacen(from, to, 1)).unwrap_err().to_string()
}

#[track_caller]
fn refused(from: &str, to: &str, parts: &[&str]) {
    let error = error(from, to);
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn the_shipped_file_is_fig_5_and_more() {
    let topology = Topology::parse(SHIPPED).unwrap().default_scene().unwrap();
    let devices: Vec<&str> = topology.hosts_with(Role::Device).map(|(name, _)| name).collect();
    assert_eq!(devices, ["a", "b", "c", "d", "e"]);
    let families = |host: &str| {
        let addresses: Vec<IpAddr> = topology.hosts[host].addresses().collect();
        (addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(IpAddr::is_ipv6))
    };
    assert_eq!(families("a"), (true, false));
    assert_eq!(families("c"), (true, true));
    assert_eq!(families("d"), (false, true));
    assert!(topology.profile("zero").unwrap().links.is_empty());
    assert!(topology.profile("paper").unwrap().links["core@relay"].delay > Duration::from_millis(2));
}

#[test]
fn the_papers_round_trips_follow_from_its_profile() {
    let topology = Topology::parse(SHIPPED).unwrap();
    let delay = |link: &str| topology.profiles["paper"].links[link].delay.as_secs_f64() * 1e3;
    let b_c = 2.0 * (delay("core@university") + delay("core@home-wan"));
    assert!((b_c - 15.656).abs() < 0.01, "{b_c}");
    let over_trs = b_c + 4.0 * delay("core@relay");
    assert!((over_trs - 24.479).abs() < 0.01, "{over_trs}");
}

#[test]
fn unknown_and_repeated_keys_are_errors_that_name_their_line() {
    refused("kind: symmetric", "kind: symmetric, colour: red", &["colour", "line 7"]);
    refused("  slow:\n", "  slow: {}\n  slow:\n", &["`slow` stands twice", "line 19"]);
    refused("kind: symmetric", "kind: cubic", &["cubic", "port-restricted", "line 7"]);
    refused("delay: 5ms", "delay: 5", &["write it with us, ms or s", "line 20"]);
    refused("delay: 5ms", "loss: 2", &["from 0% to 100%"]);
}

#[test]
fn names_that_lead_nowhere_are_listed_with_those_that_do() {
    refused(
        "- { network: lan, ipv4: 192.168.0.2",
        "- { network: lam, ipv4: 192.168.0.2",
        &["hosts.x.interfaces[0].network", "`lam`", "lan, wan"],
    );
    refused("gateway: nat", "gateway: gnat", &["hosts.x.gateway", "`gnat`", "there are: nat"]);
    refused("outside: wan", "outside: van", &["routers.nat.nat.outside", "`van`"]);
    refused("x@lan", "y@lan", &["profiles.slow.y@lan", "nat, x"]);
    refused("x@lan", "x@wan", &["`x` is not on `wan`"]);
    refused("x@lan", "x-lan", &["node@network"]);
    let topology = Topology::parse(SMALL).unwrap();
    assert!(topology.profile("fast").unwrap_err().to_string().contains("there are: slow"));
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    refused("ipv4: 192.168.0.2", "ipv4: 192.168.1.2", &["hosts.x.interfaces[0].ipv4", "192.168.0.0/24"]);
    refused("ipv4: 192.168.0.2", "ipv4: 192.168.0.255", &["not a host address"]);
    refused("ipv4: 192.168.0.2", "ipv4: 192.168.0.1", &["192.168.0.1", "is taken"]);
    refused("ipv4: 192.168.0.2", "ipv6: \"2001:db8::2\"", &["`lan` has no IPv6 prefix"]);
    refused(", ipv4: 192.168.0.2", "", &["neither an IPv4 nor an IPv6 address"]);
    refused("192.168.0.0/24", "192.168.0.1/24", &["write 192.168.0.0/24"]);
    refused("192.168.0.0/24", "192.168.0.0/33", &["line 4"]);
}

#[test]
fn what_cannot_be_built_is_refused() {
    refused("version: 1", "version: 2", &["reads version 1"]);
    refused("lan: { ipv4: 192.168.0.0/24 }", "lan: { ipv4: 192.168.0.0/24, mtu: 500 }", &["1280"]);
    refused("hosts:\n  x:", "hosts:\n  switch:", &["reserved"]);
    refused("hosts:\n  x:", "hosts:\n  nat:", &["a router has this name"]);
    refused("hosts:\n  x:", "hosts:\n  X/..:", &["small letters"]);
    refused("    device: x.lab\n", "", &["a device needs a name"]);
    refused(
        "gateway: nat\n    interfaces:\n      - { network: lan, ipv4: 192.168.0.2 }",
        "gateway: nat\n    interfaces: []",
        &["`nat` is on no network of this node"],
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Topology::load(Path::new("/nonexistent/topology.yaml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/topology.yaml"), "{error}");
}
