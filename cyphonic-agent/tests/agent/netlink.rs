use std::net::Ipv6Addr;
use std::process::Command;
use std::time::Duration;

use cyphonic_agent::netlink::{Netlink, NetlinkError, NetworkCards, NetworkWatch, Placement, Senders, Sizes};
use cyphonic_agent::resolver::Host;
use cyphonic_agent::resolver::journal::restore_journal;
use cyphonic_agent::resolver::resolv_conf::{Look, ResolvConf};
use cyphonic_proto::address::Prefix;
use nix::sched::{CloneFlags, unshare};

const ADDRESS: &str = "fd12:3456:789a::1";
const PREFIX: &str = "fd12:3456:789a::/48";
const OWNER: &str = "8:1";

/// Runs a future in a network namespace of its own, which ends with its thread.
pub(crate) fn in_namespace<F: Future<Output = ()>>(
    flags: CloneFlags,
    test: impl FnOnce() -> F + Send + 'static,
) {
    let body = move || {
        unshare(flags).expect("run as root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(body).join().unwrap();
}

/// As that of an agent which the host's programs use.
fn placement(address: Ipv6Addr, prefix: Prefix) -> Placement {
    Placement { address, prefix, senders: Senders::Host }
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed (iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_interface_gets_address_route_and_mtu_and_goes_again() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link add cyph0 type veth peer name other0");
        ip("link set other0 up");
        let netlink = Netlink::connect().unwrap();
        let address: Ipv6Addr = ADDRESS.parse().unwrap();
        for round in 0..2 {
            let interface =
                netlink.configure("cyph0", placement(address, PREFIX.parse().unwrap()), 1400).await.unwrap();
            assert!(interface.up && interface.mtu == 1400, "round {round}: {interface:?}");
        }
        let addresses = ip("-6 addr show dev cyph0 scope global");
        assert!(
            addresses.contains("inet6 fd12:3456:789a::1/128") && !addresses.contains("tentative"),
            "{addresses}"
        );
        let route = ip("-6 route get fd12:3456:789a:1::7");
        assert!(route.contains("dev cyph0") && route.contains("src fd12:3456:789a::1"), "{route}");
        netlink.set_mtu("cyph0", 1300).await.unwrap();
        assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, 1300);
        assert!(netlink.remove("cyph0").await.unwrap());
        assert!(!netlink.remove("cyph0").await.unwrap());
        assert_eq!(netlink.interface("cyph0").await.unwrap(), None);
        assert!(!ip("-6 route show").contains("fd12:3456:789a"));
        let missing = netlink.set_mtu("cyph0", 1400).await;
        assert!(matches!(missing, Err(NetlinkError::NoInterface { .. })));
    });
}

/// As with IPv6 turned off by a file in `/etc/sysctl.d`.
#[test]
fn the_interface_gets_ipv6_where_new_ones_have_none() {
    in_namespace(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, || async {
        let (own, prefix): (Ipv6Addr, Prefix) = (ADDRESS.parse().unwrap(), PREFIX.parse().unwrap());
        let all = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        std::fs::write(all, "1").unwrap();
        ip("link add cyph0 type veth peer name cyph1");
        let netlink = Netlink::connect().unwrap();
        let interface = netlink.interface("cyph0").await.unwrap().unwrap();
        let mut sizes = Sizes::new("cyph0".into(), &interface, placement(own, prefix), 1420);
        let refused = sizes.restore(&netlink).await.unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, NetlinkError::NoIpv6 { .. }) && !said.contains("CAP_NET_ADMIN"), "{said}");
        let interface = netlink.configure("cyph0", placement(own, prefix), 1420).await.unwrap();
        assert!(interface.up && netlink.is_configured("cyph0", placement(own, prefix)).await.unwrap());
        assert_eq!(std::fs::read_to_string(all).unwrap().trim(), "1", "others' interfaces stay as they are");
        // As in a container.
        for arguments in [["--make-rprivate", "/"].as_slice(), &["-o", "bind,ro", "/proc/sys", "/proc/sys"]] {
            assert!(Command::new("mount").args(arguments).status().expect("mount is installed").success());
        }
        let stays = netlink.configure("cyph1", placement(own, prefix), 1420).await.unwrap_err();
        let said = stays.to_string();
        assert!(matches!(stays, NetlinkError::Ipv6Stays { .. }) && said.contains("Read-only"), "{said}");
    });
}

