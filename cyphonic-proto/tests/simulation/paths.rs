//! Tunnels that find better paths, leave dead ones and follow moves, in every kind of network.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cyphonic_common::frame::CandidateFlags;
use cyphonic_proto::message::{Message, RouteKind, endpoint};
use cyphonic_proto::node::{Action, CandidateSet, PathStatus, TunnelControl, TunnelStatus};

use crate::cloud::relay;
use crate::moves::Families;
use crate::nat::Dependence::{self, Address, AddressAndPort, Independent};
use crate::nat::Ports::{self, Random, Sequence};
use crate::nat::{NatKind, nat};
use crate::net::Gate::{self, Firewall, Open, PortRestricted, Symmetric};
use crate::relay_restarts::{gap, stream};
use crate::world::{World, virtual_address};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// From one device to another and back.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The NMS sends every pair through the relay at first, and names no address of the peer.
pub(crate) fn relay_first(message: &mut Message) {
    if let Message::RegistrationRequest(request) = message {
        // Without observations nothing is known of a NAT, and without addresses nothing can be dialled.
        request.observations.clear();
        let odd = endpoint::to_wire("10.255.255.1:9".parse::<SocketAddr>().unwrap());
        request.addresses = vec![odd];
    }
}

pub(crate) fn pair(a: [Option<Gate>; 2], b: [Option<Gate>; 2]) -> World {
    let mut world = World::new(21);
    world.tamper = Some(relay_first);
    world.add("a", a[0], a[1]);
    world.add("b", b[0], b[1]);
    world.settle();
    world
}

impl World {
    pub(crate) fn path(&self, device: &str) -> PathStatus {
        self.only_tunnel(device).path
    }

    fn only_tunnel(&self, device: &str) -> TunnelStatus {
        let status = self.hosts[device].node.as_ref().unwrap().status();
        status.peers.into_iter().find_map(|peer| peer.tunnels.into_iter().next()).unwrap()
    }

    pub(crate) fn is_direct(&self, device: &str) -> bool {
        self.only_tunnel(device).route != RouteKind::Relay
    }

    fn both_direct(&self) -> bool {
        self.is_direct("a") && self.is_direct("b")
    }

    /// Packets of all kinds that a device's tunnels have sent.
    fn packets(&self, device: &str) -> u64 {
        self.hosts[device].tunnels.values().map(|tunnel| tunnel.packets).sum()
    }
}

/// Whether two NATs can be punched: what RFC 5128 §3.3 joins, and besides a symmetric one with a NAT that
/// lets in any port of an address, or whose next ports can be guessed.
fn can_meet(a: NatKind, b: NatKind) -> bool {
    // Whether the one, whose mappings depend on the other end, gets through the other's filter.
    let one_way = |hard: NatKind, easy: NatKind| {
        easy.mapping == Independent
            && (easy.filtering != AddressAndPort
                || hard.ports == Sequence
                // Its mapping for an address is the one that a probe to that address made.
                || hard.mapping == Independent)
    };
    match (a.mapping == Independent, b.mapping == Independent) {
        (true, true) => true,
        (false, true) => one_way(a, b),
        (true, false) => one_way(b, a),
        (false, false) => false,
    }
}

fn kinds() -> Vec<NatKind> {
    let all = [Independent, Address, AddressAndPort];
    let mut kinds = Vec::new();
    for mapping in all {
        for filtering in all {
            for ports in [Sequence, Random] {
                if mapping != Independent || ports == Sequence {
                    kinds.push(nat(mapping, filtering, ports));
                }
            }
        }
    }
    kinds
}

