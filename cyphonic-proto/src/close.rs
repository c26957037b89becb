//! Codes with which QUIC connections are closed (RFC 9000 §19.19, docs/protocol.md §3). A reason in words
//! goes with each.

/// Not needed any more.
pub const DONE: u32 = 0;

/// This end stops.
pub const STOPPING: u32 = 1;

/// The other end may not be here: revoked, of another network or role, or superseded by its newer connection.
pub const NOT_ALLOWED: u32 = 2;

/// This end cannot serve the other now: it failed, or has too much to do. The other may try again.
pub const UNAVAILABLE: u32 = 3;
