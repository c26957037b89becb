//! Every verdict, run by the kernel and by the host, must be the same.

use aya::programs::{TestRun, TestRunOptions};
use cyphonic_common::{Counter, DropReason, InterfaceConfig, Verdict, classify_egress};
use proptest::prelude::*;

use super::super::ClassifierCounters;
use super::super::object::{EGRESS, INGRESS, Object};
use super::{FOREIGN, OWN, PEER, config, udp};

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;

/// `struct __sk_buff` of the kernel's UAPI, as far as `gso_size`.
const SKB_LEN: usize = 184;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

fn load(config: InterfaceConfig) -> Object {
    let mut object = Object::load(config, 0).unwrap();
    object.verify(EGRESS).unwrap();
    object.verify(INGRESS).unwrap();
    object
}

fn run(object: &mut Object, program: &'static str, packet: &[u8], gso: Option<(u32, u32)>) -> u32 {
    let mut skb = [0u8; SKB_LEN];
    if let Some((size, segments)) = gso {
        skb[GSO_SIZE..][..4].copy_from_slice(&size.to_ne_bytes());
        skb[GSO_SEGS..][..4].copy_from_slice(&segments.to_ne_bytes());
    }
    let options = TestRunOptions { data_in: Some(packet), ctx_in: Some(&skb), ..TestRunOptions::new() };
    object.program(program).unwrap().test_run(options).unwrap().return_value
}

fn counters(object: &Object) -> ClassifierCounters {
    ClassifierCounters::read(object).unwrap()
}

fn of(packets: u64, bytes: usize) -> Counter {
    Counter { packets, bytes: bytes as u64 }
}

#[test]
fn a_packet_to_a_peer_passes_and_is_counted() {
    let mut object = load(config());
    let packet = udp(OWN, PEER, b"hello");
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_OK);
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_OK);
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
    let mut object = load(config());
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
    let mut object = load(InterfaceConfig::unconfigured());
    assert_eq!(run(&mut object, EGRESS, &udp(OWN, PEER, b""), None), TC_ACT_SHOT);
    assert_eq!(counters(&object).dropped(DropReason::NotConfigured).packets, 1);
}

#[test]
fn super_packets_are_counted_apart() {
    let mut object = load(config());
    let packet = udp(OWN, PEER, &[7; 2000]);
    assert_eq!(run(&mut object, EGRESS, &packet, Some((1000, 2))), TC_ACT_OK);
    assert_eq!(run(&mut object, EGRESS, &packet, None), TC_ACT_OK);
    assert_eq!(run(&mut object, INGRESS, &packet, Some((1000, 2))), TC_ACT_OK);
    let counted = counters(&object);
    assert_eq!((counted.tunnel, counted.tunnel_super), (of(2, 2 * packet.len()), of(1, packet.len())));
    assert_eq!((counted.ingress, counted.ingress_super), (of(1, packet.len()), of(1, packet.len())));
}

#[test]
fn the_kernel_and_the_host_agree_on_mutated_packets() {
    let object = std::cell::RefCell::new(load(config()));
    let mutations = proptest::collection::vec((0usize..64, any::<u8>()), 0..4);
    let strategy = (proptest::collection::vec(any::<u8>(), 0..64), mutations, 14usize..120);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(512));
    let result = runner.run(&strategy, |(payload, mutations, cut)| {
        let mut packet = udp(OWN, PEER, &payload);
        for (at, value) in mutations {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(cut);
        let before = counters(&object.borrow());
        let expected = match classify_egress(packet.as_slice(), &config()) {
            Verdict::Tunnel { .. } => TC_ACT_OK,
            Verdict::Drop(_) => TC_ACT_SHOT,
        };
        prop_assert_eq!(run(&mut object.borrow_mut(), EGRESS, &packet, None), expected);
        if let Verdict::Drop(reason) = classify_egress(packet.as_slice(), &config()) {
            let after = counters(&object.borrow()).dropped(reason).packets;
            prop_assert_eq!(after, before.dropped(reason).packets + 1);
        }
        Ok(())
    });
    result.unwrap();
}