/// A node with forty peers to whom direct paths lead, and who each name twelve addresses more, moves.
#[test]
fn a_move_asks_every_relay_before_any_address_that_never_answered() {
    let mut world = World::new(22);
    world.tamper = Some(relay_first);
    world.add("a", Some(Open), None);
    let peers: Vec<&'static str> = (0..40).map(|n| &*format!("p{n}").leak()).collect();
    peers.iter().for_each(|peer| world.add(peer, Some(Open), None));
    world.settle();
    for peer in &peers {
        world.resolves("a", peer).unwrap();
        assert!(world.talk("a", peer, SECOND));
    }
    world.run(5 * SECOND);
    let tunnels: Vec<_> = world.hosts["a"].tunnels.keys().copied().collect();
    for (number, id) in (0..).zip(&tunnels) {
        let endpoints = (1..=12).map(|n| SocketAddr::from(([198, 18, number, n], 7000))).collect();
        let set = CandidateSet { sequence: 100, heard: 100, flags: CandidateFlags::default(), endpoints };
        world.with_node("a", 0, |node, now| node.handle_candidates(now, *id, &set));
    }
    world.run(60 * SECOND);
    let uplinks = world.new_uplinks(Some(Open), None);
    let (now, own) = (world.now, [uplinks[0].own]);
    let node = world.hosts.get_mut("a").unwrap().node.as_mut().unwrap();
    while node.poll_action().is_some() {}
    node.handle_addresses(now, &own, &Families(uplinks));
    let probes = std::iter::from_fn(|| node.poll_action()).filter_map(|action| match action {
        Action::SendControl { id, control: TunnelControl::Probe { remote, .. } } => Some((id, remote)),
        _ => None,
    });
    let probes: Vec<_> = probes.collect();
    let relay = relay().addresses[0];
    let asked: Vec<_> = probes.iter().take_while(|(_, remote)| !is_named(remote)).collect();
    for id in &tunnels {
        assert!(asked.contains(&&(*id, relay)), "{id:?} is not asked about its relay: {asked:?}");
    }
    let named = probes.iter().filter(|(_, remote)| is_named(remote)).count();
    assert!((100..=200).contains(&named), "{named} probes of addresses that never answered");
}

fn is_named(remote: &SocketAddr) -> bool {
    matches!(remote.ip(), IpAddr::V4(ip) if ip.octets()[..2] == [198, 18])
}

#[test]
fn every_pair_of_nats_that_can_be_punched_is_direct_within_three_seconds_and_nothing_is_lost() {
    let mut direct = 0;
    for a in kinds() {
        for b in kinds() {
            let mut world = pair([Some(Gate::Nat(a)), None], [Some(Gate::Nat(b)), None]);
            world.resolves("a", "b").unwrap();
            assert!(!world.is_direct("a"), "the relay carries the first packets");
            let lost = [stream(&mut world, "a", "b", 3 * SECOND), stream(&mut world, "b", "a", SECOND)];
            assert_eq!(lost.map(|lost| lost.len()), [0, 0], "{a:?} {b:?}");
            let hopeless = |kind: NatKind| kind.filtering == AddressAndPort && kind.ports == Random;
            let both = a.mapping != Independent && b.mapping != Independent;
            if can_meet(a, b) {
                assert!(world.both_direct(), "{a:?} {b:?}: {:?}", world.path("a"));
                direct += 1;
            } else if !both || (hopeless(a) && hopeless(b)) {
                // The others may meet by luck, or where one lets everybody in.
                assert!(!world.is_direct("a") && !world.is_direct("b"), "{a:?} {b:?}");
                assert!(world.path("a").why.contains("answers"), "{}", world.path("a").why);
            }
            assert_eq!([world.hosts["a"].installs, world.hosts["b"].installs], [1, 1]);
        }
    }
    assert!(direct > 50, "{direct}");
}

#[test]
fn the_kind_of_path_that_is_best_is_taken_in_the_end() {
    let (nat4, v6) = (Some(PortRestricted), Some(Firewall));
    let mut world = pair([nat4, v6], [nat4, v6]);
    world.resolves("a", "b").unwrap();
    world.run(3 * SECOND);
    assert!(world.path("a").remote.is_ipv6() && world.path("b").remote.is_ipv6());
    let mut world = pair([nat4, v6], [nat4, None]);
    world.resolves("a", "b").unwrap();
    world.run(3 * SECOND);
    assert!(world.both_direct() && world.path("a").remote.is_ipv4());
    let mut world = pair([Some(Open), None], [None, Some(Open)]);
    world.resolves("a", "b").unwrap();
    world.run(3 * SECOND);
    assert!(!world.is_direct("a"), "they share no IP version");
}

