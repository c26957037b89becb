//! Every verdict of the programs in front of AF_XDP sockets, by the kernel and by the host.

#![expect(unsafe_code, reason = "namespaces are made by system calls")]

use std::io;
use std::process::Command;

use aya::maps::Array;
use aya::programs::{TestRun, TestRunOptions};
use cyphonic_common::classify::Egress;
use cyphonic_common::map::PeerEntry;
use cyphonic_common::policy::{Flow, FlowTable, PolicyKey, PolicyTable};
use cyphonic_common::steer::{
    MAX_CARDS, UnderlayConfig, judge_near_end, judge_virtual, name, steer_underlay,
};
use cyphonic_common::{ConnectionId, Counter, DropReason, InterfaceConfig};
use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::super::cards::CardSlot;
use super::super::object::{NEAR, Object};
use super::super::pod::Value;
use super::super::xsk::{load, set_underlay_socket};
use super::super::{ClassifierCounters, KernelTables, Options, Programs};
use super::on_tun::heard;
use super::{FOREIGN, OWN, PEER, address, config};
use crate::xsk::{Umem, UmemConfig, Xsk, XskConfig};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const PORT: u16 = 41_641;
const FAR: &str = "far0";

/// In a network namespace of its own: a veth pair with two queues, the programs attached to its far end's
/// queues with a socket on the first one only.
fn with_socket(test: impl FnOnce(&mut Bench) + Send) {
    with_socket_and(Options::default(), test);
}

