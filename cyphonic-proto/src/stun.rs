//! STUN (RFC 8489): Binding requests and responses, with the attributes of RFC 5780.
//!
//! Nodes learn by it how the NATs and firewalls before them behave; the cloud answers, on its QUIC ports and
//! an alternate one. Nothing is authenticated: an answer is believed if it carries the 96 random bits of a
//! request under way, and what it says is a hint about the network, never a permission.
//!
//! | Part | Is |
//! |---|---|
//! | [`message`] | messages: bytes to values and back |
//! | [`server`] | the answer to a request |
//!
//! **Invariant:** an answer is never longer than its request, so a server multiplies nobody's traffic.
//! Requests are therefore filled up to [`message::REQUEST_LEN`] bytes.

mod attribute;
pub mod message;
pub mod server;

pub use message::{Failure, Message, Request, Success, Transaction};
