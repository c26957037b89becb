//! Packet protection: whole packets, header protection, packet number and replay window included.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use cyphonic_common::ConnectionId;
use cyphonic_dataplane::bench::HeaderMask;
use cyphonic_dataplane::protect::{HEADER_LEN, Opener, Sealer, Secret, Suite, TAG_LEN, pair};

/// Bytes of frames in a packet.
const SIZES: [usize; 3] = [64, 512, 1_400];
/// Packets sealed or opened between two looks at the clock: few enough to stay in the cache.
const BATCH: usize = 64;
/// Packets after which keys are made anew; they would be used up at twice as many.
const MOST: u64 = 1 << 22;

pub(crate) fn seal(criterion: &mut Criterion) {
    each(criterion, "seal", |tunnel, packets| {
        let start = Instant::now();
        for packet in packets.iter_mut() {
            black_box(tunnel.seal(packet));
        }
        start.elapsed()
    });
}

pub(crate) fn open(criterion: &mut Criterion) {
    each(criterion, "open", |tunnel, packets| {
        for packet in packets.iter_mut() {
            tunnel.seal(packet);
        }
        let start = Instant::now();
        for packet in packets.iter_mut() {
            black_box(tunnel.opener.open(packet).unwrap().packet_number);
        }
        start.elapsed()
    });
}

pub(crate) fn mask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mask");
    for suite in Suite::ALL {
        let mask = HeaderMask::new(suite);
        group.bench_function(name(suite), |bencher| bencher.iter(|| mask.of(black_box(&[3; 16]))));
    }
    group.finish();
}

/// Measures `batch`, which handles some packets and says how long that took.
fn each(criterion: &mut Criterion, what: &str, batch: impl Fn(&mut Tunnel, &mut [Vec<u8>]) -> Duration) {
    let mut group = criterion.benchmark_group(what);
    for suite in Suite::ALL {
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(name(suite), size), |bencher| {
                let mut tunnel = Tunnel::new(suite);
                let mut packets = vec![vec![0x5a; HEADER_LEN + size + TAG_LEN]; BATCH];
                bencher.iter_custom(|count| {
                    let (mut left, mut total) = (usize::try_from(count).unwrap(), Duration::ZERO);
                    while left > 0 {
                        if tunnel.sealer.packets() > MOST {
                            tunnel = Tunnel::new(suite);
                        }
                        let now = left.min(BATCH);
                        total += batch(&mut tunnel, &mut packets[..now]);
                        left -= now;
                    }
                    total
                });
            });
        }
    }
    group.finish();
}

/// Both halves of one direction.
struct Tunnel {
    sealer: Sealer,
    opener: Opener,
    cid: ConnectionId,
}

impl Tunnel {
    fn new(suite: Suite) -> Self {
        let (there, back) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let (sealer, _) = pair(suite, &there, &back);
        let (_, opener) = pair(suite, &back, &there);
        Self { sealer, opener, cid: ConnectionId::from_random_data([3; 8]) }
    }

    fn seal(&mut self, packet: &mut [u8]) -> usize {
        let payload = packet.len() - HEADER_LEN - TAG_LEN;
        self.sealer.seal(self.cid, self.cid, packet, payload).unwrap()
    }
}

/// As in the names of figures (`cargo xtask bench crypto`).
fn name(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes128Gcm => "aes_128_gcm",
        Suite::ChaCha20Poly1305 => "chacha20_poly1305",
    }
}