fn with_socket_and(options: Options, test: impl FnOnce(&mut Bench) + Send) {
    let run = || {
        // SAFETY: it takes no pointers, and only this short-lived thread changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
        ip(&format!(
            "link add near0 numrxqueues 2 numtxqueues 2 type veth peer name {FAR} numrxqueues 2 numtxqueues 2"
        ));
        ip("link set near0 up");
        ip(&format!("link set {FAR} up"));
        let mut programs = Programs::load(config(), options).unwrap();
        let (umem, pool) = Umem::new(UmemConfig { frames: 64, ..UmemConfig::default() }).unwrap();
        let xsk = Xsk::open(&umem, FAR, 0, XskConfig { ring_size: 32, ..XskConfig::default() }).unwrap();
        for name in [name::VIRTUAL, name::UNDERLAY] {
            load(programs.object(), name).unwrap();
        }
        programs.object().verify(NEAR).unwrap();
        let tables = programs.tables();
        test(&mut Bench { programs, xsk, tables, index: index(FAR), slot: None });
        drop(pool);
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

struct Bench {
    programs: Programs,
    xsk: Xsk,
    tables: std::sync::Arc<KernelTables>,
    index: u32,
    slot: Option<CardSlot>,
}

impl Bench {
    fn with_sockets(&mut self) {
        self.programs.set_virtual_socket(0, &self.xsk.rx).unwrap();
        // Not the first: the slot counts.
        let (_first, slot) = (self.take_slot(1), self.take_slot(self.index));
        set_underlay_socket(self.programs.object(), &slot, 0, 0, &self.xsk.rx).unwrap();
        self.slot = Some(slot);
    }

    fn take_slot(&self, card: u32) -> CardSlot {
        self.programs.cards().take("a card", card).unwrap()
    }

    fn listen_on(&mut self, port: u16) {
        let map = self.programs.object().map_mut(name::CONFIG).unwrap();
        let mut map: Array<_, Value<UnderlayConfig>> = Array::try_from(map).unwrap();
        map.set(0, Value(UnderlayConfig::new(port)), 0).unwrap();
    }

    /// What an XDP program does with a frame that comes in by `queue`.
    fn run(&mut self, program: &'static str, frame: &[u8], queue: u32) -> u32 {
        let mut ctx = [0u8; 24];
        ctx[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        ctx[12..16].copy_from_slice(&self.index.to_ne_bytes());
        ctx[16..20].copy_from_slice(&queue.to_ne_bytes());
        let mut out = vec![0u8; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx),
            ..TestRunOptions::new()
        };
        let result = self.programs.object().xdp(program).unwrap().test_run(options).unwrap();
        assert_eq!(&out[..frame.len()], frame, "no program changes a packet");
        result.return_value
    }

    fn deny_everything(&self) {
        self.tables.set_permissions(&[].into_iter().collect()).unwrap();
    }

    fn counters(&mut self) -> ClassifierCounters {
        ClassifierCounters::read(self.programs.object()).unwrap()
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}: {status}");
}

fn index(interface: &str) -> u32 {
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the pointer is to a NUL-terminated string that lives during the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

fn inner(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(address(source).octets(), address(destination).octets(), 64)
        .udp(4000, 5000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn cid(byte: u8) -> ConnectionId {
    ConnectionId::from_random_data([byte; 8])
}

fn outer(ipv6: bool, port: u16, cid: ConnectionId) -> Vec<u8> {
    let payload = [&[0x44][..], cid.as_bytes(), &[7; 60]].concat();
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    if ipv6 {
        ethernet.ipv6([1; 16], [2; 16], 9).udp(5, port).write(&mut frame, &payload).unwrap();
    } else {
        ethernet.ipv4([1; 4], [2; 4], 9).udp(5, port).write(&mut frame, &payload).unwrap();
    }
    frame
}

fn of(packets: u64, frames: &[u8]) -> Counter {
    Counter { packets, bytes: packets * (frames.len() as u64 - 14) }
}

#[test]
fn what_applications_send_goes_to_the_queues_socket_and_is_counted() {
    with_socket(|bench| {
        let frame = inner(OWN, PEER, b"hello");
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_DROP, "no socket yet");
        assert_eq!(bench.counters().dropped(DropReason::NotConfigured), of(1, &frame));
        bench.with_sockets();
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_REDIRECT);
        assert_eq!(bench.run(name::VIRTUAL, &frame, 1), XDP_DROP, "no socket on that queue");
        let counted = bench.counters();
        assert_eq!(
            (counted.tunnel, counted.dropped(DropReason::NotConfigured)),
            (of(1, &frame), of(2, &frame))
        );
    });
}

#[test]
fn what_the_far_end_drops_is_told_if_asked_for() {
    for log_drops in [true, false] {
        with_socket_and(Options { log_drops, ..Options::default() }, |bench| {
            bench.with_sockets();
            // Noise, in which nobody is interested, a drop, and one too soon after it on the same processor.
            for source in ["fe80::1", FOREIGN, FOREIGN] {
                let destination = if source == FOREIGN { PEER } else { "ff02::16" };
                assert_eq!(bench.run(name::VIRTUAL, &inner(source, destination, b""), 0), XDP_DROP);
            }
            let told = heard(|| bench.programs.log().flush());
            // Two where the thread changed processors.
            assert!(if log_drops { (1..=2).contains(&told.len()) } else { told.is_empty() }, "{told:?}");
            let expected = format!("dropped for reason {}: from {FOREIGN} port ", DropReason::ForeignSource);
            assert!(told.iter().all(|message| message.starts_with(&expected)), "{told:?}");
        });
    }
}

#[test]
fn peers_without_a_tunnel_wake_the_agent_too() {
    with_socket(|bench| {
        bench.with_sockets();
        let frame = inner(OWN, PEER, b"hello");
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_REDIRECT);
        bench.tables.set_dead(address(PEER));
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_REDIRECT);
        bench.tables.set_live(address(PEER), 0, 0);
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_REDIRECT);
        bench.deny_everything();
        assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_DROP);
        let counted = bench.counters();
        // Those that were unknown are told apart by "unknown" alone: once before the tunnel, and the dead one
        // once.
        assert_eq!((counted.unknown, counted.dead), (of(1, &frame), of(1, &frame)));
        assert_eq!((counted.tunnel, counted.dropped(DropReason::Denied)), (of(3, &frame), of(1, &frame)));
    });
}

