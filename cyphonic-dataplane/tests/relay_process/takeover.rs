//! What a killed relay leaves, and its successor.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cyphonic_common::DropReason;
use cyphonic_dataplane::relay::xdp::{Hook, Mode, XdpOptions, XdpRelay, running_relays};
use cyphonic_dataplane::relay::{Leg, RelayMap, RelayMapError, UserspaceRelay};
use nix::sched::{CloneFlags, unshare};

use crate::lab::{
    PATIENCE, PORT, Process, cid, isolated, options, packet, passes, routing_is_on, shell, socket,
};
#[test]
fn a_relay_forwards_in_xdp_also_while_its_process_is_dead() {
    isolated(|pins| {
        let options = options(pins.clone());
        let (a, b) = (socket("a", "192.0.2.10:1000"), socket("b", "[2001:db8:1::20]:2000"));
        let there = Leg {
            local: Some("192.0.2.1".parse().unwrap()),
            source: Some("2001:db8:1::1".parse().unwrap()),
            ..Leg::new(a.local_addr().unwrap(), b.local_addr().unwrap(), cid(0xb1))
        };
        let back = Leg {
            local: there.source,
            source: there.local,
            ..Leg::new(b.local_addr().unwrap(), a.local_addr().unwrap(), cid(0xa1))
        };
        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.hook == Hook::Native && at.pinned && !at.adopted)
        );
        process.xdp.insert(cid(0xb0), there).unwrap();
        process.xdp.insert(cid(0xa0), back).unwrap();
        assert_eq!(process.xdp.insert(cid(0xb0), there), Err(RelayMapError::AlreadyBound(cid(0xb0))));

        // The first goes by userspace, which finds the neighbours; all count.
        for number in 0..100 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
            passes(&b, "[2001:db8:1::1]:4433", &a, cid(0xa0), cid(0xa1), number);
        }
        let counters = process.xdp.counters();
        assert!(counters.forwarded.packets >= 190, "{counters:?}");
        for cid in [cid(0xb0), cid(0xa0)] {
            // Userspace counts what it has sent.
            let deadline = Instant::now() + PATIENCE;
            while process.xdp.stats(cid).unwrap().packets < 100 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            let stats = process.xdp.stats(cid).unwrap();
            assert_eq!((stats.packets, stats.bytes), (100, 20_000));
            assert!(stats.last_seen.is_some_and(|seen| seen.elapsed() < PATIENCE));
        }
        // To another of the relay's addresses, and from another port.
        let stranger = socket("a", "192.0.2.10:1001");
        stranger.send_to(&packet(cid(0xb0), 7), "192.0.2.1:4433").unwrap();
        a.send_to(&packet(cid(0xb0), 7), "198.51.100.1:4433").unwrap_err();
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 100);
        assert_eq!(process.xdp.counters().dropped, [], "userspace judges");
        let deadline = Instant::now() + PATIENCE;
        while process.xdp.userspace().counters().dropped(DropReason::UnboundSource) < 1 {
            assert!(Instant::now() < deadline, "the stranger's packet is not counted");
            std::thread::sleep(Duration::from_millis(1));
        }

        process.kill();
        for number in 101..120 {
            passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), number);
        }
        assert!(running_relays().unwrap().iter().any(|relay| relay.port == PORT && relay.legs == 16));

        let process = Process::start(&options);
        assert!(
            process.xdp.attachments().iter().all(|at| at.hook == Hook::Native && at.pinned && at.adopted)
        );
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 120);
        assert!(process.xdp.counters().forwarded.packets >= 1, "the new program forwards");
        let mut adopted = process.xdp.adopted();
        adopted.sort_by_key(|(cid, _)| *cid);
        assert_eq!(adopted, [(cid(0xa0), back), (cid(0xb0), there)]);
        let other = Leg { real_cid: cid(0xcc), ..there };
        assert_eq!(process.xdp.insert(cid(0xb0), other), Err(RelayMapError::AlreadyBound(cid(0xb0))));
        process.xdp.insert(cid(0xb0), there).unwrap();
        assert!(process.xdp.stats(cid(0xb0)).unwrap().packets >= 119);
        assert_eq!((process.xdp.remove_adopted(), process.xdp.len()), (1, 1));
        passes(&a, "192.0.2.1:4433", &b, cid(0xb0), cid(0xb1), 121);

        // It follows a node that moved.
        let moved = socket("a", "[2001:db8::10]:1002");
        let leg =
            Leg { from: moved.local_addr().unwrap(), local: Some("2001:db8::1".parse().unwrap()), ..there };
        process.xdp.replace(cid(0xb0), leg).unwrap();
        passes(&moved, "[2001:db8::1]:4433", &b, cid(0xb0), cid(0xb1), 122);

        process.xdp.stop();
        process.kill();
        let cyphonic = std::fs::read_dir(pins.join("cyphonic")).unwrap();
        assert_eq!(cyphonic.count(), 0, "nothing stays pinned");
        assert_eq!(routing_is_on(), [false; 2]);
    });
}

