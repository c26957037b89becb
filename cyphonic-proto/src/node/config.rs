//! What a node is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

use super::cache::CachedState;
use crate::identity::Identity;
use crate::quic;
use crate::tunnel::Suite;

/// Who the node is and where it begins.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// What the node's own certificate says; a device's.
    pub identity: Identity,
    /// The overlay's zone, canonical.
    pub zone: String,
    /// The node's own addresses with its UDP port.
    pub addresses: Vec<SocketAddr>,
    /// Where the AS is.
    pub as_addresses: Vec<SocketAddr>,
    /// The AS's name in its certificate.
    pub as_name: String,
    /// What is left from the last run.
    pub cached: Option<CachedState>,
    /// The only relay that the node's tunnels may go through, by its certificate's name.
    pub pinned_relay: Option<String>,
    /// AEAD suites, the favourite first.
    pub suites: Vec<Suite>,
    /// The largest inner packet that the virtual interface takes; a tunnel's are at most the smaller of both
    /// ends'.
    pub inner_mtu: u16,
    /// This software's version, for the AS's records.
    pub software_version: String,
    /// Waits and limits.
    pub timing: Timing,
}

/// How long a node waits for what. The defaults suit links up to about 500 ms of round trip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A dial of a service by whatever way. The shell's own limits are shorter ([`quic::HANDSHAKE_TIMEOUT`],
    /// over TCP after [`detour`](Self::detour)), since only the shell can say what was tried in vain;
    /// this one is for a shell that says nothing.
    pub connect: Duration,
    /// How long a dial over UDP is ahead of one over TCP; none where TCP is never used.
    pub detour: Option<Duration>,
    /// A service's answer to a request.
    pub request: Duration,
    /// First wait after a failure; doubles, with jitter.
    pub backoff_least: Duration,
    /// Longest wait after failures.
    pub backoff_most: Duration,
    /// Longest wait for a relay that a tunnel waits for.
    pub relay_backoff: Duration,
    /// From a question for a peer to its answer, whatever happens. Stub resolvers ask again after 5 s.
    pub resolve: Duration,
    /// A direct or punched attempt, before the next route is tried. Short, because a user waits, and long
    /// enough for a handshake over a link of 250 ms.
    pub direct_attempt: Duration,
    /// A relayed attempt. Longer than the NMS waits for the other end
    /// ([`responder`](crate::nms::NmsTiming::responder)).
    pub relay_attempt: Duration,
    /// Longest life of a set-up at the end that waits for its peer.
    pub setup: Duration,
    /// How long a route that failed for a pair is not proposed again.
    pub failed_route: Duration,
    /// Silence on a tunnel in use before a PING keeps NAT mappings alive: well under the 30 s of short-lived
    /// ones (RFC 4787 §4.3 asks for 2 min, many NATs give less).
    pub keepalive: Duration,
    /// The same on a tunnel through a relay that is in use and only receives.
    pub relay_keepalive: Duration,
    /// Sending without receiving before the tunnel is challenged.
    pub silence: Duration,
    /// Between unanswered challenges.
    pub challenge: Duration,
    /// Unanswered challenges before the tunnel counts as dead.
    pub challenges: u32,
    /// Without inner packets before a tunnel is closed.
    pub idle: Duration,
    /// Age of a tunnel in use at which a fresh one replaces it (recovery after compromise).
    pub refresh: Duration,
    /// How long a replaced tunnel still receives.
    pub overlap: Duration,
    /// How many relays to stay connected to.
    pub warm_relays: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(7),
            detour: Some(quic::UDP_AHEAD),
            request: Duration::from_secs(3),
            backoff_least: Duration::from_millis(250),
            backoff_most: Duration::from_secs(30),
            relay_backoff: Duration::from_millis(500),
            resolve: Duration::from_secs(4),
            direct_attempt: Duration::from_secs(1),
            relay_attempt: Duration::from_millis(2500),
            setup: Duration::from_secs(5),
            failed_route: Duration::from_secs(60),
            keepalive: Duration::from_secs(15),
            relay_keepalive: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            challenge: Duration::from_millis(500),
            challenges: 3,
            idle: Duration::from_secs(300),
            refresh: Duration::from_secs(3600),
            overlap: Duration::from_secs(10),
            warm_relays: 2,
        }
    }
}

/// Most peers a node keeps state for.
pub(super) const MAX_PEERS: usize = 4096;
/// Most set-ups at once, in either role.
pub(super) const MAX_SETUPS: usize = 512;
/// Most set-ups that are known to have ended: as many as peers could still be at.
pub(super) const MAX_ENDED: usize = MAX_SETUPS;
/// Most connections of peers that have no tunnel yet: each set-up may be dialled twice. As many as the
/// transport lets in, of which one source has few.
pub(super) const MAX_OFFERS: usize = 2 * MAX_SETUPS;
/// Most questions waiting.
pub(super) const MAX_QUERIES: usize = 4096;
/// Most relays that a node knows; the rest of a list is ignored.
pub const MAX_RELAYS: usize = 32;
/// Most observations kept and reported.
pub(super) const MAX_OBSERVATIONS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_over_tcp_may_fail_by_itself_before_the_node_gives_it_up() {
        let timing = Timing::default();
        assert!(timing.detour.unwrap() + quic::HANDSHAKE_TIMEOUT < timing.connect);
    }
}