#[test]
fn an_upgrade_and_a_retreat_are_told() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.resolves("a", "b").unwrap();
    assert!(world.path("a").upgraded.is_none());
    world.run(SECOND);
    let path = world.path("a");
    assert!(path.upgraded.is_some() && path.rtt.is_some_and(|rtt| rtt <= ROUND_TRIP), "{path:?}");
    assert_eq!(path.why, "moved from the relay to a direct path");
    world.no_direct = true;
    stream(&mut world, "a", "b", 2 * SECOND);
    assert_eq!(world.path("a").why, "the direct path is silent");
}

#[test]
fn a_dead_direct_path_is_left_within_a_second_and_taken_again_when_it_is_back() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
        world.resolves("a", "b").unwrap();
        world.run(SECOND);
        assert!(world.both_direct());
        world.talk("a", "b", SECOND);
        world.no_direct = true;
        let lost = stream(&mut world, from, to, 5 * SECOND);
        assert!(gap(&lost) <= SECOND, "{:?}", gap(&lost));
        assert!(!world.is_direct(from));
        assert_eq!(stream(&mut world, from, to, 10 * SECOND).len(), 0, "the relay carries all");
        world.no_direct = false;
        assert_eq!(stream(&mut world, from, to, 70 * SECOND).len(), 0);
        assert!(world.is_direct(from), "it is tried again while in use");
        assert_eq!(world.hosts["a"].installs, 1, "one tunnel all the time");
    }
}

#[test]
fn a_direct_tunnel_without_a_relay_gets_one_in_time() {
    let mut world = World::new(22);
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND) && world.is_direct("a"));
    world.no_direct = true;
    let lost = stream(&mut world, "a", "b", 8 * SECOND);
    // The routes without a relay are tried first, a second each.
    assert!(gap(&lost) <= 4 * SECOND, "{:?}", gap(&lost));
}

#[test]
fn a_pair_that_nobody_uses_sends_what_holds_its_mappings_and_then_nothing() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.run(10 * SECOND);
    let before = world.packets("a");
    world.run(60 * SECOND);
    // One in 1.5 s, as nothing longer is proven, and the check of the relay.
    let sent = world.packets("a") - before;
    assert!((38..=45).contains(&sent), "{sent}");
    world.run(300 * SECOND);
    assert!(world.hosts["a"].tunnels.is_empty() && world.hosts["b"].tunnels.is_empty());
    for (from, to) in [("a", "b"), ("b", "a")] {
        let packet = world.send_inner(from, to);
        world.run(3 * SECOND);
        assert!(world.delivered.contains(&(to, packet)), "the first packet of either side sets it up");
        world.run(320 * SECOND);
        assert!(world.hosts["a"].tunnels.is_empty());
    }
}

fn short(mapping: Dependence, filtering: Dependence, ports: Ports, lifetime: Duration) -> Option<Gate> {
    Some(Gate::Nat(NatKind { lifetime, ..nat(mapping, filtering, ports) }))
}

#[test]
fn a_tunnel_that_is_kept_open_delivers_the_first_packet_after_ten_minutes_of_silence() {
    for lifetime in [2 * SECOND, 30 * SECOND] {
        for mapping in [Independent, AddressAndPort] {
            let gate = || short(mapping, AddressAndPort, Random, lifetime);
            let mut world = pair([gate(), None], [gate(), None]);
            world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["b.lab".into()]));
            world.run(5 * SECOND);
            assert_eq!(world.is_direct("a"), mapping == Independent, "set up without a question");
            for (from, to) in [("b", "a"), ("a", "b")] {
                world.run(600 * SECOND);
                let packet = world.send_inner(from, to);
                world.run(SECOND);
                assert!(world.delivered.contains(&(to, packet)), "{lifetime:?} {mapping:?} {from} to {to}");
            }
            assert_eq!([world.hosts["a"].installs, world.hosts["b"].installs], [1, 1]);
        }
    }
}

#[test]
fn a_list_that_was_overtaken_does_not_end_a_tunnel_that_the_peer_keeps() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["b.lab".into()]));
    world.run(60 * SECOND);
    let id = *world.hosts["b"].tunnels.keys().next().unwrap();
    let flags = CandidateFlags::default();
    let overtaken = CandidateSet { sequence: 0, heard: 0, flags, endpoints: Vec::new() };
    world.with_node("b", 0, |node, now| node.handle_candidates(now, id, &overtaken));
    world.run(330 * SECOND);
    assert_eq!([world.hosts["a"].installs, world.hosts["b"].installs], [1, 1]);
    assert!(world.hosts["b"].tunnels.contains_key(&id));
}

