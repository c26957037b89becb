//! The relay: what its map holds, and what happens to a frame that arrives at it.
//!
//! A leg is one direction of a relayed tunnel, stored under the virtual connection ID that its packets carry. The relay
//! replaces that ID by the receiver's own, readdresses the packet and sends it on, between IPv4 and IPv6 where the two
//! ends differ. It holds no key, so it can neither read nor forge.
//!
//! - [`leg`]: a leg and its state, as they stand in the kernel's map.
//! - [`rate`]: a leg's rate limit.
//! - [`map`]: the other maps: configuration, counters, names, and the version of the layout.

pub mod leg;
pub mod map;
pub mod rate;

pub use leg::{Binding, LegError, RelayEntry, RelayLeg, RelayState};
pub use map::{Family, LAYOUT, PassReason, RelayConfig, RelayCounterIndex};
pub use rate::RelayRate;
