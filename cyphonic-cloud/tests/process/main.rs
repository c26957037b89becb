//! The program itself: its command line, its exit, and what survives `kill -9`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod access;
mod backup;
mod check;
#[path = "../common/client.rs"]
mod client;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod durability;
mod monitoring;
mod program;
mod service;
mod standby;
