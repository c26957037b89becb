//! Super-packets: cutting one, joining its packets again, and the checksum that both need.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use cyphonic_dataplane::bench::{Joiner, TcpSuperPacket, checksum as sum};

/// The largest super-packet, and the payload of each packet that it is cut into.
const WHOLE: usize = 65_535;
const SEGMENT: u16 = 1_360;
/// Room for the packets, each with its headers.
const ROOM: usize = 80_000;

pub(crate) fn split(criterion: &mut Criterion) {
    let (whole, mut out) = (TcpSuperPacket::new(WHOLE, SEGMENT), vec![0; ROOM]);
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Bytes(WHOLE as u64));
    group.bench_function("tcp_64_KiB", |bencher| {
        bencher.iter(|| whole.cut(&mut out, |len| _ = black_box(len)))
    });
    group.finish();
}

pub(crate) fn join(criterion: &mut Criterion) {
    let (mut packets, mut lens) = (vec![0; ROOM], Vec::new());
    TcpSuperPacket::new(WHOLE, SEGMENT).cut(&mut packets, |len| lens.push(len));
    let mut joiner = Joiner::default();
    assert_eq!(joiner.join(&packets, &lens), 1, "all packets become one");
    let mut group = criterion.benchmark_group("join");
    group.throughput(Throughput::Bytes(lens.iter().sum::<usize>() as u64));
    group.bench_function("tcp_64_KiB", |bencher| bencher.iter(|| joiner.join(black_box(&packets), &lens)));
    group.finish();
}

pub(crate) fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for size in [64, 1_400, WHOLE] {
        let bytes = vec![0xa5; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| sum(black_box(&bytes)))
        });
    }
    group.finish();
}
