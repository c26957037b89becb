//! What an operator will meet: services and agents die at any time and come back, in one lab with separate
//! processes.
//!
//! Needs root, and fails without. How quickly things recover is not promised here, only that they do while a
//! patient user still waits; the figures are the demo's.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it measured"
)]

mod access;
mod deaths;
mod gateway;
mod guard;
mod netcheck;
mod overlay;
#[path = "../common/programs.rs"]
mod programs;
mod revocation;
mod standby;
mod stands_for;
mod storage;
mod udp_blocked;
mod wrong_clock;
mod xdp_relay;
