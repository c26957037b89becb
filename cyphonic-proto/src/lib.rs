//! The protocol of Cyphonic without any input or output.
//!
//! Messages, names, addresses, identities, keys and three state machines: the [`node::Node`] of a device, the
//! [`nms::Nms`] that steers nodes towards each other, and the [`trs::Trs`] that binds two of them where they
//! cannot meet. A shell (cyphonic-agent, cyphonic-cloud) owns sockets and clock and speaks one vocabulary
//! with each machine:
//!
//! - `handle_*(now, ..)` tells it what happened;
//! - `poll_action()` yields what to do, in order, until it is empty: call it after every `handle_*`;
//! - `poll_timeout()` says when it next wants `handle_timeout(now)`; calling that earlier does no harm.
//!
//! **Invariants.** Nothing here reads a clock, a socket or the system's randomness: time comes in as an
//! argument and random numbers from a generator that the caller seeds, so whole networks are simulated in a
//! unit test (`tests/`). No input makes it panic. Input that is refused changes no state. Every table is
//! bounded.

pub mod access;
pub mod address;
pub mod alpn;
mod backoff;
pub mod close;
mod id;
pub mod identity;
pub mod message;
pub mod name;
pub mod nat;
pub mod nat64;
pub mod netcheck;
pub mod nms;
pub mod node;
pub mod quic;
pub mod relayed;
pub mod route;
pub mod standby;
pub mod stun;
pub mod time;
mod timers;
pub mod token;
pub mod trs;
pub mod tunnel;
pub mod version;

pub use cyphonic_common::ConnectionId;
pub use id::{Channel, ExchangeId, PeerConnectionId, QueryId, SetupId, TunnelId};
pub use identity::{Identity, NetworkId, Role};
pub use message::Message;