#[test]
fn every_drop_of_the_far_end_has_its_reason() {
    with_socket(|bench| {
        bench.with_sockets();
        let mut ipv4 = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 9);
        builder.udp(1, 2).write(&mut ipv4, b"").unwrap();
        let mut arp = inner(OWN, PEER, b"");
        arp[12..14].copy_from_slice(&[8, 6]);
        let cases = [
            (inner(FOREIGN, PEER, b""), DropReason::ForeignSource),
            (inner(OWN, FOREIGN, b""), DropReason::OutsideOverlay),
            (inner(OWN, OWN, b""), DropReason::ToSelf),
            (inner("fe80::1", "ff02::16", b""), DropReason::LocalNoise),
            (inner(OWN, PEER, b"cut")[..60].to_vec(), DropReason::Truncated),
            (inner(OWN, PEER, b"")[..40].to_vec(), DropReason::Truncated),
            ([inner(OWN, PEER, b""), vec![0]].concat(), DropReason::LengthMismatch),
            (ipv4, DropReason::NotIpv6),
            (arp, DropReason::LocalNoise),
        ];
        for (frame, reason) in cases {
            let before = bench.counters().dropped(reason);
            assert_eq!(bench.run(name::VIRTUAL, &frame, 0), XDP_DROP, "{reason}");
            assert_eq!(bench.counters().dropped(reason), before.plus(of(1, &frame)), "{reason}");
        }
        assert_eq!(bench.counters().tunnel.packets, 0);
    });
}

#[test]
fn the_underlay_gives_up_only_packets_of_this_nodes_tunnels() {
    with_socket(|bench| {
        bench.with_sockets();
        bench.tables.set_cid(cid(1), 0);
        bench.tables.set_cid(cid(2), 1);
        let run = |bench: &mut Bench, frame: &[u8], queue| bench.run(name::UNDERLAY, frame, queue);
        assert_eq!(run(bench, &outer(false, PORT, cid(1)), 0), XDP_PASS, "not configured yet");
        bench.listen_on(PORT);
        for ipv6 in [false, true] {
            assert_eq!(run(bench, &outer(ipv6, PORT, cid(1)), 0), XDP_REDIRECT);
            assert_eq!(run(bench, &outer(ipv6, PORT, cid(1)), 1), XDP_PASS, "no socket on that queue");
            assert_eq!(run(bench, &outer(ipv6, PORT, cid(2)), 0), XDP_PASS, "that worker has no socket");
            assert_eq!(run(bench, &outer(ipv6, PORT, cid(3)), 0), XDP_PASS, "nobody's tunnel");
            assert_eq!(run(bench, &outer(ipv6, PORT + 1, cid(1)), 0), XDP_PASS, "another port");
            let signalling = ConnectionId::from_random_signalling([1; 8]);
            assert_eq!(run(bench, &outer(ipv6, PORT, signalling), 0), XDP_PASS, "signalling");
        }
        bench.tables.remove_cid(cid(1));
        assert_eq!(run(bench, &outer(false, PORT, cid(1)), 0), XDP_PASS);
    });
}

#[test]
fn sockets_are_those_of_the_card_that_a_frame_came_in_by() {
    with_socket(|bench| {
        bench.listen_on(PORT);
        bench.tables.set_cid(cid(1), 0);
        let frame = outer(false, PORT, cid(1));
        bench.with_sockets();
        assert_eq!(bench.run(name::UNDERLAY, &frame, 0), XDP_REDIRECT);
        let far = std::mem::replace(&mut bench.index, index("near0"));
        assert_eq!(bench.run(name::UNDERLAY, &frame, 0), XDP_PASS, "a card without a slot");
        let _slot = bench.take_slot(bench.index);
        assert_eq!(bench.run(name::UNDERLAY, &frame, 0), XDP_PASS, "another card's slot has no socket");
        bench.index = far;
        bench.slot = None;
        assert_eq!(bench.run(name::UNDERLAY, &frame, 0), XDP_PASS, "the slot was given back");
    });
}

