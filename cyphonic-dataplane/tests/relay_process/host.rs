//! What becomes of legs while nodes, neighbours and the host's interfaces change, and on hosts that cannot carry them
//! in XDP.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::relay::PassReason;
use cyphonic_dataplane::relay::xdp::{Hook, Mode, XdpOptions, XdpRelay, running_relays};
use cyphonic_dataplane::relay::{Leg, RelayMap, UserspaceRelay};

use crate::lab::{
    PATIENCE, Process, SETUP, cid, in_use, isolated, leg_between, options, packet, passes, routing_is_on,
    shell, socket,
};
/// The list of the relay's own addresses only grows.
#[test]
fn a_leg_whose_new_address_has_no_number_goes_its_new_way_in_userspace_and_counts_on() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, _b, leg) = in_use(&process);
        process.xdp.insert(cid(0xc0), leg).unwrap();
        for number in 0..=255 {
            let other = Leg { source: Some(IpAddr::from([10, 0, 0, number])), ..leg };
            process.xdp.replace(cid(0xc0), other).unwrap();
        }

        shell("ip addr add 198.51.100.2/24 dev rb");
        let moved = socket("b", "198.51.100.20:2001");
        let forwarded = process.xdp.counters().forwarded.packets;
        let new =
            Leg { source: Some("198.51.100.2".parse().unwrap()), to: moved.local_addr().unwrap(), ..leg };
        let before = process.xdp.stats(cid(0xb0)).unwrap();
        process.xdp.replace(cid(0xb0), new).unwrap();
        // Userspace may still be counting the first, which found the neighbour.
        let after = process.xdp.stats(cid(0xb0)).unwrap();
        assert!(after.packets >= before.packets && after.bytes >= before.bytes, "{after:?} {before:?}");
        assert!(after.last_seen >= before.last_seen, "{after:?} {before:?}");
        for number in 20..30 {
            passes(&a, "192.0.2.1:4433", &moved, cid(0xb0), cid(0xb1), number);
        }
        assert_eq!(process.xdp.counters().forwarded.packets, forwarded, "in userspace");
        let deadline = Instant::now() + PATIENCE;
        while process.xdp.stats(cid(0xb0)).unwrap().packets < 30 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(process.xdp.stats(cid(0xb0)).unwrap().packets, 30);
        assert_eq!(process.xdp.remove(cid(0xb0)).unwrap().packets, 30);
        process.xdp.stop();
        process.kill();
    });
}

/// An entry of the table is not used again at once, and the kernel's hash map takes nothing at once either.
#[test]
fn a_leg_that_moves_often_is_relayed_all_the_time_and_soon_in_xdp_again() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, leg) = in_use(&process);
        let others = ["198.51.100.20:2001", "198.51.100.20:2002"].map(|address| socket("b", address));
        for round in 0..20u32 {
            let to = &others[round as usize % 2];
            process.xdp.replace(cid(0xb0), Leg { to: to.local_addr().unwrap(), ..leg }).unwrap();
            passes(&a, "192.0.2.1:4433", to, cid(0xb0), cid(0xb1), round);
        }
        process.xdp.replace(cid(0xb0), leg).unwrap();
        let deadline = Instant::now() + PATIENCE;
        for number in 100.. {
            let before = process.xdp.counters().forwarded.packets;
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            if process.xdp.counters().forwarded.packets > before {
                break;
            }
            assert!(Instant::now() < deadline, "it stays in userspace");
        }
        process.xdp.stop();
        process.kill();
    });
}

/// Legs are bound to what the relay's socket sees, and XDP comes before the host's NAT.
#[test]
fn behind_the_hosts_own_nat_userspace_relays() {
    isolated(|pins| {
        shell("ip addr add 192.0.2.5/24 dev ra");
        shell("nft add table ip nat");
        shell("nft add chain ip nat in { type nat hook prerouting priority dstnat ; }");
        shell("nft add rule ip nat in ip daddr 192.0.2.5 dnat to 192.0.2.1");
        let process = Process::start(&options(pins));
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
        process.xdp.insert(cid(0xb0), leg_between(&a, &b)).unwrap();
        for number in 0..10 {
            passes(&a, "192.0.2.5:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        let passed = process.xdp.counters().passed;
        let unbound = passed.iter().find(|(reason, _)| *reason == PassReason::UnboundSource);
        assert_eq!(unbound.map(|(_, counter)| counter.packets), Some(10), "{passed:?}");
        process.xdp.stop();
        process.kill();
    });
}

/// A driver that takes no redirected frames, as that of a virtual cable whose far end merges none, drops them
/// silently.
#[test]
fn what_a_driver_would_lose_is_relayed_in_userspace() {
    isolated(|pins| {
        shell("ip netns exec b ethtool -K nb gro off");
        let process = Process::start(&options(pins));
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "198.51.100.20:2000"));
        let other = socket("b", "198.51.100.20:2001");
        process.xdp.insert(cid(0xb0), leg_between(&a, &b)).unwrap();
        let back = Leg { local: Some("198.51.100.1".parse().unwrap()), ..leg_between(&other, &b) };
        process.xdp.insert(cid(0xc0), back).unwrap();
        for number in 0..10 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            // Back by the interface that it came by.
            passes(&other, "198.51.100.1:4433", &b, cid(0xc0), cid(0xb1), number);
        }
        let counters = process.xdp.counters();
        assert_eq!(counters.forwarded.packets, 0, "{counters:?}");
        process.xdp.stop();
        process.kill();
    });
}

