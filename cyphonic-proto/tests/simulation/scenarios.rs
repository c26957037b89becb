//! What users do, in every kind of network.

use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::message::{Message, RouteKind};
use cyphonic_proto::nms::NmsTiming;
use cyphonic_proto::node::{
    Action, Node, NodeConfig, PeerState, ResolveError, Service, ServiceState, Target, Timing,
};
use cyphonic_proto::tunnel::Suite;

use crate::net::Gate::{self, Firewall, Open, PortRestricted, Symmetric};
use crate::world::{Victim, World, ZONE, fqdn, identity, virtual_address};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn pair(a: [Option<Gate>; 2], b: [Option<Gate>; 2]) -> World {
    let mut world = World::new(1);
    world.add("a", a[0], a[1]);
    world.add("b", b[0], b[1]);
    world.settle();
    world
}

fn open_pair() -> World {
    pair([Some(Open), None], [Some(Open), None])
}

fn relayed_pair() -> World {
    pair([Some(Symmetric), None], [Some(PortRestricted), None])
}

impl World {
    fn route(&self, device: &str, peer: &str) -> Option<RouteKind> {
        let status = self.hosts[device].node.as_ref().unwrap().status();
        status.peers.iter().find(|entry| entry.address == virtual_address(peer)).and_then(|entry| entry.route)
    }

    fn why(&self, device: &str, peer: &str) -> String {
        let status = self.hosts[device].node.as_ref().unwrap().status();
        status.peers.iter().find(|entry| entry.address == virtual_address(peer)).unwrap().reason.clone()
    }

    fn tunnels(&self, device: &str) -> usize {
        self.hosts[device].tunnels.len()
    }
}

#[test]
fn a_name_resolves_to_a_direct_tunnel() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    assert_eq!(world.route("a", "b"), Some(RouteKind::Direct));
    assert!(world.talk("a", "b", SECOND));
}

#[test]
fn the_first_packet_after_the_answer_arrives() {
    for mut world in [open_pair(), relayed_pair(), pair([Some(Open), None], [Some(Symmetric), None])] {
        world.resolves("a", "b").unwrap();
        let packet = world.send_inner("a", "b");
        world.run(SECOND);
        assert!(world.delivered.contains(&("b", packet)), "{:?}", world.route("a", "b"));
    }
}

#[test]
fn every_pair_of_networks_is_joined_by_the_route_it_allows() {
    use RouteKind::{Direct, Relay, ResponderInitiated};
    let none = None;
    let cases = [
        ([Some(Open), none], [Some(Open), none], Direct),
        ([Some(Symmetric), none], [Some(Open), none], Direct),
        ([Some(Open), none], [Some(Symmetric), none], ResponderInitiated),
        // Set up through the relay; both have met directly since.
        ([Some(PortRestricted), none], [Some(PortRestricted), none], Direct),
        ([Some(PortRestricted), none], [Some(Symmetric), none], Relay),
        ([Some(Symmetric), none], [Some(Symmetric), none], Relay),
        ([none, Some(Open)], [none, Some(Open)], Direct),
        ([none, Some(Firewall)], [none, Some(Firewall)], Direct),
        ([Some(Firewall), none], [Some(Firewall), none], Direct),
        ([Some(Open), none], [none, Some(Open)], Relay),
        ([Some(Symmetric), none], [none, Some(Firewall)], Relay),
        ([Some(Symmetric), Some(Open)], [none, Some(Firewall)], Relay),
    ];
    for (a, b, expected) in cases {
        let mut world = pair(a, b);
        world.resolves("a", "b").unwrap_or_else(|error| panic!("{a:?} {b:?}: {error}"));
        assert!(world.talk("a", "b", 2 * SECOND), "{a:?} {b:?}");
        // A dual-stack device was seen on IPv4 only: what is possible on IPv6 it learns later.
        if a[1].is_none() || a[0].is_none() {
            assert_eq!(world.route("a", "b"), Some(expected), "{a:?} {b:?}");
            assert_eq!(world.route("b", "a"), Some(expected), "{a:?} {b:?}");
        }
    }
}