#[test]
fn who_may_not_configure_interfaces_is_told_so() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link add cyph0 type veth peer name cyph1");
        let netlink = Netlink::connect().unwrap();
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        let forbidden = netlink.set_mtu("cyph0", 1400).await.unwrap_err();
        assert!(forbidden.to_string().contains("needs CAP_NET_ADMIN"), "{forbidden}");
    });
}

/// Of a pair whose link-layer addresses were not given, udev changes them at some time.
#[test]
fn the_ends_of_a_pair_have_link_layer_addresses_that_were_given() {
    in_namespace(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, || async {
        // A file system shows the network namespace that it was mounted in.
        for arguments in [&["--make-rprivate", "/"][..], &["-t", "sysfs", "sysfs", "/sys"]] {
            assert!(Command::new("mount").args(arguments).status().expect("mount is installed").success());
        }
        let netlink = Netlink::connect().unwrap();
        for round in 0..2 {
            netlink.create_pair("cyph0", OWNER, 1500).await.unwrap();
            for end in ["cyph0", "cyph0x"] {
                let kind = std::fs::read_to_string(format!("/sys/class/net/{end}/addr_assign_type")).unwrap();
                // `NET_ADDR_SET` of `linux/netdevice.h`.
                assert_eq!(kind.trim(), "3", "{end}, round {round}");
            }
        }
        let [near, far] =
            ["cyph0", "cyph0x"].map(async |end| netlink.interface(end).await.unwrap().unwrap().link_address);
        assert_ne!(near.await, far.await);
    });
}

#[test]
fn a_pair_is_removed_by_whose_it_is_and_nobody_elses_is() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let netlink = Netlink::connect().unwrap();
        for (name, owner) in [("cyph0", OWNER), ("cyph1", "8:11"), ("cyph2", OWNER)] {
            netlink.create_pair(name, owner, 1500).await.unwrap();
        }
        ip("link set cyph2 name renamed0");
        ip("link add operators0 type bridge");
        ip("link set operators0 alias cyphonicd,of-the-operator");
        assert!(
            ip("link show cyph0").contains(&format!("state directory {OWNER}")),
            "people see whose it is"
        );
        assert!(netlink.remove_pairs_of(OWNER).await.unwrap());
        let left = ip("-brief link show");
        let names: Vec<_> = left.lines().filter_map(|line| line.split(['@', ' ']).next()).collect();
        for (name, stays) in [
            ("cyph0", false),
            ("cyph0x", false),
            ("renamed0", false),
            ("cyph2x", false),
            ("cyph1", true),
            ("cyph1x", true),
            ("operators0", true),
        ] {
            assert_eq!(names.contains(&name), stays, "{name}: {left}");
        }
        assert!(!netlink.remove_pairs_of(OWNER).await.unwrap());
    });
}

#[test]
fn interfaces_that_have_a_pairs_names_stay_and_are_told_of() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let netlink = Netlink::connect().unwrap();
        ip("link add cyph0 type bridge");
        ip("link add cyph0x type bridge");
        // Both are ends of cables, but not of one.
        ip("link add cyph1 type veth peer name elsewhere0");
        ip("link add cyph1x type veth peer name elsewhere1");
        for near in ["cyph0", "cyph1"] {
            assert!(!netlink.remove_pair(near).await.unwrap(), "{near}");
            let error = netlink.create_pair(near, OWNER, 1500).await.unwrap_err();
            assert!(matches!(error, NetlinkError::Taken { .. }), "{error}");
        }
        ip("link show cyph1x");
    });
}

/// A configured interface that carries something, and what is told of it.
async fn interface_with_sizes() -> (Netlink, Sizes) {
    ip("link add cyph0 type veth peer name other0");
    ip("link set other0 up");
    let netlink = Netlink::connect().unwrap();
    let (own, prefix): (Ipv6Addr, Prefix) = (ADDRESS.parse().unwrap(), PREFIX.parse().unwrap());
    let interface = netlink.configure("cyph0", placement(own, prefix), 1420).await.unwrap();
    let sizes = Sizes::new("cyph0".into(), &interface, placement(own, prefix), 1420);
    (netlink, sizes)
}

