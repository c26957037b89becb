//! The lab, built for real. These tests need root, and `ip`, `nft`, `sysctl`, `ping` and `iperf3`; they fail
//! without.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod default_topology;
mod links;
mod nat_behaviours;
mod nat_kinds;
