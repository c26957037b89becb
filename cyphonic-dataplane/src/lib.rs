//! Cyphonic's data plane: what every packet passes.
//!
//! - [`protect`], [`replay`]: packet protection of tunnel data (RFC 9001) and its anti-replay window (RFC 6479).
//! - [`udp`]: the node's one UDP port, in batches, with segmentation offloads.
//! - [`relay`]: the relay's map from connection IDs to legs, and its userspace forwarding loop.
//!
//! All userspace `unsafe` of the project lives in this crate, each block with the reason why it holds. Per packet
//! there is no allocation, lock or system call; those are paid per batch.

pub mod protect;
pub mod relay;
pub mod replay;
pub mod udp;
