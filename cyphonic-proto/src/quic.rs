//! Times of the QUIC connections between nodes and services (docs/protocol.md §2.1, §3): shells keep them,
//! and machines reckon with them.

use std::time::Duration;

/// A connection that hears nothing for this long is lost. Three keep-alives fit in it, so that two may be
/// lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// Keeps the NAT mapping of the node's one port open. RFC 4787 §4.3 demands at least two minutes of NATs, and
/// many grant 30 s to UDP.
pub const KEEP_ALIVE: Duration = Duration::from_secs(14);

/// How long a dial over UDP is ahead of one over TCP. An answer over 500 ms of round trip comes sooner, with
/// its first packet lost once; a person waits this long once more where UDP is blocked.
pub const UDP_AHEAD: Duration = Duration::from_millis(1500);

/// A handshake that takes longer is given up: over UDP, and by a detour with its TCP and TLS.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(KEEP_ALIVE.as_millis() * 3 < IDLE_TIMEOUT.as_millis());
