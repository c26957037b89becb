//! Networks that lose datagrams above a size, without a word.

use std::time::Duration;

use cyphonic_proto::node::{Action, TunnelStatus};

use crate::net::Gate::{self, Open, Symmetric};
use crate::world::{World, virtual_address};

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);

/// Two devices with a tunnel between them, over a network that carries this much UDP payload.
fn over(carries: u16, gates: [Gate; 2]) -> World {
    let mut world = World::new(3);
    world.carries = carries;
    world.add("a", Some(gates[0]), None);
    world.add("b", Some(gates[1]), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    world
}

impl World {
    fn tunnel_of(&self, device: &str) -> TunnelStatus {
        let status = self.hosts[device].node.as_ref().unwrap().status();
        let mut peers = status.peers.into_iter();
        peers.find_map(|peer| peer.tunnels.into_iter().next()).unwrap()
    }

    /// Both ends send the largest packets that go whole, for a while. How many were lost, and when the last
    /// of them left.
    fn transfer(&mut self, time: Duration) -> (usize, Duration) {
        let (start, mut sent) = (self.now, Vec::new());
        while self.now - start < time {
            for (from, to) in [("a", "b"), ("b", "a")] {
                sent.push((self.now - start, to, self.send_inner(from, to)));
            }
            self.run(TENTH);
        }
        self.run(SECOND);
        let lost =
            |(_, to, packet): &&(Duration, &'static str, u64)| !self.delivered.contains(&(*to, *packet));
        let lost: Vec<_> = sent.iter().filter(lost).collect();
        (lost.len(), lost.last().map_or(Duration::ZERO, |(at, ..)| *at))
    }
}

#[test]
fn a_path_is_as_large_as_it_was_while_the_host_has_no_network() {
    let mut world = over(1472, [Open, Open]);
    world.transfer(10 * SECOND);
    let before = world.tunnel_of("a");
    world.unplug("a");
    let without = world.tunnel_of("a");
    assert_eq!(without.path_mtu, before.path_mtu);
    assert!(before.heard.is_some() && without.heard == before.heard);
}

#[test]
fn nothing_is_lost_on_any_path_and_what_it_carries_is_found() {
    for gates in [[Open, Open], [Symmetric, Symmetric]] {
        for carries in [1200, 1232, 1311, 1312, 1372, 1444, 1449, 1450, 1452, 1472] {
            let mut world = over(carries, gates);
            assert_eq!(world.transfer(10 * SECOND).0, 0, "a path of {carries}");
            for device in ["a", "b"] {
                // The simulated devices take inner packets of 1,420 bytes at most.
                let most = carries.min(1450);
                let tunnel = world.tunnel_of(device);
                let found = u16::try_from(tunnel.path_mtu).unwrap() - 28;
                assert!(found <= most && found + 8 >= most, "{found} of {carries}");
                assert_eq!(tunnel.inner_mtu, (found - 30).max(1280));
            }
        }
    }
}

#[test]
fn a_path_that_becomes_narrower_swallows_packets_for_two_seconds_at_most() {
    for gates in [[Open, Open], [Symmetric, Symmetric]] {
        for narrower in [1200, 1232, 1272, 1372, 1449] {
            let mut world = over(1472, gates);
            assert_eq!(world.transfer(10 * SECOND).0, 0);
            world.carries = narrower;
            let (_, last) = world.transfer(10 * SECOND);
            assert!(last <= 2 * SECOND, "{narrower}: packets of {last:?} were lost");
            assert_eq!(world.transfer(10 * SECOND).0, 0);
            assert_eq!(world.hosts["a"].installs, 1, "the tunnel stays");
        }
    }
}

#[test]
fn a_path_that_becomes_wider_is_used_before_a_quarter_of_an_hour_is_over() {
    let mut world = over(1300, [Open, Open]);
    assert_eq!(world.transfer(10 * SECOND).0, 0);
    world.carries = 1472;
    assert_eq!(world.transfer(15 * 60 * SECOND).0, 0);
    assert_eq!(world.tunnel_of("a").path_mtu, 1478, "what both ends take");
}

#[test]
fn a_path_that_carries_large_packets_again_is_not_used_for_small_ones_for_ever() {
    let mut world = over(1472, [Open, Open]);
    assert_eq!(world.transfer(10 * SECOND).0, 0);
    world.carries = 1200;
    world.transfer(10 * SECOND);
    assert_eq!(world.tunnel_of("a").path_mtu, 1228, "nothing larger leaves any more");
    world.carries = 1472;
    assert_eq!(world.transfer(15 * 60 * SECOND).0, 0);
    assert_eq!(world.tunnel_of("a").path_mtu, 1478);
}

#[test]
fn loss_and_disorder_cost_size_at_worst() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        (world.carries, world.loss, world.jitter) = (1372, 0.1, Duration::from_millis(30));
        world.add("a", Some(Open), None);
        world.add("b", Some(Open), None);
        world.settle();
        world.resolves("a", "b").unwrap();
        world.loss = 0.1;
        world.transfer(20 * SECOND);
        world.loss = 0.0;
        assert!(world.hosts["a"].tunnels.values().all(|tunnel| tunnel.mtu.datagram <= 1372));
        assert_eq!(world.transfer(10 * SECOND).0, 0, "seed {seed}");
    }
}

#[test]
fn an_unused_tunnel_sends_no_probes() {
    let mut world = over(1372, [Open, Open]);
    world.transfer(5 * SECOND);
    world.run(SECOND);
    let peer = virtual_address("b");
    assert!(world.hosts["a"].tunnels.values().all(|tunnel| tunnel.parameters.peer == peer));
    let probes = world.probes;
    assert!(probes > 0);
    world.run(60 * SECOND);
    assert_eq!(world.probes, probes);
    world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["b.lab".into()]));
    world.run(1_800 * SECOND);
    assert_eq!(world.hosts["a"].installs, 1, "it is kept");
    assert_eq!(world.probes, probes, "but not used");
}

/// An interface that does not even take what every path is to carry, as it says of every probe at once.
#[test]
fn an_interface_that_takes_too_little_is_not_asked_again_and_again() {
    let mut world = over(u16::MAX, [Open, Open]);
    assert!(world.talk("a", "b", SECOND));
    world.run(3 * SECOND);
    let id = *world.hosts["a"].tunnels.keys().next().unwrap();
    let now = world.now;
    let node = world.hosts.get_mut("a").unwrap().node.as_mut().unwrap();
    while node.poll_action().is_some() {}
    node.handle_too_big(now, id, None);
    let mut probes = 0;
    while let Some(action) = node.poll_action() {
        if let Action::ProbeMtu { id, data, .. } = action {
            probes += 1;
            assert!(probes < 10);
            node.handle_too_big(now, id, Some(data));
        }
    }
    assert_ne!(probes, 0);
}
