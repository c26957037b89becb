//! DATAGRAMs that came before both legs of a pair stood.
//!
//! A node sends its first handshake packets together with its BindingRequest, so they arrive while the other
//! end's leg is still on its way, and may overtake the request itself: DATAGRAMs and streams are not ordered.
//! They are kept until the pair is bound and then passed on in their order. What does not fit, or waits too
//! long, is dropped: QUIC repairs loss.
//!
//! **Invariant.** Nothing is held for a connection that is not authenticated, nor more than the limits say:
//! for one context, for one connection, and in all.

use std::collections::BTreeMap;
use std::time::Instant;

use super::TrsLimits;
use crate::id::Channel;
use crate::timers::Timers;

/// A node's connection and the context of one of its legs, which need not stand yet.
type Key = (Channel, u64);

/// See the module.
#[derive(Default)]
pub(super) struct Held {
    queues: BTreeMap<Key, Queue>,
    /// What each connection has of them.
    shares: BTreeMap<Channel, Share>,
    bytes: usize,
    timers: Timers<Key>,
}

#[derive(Default)]
struct Queue {
    packets: Vec<Vec<u8>>,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Share {
    contexts: usize,
    bytes: usize,
}

impl Held {
    /// Keeps a packet if there is room; the first of a context sets the time at which all of that context go.
    pub(super) fn push(&mut self, now: Instant, key: Key, packet: &[u8], limits: &TrsLimits) -> bool {
        let queue = self.queues.get(&key);
        let (packets, bytes) = queue.map_or((0, 0), |queue| (queue.packets.len(), queue.bytes));
        let (is_new, share) = (queue.is_none(), self.shares.get(&key.0).copied().unwrap_or_default());
        let fits = packets < limits.held_packets
            && bytes + packet.len() <= limits.held_bytes
            && share.bytes + packet.len() <= limits.held_bytes_per_node
            && (!is_new || share.contexts < limits.held_contexts_per_node)
            && self.bytes + packet.len() <= limits.held_bytes_in_all;
        if !fits {
            return false;
        }
        let share =
            Share { contexts: share.contexts + usize::from(is_new), bytes: share.bytes + packet.len() };
        self.shares.insert(key.0, share);
        if is_new {
            self.timers.set(key, now + limits.held);
        }
        let queue = self.queues.entry(key).or_default();
        queue.packets.push(packet.to_vec());
        queue.bytes += packet.len();
        self.bytes += packet.len();
        true
    }

    /// Takes what is held for a context, oldest first.
    pub(super) fn take(&mut self, key: Key) -> Vec<Vec<u8>> {
        let Some(queue) = self.queues.remove(&key) else { return Vec::new() };
        self.timers.clear(&key);
        self.bytes -= queue.bytes;
        if let Some(share) = self.shares.get_mut(&key.0) {
            (share.contexts, share.bytes) = (share.contexts - 1, share.bytes - queue.bytes);
            if share.contexts == 0 {
                self.shares.remove(&key.0);
            }
        }
        queue.packets
    }

    /// Drops what is held for a connection.
    pub(super) fn forget(&mut self, channel: Channel) {
        let keys = self.queues.range((channel, 0)..=(channel, u64::MAX)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            self.take(key);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Drops what has waited too long, and says how many packets those were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut expired = 0;
        while let Some(key) = self.timers.pop_expired(now) {
            expired += self.take(key).len() as u64;
        }
        expired
    }
}