#[test]
fn interface_and_routes_say_what_each_tunnel_carries() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let (netlink, mut sizes) = interface_with_sizes().await;
        let peer = |n: u16| Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, n);
        // What the kernel would send to a peer in one packet.
        let sends = |n: u16| {
            let route = ip(&format!("-6 route get {}", peer(n)));
            assert!(route.contains("dev cyph0") && route.contains("src fd12:3456:789a::1"), "{route}");
            let stated = route.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
            let link = ip("-o link show dev cyph0");
            let of_link = link.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap();
            stated.unwrap_or(of_link).parse::<u16>().unwrap()
        };
        for (tunnels, interface) in [
            (vec![], 1420),
            (vec![(1, 1280)], 1420),
            (vec![(1, 1420)], 1420),
            (vec![(1, 1280), (2, 8942)], 8942),
            (vec![(1, 1420), (2, 8942), (3, 1442)], 8942),
            (vec![(2, 1300), (3, 1442)], 1442),
            (vec![(2, 1442), (3, 1442)], 1442),
            (vec![(2, 1420)], 1420),
            (vec![], 1420),
        ] {
            let wanted = tunnels.iter().map(|(n, mtu)| (peer(*n), *mtu)).collect();
            sizes.apply(&netlink, &wanted).await.unwrap();
            assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, interface, "{tunnels:?}");
            for n in 1..=4 {
                let expected = tunnels.iter().find(|(peer, _)| *peer == n).map_or(1420, |(_, mtu)| *mtu);
                assert_eq!(sends(n), expected, "to peer {n} with {tunnels:?}");
            }
        }
        let left = ip("-6 route show dev cyph0");
        assert_eq!(
            left.lines().filter(|route| route.starts_with("fd12")).count(),
            2,
            "its address and its prefix: {left}"
        );
    });
}

#[test]
fn a_peers_route_that_somebody_took_is_no_obstacle_to_others() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let (netlink, mut sizes) = interface_with_sizes().await;
        let peer = |n: u16| Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, n);
        sizes.apply(&netlink, &[(peer(1), 1280)].into()).await.unwrap();
        ip(&format!("-6 route del {} dev cyph0", peer(1)));
        sizes.apply(&netlink, &[(peer(2), 1300)].into()).await.unwrap();
        let route = ip(&format!("-6 route get {}", peer(2)));
        assert!(route.contains("mtu 1300"), "{route}");
    });
}

#[test]
fn an_mtu_that_somebody_changed_is_changed_back() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let (netlink, mut sizes) = interface_with_sizes().await;
        let peer = |n: u16| Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, n);
        let wanted = [(peer(1), 1500), (peer(2), 1300)].into();
        sizes.apply(&netlink, &wanted).await.unwrap();
        for changed in [1290, 4000] {
            ip(&format!("link set cyph0 mtu {changed}"));
            assert!(!sizes.restore(&netlink).await.unwrap(), "addresses and routes stand");
            sizes.apply(&netlink, &wanted).await.unwrap();
            assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, 1500, "{changed}");
            for (n, mtu) in [(2, "mtu 1300"), (3, "mtu 1420")] {
                let route = ip(&format!("-6 route get {}", peer(n)));
                assert!(route.contains(mtu), "{changed}: {route}");
            }
        }
    });
}

#[test]
fn an_interface_that_must_take_more_than_is_sent_has_that_mtu_from_the_start() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let (netlink, sizes) = interface_with_sizes().await;
        let mut sizes = sizes.receiving(1500);
        let peer = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 1);
        for (tunnels, interface, sent) in [
            (vec![], 1500, 1420),
            (vec![(peer, 1280)], 1500, 1280),
            (vec![(peer, 1600)], 1600, 1600),
            (vec![], 1500, 1420),
        ] {
            sizes.apply(&netlink, &tunnels.into_iter().collect()).await.unwrap();
            assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, interface);
            assert_eq!(u32::from(sizes.interface_mtu()), interface);
            // A route that says nothing has the interface's.
            let route = ip(&format!("-6 route get {peer}"));
            assert!(route.contains(&format!("mtu {sent}")) || sent == interface as u16, "{route}");
        }
        ip("link set cyph0 down");
        assert!(sizes.restore(&netlink).await.unwrap());
        sizes.apply(&netlink, &[].into()).await.unwrap();
        assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, 1500);
        assert!(ip(&format!("-6 route get {peer}")).contains("mtu 1420"));
    });
}

