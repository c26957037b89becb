//! What Cyphonic's kernel half and userspace half must agree on.
//!
//! A packet is parsed, classified and counted by the same code wherever it is met: in a tc or XDP program, in
//! the agent's packet loop, in a test. This crate holds that code. It has no dependencies, allocates nothing,
//! and compiles for the host and for `bpfel-unknown-none`.
//!
//! - [`cid`], [`quic`], [`frame`], [`varint`]: the tunnel's packets, which have the form of QUIC 1-RTT
//!   packets.
//! - [`buffer`], [`packet`]: headers of Ethernet, IPv4, IPv6 and UDP, read through one bounds-checked
//!   accessor.
//! - [`classify`], [`drop_reason`]: what happens to a packet, as a pure function, and why.
//! - [`relay`]: what a relay does with a frame, and the layout of its maps.
//! - [`steer`]: which frames go past the stack to AF_XDP sockets.
//! - [`nat64`]: IPv4 addresses within a translator's prefix.
//! - [`policy`]: which peers may use which services.
//! - [`account`]: how often something may happen.
//! - [`map`], [`limits`]: the layout of shared eBPF maps, and the numbers both sides use.
//!
//! **Invariants.** No function here panics on any input. Nothing here reads memory except through
//! [`buffer::Buffer::read`] or a checked slice. There is no `unsafe` code.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod account;
pub mod buffer;
pub mod cid;
pub mod classify;
pub mod drop_reason;
pub mod frame;
pub mod limits;
pub mod map;
pub mod nat64;
pub mod packet;
pub mod policy;
pub mod quic;
pub mod relay;
pub mod steer;
pub mod stun;
pub mod varint;

pub use account::Account;
pub use buffer::{Buffer, Cursor, Truncated};
pub use cid::{CID_LEN, ConnectionId};
pub use classify::classify_egress;
pub use drop_reason::DropReason;
pub use frame::{Frame, FrameError, Frames, Part};
pub use map::{Counter, InterfaceConfig};
pub use nat64::Nat64Prefix;
pub use quic::{DatagramKind, classify_datagram};
