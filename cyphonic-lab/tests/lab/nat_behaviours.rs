//! Each behaviour of RFC 4787 that the lab's own NAT offers, by real datagrams: what RFC 5780 asks, and more.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use cyphonic_lab::{Lab, Topology};

use crate::common::{hears, hears_nothing, ping_from, receive, socket, up};

const INSIDE: u16 = 5000;
const SERVER: u16 = 7000;
const KINDS: [&str; 3] = ["endpoint-independent", "address-dependent", "address-and-port-dependent"];

/// Two servers, a NAT for each of `nats`, and two hosts behind each: `xN` and `yN`.
fn topology(nats: &[String]) -> Topology {
    let (mut networks, mut routers, mut hosts) = (String::new(), String::new(), String::new());
    for (index, nat) in nats.iter().enumerate() {
        networks += &format!("  lan{index}: {{ ipv4: 192.168.0.0/24 }}\n");
        routers += &format!(
            "  nat{index}:\n    nat: {{ {nat}, outside: wan }}\n    interfaces:\n      \
             - {{ network: wan, ipv4: 198.51.100.{} }}\n      - {{ network: lan{index}, ipv4: 192.168.0.1 }}\n",
            100 + index
        );
        for (host, last) in [("x", 2), ("y", 3)] {
            hosts += &format!(
                "  {host}{index}: {{ gateway: nat{index}, interfaces: [ {{ network: lan{index}, ipv4: 192.168.0.{last} }} ] }}\n"
            );
        }
    }
    let text = format!(
        "version: 1
networks:
  wan: {{ ipv4: 198.51.100.0/24 }}
{networks}routers:
{routers}hosts:
  one: {{ interfaces: [ {{ network: wan, ipv4: 198.51.100.1 }} ] }}
  two: {{ interfaces: [ {{ network: wan, ipv4: 198.51.100.2 }} ] }}
{hosts}profiles: {{ zero: {{}} }}
"
    );
    Topology::parse(&text).unwrap()
}

/// Sends to a server and returns the address it saw.
fn contact(inside: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    inside.send_to(b"out", server.local_addr().unwrap()).unwrap();
    receive(server).expect("what goes out arrives")
}

fn arrives(from: &UdpSocket, to: SocketAddr, inside: &UdpSocket) -> bool {
    from.send_to(b"in", to).unwrap();
    receive(inside) == from.local_addr().ok()
}

/// The same of what is not expected to.
fn is_lost(from: &UdpSocket, to: SocketAddr, inside: &UdpSocket) -> bool {
    from.send_to(b"in", to).unwrap();
    hears_nothing(inside)
}

#[test]
fn every_mapping_with_every_filtering() {
    let pairs: Vec<(usize, usize)> = (0..9).map(|pair| (pair / 3, pair % 3)).collect();
    let nats: Vec<String> = pairs
        .iter()
        .map(|(mapping, filtering)| format!("mapping: {}, filtering: {}", KINDS[*mapping], KINDS[*filtering]))
        .collect();
    let lab = up(&topology(&nats), "nine", "zero");
    let first = socket(&lab, "one", "198.51.100.1", SERVER);
    let other_port = socket(&lab, "one", "198.51.100.1", SERVER + 1);
    let other_address = socket(&lab, "two", "198.51.100.2", SERVER);
    for (index, (mapping, filtering)) in pairs.into_iter().enumerate() {
        let inside = socket(&lab, &format!("x{index}"), "192.168.0.2", INSIDE);
        let mapped = contact(&inside, &first);
        for (from, passes) in [(&first, true), (&other_port, filtering < 2), (&other_address, filtering < 1)]
        {
            let as_expected = if passes { arrives } else { is_lost };
            assert!(as_expected(from, mapped, &inside), "{}: {passes}", nats[index]);
        }
        for (to, same) in [(&other_port, mapping < 2), (&other_address, mapping < 1)] {
            assert_eq!(contact(&inside, to) == mapped, same, "{}", nats[index]);
        }
    }
}