#[test]
fn candidates_are_the_hosts_own_usable_addresses() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link set lo up");
        ip("link add cyph0 type veth peer name up0");
        ip("link add down0 type veth peer name down1");
        ip("link set up0 up");
        ip("link set cyph0 up");
        ip("addr add 198.51.100.7/24 dev up0");
        ip("addr add 192.168.1.2/24 dev up0");
        ip("addr add 169.254.7.7/16 dev up0");
        ip("addr add 2001:db8::5/64 dev up0 nodad");
        ip("addr add fd12:3456:789a::9/128 dev up0 nodad");
        ip("addr add 10.9.9.9/24 dev cyph0");
        ip("addr add 10.8.8.8/24 dev down0");
        let netlink = Netlink::connect().unwrap();
        let found = netlink.candidates(PREFIX.parse().unwrap(), "cyph0").await.unwrap();
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["2001:db8::5", "198.51.100.7", "192.168.1.2"]);
    });
}

#[test]
fn what_matters_is_noticed_and_what_is_the_overlays_own_is_not() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link add up0 type veth peer name up1");
        ip("link add cyph0 type veth peer name cyph1");
        ip("link set up0 up");
        ip("link set up1 up");
        let netlink = Netlink::connect().unwrap();
        let mut own = Vec::new();
        for name in ["cyph0", "cyph1"] {
            own.push(netlink.interface(name).await.unwrap().expect("was made").index);
        }
        let mut watch = NetworkWatch::start(own, PREFIX.parse().unwrap()).unwrap();
        let mut known = netlink.attachment(PREFIX.parse().unwrap(), "cyph0").await.unwrap();
        assert!(known.addresses.is_empty());
        // Each of these in turn, however the kernel words it.
        let changes = [
            ("addr add 198.51.100.7/24 dev up0", true),
            ("addr add 2001:db8::5/64 dev up0 nodad", true),
            ("addr del 198.51.100.7/24 dev up0", true),
            ("link set up1 down", true),
            ("link set up1 up", true),
            ("route add default via 2001:db8::1 dev up0", false),
            ("route replace default via 2001:db8::2 dev up0", false),
            ("link set up0 down", true),
        ];
        for (change, attachment) in changes {
            ip(change);
            let mut routes = false;
            let seen = async {
                loop {
                    routes |= watch.changed().await.routes;
                    let now = netlink.attachment(PREFIX.parse().unwrap(), "cyph0").await.unwrap();
                    if attachment && now != known {
                        known = now;
                        return;
                    }
                    if !attachment && routes {
                        return;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(10), seen).await.expect(change);
        }
        // What is left of the burst.
        while tokio::time::timeout(Duration::from_secs(3), watch.changed()).await.is_ok() {}
        ip("addr add 10.9.9.9/24 dev cyph0");
        ip("link set cyph0 up");
        ip("route add 10.8.0.0/16 dev cyph0");
        let quiet = tokio::time::timeout(Duration::from_millis(500), watch.changed()).await;
        assert!(quiet.is_err(), "the overlay's own interface is none of the host's networks");
    });
}

/// As wg-quick brings them, after the table that they lead to.
#[test]
fn a_rule_leads_elsewhere_as_a_route_does() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let mut watch = NetworkWatch::start(Vec::new(), PREFIX.parse().unwrap()).unwrap();
        for change in ["-6 rule add", "-6 rule del", "-4 rule add", "-4 rule del"] {
            ip(&format!("{change} fwmark 7 table 100"));
            let seen = tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect(change);
            assert!(seen.routes, "{change}");
        }
    });
}

