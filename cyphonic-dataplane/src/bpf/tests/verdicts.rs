//! Every verdict, run by the kernel and by the host, must be the same.

use std::cell::RefCell;
use std::collections::HashSet;

use aya::programs::{TestRun, TestRunOptions};
use cyphonic_common::classify::{Egress, PeerTable, judge_egress, judge_ingress};
use cyphonic_common::map::{MAX_POLICY, PeerEntry, worker_of};
use cyphonic_common::policy::{Direction, Flow, FlowTable, MAX_FLOWS, PolicyKey, PolicyTable};
use cyphonic_common::{Counter, DropReason, InterfaceConfig};
use proptest::prelude::*;

use super::super::object::{EGRESS, GUARD, INGRESS, Object};
use super::super::{ClassifierCounters, KernelTables};
use super::{FOREIGN, OWN, PEER, address, config, tcp, udp, udp_with};

/// `TC_ACT_UNSPEC`, with which the next program on the hook judges.
const TC_ACT_NEXT: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
/// A class of peers, and the peer that is in it.
const CAMERAS: u32 = 7;
const CAMERA: &str = "fd12:3456:789a:3::11";

/// `struct __sk_buff` of the kernel's UAPI, as far as `gso_size`.
const SKB_LEN: usize = 184;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// The programs, with [`PEER`] live and everything allowed.
fn load(config: InterfaceConfig) -> (Object, KernelTables) {
    let mut object = Object::load(config, 0).unwrap();
    object.verify(EGRESS).unwrap();
    object.verify(INGRESS).unwrap();
    object.queue().unwrap().load().unwrap();
    let tables = KernelTables::new(&mut object).unwrap();
    tables.set_live(address(PEER), 0, 0);
    (object, tables)
}

/// Allows these in place of everything.
fn allow_only(tables: &KernelTables, keys: &[PolicyKey]) {
    tables.set_permissions(&keys.iter().copied().collect()).unwrap();
}

fn run(object: &mut Object, program: &'static str, packet: &[u8], gso: Option<(u32, u32)>) -> u32 {
    let mut skb = [0u8; SKB_LEN];
    if let Some((size, segments)) = gso {
        skb[GSO_SIZE..][..4].copy_from_slice(&size.to_ne_bytes());
        skb[GSO_SEGS..][..4].copy_from_slice(&segments.to_ne_bytes());
    }
    let options = TestRunOptions { data_in: Some(packet), ctx_in: Some(&skb), ..TestRunOptions::new() };
    object.classifier(program).unwrap().test_run(options).unwrap().return_value
}

fn counters(object: &Object) -> ClassifierCounters {
    ClassifierCounters::read(object).unwrap()
}

fn of(packets: u64, bytes: usize) -> Counter {
    Counter { packets, bytes: bytes as u64 }
}

#[test]
fn a_packet_to_a_peer_passes_and_is_counted() {
    let (mut object, _tables) = load(config());
    let packet = udp(OWN, PEER, b"hello");
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_NEXT);
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_NEXT);
    let counted = counters(&object);
    assert_eq!(counted.tunnel, of(2, 2 * packet.len()));
    assert_eq!(counted.tunnel_super, of(0, 0));
    assert_eq!(counted.drops().count(), 0);
}

#[test]
fn every_drop_is_counted_under_its_own_reason() {
    let cases = [
        (udp(FOREIGN, PEER, b""), DropReason::ForeignSource),
        (udp(OWN, FOREIGN, b""), DropReason::OutsideOverlay),
        (udp(OWN, OWN, b""), DropReason::ToSelf),
        (udp("fe80::1", "ff02::16", b""), DropReason::LocalNoise),
        (udp(OWN, PEER, b"cut")[..48].to_vec(), DropReason::Truncated),
        (udp(OWN, PEER, b"")[..30].to_vec(), DropReason::Truncated),
        ([udp(OWN, PEER, b""), vec![0]].concat(), DropReason::LengthMismatch),
        (vec![0x45; 60], DropReason::NotIpv6),
        (vec![0x10; 60], DropReason::BadVersion),
    ];
    let (mut object, _tables) = load(config());
    for (packet, reason) in &cases {
        let before = counters(&object).dropped(*reason);
        assert_eq!(run(&mut object, EGRESS, packet, None), TC_ACT_SHOT, "{reason}");
        assert_eq!(counters(&object).dropped(*reason), before.plus(of(1, packet.len())), "{reason}");
    }
    let counted = counters(&object);
    assert_eq!(counted.tunnel, of(0, 0));
    assert_eq!(counted.drops().map(|(_, counter)| counter.packets).sum::<u64>(), cases.len() as u64);
    assert_eq!(counted.dropped_total().packets, cases.len() as u64 - 1, "noise is not in the total");
}

