//! The TRS over loopback: two devices bind, and data packets and handshakes pass between them, also while they
//! move.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/mod.rs"]
mod common;
mod legs;
mod moves;
mod node;
