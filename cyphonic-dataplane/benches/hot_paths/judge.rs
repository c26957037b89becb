//! What is decided for each packet: the classifier, the relay, the replay window. The first two are the very
//! functions of the eBPF programs, compiled for this processor.

use std::collections::HashSet;
use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{BatchSize, Criterion};
use cyphonic_common::classify::{Egress, PeerTable, judge_egress};
use cyphonic_common::map::PeerEntry;
use cyphonic_common::packet::protocol::TCP;
use cyphonic_common::policy::{Direction, EVERY_CLASS, Flow, FlowTable, PolicyKey, PolicyTable};
use cyphonic_common::relay::table::{Table, TableLeg};
use cyphonic_common::relay::{
    Departure, Family, Hop, Leg, LegEntry, OwnAddresses, PackedLeg, PassReason, RelayConfig, SliceFrame,
    Verdict, relay,
};
use cyphonic_common::{ConnectionId, InterfaceConfig};
use cyphonic_dataplane::replay::ReplayWindow;

const OWN: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
const PEER: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
const PREFIX: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One live peer, and a policy.
struct Tables(HashSet<PolicyKey>);

impl PeerTable for Tables {
    fn peer(&self, address: &[u8; 16]) -> Option<PeerEntry> {
        (*address == PEER).then(|| PeerEntry::live(0, EVERY_CLASS))
    }
}

impl PolicyTable for Tables {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.0.contains(key)
    }
}

/// Packets of TCP tell answers themselves.
impl FlowTable for Tables {
    fn note(&self, _: &Flow) {}

    fn knows(&self, _: &Flow) -> bool {
        false
    }
}

pub(crate) fn classifier(criterion: &mut Criterion) {
    let config = InterfaceConfig::new(OWN, PREFIX, 48).unwrap();
    let packet = tcp_packet();
    let one_service = PolicyKey::new(Direction::Out, EVERY_CLASS, TCP, 443);
    let mut group = criterion.benchmark_group("classifier");
    for (name, key) in [("everything_allowed", PolicyKey::EVERYTHING), ("one_service_allowed", one_service)] {
        let tables = Tables(HashSet::from([key]));
        assert_eq!(judge_egress(&packet[..], &config, &tables), Egress::Tunnel { worker: 0 });
        let judge = || judge_egress(black_box(&packet[..]), &config, &tables);
        group.bench_function(name, |bencher| bencher.iter(judge));
    }
    group.finish();
}

/// Both directions of the relay's readdressing, on a frame with 64 bytes behind the connection ID.
pub(crate) fn relaying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    for (name, to, source) in [
        ("v4_to_v4", "198.51.100.20:2000", "198.51.100.1"),
        ("v4_to_v6", "[2001:db8::20]:2000", "2001:db8::1"),
    ] {
        let (virtual_cid, real_cid) =
            (ConnectionId::from_random_data([1; 8]), ConnectionId::from_random_data([2; 8]));
        let from: SocketAddr = "192.0.2.10:1000".parse().unwrap();
        let binding = Leg {
            local: Some("192.0.2.1".parse().unwrap()),
            source: Some(source.parse().unwrap()),
            ..Leg::new(from, to.parse().unwrap(), real_cid)
        };
        let mut own = OwnAddresses::default();
        binding.local.into_iter().chain(binding.source).for_each(|address| {
            own.add(address).unwrap();
        });
        let legs = [TableLeg::new(LegEntry::new(PackedLeg::new(virtual_cid, &binding, &own).unwrap()))];
        let route = |_: &Departure| -> Result<Hop, PassReason> { Ok(Hop::new([2; 6], [4; 6], None)) };
        let table = Table { legs: &legs, own: &own, route, now_ns: 1 };
        let config = RelayConfig::new(443, false);
        // As it arrives, with room in front for the longer header.
        let arriving = ipv4_frame(virtual_cid);
        let forward = |buffer: &mut Vec<u8>| relay(&mut SliceFrame::new(buffer, HEADROOM), &config, &table);
        let verdict = forward(&mut arriving.clone());
        assert!(matches!(verdict, Verdict::Forward { from: Family::V4, .. }), "{verdict:?}");
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(|| arriving.clone(), forward, BatchSize::SmallInput);
        });
    }
    group.finish();
}

pub(crate) fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.bench_function("in_order", |bencher| {
        let (mut window, mut number) = (ReplayWindow::default(), 0);
        bencher.iter(|| {
            number += 1;
            window.accept(black_box(number))
        });
    });
    group.bench_function("replayed", |bencher| {
        let mut window = ReplayWindow::default();
        assert!(window.accept(9));
        bencher.iter(|| window.accept(black_box(9)));
    });
    group.finish();
}

const HEADROOM: usize = 64;

fn tcp_packet() -> Vec<u8> {
    let mut packet = vec![0; 1_400];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0x05, 0x50, TCP, 64]);
    packet[8..24].copy_from_slice(&OWN);
    packet[24..40].copy_from_slice(&PEER);
    packet[42..44].copy_from_slice(&443_u16.to_be_bytes());
    packet
}

/// Ethernet, IPv4, UDP with a checksum of its own choosing, and a data packet.
fn ipv4_frame(cid: ConnectionId) -> Vec<u8> {
    let mut payload = vec![0x5a; 73];
    payload[0] = 0x43;
    payload[1..9].copy_from_slice(cid.as_bytes());
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 10, 192, 0, 2, 1];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let mut udp = [0x03, 0xe8, 0x01, 0xbb, 0, 0, 0x12, 0x34];
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let ethernet = [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 0x08, 0x00];
    [&[0; HEADROOM][..], &ethernet, &ip, &udp, &payload].concat()
}