#[test]
fn without_a_configuration_nothing_passes() {
    let (mut object, _tables) = load(InterfaceConfig::unconfigured());
    assert_eq!(run(&mut object, EGRESS, &udp(OWN, PEER, b""), None), TC_ACT_SHOT);
    assert_eq!(counters(&object).dropped(DropReason::NotConfigured).packets, 1);
}

#[test]
fn super_packets_are_counted_apart() {
    let (mut object, _tables) = load(config());
    let packet = udp(OWN, PEER, &[7; 2000]);
    assert_eq!(run(&mut object, EGRESS, &packet, Some((1000, 2))), TC_ACT_NEXT);
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_NEXT);
    assert_eq!(run(&mut object, INGRESS, &packet, Some((1000, 2))), TC_ACT_NEXT);
    let counted = counters(&object);
    assert_eq!((counted.tunnel, counted.tunnel_super), (of(2, 2 * packet.len()), of(1, packet.len())));
    assert_eq!((counted.ingress, counted.ingress_super), (of(1, packet.len()), of(1, packet.len())));
}

#[test]
fn who_is_known_decides_where_a_packet_goes() {
    let (mut object, tables) = load(config());
    let packet = udp(OWN, CAMERA, b"first");
    let go = |object: &mut Object| run(object, EGRESS, &packet, None);
    assert_eq!(go(&mut object), TC_ACT_NEXT);
    assert_eq!(counters(&object).unknown, of(1, packet.len()));
    tables.set_dead(address(CAMERA));
    assert_eq!(go(&mut object), TC_ACT_NEXT, "the agent tells the application");
    assert_eq!(counters(&object).dead, of(1, packet.len()));
    tables.set_live(address(CAMERA), 1, CAMERAS);
    tables.set_dead(address(CAMERA));
    assert_eq!(go(&mut object), TC_ACT_NEXT);
    tables.remove(address(CAMERA));
    assert_eq!(go(&mut object), TC_ACT_NEXT);
    let counted = counters(&object);
    assert_eq!((counted.unknown.packets, counted.dead.packets, counted.tunnel.packets), (2, 1, 4));
    assert_eq!(counted.drops().count(), 0);
}

#[test]
fn dead_addresses_are_forgotten_before_they_fill_the_map() {
    let (mut object, tables) = load(config());
    let dead = |n: u16| std::net::Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0xdead, 0, 0, 0, n);
    (0..2000).for_each(|n| tables.set_dead(dead(n)));
    for (n, expected) in [(0, false), (975, false), (976, true), (1999, true)] {
        let before = counters(&object).dead.packets;
        run(&mut object, EGRESS, &udp(OWN, &dead(n).to_string(), b""), None);
        assert_eq!(counters(&object).dead.packets > before, expected, "{n}");
    }
}