#[test]
fn what_a_killed_relay_left_goes_when_its_successor_relays_in_userspace_or_with_another_size() {
    isolated(|pins| {
        let mut options = options(pins.clone());
        let relay = || Arc::new(UserspaceRelay::new(16));
        let first = XdpRelay::start(&options, relay()).unwrap();
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        first.insert(cid(2), leg).unwrap();
        drop(first);
        options.legs = 32;
        let second = XdpRelay::start(&options, relay()).unwrap();
        assert_eq!((second.adopted(), second.len()), (Vec::new(), 0));
        drop(second);
        XdpRelay::remove_leftovers(&pins, options.listen);
        assert_eq!(std::fs::read_dir(pins.join("cyphonic")).unwrap().count(), 0);
        // The kernel frees what nobody holds any more when it gets to it.
        let attached = || {
            let link = Command::new("ip").args(["link", "show", "ra"]).output().unwrap();
            String::from_utf8_lossy(&link.stdout).contains("xdp")
        };
        let start = Instant::now();
        while attached() {
            assert!(start.elapsed() < PATIENCE, "the program is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_killed_relay_whose_mode_was_changed_goes_on_with_its_legs() {
    isolated(|pins| {
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        let mut adopted = Vec::new();
        for (mode, hook) in
            [(Mode::Native, Hook::Native), (Mode::Generic, Hook::Generic), (Mode::Native, Hook::Native)]
        {
            let options = XdpOptions { mode, ..options(pins.clone()) };
            let relay = XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
            assert!(relay.attachments().iter().all(|at| at.hook == hook && at.pinned), "{hook}");
            assert_eq!(relay.adopted(), adopted, "{hook}");
            if adopted.is_empty() {
                relay.insert(cid(2), leg).unwrap();
                adopted.push((cid(2), leg));
            }
            drop(relay);
        }
        XdpRelay::remove_leftovers(&pins, options(pins.clone()).listen);
    });
}

#[test]
fn relays_with_one_port_at_different_addresses_leave_each_other_alone() {
    isolated(|pins| {
        let at = |address: &str, interface: &str| XdpOptions {
            listen: SocketAddr::new(address.parse().unwrap(), PORT),
            interfaces: Some(vec![interface.to_owned()]),
            ..options(pins.clone())
        };
        let start = |options: &XdpOptions| XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
        let (a, b) = (at("192.0.2.1", "ra"), at("2001:db8:1::1", "rb"));
        let first = start(&a).unwrap();
        let leg = Leg::new("192.0.2.10:1".parse().unwrap(), "192.0.2.11:1".parse().unwrap(), cid(1));
        first.insert(cid(2), leg).unwrap();
        let refused = start(&at("198.51.100.1", "ra")).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("another XDP program"), "{refused}");
        let second = start(&b).unwrap();
        assert_eq!(second.adopted(), []);
        assert!(second.attachments().iter().all(|at| at.pinned && !at.adopted));
        second.stop();

        // Whose processes are killed find what is theirs, also where an earlier version named it.
        let folder = || {
            let folders: Vec<_> = std::fs::read_dir(pins.join("cyphonic")).unwrap().collect();
            assert_eq!(folders.len(), 1);
            folders.into_iter().next().unwrap().unwrap().path()
        };
        let named = folder();
        let former = named.to_str().unwrap().strip_suffix("-c0000201").unwrap();
        std::fs::rename(&named, former).unwrap();
        start(&a).map(|_| ()).unwrap_err();
        assert_eq!(folder().to_str(), Some(former), "its process lives");
        drop(first);
        // A command that starts at this moment may hold the lock.
        let deadline = Instant::now() + 3 * PATIENCE;
        let successor = loop {
            match start(&a) {
                Ok(successor) => break successor,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((successor.adopted(), folder()), (vec![(cid(2), leg)], named));
        assert!(successor.attachments().iter().all(|at| at.adopted));
        successor.stop();
    });
}

#[test]
fn what_a_killed_relay_left_goes_where_one_with_another_port_needs_the_interface() {
    isolated(|pins| {
        let start = |options: &XdpOptions| XdpRelay::start(options, Arc::new(UserspaceRelay::new(16)));
        let folders = || std::fs::read_dir(pins.join("cyphonic")).unwrap().count();
        let with = |port, interface: &str, mode| XdpOptions {
            listen: ([0; 4], port).into(),
            interfaces: Some(vec![interface.to_owned()]),
            mode,
            ..options(pins.clone())
        };
        drop(start(&with(1, "ra", Mode::Native)).unwrap());
        // One that is on another interface, and may still have a successor.
        let elsewhere = with(9, "rb", Mode::Native);
        drop(start(&elsewhere).unwrap());
        for (port, mode, hook) in [(2, Mode::Generic, Hook::Generic), (3, Mode::Native, Hook::Native)] {
            // A command that starts at this moment may hold the dead one's lock.
            let deadline = Instant::now() + 3 * PATIENCE;
            let relay = loop {
                match start(&with(port, "ra", mode)) {
                    Ok(relay) => break relay,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            let attachments = relay.attachments();
            assert!(attachments.iter().all(|at| at.hook == hook && at.pinned && !at.adopted));
            assert_eq!((folders(), routing_is_on()), (2, [true; 2]), "its own and the other's");
            if port == 3 {
                relay.stop();
                assert_eq!((folders(), routing_is_on()), (1, [false; 2]), "as the first one found it");
            }
        }
        let successor = start(&elsewhere).unwrap();
        assert!(successor.attachments().iter().all(|at| at.adopted));
        successor.stop();
    });
}

#[test]
fn what_a_killed_relay_left_goes_with_its_network_namespace() {
    isolated(|pins| {
        let folders = || std::fs::read_dir(pins.join("cyphonic")).unwrap().count();
        let start =
            |options: XdpOptions| XdpRelay::start(&options, Arc::new(UserspaceRelay::new(16))).unwrap();
        let (ready, is_ready) = channel();
        let (leave, may_leave) = channel::<()>();
        std::thread::scope(|scope| {
            let there = options(pins.clone());
            scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                shell("ip link add card0 type bridge");
                shell("ip link set card0 up");
                let interfaces = Some(vec!["card0".to_owned()]);
                drop(start(XdpOptions { interfaces, mode: Mode::Generic, ..there }));
                ready.send(()).unwrap();
                may_leave.recv().unwrap();
            });
            is_ready.recv().unwrap();
            start(options(pins.clone())).stop();
            assert_eq!(folders(), 1, "its interface is there");
            leave.send(()).unwrap();
        });
        // The kernel takes a namespace down when it gets to it.
        let deadline = Instant::now() + PATIENCE;
        while folders() > 0 {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(Duration::from_millis(50));
            start(options(pins.clone())).stop();
        }
    });
}