#[test]
fn what_is_taken_from_the_interface_is_noticed_and_comes_back() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link add cyph0 type veth peer name other0");
        ip("link set other0 up");
        let netlink = Netlink::connect().unwrap();
        let (own, prefix): (Ipv6Addr, Prefix) = (ADDRESS.parse().unwrap(), PREFIX.parse().unwrap());
        let interface = netlink.configure("cyph0", placement(own, prefix), 1420).await.unwrap();
        let mut losses = NetworkWatch::of_losses(interface.index).unwrap();
        let mut sizes = Sizes::new("cyph0".into(), &interface, placement(own, prefix), 1420);
        let wanted = [(1, 1280), (2, 1442)].map(|(n, mtu)| {
            let peer = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, n);
            (peer, mtu)
        });
        sizes.apply(&netlink, &wanted.into()).await.unwrap();
        let routes = || ip("-6 route show dev cyph0").lines().filter(|r| r.starts_with("fd12")).count();
        let before = routes();
        assert!(netlink.is_configured("cyph0", placement(own, prefix)).await.unwrap());
        assert!(!sizes.restore(&netlink).await.unwrap(), "nothing is amiss");

        let no_ipv6 =
            |value: &str| std::fs::write("/proc/sys/net/ipv6/conf/cyph0/disable_ipv6", value).unwrap();
        let harms: [(&str, &dyn Fn()); 4] = [
            ("down", &|| drop(ip("link set cyph0 down"))),
            ("down and up", &|| drop((ip("link set cyph0 down"), ip("link set cyph0 up")))),
            ("without IPv6 for a moment", &|| (no_ipv6("1"), no_ipv6("0")).1),
            ("without its route", &|| drop(ip("-6 route del fd12:3456:789a::/48 dev cyph0"))),
        ];
        for (what, harm) in harms {
            // What is left of the test's own doings.
            while tokio::time::timeout(Duration::from_secs(1), losses.changed()).await.is_ok() {}
            harm();
            assert!(!netlink.is_configured("cyph0", placement(own, prefix)).await.unwrap(), "{what}");
            tokio::time::timeout(Duration::from_secs(10), losses.changed()).await.expect(what);
            assert!(sizes.restore(&netlink).await.unwrap(), "{what}");
            sizes.apply(&netlink, &wanted.into()).await.unwrap();
            assert!(netlink.is_configured("cyph0", placement(own, prefix)).await.unwrap(), "{what}");
            assert_eq!(routes(), before, "{what}");
            let narrow = ip("-6 route get fd12:3456:789a:1::1");
            assert!(narrow.contains("mtu 1280"), "{what}: {narrow}");
            assert_eq!(netlink.interface("cyph0").await.unwrap().unwrap().mtu, 1442, "{what}");
        }
        while tokio::time::timeout(Duration::from_secs(1), losses.changed()).await.is_ok() {}
        ip("link set cyph0 address 02:00:00:00:00:01");
        tokio::time::timeout(Duration::from_secs(10), losses.changed())
            .await
            .expect("its link-layer address");
        assert!(!sizes.restore(&netlink).await.unwrap(), "address and routes are as they were");
        let now = netlink.interface("cyph0").await.unwrap().unwrap();
        assert_eq!(now.link_address, interface.link_address);
        assert_eq!(routes(), before);
        no_ipv6("1");
        assert!(sizes.restore(&netlink).await.is_err(), "the kernel gives no address then");
        no_ipv6("0");
        assert!(sizes.restore(&netlink).await.unwrap());
    });
}

/// Of two agents of a host, what one answers is not sent by the other's interface, whatever that one's routes
/// say of the same peer.
#[test]
fn what_an_agent_answers_beside_another_goes_by_its_own_interface() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        for (name, other) in [("cyph0", "x0"), ("plc", "x1")] {
            ip(&format!("link add {name} type veth peer name {other}"));
            ip(&format!("link set {other} up"));
        }
        let netlink = Netlink::connect().unwrap();
        let prefix: Prefix = PREFIX.parse().unwrap();
        let (host, own): (Ipv6Addr, Ipv6Addr) =
            (ADDRESS.parse().unwrap(), "fd12:3456:789a::2".parse().unwrap());
        let beside = Placement { address: own, prefix, senders: Senders::Own };
        let peer: Ipv6Addr = "fd12:3456:789a:1::7".parse().unwrap();
        let mut networks = NetworkWatch::start(Vec::new(), prefix).unwrap();
        let of_host = netlink.configure("cyph0", placement(host, prefix), 1420).await.unwrap();
        let of_machine = netlink.configure("plc", beside, 1420).await.unwrap();
        let mut host_sizes = Sizes::new("cyph0".into(), &of_host, placement(host, prefix), 1420);
        let mut sizes = Sizes::new("plc".into(), &of_machine, beside, 1420);
        let leads = |from: Ipv6Addr| ip(&format!("-6 route get {peer} from {from}"));
        assert!(netlink.is_configured("plc", beside).await.unwrap());
        assert!(netlink.is_configured("cyph0", placement(host, prefix)).await.unwrap());
        assert!(!netlink.is_configured("plc", placement(own, prefix)).await.unwrap());
        assert!(leads(own).contains("dev plc") && leads(host).contains("dev cyph0"));
        assert!(ip(&format!("-6 route get {peer}")).contains("dev cyph0"), "what has no source yet");
        host_sizes.apply(&netlink, &[(peer, 1400)].into()).await.unwrap();
        assert!(leads(own).contains("dev plc") && leads(host).contains("mtu 1400"), "{}", leads(own));
        sizes.apply(&netlink, &[(peer, 1300)].into()).await.unwrap();
        assert!(leads(own).contains("mtu 1300") && leads(host).contains("mtu 1400"), "{}", leads(own));
        // Neither leads elsewhere than before, whatever the links' MTUs are.
        while let Ok(change) = tokio::time::timeout(Duration::from_millis(500), networks.changed()).await {
            assert!(!change.routes);
        }

        // As systemd-networkd does when it starts, unless it is told not to.
        let mut losses = NetworkWatch::of_losses(of_machine.index).unwrap();
        ip("-6 rule del from fd12:3456:789a::2");
        tokio::time::timeout(Duration::from_secs(10), losses.changed()).await.expect("it is noticed");
        assert!(leads(own).contains("dev cyph0") && sizes.restore(&netlink).await.unwrap());
        assert!(leads(own).contains("dev plc") && netlink.is_configured("plc", beside).await.unwrap());
        // Once, however often it is configured.
        netlink.configure("plc", beside, 1420).await.unwrap();
        assert_eq!(ip("-6 rule").matches("from fd12:3456:789a::2").count(), 1, "{}", ip("-6 rule"));
        ip("-6 rule add from fd12:3456:789a::2 table 7 pref 7");
        assert!(netlink.remove_rules(own).await.unwrap() && !netlink.remove_rules(own).await.unwrap());
        assert_eq!(ip("-6 rule").matches("from fd12:3456:789a::2").count(), 1, "somebody else's stays");
    });
}