#[test]
fn the_status_says_why_a_pair_is_relayed() {
    let mut world = relayed_pair();
    world.resolves("a", "b").unwrap();
    world.run(SECOND);
    let why = "relayed because a.lab is behind a symmetric NAT and b.lab behind a NAT with endpoint-independent mapping (IPv4)";
    assert_eq!(world.why("a", "b"), why);
    assert_eq!(world.why("b", "a"), why);
    let mut world = pair([Some(Open), None], [None, Some(Open)]);
    world.resolves("a", "b").unwrap();
    assert_eq!(world.why("a", "b"), "relayed because a.lab (IPv4) and b.lab (IPv6) share no IP version");
}

#[test]
fn a_direct_route_that_fails_is_replaced_by_the_relay_within_the_answer() {
    let mut world = pair([Some(Open), None], [Some(Open), None]);
    // A filter that nobody knows of: both addresses are public, and nothing passes between them.
    world.no_direct = true;
    world.resolves("a", "b").unwrap();
    assert_eq!(world.route("a", "b"), Some(RouteKind::Relay));
    assert!(world.why("a", "b").contains("direct, responder-initiated failed"), "{}", world.why("a", "b"));
    assert!(world.talk("a", "b", 2 * SECOND));
}

#[test]
fn who_asks_for_a_peer_that_has_just_vanished_is_told_so_whatever_the_network_delays() {
    let (nms, node) = (NmsTiming::default(), Timing::default());
    assert!(nms.responder + 400 * MS <= node.relay_attempt, "both begin within one crossing");
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.add("a", Some(Symmetric), None);
        world.add("b", Some(PortRestricted), None);
        world.settle();
        world.jitter = 400 * MS;
        // Without a word: the NMS believes it connected.
        world.cut_off.insert(Victim::Device("b"));
        let query = world.resolve("a", "b");
        let answer = world.answer(query);
        let told = |reason: &str| reason == "b.lab did not answer the NMS in time";
        assert!(
            matches!(&answer, Err(ResolveError::PeerRefused { reason }) if told(reason)),
            "{seed}: {answer:?}"
        );
    }
}

#[test]
fn a_peer_that_was_away_is_reached_once_it_is_back_though_no_relay_helps() {
    for relays in [0, 1] {
        let mut world = open_pair();
        world.cloud.listed = relays;
        world.kill(Victim::Nms, SECOND);
        world.cut_off.insert(Victim::Trs);
        world.run(20 * SECOND);
        world.settle();
        world.attach("b", None, None);
        let query = world.resolve("a", "b");
        assert!(world.answer(query).is_err());
        world.attach("b", Some(Open), None);
        world.run(SECOND);
        world.resolves("a", "b").unwrap();
        assert!(world.talk("a", "b", 2 * SECOND), "{relays} relays");
    }
}

#[test]
fn a_route_that_failed_is_tried_again_in_another_network() {
    let mut world = open_pair();
    world.no_direct = true;
    world.resolves("a", "b").unwrap();
    let failed =
        |world: &World| world.hosts["a"].node.as_ref().unwrap().status().peers[0].failed_routes.clone();
    assert_eq!(failed(&world), [RouteKind::Direct, RouteKind::ResponderInitiated]);
    world.attach("a", Some(Open), None);
    assert_eq!(failed(&world), []);
}

#[test]
fn simultaneous_questions_share_one_set_up() {
    let mut world = relayed_pair();
    let queries: Vec<_> = (0..100).map(|_| world.resolve("a", "b")).collect();
    for query in queries {
        assert_eq!(world.answer(query), Ok(virtual_address("b")));
    }
    world.run(SECOND);
    assert_eq!((world.hosts["a"].installs, world.hosts["b"].installs), (1, 1));
    world.resolves("a", "b").unwrap();
    assert_eq!(world.hosts["a"].installs, 1, "a tunnel that stands answers at once");
}

#[test]
fn both_ends_may_set_up_towards_each_other_at_once() {
    for mut world in [open_pair(), relayed_pair(), pair([Some(Open), None], [Some(Symmetric), None])] {
        let (x, y) = (world.resolve("a", "b"), world.resolve("b", "a"));
        assert_eq!(world.answer(x), Ok(virtual_address("b")));
        assert_eq!(world.answer(y), Ok(virtual_address("a")));
        assert!(world.talk("a", "b", 2 * SECOND));
        world.run(20 * SECOND);
        assert_eq!((world.tunnels("a"), world.tunnels("b")), (1, 1), "both ends keep the same one");
        assert!(world.talk("a", "b", 2 * SECOND));
    }
}

