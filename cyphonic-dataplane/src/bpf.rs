//! Loading, configuring and reading the eBPF programs.
//!
//! The programs come embedded in the binary (see this crate's `build.rs`). [`Programs`] loads them, and has
//! them choose among several workers; [`EgressClassifier`] puts them on the virtual interface: what
//! applications send is judged in the kernel before it wakes userspace, what comes out of tunnels before it
//! reaches applications, and both are counted. On other interfaces [`EgressClassifier::guard`] keeps
//! packets with the overlay's addresses out, and those for the overlay in. [`KernelTables`] is what they know
//! of peers and policy. The judgement is [`cyphonic_common::classify`]'s, the same function userspace runs where eBPF is not to be
//! had.
//!
//! **Invariants.** The configuration is written before a program is attached. Dropping the classifier
//! detaches it. The programs never write to a packet.

mod cards;
mod classifier;
mod counters;
mod error;
mod guard;
mod log;
mod object;
pub(crate) mod pod;
mod tables;
mod workers;
mod xsk;

pub use classifier::{AttachKind, EgressClassifier, Options, Programs};
pub use counters::ClassifierCounters;
pub use error::BpfError;
pub use guard::GuardLink;
pub use tables::KernelTables;
pub use xsk::UnderlayLink;

#[cfg(test)]
mod tests;