#[test]
fn a_policy_is_enforced_both_ways() {
    let (mut object, tables) = load(config());
    tables.set_live(address(CAMERA), 0, CAMERAS);
    allow_only(&tables, &[PolicyKey::new(Direction::Out, CAMERAS, 6, 554)]);
    let syn = true;
    let cases = [
        (EGRESS, tcp(OWN, CAMERA, (4000, 554), syn), true),
        (INGRESS, tcp(CAMERA, OWN, (554, 4000), !syn), true),
        (EGRESS, tcp(OWN, CAMERA, (4000, 80), syn), false),
        (EGRESS, tcp(OWN, PEER, (4000, 554), syn), false),
        (INGRESS, tcp(CAMERA, OWN, (554, 4000), syn), false),
        (INGRESS, tcp(CAMERA, OWN, (4000, 554), syn), false),
        (INGRESS, tcp(PEER, OWN, (554, 4000), !syn), false),
        // What the agent itself tells applications.
        (INGRESS, udp(OWN, OWN, b"an error"), true),
    ];
    let mut denied = 0;
    for (program, packet, passes) in cases {
        let expected = if passes { TC_ACT_NEXT } else { TC_ACT_SHOT };
        assert_eq!(run(&mut object, program, &packet, None), expected, "{program} {packet:02x?}");
        denied += u64::from(!passes);
        assert_eq!(counters(&object).dropped(DropReason::Denied).packets, denied);
    }
    allow_only(&tables, &[]);
    let packet = tcp(OWN, CAMERA, (4000, 554), syn);
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_SHOT, "permissions can be taken back");
}

#[test]
fn what_comes_past_the_tunnels_with_addresses_of_the_overlay_is_dropped() {
    let (mut object, _tables) = load(config());
    object.verify(GUARD).unwrap();
    let mut judge = |packet: &[u8], ether_type: u16| {
        let framed = [&[2; 12][..], &ether_type.to_be_bytes(), packet].concat();
        run(&mut object, GUARD, &framed, None)
    };
    let lan = "fe80::7";
    for (source, destination, expected) in [
        (lan, OWN, TC_ACT_SHOT),
        (PEER, lan, TC_ACT_SHOT),
        (PEER, OWN, TC_ACT_SHOT),
        (lan, PEER, TC_ACT_NEXT),
        ("2001:db8::2", "2001:db8::1", TC_ACT_NEXT),
        (FOREIGN, lan, TC_ACT_NEXT),
    ] {
        assert_eq!(judge(&udp(source, destination, b"x"), 0x86dd), expected, "{source} {destination}");
    }
    assert_eq!(judge(&udp(PEER, OWN, b"x"), 0x0800), TC_ACT_NEXT, "it is not IPv6");
    assert_eq!(counters(&object).dropped(DropReason::PastTunnels).packets, 3);
}

#[test]
fn a_peers_packets_go_to_its_workers_queue() {
    let (mut object, tables) = load(config());
    let queue = |object: &mut Object, packet: &[u8]| {
        // A socket filter is run behind the link layer's header, which the kernel expects in a test. (An
        // EtherType of none keeps it from refusing packets that are too short for theirs.)
        let framed = [&[0; 14][..], packet].concat();
        let options = TestRunOptions { data_in: Some(&framed), ..TestRunOptions::new() };
        object.queue().unwrap().test_run(options).unwrap().return_value
    };
    let camera = udp(OWN, CAMERA, b"");
    for queues in 1..5 {
        assert_eq!(queue(&mut object, &camera) % queues, worker_of(&address(CAMERA).octets(), queues));
    }
    tables.set_live(address(CAMERA), 3, 0);
    assert_eq!(queue(&mut object, &camera), 3);
    tables.set_dead(address(CAMERA));
    tables.remove(address(CAMERA));
    assert_eq!(queue(&mut object, &camera) % 2, worker_of(&address(CAMERA).octets(), 2));
    assert_eq!(queue(&mut object, &camera[..30]), 0, "too short for a destination");
}

/// What [`KernelTables`] hold, on the host.
struct Mirror {
    peers: Vec<(std::net::Ipv6Addr, PeerEntry)>,
    policy: HashSet<PolicyKey>,
    flows: RefCell<HashSet<Flow>>,
}

impl PeerTable for Mirror {
    fn peer(&self, address: &[u8; 16]) -> Option<PeerEntry> {
        self.peers.iter().find(|(peer, _)| peer.octets() == *address).map(|(_, entry)| *entry)
    }
}

impl PolicyTable for Mirror {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.policy.contains(key)
    }
}

impl FlowTable for Mirror {
    fn note(&self, flow: &Flow) {
        self.flows.borrow_mut().insert(*flow);
    }