#[test]
fn who_is_not_kept_any_more_is_left_in_peace() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    let keep = |world: &mut World, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        world.with_node("a", 0, |node, now| node.handle_keep_open(now, &names));
    };
    keep(&mut world, &["b.lab"]);
    world.run(900 * SECOND);
    let tunnels = |world: &World| ["a", "b"].map(|name| world.hosts[name].tunnels.len());
    assert_eq!((tunnels(&world), world.hosts["b"].installs), ([1, 1], 1));
    keep(&mut world, &[]);
    world.run(330 * SECOND);
    assert_eq!(tunnels(&world), [0, 0], "nobody uses it");
    world.run(330 * SECOND);
    assert_eq!((tunnels(&world), world.hosts["a"].installs), ([0, 0], 1), "nor does it come back");
}

#[test]
fn a_tunnel_that_stands_is_kept_from_when_its_peer_is_to_be() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", 2 * SECOND));
    world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["b.lab".into()]));
    world.run(1_200 * SECOND);
    assert_eq!(["a", "b"].map(|name| world.hosts[name].installs), [1, 1], "both ends know");
}

#[test]
fn a_kept_peer_that_restarts_is_connected_again_without_a_question() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["b.lab".into(), "nobody.lab".into()]));
    world.run(5 * SECOND);
    assert_eq!(world.hosts["b"].tunnels.len(), 1);
    world.kill(crate::world::Victim::Device("b"), SECOND);
    let again = world.run_while_not(330 * SECOND, |world| world.hosts["b"].tunnels.len() == 1);
    assert!(again, "it is asked now and then whether it is there");
    assert!(world.talk("a", "b", 2 * SECOND));
}

#[test]
fn either_end_or_both_move_and_the_tunnel_follows_between_all_families() {
    let networks: [[Option<Gate>; 2]; 4] = [
        [Some(PortRestricted), None],
        [None, Some(Firewall)],
        [Some(PortRestricted), Some(Firewall)],
        [Some(Open), None],
    ];
    for from in networks {
        for to in networks {
            for mover in ["a", "b"] {
                let other = if mover == "a" { "b" } else { "a" };
                for direction in [(mover, other), (other, mover)] {
                    let mut world = pair(from, [Some(PortRestricted), Some(Firewall)]);
                    if mover == "b" {
                        world = pair([Some(PortRestricted), Some(Firewall)], from);
                    }
                    world.resolves("a", "b").unwrap();
                    assert_eq!(stream(&mut world, direction.0, direction.1, 3 * SECOND).len(), 0);
                    assert!(world.both_direct());
                    world.attach(mover, to[0], to[1]);
                    let lost = stream(&mut world, direction.0, direction.1, 3 * SECOND);
                    // Through the relay a round trip takes twice as long.
                    let bound = 3 * 2 * ROUND_TRIP + 50 * MS;
                    assert!(
                        gap(&lost) <= bound,
                        "{from:?} to {to:?}, {mover}, {direction:?}: {:?}",
                        gap(&lost)
                    );
                    assert!(world.both_direct(), "{from:?} to {to:?}, {mover}");
                    assert_eq!([world.hosts["a"].installs, world.hosts["b"].installs], [1, 1]);
                }
            }
        }
    }
}

#[test]
fn both_ends_move_at_once() {
    for to in [[Some(PortRestricted), None], [None, Some(Firewall)], [Some(Open), None]] {
        let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
        world.resolves("a", "b").unwrap();
        stream(&mut world, "a", "b", 3 * SECOND);
        assert!(world.both_direct());
        world.attach("a", to[0], to[1]);
        world.attach("b", to[0], to[1]);
        let lost = stream(&mut world, "a", "b", 5 * SECOND);
        assert!(gap(&lost) <= 3 * 2 * ROUND_TRIP + 50 * MS, "{to:?}: {:?}", gap(&lost));
        assert!(world.both_direct(), "{to:?}");
        assert_eq!([world.hosts["a"].installs, world.hosts["b"].installs], [1, 1], "{to:?}");
    }
}

