//! What a node finds out about the network it is in: whether UDP passes, how NATs and firewalls before it
//! behave, and for how long.
//!
//! [`Probe`] asks the services' STUN servers, one machine for each IP version, in the manner of RFC 5780.
//! [`Findings`] is what is known, as the NMS is told. The node's own port asks only what does not open it to
//! anybody new: everything else is done from fresh ports, each of which is asked about before it has sent
//! anything to the place in question.

mod findings;
mod places;
mod probe;
mod transaction;
mod verdict;
mod wire;

use std::time::Duration;

pub use findings::{FamilyFindings, Filtering, Findings, Mapping};
pub use probe::{Plan, Probe};
pub use transaction::{Socket, Transmit};

/// Idle times that are tried side by side: what many NATs grant lies between them (RFC 4787 §4.3 asks for two
/// minutes).
pub const IDLE_TIMES: [Duration; 7] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
];

/// What a mapping is taken to live for while nothing longer is proven.
pub const UNPROVEN_LIFETIME: Duration = Duration::from_secs(2);

/// Most servers asked of one IP version.
pub const MAX_SERVERS: usize = 8;