    fn knows(&self, flow: &Flow) -> bool {
        self.flows.borrow().contains(flow)
    }
}

#[test]
fn answers_of_udp_pass_where_somebody_asked_as_long_as_asking_is_allowed() {
    let (mut object, tables) = load(config());
    let out = PolicyKey::everything(Direction::Out);
    let ssh = PolicyKey::new(Direction::In, 0, 6, 22);
    allow_only(&tables, &[out]);
    let (question, answer) = (udp_with(OWN, PEER, (4000, 53), b""), udp_with(PEER, OWN, (53, 4000), b""));
    assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_SHOT, "nobody has asked");
    for _ in 0..2 {
        assert_eq!(run(&mut object, EGRESS, &question, None), TC_ACT_NEXT);
        assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_NEXT);
    }
    let elsewhere = udp_with(PEER, OWN, (53, 4001), b"");
    assert_eq!(run(&mut object, INGRESS, &elsewhere, None), TC_ACT_SHOT);
    let unknown = udp_with(OWN, CAMERA, (4000, 53), b"");
    assert_eq!(run(&mut object, EGRESS, &unknown, None), TC_ACT_NEXT);
    tables.set_live(address(CAMERA), 0, CAMERAS);
    let answer_of_unknown = udp_with(CAMERA, OWN, (53, 4000), b"");
    assert_eq!(run(&mut object, INGRESS, &answer_of_unknown, None), TC_ACT_NEXT);
    for others in [&[out, ssh][..], &[out]] {
        allow_only(&tables, others);
        assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_NEXT, "other permissions harm nobody");
    }
    allow_only(&tables, &[ssh]);
    assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_SHOT);
}

#[test]
fn what_is_sent_to_who_was_dead_is_answered() {
    let (mut object, tables) = load(config());
    allow_only(&tables, &[PolicyKey::everything(Direction::Out)]);
    tables.set_dead(address(CAMERA));
    assert_eq!(run(&mut object, EGRESS, &udp_with(OWN, CAMERA, (4000, 53), b""), None), TC_ACT_NEXT);
    assert_eq!(counters(&object).dead.packets, 1);
    tables.set_live(address(CAMERA), 0, CAMERAS);
    let answer = udp_with(CAMERA, OWN, (53, 4000), b"");
    assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_NEXT);
}

#[test]
fn later_fragments_pass_behind_their_first() {
    let (mut object, tables) = load(config());
    allow_only(&tables, &[PolicyKey::new(Direction::In, 0, 17, 53)]);
    let datagram = |port, part| fragment(&udp_with(PEER, OWN, (4000, port), b"part"), part);
    for (packet, expected) in [
        (datagram(53, (1, 7)), TC_ACT_SHOT),
        (datagram(53, (0, 7)), TC_ACT_NEXT),
        (datagram(53, (1, 7)), TC_ACT_NEXT),
        (datagram(53, (1, 8)), TC_ACT_SHOT),
        (datagram(54, (0, 9)), TC_ACT_SHOT),
        (datagram(54, (1, 9)), TC_ACT_SHOT),
    ] {
        assert_eq!(run(&mut object, INGRESS, &packet, None), expected, "{packet:02x?}");
    }
}

#[test]
fn a_peers_errors_are_about_what_went_to_it() {
    let (mut object, tables) = load(config());
    allow_only(&tables, &[PolicyKey::everything(Direction::Out)]);
    let error = |to: &str| {
        let about = udp_with(OWN, to, (4000, 53), b"");
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv6(address(PEER).octets(), address(OWN).octets(), 64);
        builder.icmpv6_raw(1, 4, [0; 4]).write(&mut packet, &about).unwrap();
        packet
    };
    assert_eq!(run(&mut object, INGRESS, &error(PEER), None), TC_ACT_NEXT);
    assert_eq!(run(&mut object, INGRESS, &error(CAMERA), None), TC_ACT_SHOT);
    assert_eq!(counters(&object).dropped(DropReason::Denied).packets, 1);
}