#[test]
fn ports_are_preserved_or_counted_or_drawn() {
    let nats: Vec<String> = ["preserving", "sequential", "random"]
        .iter()
        .map(|ports| format!("mapping: {0}, filtering: {0}, ports: {ports}", KINDS[2]))
        .collect();
    let lab = up(&topology(&nats), "ports", "zero");
    let servers: Vec<UdpSocket> =
        (0..4).map(|port| socket(&lab, "one", "198.51.100.1", SERVER + port)).collect();
    let ports = |index: usize| {
        let inside = socket(&lab, &format!("x{index}"), "192.168.0.2", INSIDE);
        servers.iter().map(|server| contact(&inside, server).port()).collect::<Vec<_>>()
    };
    assert_eq!(ports(0)[0], INSIDE);
    let counted = ports(1);
    assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
    let drawn = ports(2);
    assert!(drawn.windows(2).any(|pair| pair[1].abs_diff(pair[0]) > 1), "{drawn:?}");
}

#[test]
fn hosts_behind_one_nat_meet_by_external_endpoints_only_where_it_hairpins() {
    let nats: Vec<String> = [false, true]
        .map(|hairpin| format!("mapping: {0}, filtering: {0}, hairpin: {hairpin}", KINDS[0]))
        .into();
    let lab = up(&topology(&nats), "hairpin", "zero");
    let server = socket(&lab, "one", "198.51.100.1", SERVER);
    for (index, hairpins) in [false, true].into_iter().enumerate() {
        let x = socket(&lab, &format!("x{index}"), "192.168.0.2", INSIDE);
        let y = socket(&lab, &format!("y{index}"), "192.168.0.3", INSIDE);
        let (x_outside, y_outside) = (contact(&x, &server), contact(&y, &server));
        assert_ne!(x_outside, y_outside);
        x.send_to(b"hello", y_outside).unwrap();
        match hairpins {
            true => assert_eq!(receive(&y), Some(x_outside), "RFC 4787 REQ-9: the external source"),
            false => assert!(hears_nothing(&y)),
        }
    }
}

#[test]
fn a_mapping_lives_by_packets_out_alone_unless_it_says_otherwise() {
    let nats: Vec<String> = [false, true]
        .map(|inbound| {
            format!("mapping: {0}, filtering: {0}, udp_timeout: 2s, inbound_refresh: {inbound}", KINDS[0])
        })
        .into();
    let lab = up(&topology(&nats), "refresh", "zero");
    let server = socket(&lab, "one", "198.51.100.1", SERVER);
    let inside: Vec<UdpSocket> =
        (0..2).map(|index| socket(&lab, &format!("x{index}"), "192.168.0.2", INSIDE)).collect();
    let mapped: Vec<SocketAddr> = inside.iter().map(|inside| contact(inside, &server)).collect();
    // Packets in, far closer together than the time-out, for longer than that.
    let mut ended = false;
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(200));
        // At some time.
        ended |= is_lost(&server, mapped[0], &inside[0]);
        assert!(arrives(&server, mapped[1], &inside[1]));
    }
    assert!(ended);
    assert!(arrives(&server, contact(&inside[0], &server), &inside[0]), "a packet out opens it again");
}

#[test]
fn what_is_not_udp_passes_the_kernels_own_nat() {
    let lab = up(&topology(&[format!("mapping: {0}, filtering: {0}", KINDS[1])]), "tcp", "zero");
    assert_eq!(ping_from(&lab, "x0", "198.51.100.1".parse().unwrap(), 2).lost(), 0);
    tcp(&lab, "x0", "198.51.100.1:443");
}

/// Whether a connection stands, and carries something back.
fn tcp(lab: &Lab, from: &str, to: &str) {
    let at: SocketAddr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 443));
    let listener = lab.namespace("one").unwrap().inside(|| TcpListener::bind(at)).unwrap().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
    let mut stream = lab.namespace(from).unwrap().inside(connect).unwrap().unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut accepted, b"hello").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut read = [0; 5];
    std::io::Read::read_exact(&mut stream, &mut read).unwrap();
    assert_eq!(&read, b"hello");
}

