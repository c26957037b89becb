//! The relay in XDP between real sockets: its death and its successor, and a host that changes about it.
//!
//! ```text
//!   a ─ ra ── relay ── rb ─ b        192.0.2.0/24, 2001:db8::/64 at ra; 198.51.100.0/24, 2001:db8:1::/64 at rb
//! ```
//!
//! Needs root and the eBPF objects, and fails where one is missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod capacity;
mod host;
mod lab;
mod takeover;