#[test]
fn conversations_do_not_fill_the_table() {
    let (mut object, tables) = load(config());
    allow_only(&tables, &[PolicyKey::everything(Direction::Out)]);
    for port in 0..2 * MAX_FLOWS as u16 {
        assert_eq!(run(&mut object, EGRESS, &udp_with(OWN, PEER, (port, 53), b""), None), TC_ACT_NEXT);
    }
    let last = udp_with(PEER, OWN, (53, 2 * MAX_FLOWS as u16 - 1), b"");
    assert_eq!(run(&mut object, INGRESS, &last, None), TC_ACT_NEXT);
    let first = udp_with(PEER, OWN, (53, 0), b"");
    assert_eq!(run(&mut object, INGRESS, &first, None), TC_ACT_SHOT, "it went for later ones");
}

#[test]
fn what_peers_ask_does_not_end_what_this_node_has_asked() {
    let (mut object, tables) = load(config());
    allow_only(&tables, &[PolicyKey::everything(Direction::Out), PolicyKey::new(Direction::In, 0, 17, 53)]);
    let (question, answer) = (udp_with(OWN, PEER, (4000, 9), b""), udp_with(PEER, OWN, (9, 4000), b""));
    assert_eq!(run(&mut object, EGRESS, &question, None), TC_ACT_NEXT);
    for port in 0..2 * MAX_FLOWS as u16 {
        assert_eq!(run(&mut object, INGRESS, &udp_with(PEER, OWN, (port, 53), b""), None), TC_ACT_NEXT);
        assert_eq!(run(&mut object, EGRESS, &udp_with(OWN, PEER, (53, port), b""), None), TC_ACT_NEXT);
    }
    assert_eq!(run(&mut object, INGRESS, &answer, None), TC_ACT_NEXT);
}

#[test]
fn a_policy_that_has_no_room_leaves_the_one_before() {
    let (mut object, tables) = load(config());
    let syn = tcp(PEER, OWN, (4000, 22), true);
    let ssh = PolicyKey::new(Direction::In, 0, 6, 22);
    allow_only(&tables, &[ssh]);
    // With the one that is there.
    let too_many: Vec<_> =
        (0..MAX_POLICY as u16).map(|port| PolicyKey::new(Direction::In, 0, 17, port)).collect();
    assert_eq!(too_many.len(), MAX_POLICY as usize);
    for _ in 0..2 {
        tables.set_permissions(&too_many.iter().copied().collect()).unwrap_err();
        assert_eq!(run(&mut object, INGRESS, &syn, None), TC_ACT_NEXT);
        let datagram = udp_with(PEER, OWN, (4000, 1), b"");
        assert_eq!(run(&mut object, INGRESS, &datagram, None), TC_ACT_SHOT);
    }
    allow_only(&tables, &too_many[..MAX_POLICY as usize - 1]);
    assert_eq!(run(&mut object, INGRESS, &syn, None), TC_ACT_SHOT);
}

/// Empties the kernel's tables of conversations and fragmented datagrams.
fn forget_flows(object: &mut Object) {
    for table in ["FLOWS", "FRAGMENTED"] {
        let map = object.map_mut(table).unwrap();
        let mut flows: aya::maps::HashMap<_, [u8; size_of::<Flow>()], u64> = map.try_into().unwrap();
        let all: Vec<_> = flows.keys().map(Result::unwrap).collect();
        all.iter().for_each(|flow| flows.remove(flow).unwrap());
    }
}

/// The packet as a fragment at an offset of a datagram with a number, and more of it to come.
fn fragment(packet: &[u8], (offset, number): (u8, u8)) -> Vec<u8> {
    let (header, rest) = packet.split_at(40);
    let mut fragment = header.to_vec();
    let protocol = std::mem::replace(&mut fragment[6], 44);
    let length = u16::try_from(rest.len() + 8).unwrap();
    fragment[4..6].copy_from_slice(&length.to_be_bytes());
    fragment.extend([protocol, 0, 0, offset << 3 | 1, 0, 0, 0, number]);
    [&fragment[..], rest].concat()
}

