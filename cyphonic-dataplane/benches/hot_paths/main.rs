//! What each step of a packet's way costs, alone and in the cache.
//!
//! ```text
//! cargo bench -p cyphonic-dataplane [-- seal|open|mask|split|join|checksum|classifier|relay|replay]
//! ```
//!
//! Whole rings and relays, with the kernel around them, are measured by `cargo xtask bench`.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod gso;
mod judge;
mod protect;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    hot_paths,
    protect::seal,
    protect::open,
    protect::mask,
    gso::split,
    gso::join,
    gso::checksum,
    judge::classifier,
    judge::relaying,
    judge::replay,
);
criterion_main!(hot_paths);
