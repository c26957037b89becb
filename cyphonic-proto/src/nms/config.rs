//! What an NMS is told at its start, and what it asks of its shell.

use std::time::Duration;

use crate::access::OverlayRule;
use crate::address::Prefix;
use crate::id::{Channel, ExchangeId};
use crate::identity::NetworkId;
use crate::message::Message;
use crate::node::Relay;
use crate::standby::Standby;

/// The network an NMS serves.
#[derive(Clone, Debug)]
pub struct NmsConfig {
    /// The network.
    pub network_id: NetworkId,
    /// Its prefix.
    pub prefix: Prefix,
    /// Its zone, canonical.
    pub zone: String,
    /// Its relays.
    pub relays: Vec<Relay>,
    /// NMSs for nodes to turn to where they cannot reach this overlay's own.
    pub standbys: Vec<Standby>,
    /// The names of all enrolled devices, canonical, if the register is at hand: then a name outside it does
    /// not exist. Without it, such a name is only "not connected".
    pub devices: Option<Vec<String>>,
    /// The names of devices that were revoked within
    /// [`REVOCATIONS_REMEMBERED`](super::REVOCATIONS_REMEMBERED) before the start, the oldest first: who
    /// was to be told of them may not have been.
    pub revoked: Vec<String>,
    /// Who may open what at which devices; `None`: nothing is restricted.
    pub access: Option<Vec<OverlayRule>>,
    /// Set-ups are numbered upwards from here, so that both ends agree which of two is newer. Must be larger
    /// than every number used before: nanoseconds since 1970 at the start serve well.
    pub first_setup: u64,
    /// Waits and limits.
    pub timing: NmsTiming,
}

/// How long an NMS waits, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NmsTiming {
    /// A responder's confirmation, before the initiator is told that there will be none. It may have to
    /// connect to a TRS first. Shorter than the initiator's
    /// [`relay_attempt`](crate::node::Timing::relay_attempt) by a round trip and more: both begin within
    /// one crossing, and the initiator is to hear why instead of trying again in vain.
    pub responder: Duration,
    /// After its start, an absent device may only not be back yet: its peers are told to ask again.
    pub grace: Duration,
    /// Requests of one kind that a node may send in a burst.
    pub burst: u32,
    /// Requests of one kind that a node may send per second in the long run.
    pub per_second: u32,
    /// Set-ups in progress, in all.
    pub pending: usize,
    /// Set-ups in progress that one node asked for, or that one node must answer.
    pub pending_per_node: usize,
    /// Connected nodes.
    pub nodes: usize,
}

impl Default for NmsTiming {
    fn default() -> Self {
        Self {
            responder: Duration::from_secs(2),
            grace: Duration::from_secs(10),
            burst: 64,
            per_second: 16,
            pending: 16_384,
            pending_per_node: 64,
            nodes: 1 << 20,
        }
    }
}

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answer a request.
    Respond {
        /// The exchange.
        exchange: ExchangeId,
        /// The answer.
        message: Message,
    },
    /// Send a request on a stream of its own; report with `handle_response` or `handle_exchange_failed`.
    Request {
        /// To which node.
        channel: Channel,
        /// Names the exchange.
        exchange: ExchangeId,
        /// The request.
        message: Message,
    },
    /// Nobody waits for this exchange any more: reset its stream. Its end is not to be reported.
    CancelRequest {
        /// The exchange.
        exchange: ExchangeId,
    },
    /// Close a node's connection. Its end is not to be reported.
    Close {
        /// The node.
        channel: Channel,
        /// Why, for programs ([`close`](crate::close)).
        code: u32,
        /// Why, for the log and the node.
        reason: String,
    },
    /// Have somebody know that two machines have this node's identity: another one had displaced it, and it is
    /// back.
    Doubled {
        /// The node.
        channel: Channel,
    },
}

/// What an NMS counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NmsCounters {
    /// Connections accepted.
    pub connected: u64,
    /// Registrations accepted.
    pub registrations: u64,
    /// DirectionRequests received.
    pub directions: u64,
    /// Set-ups steered to both ends.
    pub routed: u64,
    /// Of these, set-ups withdrawn because the responder refused, did not answer or left.
    pub withdrawn: u64,
    /// DirectionRequests refused.
    pub refused: u64,
    /// Requests that joined a set-up which the other end had started.
    pub joined: u64,
    /// Responders that did not answer in time.
    pub responder_timeouts: u64,
    /// Notices of revocations that were sent.
    pub revocation_notices: u64,
    /// Notices of other access rules that were sent.
    pub access_notices: u64,
}