#[test]
fn a_pairs_far_end_that_is_set_down_is_noticed_and_comes_up_again() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let netlink = Netlink::connect().unwrap();
        netlink.create_pair("cyph0", OWNER, 1500).await.unwrap();
        netlink.bring_up_far_end("cyph0").await.unwrap();
        let (own, prefix): (Ipv6Addr, Prefix) = (ADDRESS.parse().unwrap(), PREFIX.parse().unwrap());
        let interface = netlink.configure("cyph0", placement(own, prefix), 1420).await.unwrap();
        let mut sizes = Sizes::new("cyph0".into(), &interface, placement(own, prefix), 1420);
        let mut losses = NetworkWatch::of_losses(interface.index).unwrap();
        let far_is_up = async || netlink.interface("cyph0x").await.unwrap().unwrap().up;
        ip("link set cyph0x down");
        let kept_up = async {
            while !far_is_up().await {
                losses.changed().await;
                assert!(!sizes.restore(&netlink).await.unwrap(), "address and routes are as they were");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), kept_up).await.expect("it is noticed");

        // Somebody else's has the name, as beside a TUN device.
        netlink.remove_pair("cyph0").await.unwrap();
        ip("link add cyph0 type bridge");
        ip("link add cyph0x type bridge");
        let interface = netlink.configure("cyph0", placement(own, prefix), 1420).await.unwrap();
        let mut sizes = Sizes::new("cyph0".into(), &interface, placement(own, prefix), 1420);
        assert!(!sizes.restore(&netlink).await.unwrap() && !far_is_up().await);
    });
}

#[test]
fn a_container_that_starts_is_no_move_and_a_route_that_looks_as_before_is() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link add up0 type veth peer name up1");
        ip("link set up1 up");
        ip("link set up0 up");
        ip("addr add 198.51.100.7/24 dev up0");
        ip("route add default via 198.51.100.1 dev up0");
        ip("link add bridge0 type bridge");
        ip("link set bridge0 up");
        let mut watch = NetworkWatch::start(Vec::new(), PREFIX.parse().unwrap()).unwrap();
        // Their own link-local addresses are ready some time after they came.
        let settle = async |watch: &mut NetworkWatch| {
            let mut routes = false;
            while let Ok(change) = tokio::time::timeout(Duration::from_secs(3), watch.changed()).await {
                routes |= change.routes;
            }
            routes
        };
        settle(&mut watch).await;
        ip("link add host0 type veth peer name container0");
        ip("link set host0 master bridge0");
        ip("link set container0 up");
        ip("link set host0 up");
        assert!(!settle(&mut watch).await, "a container has started");
        assert!(ip("-6 route show dev host0").contains("fe80::/64"), "which brings a route");
        // As after roaming to another access point of the same network.
        ip("route del default via 198.51.100.1 dev up0");
        ip("route add default via 198.51.100.1 dev up0");
        assert!(settle(&mut watch).await, "the same route may lead elsewhere");
    });
}

