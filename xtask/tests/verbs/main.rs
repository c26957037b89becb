//! The verbs of `cargo xtask` that bring an overlay up in a lab, in their short forms, each held to the
//! figures that it writes.
//!
//! Needs root, and fails without. Programs are not optimised here and the machine may be busy, so promises of
//! time are left to the verbs themselves; every other one counts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chaos;
mod demo;
mod mtu;
mod nat_grid;
mod over_ssh;
#[path = "../common/programs.rs"]
mod programs;
mod roam;
mod run;
mod scale;
