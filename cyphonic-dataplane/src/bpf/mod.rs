//! Loading, configuring and reading the eBPF programs.
//!
//! The programs come embedded in the binary (see this crate's `build.rs`). [`EgressClassifier`] puts them on the
//! virtual interface: what applications send is judged in the kernel before it wakes userspace, and both directions
//! are counted. The judgement is [`cyphonic_common::classify_egress`], the same function userspace runs where eBPF is
//! not to be had, so a node without the classifier behaves the same, only slower.
//!
//! **Invariants.** The configuration is written before a program is attached. Dropping the classifier detaches it. The
//! programs never write to a packet.

mod classifier;
mod counters;
mod error;
mod log;
mod object;

pub use classifier::{AttachKind, EgressClassifier, Options};
pub use counters::ClassifierCounters;
pub use error::BpfError;

#[cfg(test)]
mod tests;
