//! Who wants a peer: questions, held packets, and tunnels that broke while in use.
//!
//! As long as somebody waits, attempts go on (`attempts`); all who wait get the same answer.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::{Attempt, NOBODY_SHOWN};
use crate::id::{QueryId, SetupId};
use crate::node::{Action, Node, ResolveError, Target, Timer, config};

/// How long a broken tunnel that was in use is worth replacing without anybody asking.
pub(in crate::node) const WANTED: Duration = Duration::from_secs(20);

impl Node {
    /// Somebody wants to reach a peer; answered by [`Action::Answer`] within
    /// [`Timing::resolve`](crate::node::Timing::resolve).
    pub fn handle_resolve(&mut self, now: Instant, query: QueryId, target: Target) {
        let found = self.locate(target).and_then(|(address, fqdn)| {
            if address != self.own {
                self.check_room_for_query()?;
                self.note_peer(now, address, fqdn)?;
            }
            Ok(address)
        });
        match found {
            Ok(address) if address != self.own => self.wait_for(now, query, address),
            result => self.act(Action::Answer { query, result }),
        }
    }

    /// The dataplane holds packets for a peer without a tunnel.
    pub fn handle_unknown_destination(&mut self, now: Instant, dst: Ipv6Addr) {
        let known = self.locate(Target::Address(dst)).and_then(|_| self.note_peer(now, dst, None));
        if let Err(reason) = known {
            self.act(Action::DropHeld { dst, reason });
            return;
        }
        let Some(peer) = self.peers.get_mut(&dst) else { return };
        if !peer.tunnels.is_empty() {
            // The tunnel was installed in the meantime, and released what was held.
            return;
        }
        if !std::mem::replace(&mut peer.held, true) {
            self.timers.set(Timer::Held(dst), now + self.config.timing.resolve);
        }
        self.pursue(now, dst);
    }

    pub(in crate::node) fn query_due(&mut self, now: Instant, query: QueryId) {
        let Some(address) = self.queries.remove(&query) else { return };
        let error = self.why_not_yet(address);
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.queries.retain(|other| *other != query);
        }
        self.act(Action::Answer { query, result: Err(error.clone()) });
        self.interest_lost(now, address, error);
    }

    pub(in crate::node) fn held_due(&mut self, now: Instant, dst: Ipv6Addr) {
        let error = self.why_not_yet(dst);
        let Some(peer) = self.peers.get_mut(&dst) else { return };
        if std::mem::replace(&mut peer.held, false) {
            self.act(Action::DropHeld { dst, reason: error.clone() });
            self.interest_lost(now, dst, error);
        }
    }

    pub(in crate::node) fn wanted_due(&mut self, now: Instant, address: Ipv6Addr) {
        let error = self.why_not_yet(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if std::mem::replace(&mut peer.wanted, false) {
            self.interest_lost(now, address, error);
        }
    }

    /// A tunnel in use broke, or should be replaced: another is set up without anybody asking.
    pub(in crate::node) fn want_anew(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.wanted = true;
        self.timers.set(Timer::Wanted(address), now + WANTED);
        self.pursue(now, address);
    }

    /// A tunnel stands: all who wait for the peer get its address. Held packets are released by the
    /// installation.
    pub(in crate::node) fn reached(&mut self, now: Instant, address: Ipv6Addr, setup: SetupId) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.since = now;
        peer.last_error = None;
        peer.is_nobody = false;
        peer.begin_anew();
        match peer.attempt {
            // The other end was faster: our own request is pointless.
            Some(Attempt::Direction(exchange)) => {
                peer.attempt = None;
                self.cancel(exchange);
            }
            // Our own set-up goes on: the other end has its part of it already.
            Some(Attempt::Setup(other)) if other != setup => {}
            _ => peer.attempt = None,
        }
        self.take_interest(address);
        self.answer_all(address, &Ok(address));
        self.changed();
    }

    /// All who wait for the peer get the error.
    pub(in crate::node) fn give_up(&mut self, now: Instant, address: Ipv6Addr, error: ResolveError) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(Attempt::Direction(exchange)) = peer.attempt.take() {
            self.cancel(exchange);
        }
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.since = now;
        peer.begin_anew();
        let is_nobody = error == ResolveError::NoSuchPeer;
        peer.is_nobody |= is_nobody;
        let held = self.take_interest(address);
        if held {
            self.act(Action::DropHeld { dst: address, reason: error.clone() });
        }
        if is_nobody {
            self.timers.set(Timer::Nobody(address), now + NOBODY_SHOWN);
        }
        self.answer_all(address, &Err(error));
        self.changed();
    }

    /// The last who waited is gone: what is not under way yet is not begun.
    fn interest_lost(&mut self, now: Instant, address: Ipv6Addr, error: ResolveError) {
        let Some(peer) = self.peers.get_mut(&address).filter(|peer| !peer.is_wanted()) else { return };
        peer.last_error.get_or_insert(error);
        if matches!(peer.attempt, Some(Attempt::Registration | Attempt::Pause)) {
            peer.attempt = None;
            peer.since = now;
            peer.begin_anew();
            self.timers.clear(&Timer::Attempt(address));
        }
        self.changed();
    }

    fn wait_for(&mut self, now: Instant, query: QueryId, address: Ipv6Addr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(tunnel) = peer.tunnels.first().copied() {
            self.act(Action::Answer { query, result: Ok(address) });
            self.doubt(now, tunnel);
            return;
        }
        peer.queries.push(query);
        self.queries.insert(query, address);
        self.timers.set(Timer::Query(query), now + self.config.timing.resolve);
        self.pursue(now, address);
    }

    fn answer_all(&mut self, address: Ipv6Addr, result: &Result<Ipv6Addr, ResolveError>) {
        let queries = self.peers.get_mut(&address).map(|peer| std::mem::take(&mut peer.queries));
        for query in queries.unwrap_or_default() {
            self.queries.remove(&query);
            self.timers.clear(&Timer::Query(query));
            self.act(Action::Answer { query, result: result.clone() });
        }
    }

    /// Nobody wants the peer any more; true where packets were held.
    fn take_interest(&mut self, address: Ipv6Addr) -> bool {
        self.timers.clear(&Timer::Held(address));
        self.timers.clear(&Timer::Wanted(address));
        self.timers.clear(&Timer::Attempt(address));
        let Some(peer) = self.peers.get_mut(&address) else { return false };
        peer.wanted = false;
        std::mem::replace(&mut peer.held, false)
    }

    fn check_room_for_query(&self) -> Result<(), ResolveError> {
        if self.stopped {
            Err(ResolveError::Cancelled { why: "the agent is stopping".into() })
        } else if self.queries.len() >= config::MAX_QUERIES {
            Err(ResolveError::TooMany { what: "questions are waiting already".into() })
        } else {
            Ok(())
        }
    }
}