const CARRIER: &str = "version: 1
networks: { wan: { ipv4: 198.51.100.0/24 }, isp: { ipv4: 100.64.0.0/24 }, lan: { ipv4: 192.168.0.0/24 } }
routers:
  carrier:
    nat: { mapping: endpoint-independent, filtering: address-and-port-dependent, ports: random, outside: wan }
    interfaces: [ { network: wan, ipv4: 198.51.100.9 }, { network: isp, ipv4: 100.64.0.1 } ]
  home:
    gateway: carrier
    nat: { mapping: endpoint-independent, filtering: endpoint-independent, outside: isp }
    interfaces: [ { network: isp, ipv4: 100.64.0.2 }, { network: lan, ipv4: 192.168.0.1 } ]
hosts:
  x: { gateway: home, interfaces: [ { network: lan, ipv4: 192.168.0.2 } ] }
  one: { interfaces: [ { network: wan, ipv4: 198.51.100.1 } ] }
  two: { interfaces: [ { network: wan, ipv4: 198.51.100.2 } ] }
profiles: { zero: {} }
";

#[test]
fn a_carriers_nat_in_front_of_a_homes_is_one_nat_more() {
    let lab = up(&Topology::parse(CARRIER).unwrap(), "carrier", "zero");
    let inside = socket(&lab, "x", "192.168.0.2", INSIDE);
    let (one, two) =
        (socket(&lab, "one", "198.51.100.1", SERVER), socket(&lab, "two", "198.51.100.2", SERVER));
    let mapped = contact(&inside, &one);
    assert_eq!(mapped.ip(), "198.51.100.9".parse::<Ipv4Addr>().unwrap());
    assert!(arrives(&one, mapped, &inside) && is_lost(&two, mapped, &inside));
    assert_eq!(contact(&inside, &two), mapped);
}