#[test]
fn a_packet_without_a_question_sets_the_tunnel_up_and_arrives() {
    let mut world = relayed_pair();
    let packet = world.send_inner("a", "b");
    world.run(3 * SECOND);
    assert!(world.delivered.contains(&("b", packet)));
}

#[test]
fn what_does_not_exist_is_told_from_what_is_offline() {
    let mut world = open_pair();
    world.run(15 * SECOND);
    assert_eq!(world.resolves("a", "nobody"), Err(ResolveError::NoSuchPeer));
    world.cloud.enrol("late");
    assert!(matches!(world.resolves("a", "late"), Err(ResolveError::Offline { .. })));
    let status = world.hosts["a"].node.as_ref().unwrap().status();
    let late = status.peers.iter().find(|peer| peer.fqdn.as_deref() == Some("late.lab")).unwrap();
    assert_eq!(late.state, PeerState::Offline);
    let outside = world.ask("a", Target::Name("example.com".into()));
    assert_eq!(world.answer(outside), Err(ResolveError::NotInZone));
    let unknown = world.ask("a", Target::Address("fd12:3456:789a::1".parse().unwrap()));
    assert_eq!(world.answer(unknown), Err(ResolveError::NoSuchPeer));
    let foreign = world.ask("a", Target::Address("fd77::1".parse().unwrap()));
    assert_eq!(world.answer(foreign), Err(ResolveError::NotInZone));
    let own = world.ask("a", Target::Name("A.LAB.".into()));
    assert_eq!(world.answer(own), Ok(virtual_address("a")));
    assert_eq!(world.hosts["a"].installs, 0);
}

#[test]
fn what_does_not_exist_is_told_of_for_a_while() {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut world = open_pair();
    world.run(15 * SECOND);
    for name in ["nobody", "late"] {
        assert_eq!(world.resolves("a", name), Err(ResolveError::NoSuchPeer));
    }
    let named = |world: &World| {
        let peers = world.hosts["a"].node.as_ref().unwrap().status().peers;
        peers.into_iter().filter_map(|peer| peer.fqdn).collect::<Vec<_>>()
    };
    world.run(9 * MINUTE);
    assert_eq!(named(&world).len(), 2);
    assert_eq!(world.resolves("a", "nobody"), Err(ResolveError::NoSuchPeer));
    world.cloud.enrol("late");
    assert!(matches!(world.resolves("a", "late"), Err(ResolveError::Offline { .. })));
    world.run(5 * MINUTE);
    world.cut_off.insert(Victim::Nms);
    assert!(matches!(world.resolves("a", "nobody"), Err(error) if error != ResolveError::NoSuchPeer));
    world.cut_off.clear();
    world.run(4 * MINUTE);
    assert_eq!(named(&world).len(), 2, "one was asked for again, the other is a device now");
    world.run(2 * MINUTE);
    assert_eq!(named(&world), ["late.lab"]);
}

#[test]
fn packets_to_nobody_are_answered_as_unreachable() {
    let mut world = open_pair();
    world.run(15 * SECOND);
    world.send_inner("a", "nobody");
    world.run(SECOND);
    assert_eq!(world.hosts["a"].dropped, [virtual_address("nobody")]);
}

#[test]
fn without_the_cloud_the_answer_says_what_cannot_be_reached() {
    let mut world = World::new(1);
    world.cloud.kill(Victim::As);
    world.cloud.kill(Victim::Nms);
    world.cloud.kill(Victim::Trs);
    world.add("a", Some(Open), None);
    let error = world.resolves("a", "b").unwrap_err();
    assert!(matches!(&error, ResolveError::NotConnected { why } if why.contains("NMS")), "{error}");
}

