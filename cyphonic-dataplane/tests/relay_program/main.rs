//! The relay's XDP program, run by the kernel with `BPF_PROG_TEST_RUN`: every verdict, every rewrite byte for
//! byte against frames that etherparse builds from nothing, and agreement with the same code in userspace on
//! damaged frames.
//!
//! Needs root and the eBPF objects, and fails where one is missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use cyphonic_common::ConnectionId;

mod agreement;
mod expected;
#[path = "../../../cyphonic-common/src/relay/tests/frames.rs"]
mod frames;
mod lab;
mod legs;
mod verdicts;