/// An answer of the routing table would last ten minutes.
#[test]
fn a_neighbour_that_moves_is_noticed_while_the_process_lives() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, _) = in_use(&process);
        b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let arrives = || {
            a.send_to(&packet(cid(0xb0), 99), "192.0.2.1:4433").unwrap();
            b.recv_from(&mut [0; 2048]).is_ok()
        };
        let until = |wanted: bool| {
            let deadline = Instant::now() + PATIENCE;
            while arrives() != wanted {
                assert!(Instant::now() < deadline, "still {}", !wanted);
            }
        };
        shell("ip neigh replace 198.51.100.20 lladdr 02:00:00:00:00:99 dev rb nud permanent");
        until(false);
        shell("ip neigh del 198.51.100.20 dev rb");
        until(true);
        process.xdp.stop();
        process.kill();
    });
}

/// Whoever switches it off for the host switches it off for each interface.
#[test]
fn forwarding_that_somebody_switches_off_is_on_again() {
    isolated(|pins| {
        let process = Process::start(&options(pins));
        let (a, b, _) = in_use(&process);
        assert_eq!(routing_is_on(), [true; 2]);
        for family in ["ipv4", "ipv6"] {
            for value in ["1", "0"] {
                std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), value).unwrap();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while routing_is_on() != [true; 2] {
            assert!(Instant::now() < deadline, "{:?}", routing_is_on());
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut number, before) = (20, process.xdp.counters().forwarded.packets);
        while process.xdp.counters().forwarded.packets == before {
            assert!(Instant::now() < deadline + PATIENCE, "still relayed in userspace");
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            number += 1;
        }
        process.xdp.stop();
        process.kill();
        assert_eq!(routing_is_on(), [false; 2], "as it was");
    });
}

#[test]
fn an_interface_that_is_made_anew_is_relayed_on_in_xdp_again() {
    isolated(|pins| {
        let options = options(pins);
        let process = Process::start(&options);
        let (a, b, _) = in_use(&process);
        let names = |process: &Process| -> Vec<_> {
            process.xdp.attachments().into_iter().map(|at| at.interface).collect()
        };
        let await_names = |expected: &[&str]| {
            let deadline = Instant::now() + PATIENCE;
            while names(&process) != expected {
                assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", names(&process));
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        shell("ip link del rb");
        await_names(&["ra"]);
        let made_anew = SETUP.lines().map(str::trim).filter(|line| {
            let words: Vec<_> = line.split(' ').collect();
            !line.contains("netns add") && (words.contains(&"rb") || words.contains(&"nb"))
        });
        made_anew.for_each(shell);
        await_names(&["ra", "rb"]);
        let before = process.xdp.counters().forwarded.packets;
        // The first finds the neighbour, in userspace.
        for number in 20..30 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        assert!(process.xdp.counters().forwarded.packets > before);

        process.kill();
        for number in 30..40 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.adopted),
            "the new link is pinned, the old is gone"
        );
        process.xdp.stop();
        process.kill();
    });
}

#[test]
fn interfaces_that_cannot_are_told_with_what_to_do() {
    isolated(|pins| {
        let start = |options: &XdpOptions| {
            let without_pins = XdpOptions { pins: None, ..options.clone() };
            let before = routing_is_on();
            for options in [options, &without_pins] {
                let started = XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
                started.map(|_| ()).unwrap_err();
                assert_eq!(routing_is_on(), before);
            }
            let started = XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
            started.map(|_| ()).unwrap_err().to_string()
        };
        let good = options(pins.clone());
        let named =
            |name: &str, mode| XdpOptions { interfaces: Some(vec![name.into()]), mode, ..good.clone() };
        assert!(start(&named("eth77", Mode::Native)).contains("relay.interfaces"));
        assert!(start(&named("ra", Mode::Auto)).contains("virtual cable"));
        let none = XdpOptions { interfaces: None, mode: Mode::Generic, ..good.clone() };
        assert!(start(&none).contains("name some in `relay.interfaces`"));
        shell("ip -n a link set na mtu 9000");
        shell("ip link set ra mtu 9000");
        assert!(start(&named("ra", Mode::Native)).contains("MTU"));
        shell("ip link set ra mtu 1500");
        shell("ip -n a link set na mtu 1500");
        let first = XdpRelay::start(&named("ra", Mode::Native), Arc::new(UserspaceRelay::new(16))).unwrap();
        let other = XdpOptions { listen: ([0; 4], 5555).into(), ..named("ra", Mode::Native) };
        assert!(start(&other).contains("another XDP program"), "{}", start(&other));
        first.stop();
        let by_address = XdpOptions { addresses: vec!["198.51.100.1".parse().unwrap()], ..none };
        let second = XdpRelay::start(&by_address, Arc::new(UserspaceRelay::new(16))).unwrap();
        let attachments = second.attachments();
        let places: Vec<_> = attachments.iter().map(|at| (at.interface.as_str(), at.hook)).collect();
        assert_eq!(places, [("rb", Hook::Generic)]);
        second.stop();
    });
}

#[test]
fn behind_a_driver_without_native_xdp_the_relay_and_the_status_say_why() {
    isolated(|pins| {
        // A bridge takes programs behind its driver only, as many a network card does.
        shell("ip link add card0 type bridge");
        shell("ip link set card0 up");
        let options =
            XdpOptions { interfaces: Some(vec!["card0".into()]), mode: Mode::Auto, ..options(pins) };
        let relay = XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
        let expected = ("card0", Hook::Generic, "its driver has no native XDP");
        let attachments = relay.attachments();
        let told: Vec<_> =
            attachments.iter().map(|at| (at.interface.as_str(), at.hook, at.why.as_str())).collect();
        assert_eq!(told, [expected]);
        let running = running_relays().unwrap();
        let places = running.iter().flat_map(|relay| &relay.interfaces);
        let asked: Vec<_> =
            places.map(|place| (place.interface.as_str(), place.hook, place.why.as_str())).collect();
        assert_eq!(asked, [expected]);
        relay.stop();
    });
}