#[test]
fn a_node_that_learns_late_where_the_as_is_logs_in_then() {
    let now = World::new(1).now;
    let config = NodeConfig {
        pinned_relay: None,
        identity: identity("a"),
        zone: ZONE.into(),
        addresses: Vec::new(),
        as_addresses: Vec::new(),
        as_name: "as.lab".into(),
        cached: None,
        suites: vec![Suite::Aes128Gcm],
        inner_mtu: 1420,
        software_version: "test".into(),
        timing: Timing::default(),
    };
    let mut node = Node::new(config, [1; 32], now);
    let connects = |node: &mut Node| {
        let actions: Vec<_> = std::iter::from_fn(|| node.poll_action()).collect();
        actions.into_iter().find_map(|action| match action {
            Action::Connect { service: Service::As, addresses, .. } => Some(addresses),
            _ => None,
        })
    };
    assert_eq!(connects(&mut node), None);
    node.handle_as_addresses(now, Vec::new());
    assert_eq!(connects(&mut node), None);
    let address: SocketAddr = "192.0.2.1:443".parse().unwrap();
    node.handle_as_addresses(now, vec![address]);
    assert_eq!(connects(&mut node), Some(vec![address]));
}

#[test]
fn a_node_starts_from_its_cache_while_the_as_is_down() {
    let mut world = open_pair();
    world.kill(Victim::As, 3600 * SECOND);
    world.kill(Victim::Device("a"), SECOND);
    world.run(5 * SECOND);
    let status = world.hosts["a"].node.as_ref().unwrap().status();
    assert!(status.registered && !status.logged_in);
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
}

#[test]
fn a_tunnel_outlives_the_nms_and_questions_for_it_are_answered_meanwhile() {
    for mut world in [open_pair(), relayed_pair()] {
        world.resolves("a", "b").unwrap();
        world.kill(Victim::Nms, 120 * SECOND);
        for _ in 0..20 {
            world.run(5 * SECOND);
            assert!(world.talk("a", "b", SECOND));
        }
        world.resolves("a", "b").unwrap();
        assert_eq!(world.hosts["a"].installs, 1, "untouched");
        world.run(60 * SECOND);
        assert!(world.hosts["a"].node.as_ref().unwrap().status().registered, "registered again");
        assert!(world.talk("a", "b", SECOND));
        assert_eq!(world.hosts["a"].installs, 1);
    }
}

#[test]
fn a_relayed_tunnel_outlives_the_trs() {
    let mut world = relayed_pair();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.kill(Victim::Trs, SECOND / 2);
    world.run(3 * SECOND);
    assert_eq!(world.hosts["a"].installs, 1, "its legs are restored");
    assert!(world.talk("a", "b", SECOND));
}

#[test]
fn a_peer_that_vanished_is_noticed_and_found_again() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.kill(Victim::Device("b"), 20 * SECOND);
    for _ in 0..40 {
        world.send_inner("a", "b");
        world.run(SECOND / 4);
    }
    assert_eq!(world.tunnels("a"), 0, "10 s of silence are enough");
    world.run(15 * SECOND);
    assert!(world.talk("a", "b", 5 * SECOND));
}

#[test]
fn a_question_for_a_peer_that_restarted_finds_the_dead_tunnel_out() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.kill(Victim::Device("b"), SECOND);
    world.run(20 * SECOND);
    assert_eq!(world.tunnels("a"), 1, "without use nobody notices");
    world.resolves("a", "b").unwrap();
    world.run(3 * SECOND);
    assert_eq!((world.hosts["a"].installs, world.tunnels("b")), (2, 1), "the question was doubt enough");
}

#[test]
fn an_unused_tunnel_is_closed_at_both_ends_and_a_used_one_kept_alive() {
    let mut world = relayed_pair();
    world.resolves("a", "b").unwrap();
    for _ in 0..30 {
        world.run(30 * SECOND);
        assert!(world.talk("a", "b", SECOND));
    }
    assert_eq!(world.hosts["a"].installs, 1, "15 minutes of use");
    world.run(330 * SECOND);
    assert_eq!((world.tunnels("a"), world.tunnels("b")), (0, 0));
    assert_eq!(world.cloud.relays[0].map.len(), 2, "the relay notices by itself, later");
    world.run(620 * SECOND);
    assert!(world.cloud.relays[0].map.is_empty());
}

#[test]
fn an_old_tunnel_in_use_is_replaced_before_it_ends() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    let mut lost = 0;
    for _ in 0..370 {
        let packet = world.send_inner("a", "b");
        world.run(10 * SECOND);
        lost += u32::from(!world.delivered.contains(&("b", packet)));
    }
    assert_eq!((world.hosts["a"].installs, lost), (2, 0));
    assert_eq!((world.tunnels("a"), world.tunnels("b")), (1, 1));
}

