//! The lab: Cyphonic's test networks on one machine.
//!
//! A [`Topology`] file names networks, routers with NATs, and hosts. [`Lab::up`] builds it from network
//! namespaces, veth cables and nftables rules, with an [emulator] on the cables that have delay, jitter, loss
//! or a rate. Inside it [`Lab::spawn`] runs real programs, [`measure`] asks ping, iperf3 and dig what they
//! see, and [`figures`] writes down what came out. Tests, the demo and the benchmarks all stand on this.
//!
//! Invariants:
//! - everything a lab makes is named after it and listed in its state file **before** it is made, so
//!   [`lab::down`] removes all of it from any process, also after a crash;
//! - labs do not see each other or the machine's own network: no namespace has a route out;
//! - a lab signals only processes that run in its own namespaces.
//!
//! Needs root, and the programs `ip`, `nft` and `sysctl`; measuring needs `ping`, `iperf3` and `dig`.

pub mod command;
pub mod congestion;
pub mod datagrams;
pub mod emulator;
mod error;
pub mod figures;
pub mod flow;
pub mod lab;
mod link;
pub mod machine;
pub mod measure;
pub mod nat;
mod netns;
pub mod node;
pub mod process;
pub mod remote;
mod state;
pub mod topology;
mod wires;

pub use self::error::LabError;
pub use self::lab::{Lab, LabConfig};
pub use self::machine::Machine;
pub use self::netns::Namespace;
pub use self::state::LabState;
pub use self::topology::{Role, Topology};
