//! Cyphonic's data plane: what every packet passes.
//!
//! - [`bpf`]: the eBPF programs: loading, attaching, reading their counters.
//! - [`protect`], [`replay`]: packet protection of tunnel data (RFC 9001) and its anti-replay window (RFC
//!   6479).
//! - [`udp`]: the node's one UDP port, in batches, with segmentation offloads.
//! - [`ring`], [`tun`]: encapsulation rings between the virtual interface and the port.
//! - [`netdevice`]: what interfaces are asked and told, and what their drivers can do.
//! - [`shard`]: several rings, one a worker, that look like one.
//! - [`sync`]: locks that a panic does not close.
//! - [`thread`]: how the kernel schedules the threads of rings and relay.
//! - [`memory`]: gives back what only starting needed.
//! - [`dumps`]: no core dumps of a process with keys.
//! - [`xsk`]: AF_XDP sockets: packets between an interface's XDP program and userspace.
//! - [`relay`]: the relay's map from connection IDs to legs, and its userspace forwarding loop.
//!
//! All userspace `unsafe` of the project lives in this crate, each block with the reason why it holds. Per
//! packet there is no allocation, lock or system call; those are paid per batch, and at a TUN device per
//! super-packet. What has to wait is copied.

#[cfg(feature = "bench")]
pub mod bench;
pub mod bpf;
pub mod dumps;
mod errno;
mod gso;
mod hash;
mod memlock;
pub mod memory;
pub mod netdevice;
#[cfg(feature = "bench")]
pub mod null_gso;
pub mod protect;
pub mod relay;
pub mod replay;
pub mod ring;
pub mod shard;
pub mod sync;
mod thread;
pub mod tun;
pub mod udp;
pub mod xsk;