const SIX: &str = "version: 1
networks: { wan: { ipv4: 198.51.100.0/24, mtu: 1400 }, mobile: { ipv6: \"2001:db8:64::/64\" } }
routers:
  nat64:
    nat: { mapping: endpoint-independent, filtering: address-dependent, nat64: \"64:ff9b::/96\", outside: wan }
    interfaces: [ { network: wan, ipv4: 198.51.100.9 }, { network: mobile, ipv6: \"2001:db8:64::1\" } ]
hosts:
  x: { gateway: nat64, interfaces: [ { network: mobile, ipv6: \"2001:db8:64::2\" } ] }
  one: { interfaces: [ { network: wan, ipv4: 198.51.100.1 } ] }
  two: { interfaces: [ { network: wan, ipv4: 198.51.100.2 } ] }
profiles: { zero: {} }
";

#[test]
fn a_host_without_ipv4_reaches_it_by_the_prefix_that_dns_tells() {
    let lab = up(&Topology::parse(SIX).unwrap(), "nat64", "zero");
    let mut dig = lab.command("x", "dig").unwrap();
    let told = dig.args(["+short", "+tries=1", "ipv4only.arpa", "AAAA"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "64:ff9b::c000:aa\n64:ff9b::c000:ab\n");

    let inside = socket(&lab, "x", "2001:db8:64::2", INSIDE);
    let (one, two) =
        (socket(&lab, "one", "198.51.100.1", SERVER), socket(&lab, "two", "198.51.100.2", SERVER));
    inside.send_to(b"out", "[64:ff9b::198.51.100.1]:7000").unwrap();
    let mapped = receive(&one).unwrap();
    assert_eq!(mapped.ip(), "198.51.100.9".parse::<Ipv4Addr>().unwrap());
    one.send_to(b"in", mapped).unwrap();
    assert_eq!(receive(&inside), "[64:ff9b::198.51.100.1]:7000".parse().ok());
    two.send_to(b"in", mapped).unwrap();
    assert!(hears_nothing(&inside));
    assert_eq!(ping_from(&lab, "x", "64:ff9b::198.51.100.1".parse().unwrap(), 2).lost(), 0);
    tcp(&lab, "x", "[64:ff9b::198.51.100.1]:443");

    // The network outside carries 1400 bytes, which leaves 1420 to IPv6: the host is told, and remembers it.
    let target = "64:ff9b::198.51.100.1";
    let mut big = lab.command("x", "ping").unwrap();
    big.args(["-M", "do", "-s", "1400", "-c", "1", "-w", "2", target]).output().unwrap();
    let route = lab.command("x", "ip").unwrap().args(["-6", "route", "get", target]).output().unwrap();
    let route = String::from_utf8_lossy(&route.stdout).into_owned();
    assert!(route.contains("mtu 1420"), "{route}");
}

const GUARDED: &str = "version: 1
networks:
  wan: { ipv4: 198.51.100.0/24, ipv6: \"2001:db8:1::/64\" }
  office: { ipv4: 192.168.0.0/24, ipv6: \"2001:db8:2::/64\" }
  hosted: { ipv4: 192.168.1.0/24 }
routers:
  guard:
    nat: { mapping: endpoint-independent, filtering: endpoint-independent, outside: wan }
    firewall: { inbound: stateful, outside: wan, outbound: [tcp/443, udp/53, tcp/53] }
    interfaces: [ { network: wan, ipv4: 198.51.100.9, ipv6: \"2001:db8:1::9\" }, { network: office, ipv4: 192.168.0.1, ipv6: \"2001:db8:2::1\" } ]
  edge:
    nat: { kind: one-to-one, to: 192.168.1.2, outside: wan }
    interfaces: [ { network: wan, ipv4: 198.51.100.10 }, { network: hosted, ipv4: 192.168.1.1 } ]
  core:
    interfaces: [ { network: wan, ipv4: 198.51.100.254, ipv6: \"2001:db8:1::fe\" } ]
    routes: [ { to: \"2001:db8:2::/64\", via: \"2001:db8:1::9\" } ]
hosts:
  x: { gateway: guard, interfaces: [ { network: office, ipv4: 192.168.0.2, ipv6: \"2001:db8:2::2\" } ] }
  z: { gateway: edge, interfaces: [ { network: hosted, ipv4: 192.168.1.2 } ] }
  one: { gateway: core, interfaces: [ { network: wan, ipv4: 198.51.100.1, ipv6: \"2001:db8:1::1\" } ] }
profiles: { zero: {} }
";

#[test]
fn a_guarded_office_has_the_web_and_names_and_nothing_else() {
    let lab = up(&Topology::parse(GUARDED).unwrap(), "guarded", "zero");
    for (inside, server) in [("192.168.0.2", "198.51.100.1"), ("2001:db8:2::2", "2001:db8:1::1")] {
        let from = socket(&lab, "x", inside, INSIDE);
        for (port, passes) in [(SERVER, false), (443, false), (53, true)] {
            let to = socket(&lab, "one", server, port);
            from.send_to(b"out", to.local_addr().unwrap()).unwrap();
            assert_eq!(hears(&to, passes), passes, "{server} {port}");
        }
    }
    tcp(&lab, "x", "198.51.100.1:443");
    assert_eq!(ping_from(&lab, "x", "198.51.100.1".parse().unwrap(), 1).received, 0);
}

#[test]
fn a_one_to_one_nat_is_an_address_of_its_own() {
    let lab = up(&Topology::parse(GUARDED).unwrap(), "onetoone", "zero");
    let (inside, server) =
        (socket(&lab, "z", "192.168.1.2", INSIDE), socket(&lab, "one", "198.51.100.1", SERVER));
    assert!(arrives(&server, SocketAddr::from(([198, 51, 100, 10], INSIDE)), &inside), "unasked");
    assert_eq!(contact(&inside, &server), SocketAddr::from(([198, 51, 100, 10], INSIDE)));
}