/// As `ip netns exec` does: the namespace's own resolv.conf, mounted over the host's, here through a link.
#[test]
fn a_mounted_resolv_conf_is_written_in_place_and_the_link_to_it_kept() {
    in_namespace(CloneFlags::CLONE_NEWNS, || async {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("journal")).unwrap();
        std::fs::write(path("host.conf"), "nameserver 192.0.2.1\n").unwrap();
        std::fs::write(path("own.conf"), "nameserver 192.0.2.2\n").unwrap();
        std::os::unix::fs::symlink("host.conf", path("resolv.conf")).unwrap();
        let mount = |arguments: &[&std::ffi::OsStr]| {
            assert!(Command::new("mount").args(arguments).status().expect("mount is installed").success());
        };
        mount(&["--make-rprivate".as_ref(), "/".as_ref()]);
        mount(&["--bind".as_ref(), path("own.conf").as_os_str(), path("host.conf").as_os_str()]);
        let host = Host { resolv_conf: path("resolv.conf"), ..Host::default() };
        let prepared = ResolvConf::prepare(&host, &path("journal"), [127, 0, 0, 55].into()).unwrap();
        let mut applied = prepared.apply().unwrap();
        assert!(std::fs::symlink_metadata(path("resolv.conf")).unwrap().is_symlink());
        let own = std::fs::read_to_string(path("own.conf")).unwrap();
        assert!(own.contains("\nnameserver 127.0.0.55\n") && !own.contains("\nnameserver 192.0.2."), "{own}");
        // Whoever made the mount writes another one into it.
        std::fs::write(path("own.conf"), "nameserver 192.0.2.3\n").unwrap();
        assert_eq!(applied.follow().unwrap(), Look::Quiet);
        let taken = applied.follow().unwrap();
        assert!(matches!(&taken, Look::Taken(new) if new.servers() == ["192.0.2.3:53".parse().unwrap()]));
        let own = std::fs::read_to_string(path("own.conf")).unwrap();
        assert!(own.contains("\nnameserver 127.0.0.55\n") && !own.contains("\nnameserver 192.0.2."), "{own}");
        std::mem::forget(applied);
        assert!(restore_journal(&path("journal")).unwrap());
        assert_eq!(std::fs::read_to_string(path("own.conf")).unwrap(), "nameserver 192.0.2.3\n");
        // The temporary directory cannot be removed while something is mounted in it.
        assert!(Command::new("umount").arg(path("host.conf")).status().unwrap().success());
        assert_eq!(std::fs::read_to_string(path("host.conf")).unwrap(), "nameserver 192.0.2.1\n");
    });
}

/// Others' packets come in by all interfaces but the overlay's, loopback, bridges and what hangs on those.
#[test]
fn entrances_are_where_neighbours_are() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        let netlink = Netlink::connect().unwrap();
        netlink.create_pair("cyph0", OWNER, 1400).await.unwrap();
        for link in
            ["add br0 type bridge", "add lan0 type veth peer name lan1", "add c0 type veth peer name c1"]
        {
            ip(&format!("link {link}"));
        }
        ip("link set c0 master br0");
        let entrances = |present: NetworkCards| {
            let mut names: Vec<_> = present.entrances.into_iter().map(|card| card.name).collect();
            names.sort();
            names
        };
        let overlay: Prefix = PREFIX.parse().unwrap();
        let present = netlink.cards(overlay, "cyph0").await.unwrap();
        assert_eq!(entrances(present), ["c1", "lan0", "lan1"], "up or not");
        ip("link set c0 nomaster");
        assert_eq!(entrances(netlink.cards(overlay, "cyph0").await.unwrap()), ["c0", "c1", "lan0", "lan1"]);
        // Another agent's: what comes by it has passed that one's tunnels. A TUN device, and a pair.
        ip("tuntap add plc mode tun");
        netlink.create_pair("other", OWNER, 1500).await.unwrap();
        let before = entrances(netlink.cards(overlay, "cyph0").await.unwrap());
        assert_eq!(before, ["c0", "c1", "lan0", "lan1", "plc"], "a VPN's, for all we know");
        netlink.mark("plc", OWNER).await.unwrap();
        assert_eq!(entrances(netlink.cards(overlay, "cyph0").await.unwrap()), ["c0", "c1", "lan0", "lan1"]);
    });
}