#[test]
fn there_are_so_many_slots_and_those_given_back_are_taken_again() {
    with_socket(|bench| {
        let mut slots: Vec<_> = (1..=MAX_CARDS).map(|card| bench.take_slot(card)).collect();
        assert!((0..MAX_CARDS).eq(slots.iter().map(CardSlot::number)));
        let refused = bench.programs.cards().take("eth9", 99).unwrap_err();
        assert!(refused.to_string().starts_with("eth9 has no place: 8 network cards"), "{refused}");
        slots.remove(3);
        assert_eq!(bench.take_slot(99).number(), 3);
    });
}

#[test]
fn the_near_end_judges_behind_the_ethernet_header() {
    /// `TC_ACT_UNSPEC`, with which the next program on the hook judges.
    const TC_ACT_NEXT: u32 = u32::MAX;
    const TC_ACT_SHOT: u32 = 2;
    with_socket(|bench| {
        let run = |object: &mut Object, frame: &[u8]| {
            let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
            object.classifier(NEAR).unwrap().test_run(options).unwrap().return_value
        };
        let frame = inner(PEER, OWN, b"from the tunnel");
        assert_eq!(run(bench.programs.object(), &frame), TC_ACT_NEXT);
        assert_eq!(bench.counters().ingress.packets, 1);
        bench.deny_everything();
        assert_eq!(run(bench.programs.object(), &frame), TC_ACT_SHOT);
        assert_eq!(bench.counters().dropped(DropReason::Denied).packets, 1);
    });
}

/// The tables as the programs have them: one peer with a tunnel, and everything allowed.
struct OnePeer;

impl cyphonic_common::classify::PeerTable for OnePeer {
    fn peer(&self, of: &[u8; 16]) -> Option<PeerEntry> {
        (*of == address(PEER).octets()).then(|| PeerEntry::live(0, 0))
    }
}

impl PolicyTable for OnePeer {
    fn holds(&self, key: &PolicyKey) -> bool {
        *key == PolicyKey::EVERYTHING
    }
}

/// Nobody asks who may do everything.
impl FlowTable for OnePeer {
    fn note(&self, flow: &Flow) {
        panic!("{flow:?} is remembered");
    }

    fn knows(&self, flow: &Flow) -> bool {
        panic!("{flow:?} is asked about");
    }
}

#[test]
fn the_kernel_and_the_host_agree_on_mutated_frames() {
    with_socket(|bench| {
        bench.with_sockets();
        bench.listen_on(PORT);
        bench.tables.set_cid(cid(1), 0);
        bench.tables.set_live(address(PEER), 0, 0);
        let own: InterfaceConfig = config();
        let bench = std::cell::RefCell::new(bench);
        let mutations = proptest::collection::vec((0usize..80, any::<u8>()), 0..4);
        let mut runner =
            proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(super::cases(2000)));
        let result = runner.run(&(0u8..3, mutations, 14usize..150), |(kind, mutations, cut)| {
            let mut frame = match kind {
                0 => inner(OWN, PEER, b"payload"),
                kind => outer(kind == 2, PORT, cid(1)),
            };
            for (at, value) in mutations {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut);
            let mut bench = bench.borrow_mut();
            let virtually = match judge_virtual(frame.as_slice(), &own, &OnePeer) {
                Egress::Drop(_) => XDP_DROP,
                _ => XDP_REDIRECT,
            };
            prop_assert_eq!(bench.run(name::VIRTUAL, &frame, 0), virtually);
            let underlay = match steer_underlay(frame.as_slice(), &UnderlayConfig::new(PORT)) {
                Some(found) if found == cid(1) => XDP_REDIRECT,
                _ => XDP_PASS,
            };
            prop_assert_eq!(bench.run(name::UNDERLAY, &frame, 0), underlay);
            let _ = judge_near_end(frame.as_slice(), &own, &OnePeer);
            Ok(())
        });
        result.unwrap();
    });
}
