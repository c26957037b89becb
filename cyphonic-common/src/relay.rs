//! The relay: what its map holds, and what happens to a frame that arrives at it.
//!
//! A leg is one direction of a relayed tunnel, stored under the virtual connection ID that its packets carry.
//! The relay replaces that ID by the receiver's own, readdresses the packet and sends it on, between IPv4 and
//! IPv6 where the two ends differ. It holds no key, so it can neither read nor forge.
//!
//! - [`leg`]: a leg and its state, as they stand in the kernel's map; [`rate`]: a leg's rate limit.
//! - [`map`]: the other maps: configuration, counters, names, and the version of the layout.
//! - [`origin`]: whose a packet is, for the XDP program and for the relay in userspace alike.
//! - [`forward`]: the verdict on a frame, from [`arrival`] to [`departure`]. Generic over the frame and over
//!   where legs and routes come from, so that the XDP program, tests and fuzzers run the same code.
//! - [`slice`], [`table`]: frame and surroundings of tests and fuzzers.
//!
//! **Invariants.** A frame that passes to the stack is as it came. What leaves has the UDP payload's length
//! it came with, its DSCP and ECN, a hop limit one below, and a right checksum if it came with one.

pub mod address;
pub mod arrival;
pub mod departure;
pub mod forward;
pub mod leg;
pub mod map;
pub mod origin;
pub mod place;
pub mod rate;
pub mod slice;
pub mod table;
#[cfg(test)]
mod tests;
pub mod watch;

pub use arrival::Arrival;
pub use departure::Departure;
pub use forward::{Entry, Frame, Hop, Relay, Verdict, relay};
pub use leg::{Leg, LegEntry, LegError, OwnAddresses, PackedLeg, RelayState, Way};
pub use map::{Family, LAYOUT, PassReason, RelayConfig, RelayCounterIndex};
pub use origin::Origin;
pub use place::Place;
pub use rate::RelayRate;
pub use slice::SliceFrame;
pub use watch::RelayWatch;