#[test]
fn a_pair_that_cannot_meet_is_tried_ever_more_rarely() {
    let mut world = pair([Some(Symmetric), None], [Some(Symmetric), None]);
    world.resolves("a", "b").unwrap();
    let probes = |world: &mut World, length: Duration| {
        let before = world.packets("a");
        let mut inner = 0;
        let until = world.now + length;
        while world.now < until {
            world.send_inner("a", "b");
            world.send_inner("b", "a");
            inner += 1;
            world.run(SECOND);
        }
        world.packets("a") - before - inner
    };
    let first = probes(&mut world, 60 * SECOND);
    let later: u64 = (0..5).map(|_| probes(&mut world, 600 * SECOND)).sum();
    assert!(later / 50 < first, "{first} in the first minute, {later} in the next fifty");
}

#[test]
fn a_host_that_a_peer_names_again_and_again_is_sent_few_probes() {
    for changing in [false, true] {
        let mut world = pair([Some(Open), None], [Some(Open), None]);
        world.resolves("a", "b").unwrap();
        world.run(5 * SECOND);
        let id = *world.hosts["a"].tunnels.keys().next().unwrap();
        let victim: IpAddr = [203, 0, 113, 200].into();
        for n in 0..600 {
            let first = if changing { 1000 + 12 * n } else { 1000 };
            let port = |port| SocketAddr::new(victim, port);
            let endpoints = (first..first + 12).map(port).collect();
            let flags = CandidateFlags { moved: true, ..CandidateFlags::default() };
            let set = CandidateSet { sequence: 100 + u64::from(n), heard: 0, flags, endpoints };
            world.with_node("a", 0, |node, now| node.handle_candidates(now, id, &set));
            world.run(100 * MS);
        }
        let sent = world.sent_to[&victim];
        assert!((50..=350).contains(&sent), "{sent} probes in a minute");
        // Where the peer is heard from is probed all the same, once the path it left is no longer fresh.
        world.run(1500 * MS);
        world.attach("b", Some(Open), None);
        let lost = stream(&mut world, "a", "b", 2 * SECOND);
        assert!(gap(&lost) <= 100 * MS, "{:?}", gap(&lost));
        assert!(world.both_direct());
    }
}

#[test]
fn loss_and_disorder_do_not_drive_a_tunnel_from_a_path_that_works() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        world.tamper = Some(relay_first);
        world.add("a", Some(PortRestricted), None);
        world.add("b", Some(PortRestricted), None);
        world.settle();
        world.resolves("a", "b").unwrap();
        (world.loss, world.jitter) = (0.1, 15 * MS);
        stream(&mut world, "a", "b", 10 * SECOND);
        assert!(world.both_direct(), "seed {seed}");
        let since = world.path("a").since;
        // One-way traffic is the hard case: nothing but answers to challenges tells of the peer.
        stream(&mut world, "a", "b", 60 * SECOND);
        assert_eq!(world.path("a").since, since, "seed {seed}");
        assert_eq!(world.hosts["a"].installs, 1);
    }
}

#[test]
fn packets_go_nowhere_but_to_addresses_that_the_peer_named_or_used() {
    let mut world = pair([Some(PortRestricted), None], [Some(PortRestricted), None]);
    world.resolves("a", "b").unwrap();
    world.run(SECOND);
    let peer = virtual_address("b");
    assert!(world.hosts["a"].tunnels.values().all(|tunnel| tunnel.parameters.peer == peer));
    let id = *world.hosts["a"].tunnels.keys().next().unwrap();
    let before = world.path("a");
    let bad =
        ["127.0.0.1:53", "[::ffff:127.0.0.1]:53", "[fe80::1]:53", "[fd12:3456:789a::1]:7", "224.0.0.1:7"];
    for from in bad {
        let from: SocketAddr = from.parse().unwrap();
        world.with_node("a", 0, |node, now| {
            node.handle_probed(now, id, from);
            node.handle_peer_moved(now, id, from);
        });
    }
    // Somebody sends on what the peer sent: it answers no challenge.
    let nobody: SocketAddr = "203.0.113.200:7".parse().unwrap();
    world.with_node("a", 0, |node, now| node.handle_peer_moved(now, id, nobody));
    world.run(5 * SECOND);
    assert_eq!(world.path("a").remote, before.remote);
    assert_eq!(stream(&mut world, "a", "b", SECOND).len(), 0);
}