/// The kernel remembers a number of conversations, the mirror all.
const FORGET_AFTER: u32 = MAX_FLOWS / 8;

#[test]
fn the_kernel_and_the_host_agree_on_mutated_packets() {
    let (object, tables) = load(config());
    tables.set_live(address(CAMERA), 1, CAMERAS);
    let policy = HashSet::from([
        PolicyKey::new(Direction::Out, CAMERAS, 6, 554),
        PolicyKey::new(Direction::In, 0, 17, 4000),
        PolicyKey::new(Direction::Out, CAMERAS, 17, 0),
    ]);
    tables.set_permissions(&policy.iter().copied().collect()).unwrap();
    let peers = vec![(address(PEER), PeerEntry::live(0, 0)), (address(CAMERA), PeerEntry::live(1, CAMERAS))];
    let mirror = Mirror { peers, policy, flows: RefCell::default() };
    let object = RefCell::new(object);
    let mutations = proptest::collection::vec((0usize..64, any::<u8>()), 0..4);
    let payload = proptest::collection::vec(any::<u8>(), 0..64);
    let kind = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let ports = (prop_oneof![Just(4000u16), Just(554)], prop_oneof![Just(4000u16), Just(554)]);
    let part = prop_oneof![3 => Just(None), 1 => (0u8..2, 0u8..4).prop_map(Some)];
    let strategy = (payload, mutations, 14usize..140, kind, ports, part);
    let cases = super::cases(1024);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    let (passed, tried) = (RefCell::new(0), RefCell::new(0u32));
    let result =
        runner.run(&strategy, |(payload, mutations, cut, (out, camera, is_tcp, syn, asked), ports, part)| {
            let peer = if camera { CAMERA } else { PEER };
            let (source, destination) = if out { (OWN, peer) } else { (peer, OWN) };
            *tried.borrow_mut() += 1;
            if tried.borrow().is_multiple_of(FORGET_AFTER) {
                forget_flows(&mut object.borrow_mut());
                mirror.flows.borrow_mut().clear();
            }
            if asked {
                let question = udp_with(destination, source, (ports.1, ports.0), b"asked");
                let (program, direction) =
                    if out { (INGRESS, Direction::In) } else { (EGRESS, Direction::Out) };
                let expected = match direction {
                    Direction::In => judge_ingress(question.as_slice(), &config(), &mirror).is_ok(),
                    Direction::Out => {
                        !matches!(judge_egress(question.as_slice(), &config(), &mirror), Egress::Drop(_))
                    }
                };
                let verdict = run(&mut object.borrow_mut(), program, &question, None);
                prop_assert_eq!(verdict, if expected { TC_ACT_NEXT } else { TC_ACT_SHOT });
            }
            let mut packet = if is_tcp {
                tcp(source, destination, ports, syn)
            } else {
                udp_with(source, destination, ports, &payload)
            };
            if let Some(part) = part {
                packet = fragment(&packet, part);
            }
            for (at, value) in mutations {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            packet.truncate(cut);
            let before = counters(&object.borrow());
            let (program, expected) = if out {
                match judge_egress(packet.as_slice(), &config(), &mirror) {
                    Egress::Drop(reason) => (EGRESS, Err(reason)),
                    Egress::Tunnel { .. } | Egress::Unknown | Egress::Dead => (EGRESS, Ok(())),
                }
            } else {
                (INGRESS, judge_ingress(packet.as_slice(), &config(), &mirror))
            };
            let verdict = run(&mut object.borrow_mut(), program, &packet, None);
            match expected {
                Ok(()) => {
                    *passed.borrow_mut() += 1;
                    prop_assert_eq!(verdict, TC_ACT_NEXT);
                }
                Err(reason) => {
                    prop_assert_eq!(verdict, TC_ACT_SHOT);
                    let after = counters(&object.borrow()).dropped(reason).packets;
                    prop_assert_eq!(after, before.dropped(reason).packets + 1);
                }
            }
            Ok(())
        });
    result.unwrap();
    assert!((cases / 10..cases - cases / 50).contains(&passed.take()), "both verdicts are tried often");
}
