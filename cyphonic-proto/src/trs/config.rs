//! What a TRS is told at its start, and what it asks of its shell.

use std::time::Duration;

use bytes::Bytes;

use super::ticket::{NodePath, TrsKeys, WallClock};
use crate::ConnectionId;
use crate::id::{Channel, ExchangeId};
use crate::identity::NetworkId;
use crate::message::Message;

/// The network a TRS serves, and its limits.
#[derive(Clone, Debug)]
pub struct TrsConfig {
    /// The network.
    pub network_id: NetworkId,
    /// What outlives the process.
    pub keys: TrsKeys,
    /// What time it is at the start ([`Trs::handle_clock`](super::Trs::handle_clock)).
    pub clock: WallClock,
    /// Waits and limits.
    pub limits: TrsLimits,
}

/// How long a TRS waits, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrsLimits {
    /// How long a leg waits for its other end.
    pub unbound: Duration,
    /// How long a leg without its owner's connection waits for it: after that was lost, and after a restart.
    pub orphaned: Duration,
    /// How long a ticket is honoured. Nodes renew theirs at half of it.
    pub ticket: Duration,
    /// How long a bound pair may be silent in both directions. Nodes keep tunnels in use alive every 15 s.
    pub idle: Duration,
    /// How long DATAGRAMs of a leg that is not bound yet are held: longer than the end that dials tries (2.5
    /// s). The other may be on its way back from where it had no network.
    pub held: Duration,
    /// How many of them, for one leg.
    pub held_packets: usize,
    /// Their bytes, for one leg: the first flight of a handshake with post-quantum keys.
    pub held_bytes: usize,
    /// Their bytes, for one node.
    pub held_bytes_per_node: usize,
    /// The legs, of one node, for which any are held: there is no more room for first flights than for
    /// these.
    pub held_contexts_per_node: usize,
    /// Their bytes in all.
    pub held_bytes_in_all: usize,
    /// Legs in all: two per relayed tunnel.
    pub legs: usize,
    /// Legs of one node.
    pub legs_per_node: usize,
    /// Legs of one node to the same other: a tunnel, its successor, and attempts at one from both ends.
    pub legs_per_pair: usize,
    /// Connected nodes.
    pub nodes: usize,
}

impl Default for TrsLimits {
    fn default() -> Self {
        Self {
            unbound: Duration::from_secs(15),
            orphaned: Duration::from_secs(60),
            ticket: Duration::from_secs(2 * 3600),
            idle: Duration::from_secs(600),
            held: Duration::from_secs(3),
            held_packets: 8,
            held_bytes: 16 * 1024,
            held_bytes_per_node: 64 * 1024,
            held_contexts_per_node: 64,
            held_bytes_in_all: 16 << 20,
            legs: 1 << 20,
            legs_per_node: 1024,
            legs_per_pair: 8,
            nodes: 1 << 20,
        }
    }
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Answer a request.
    Respond {
        /// The exchange.
        exchange: ExchangeId,
        /// The answer.
        message: Message,
    },
    /// Forward data packets that carry `cid` and come from `from`, and from nowhere else: to `to`, with
    /// `real_cid` written over `cid`. Replaces an entry of the same `cid`, also one that an earlier
    /// process left.
    Insert {
        /// The leg's virtual connection ID.
        cid: ConnectionId,
        /// The sender, and the address of ours that it sends to.
        from: NodePath,
        /// The receiver, and the address of ours that it knows.
        to: NodePath,
        /// The receiver's own connection ID.
        real_cid: ConnectionId,
    },
    /// Forward no more packets that carry `cid`.
    Remove {
        /// The leg's virtual connection ID.
        cid: ConnectionId,
    },
    /// Tell a node with a stateless reset (RFC 9000 §10.3), unasked, that its packets with `cid` are not
    /// forwarded: it is to connect and restore its leg.
    Reset {
        /// What the node writes on its packets.
        cid: ConnectionId,
        /// Where it was.
        to: NodePath,
    },
    /// Send a DATAGRAM on a node's connection; drop it where it does not fit.
    Forward {
        /// The node.
        channel: Channel,
        /// The datagram, its context included.
        datagram: Bytes,
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
}

/// What a TRS counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrsCounters {
    /// Legs opened.
    pub legs: u64,
    /// Pairs bound.
    pub bound: u64,
    /// Pairs of legs that ended for a newer one of the same two devices.
    pub displaced: u64,
    /// Legs restored from tickets.
    pub restored: u64,
    /// BindingRequests refused.
    pub refused: u64,
    /// Legs that ended because nothing came.
    pub expired: u64,
    /// DATAGRAMs forwarded.
    pub forwarded: u64,
    /// DATAGRAMs that waited until their leg was bound, or its time was up.
    pub held: u64,
    /// DATAGRAMs dropped: malformed, or of a leg that was not bound in time.
    pub dropped: u64,
}