/// The NMS directs both ends, and one does not hear of it.
#[test]
fn an_old_tunnel_stays_where_the_peer_hears_of_no_successor() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    for _ in 0..359 {
        world.send_inner("a", "b");
        world.run(10 * SECOND);
    }
    world.without_nms.insert("b");
    assert!(world.run_while_not(20 * SECOND, |world| world.hosts["a"].installs == 2), "no successor");
    world.run(5 * SECOND);
    assert!(world.talk("a", "b", SECOND), "the successor is still believed in");
    world.run(15 * SECOND);
    assert!(world.talk("a", "b", SECOND), "the old tunnel is gone");
    assert_eq!((world.tunnels("a"), world.tunnels("b")), (1, 1));
    assert_eq!(world.hosts["b"].installs, 1);
}

#[test]
fn a_node_that_is_cut_off_comes_back() {
    let mut world = relayed_pair();
    world.resolves("a", "b").unwrap();
    world.cut(Victim::Device("b"));
    world.run(60 * SECOND);
    world.cut_off.clear();
    assert!(world.run_while_not(60 * SECOND, |w| w.hosts["b"].node.as_ref().unwrap().status().registered));
    assert!(world.talk("a", "b", 20 * SECOND));
}

#[test]
fn a_reset_closes_the_tunnel_at_both_ends_and_a_shutdown_all() {
    let mut world = open_pair();
    world.resolves("a", "b").unwrap();
    world.with_node("a", 0, |node, now| node.handle_reset(now, Some(Target::Name("b.lab".into()))));
    world.run(SECOND);
    assert_eq!((world.tunnels("a"), world.tunnels("b")), (0, 0));
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
    world.with_node("b", 0, |node, now| node.handle_shutdown(now));
    world.run(SECOND);
    assert_eq!((world.tunnels("a"), world.tunnels("b")), (0, 0));
    let status = world.hosts["b"].node.as_ref().unwrap().status();
    assert!(status.services.iter().all(|service| service.state == ServiceState::Unwanted), "{status:?}");
    let late = world.resolve("b", "a");
    assert!(matches!(world.answer(late), Err(ResolveError::Cancelled { .. })));
}

#[test]
fn a_newer_version_with_unknown_fields_is_understood() {
    let mut world = World::new(1);
    world.unknown_fields = true;
    world.tamper = Some(|message| match message {
        Message::LoginRequest(m) => m.protocol_version = 7,
        Message::LoginResponse(m) => m.protocol_version = 7,
        Message::RegistrationRequest(m) => m.protocol_version = 7,
        Message::RegistrationResponse(m) => m.protocol_version = 7,
        Message::TunnelRequest(m) => m.protocol_version = 7,
        Message::TunnelResponse(m) => m.protocol_version = 7,
        _ => {}
    });
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    world.resolves("a", "b").unwrap();
    assert!(world.talk("a", "b", SECOND));
}

#[test]
fn a_version_too_old_is_refused_by_name() {
    let mut world = World::new(1);
    world.tamper = Some(|message| {
        if let Message::RegistrationRequest(m) = message {
            m.protocol_version = 0;
        }
    });
    world.add("a", Some(Open), None);
    world.run(5 * SECOND);
    let error = world.resolves("a", "b").unwrap_err().to_string();
    assert!(error.contains("protocol version 0 is not understood"), "{error}");
}

/// Also where it was asked for by its address, and was faster itself.
#[test]
fn a_peer_with_a_tunnel_is_known_by_name() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.add("a", Some(Open), None);
        world.add("b", Some(Open), None);
        world.settle();
        (world.delay, world.jitter) = (Duration::from_millis(5), Duration::from_millis(50));
        world.send_inner("a", "b");
        world.send_inner("b", "a");
        world.run(Duration::from_secs(5));
        for (name, other) in [("a", "b"), ("b", "a")] {
            let status = world.hosts[name].node.as_ref().unwrap().status();
            let [peer] = &status.peers[..] else { panic!("{:?}", status.peers) };
            assert!(!peer.tunnels.is_empty(), "seed {seed}, {name}");
            assert_eq!(peer.fqdn.as_ref(), Some(&fqdn(other)), "seed {seed}, {name}");
        }
    }
}
