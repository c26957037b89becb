//! Which path is taken.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Candidate, PAUSE_LEAST, Paths, Race, SILENCE_LEAST};
use crate::id::TunnelId;
use crate::node::{Action, Node, TunnelControl};

/// An answer counts as fresh for the choice of a path.
const FRESH: Duration = Duration::from_secs(3);
/// A retreat is followed by a round after this, doubling while retreats follow each other.
const COMEBACK: Duration = Duration::from_secs(1);
/// A path that held for this long is not blamed for earlier retreats.
const STABLE: Duration = Duration::from_secs(300);

impl Paths {
    /// The path to take instead of the current one, if there is one now.
    fn choose(&self, now: Instant) -> Option<SocketAddr> {
        let current = self.current()?;
        let others = self.candidates.iter().filter(|candidate| candidate.remote != self.current);
        let Some(doubt) = &self.doubt else {
            let fresh = |candidate: &&Candidate| candidate.proved.is_some_and(|at| at + FRESH >= now);
            let better = others.filter(fresh).filter(|candidate| candidate.is_better_than(current));
            return better.min_by_key(|candidate| candidate.rank()).map(|candidate| candidate.remote);
        };
        let may_go = |candidate: &&Candidate| {
            candidate.is_proved_since(doubt.steps.began)
                && (now >= doubt.until
                    || candidate.is_better_than(current)
                    || match doubt.race {
                        Race::No => false,
                        Race::With(rival) => candidate.remote == rival,
                        Race::Open => true,
                    })
        };
        others.filter(may_go).min_by_key(|candidate| candidate.rank()).map(|candidate| candidate.remote)
    }

    /// Takes another path. Returns it, unless it is unknown.
    fn take(&mut self, now: Instant, remote: SocketAddr) -> Option<Candidate> {
        let next = self.candidate(remote)?.clone();
        let was_relayed = self.is_relayed();
        let is_retreat = !was_relayed && next.is_relay()
            || self.current().is_some_and(|current| current.class < next.class);
        self.current = remote;
        if let Some(doubt) = &self.doubt {
            // What worked before the doubt is no reason to go back.
            let began = doubt.steps.began;
            self.candidates
                .iter_mut()
                .for_each(|candidate| candidate.proved = candidate.proved.filter(|at| *at >= began));
        }
        if self.last_retreat.is_none_or(|at| at + STABLE <= now) {
            self.retreats = 0;
        }
        if is_retreat {
            self.last_retreat = Some(now);
            self.next_round = Some(now + COMEBACK * (1 << self.retreats.min(8)));
            self.retreats = self.retreats.saturating_add(1);
        } else if was_relayed && !next.is_relay() {
            self.upgraded.get_or_insert(now);
            self.pause = PAUSE_LEAST;
        }
        self.since = now;
        self.doubt = None;
        self.silence = SILENCE_LEAST;
        Some(next)
    }
}

impl Node {
    /// Takes a better path if there is one now.
    pub(super) fn consider(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(remote) = tunnel.paths.choose(now) else { return };
        let moved = tunnel.paths.doubt.is_some_and(|doubt| doubt.race == Race::Open);
        let Some(candidate) = tunnel.paths.take(now, remote) else { return };
        let wire_cid = candidate.wire_cid;
        (tunnel.remote, tunnel.wire_cid) = (remote, wire_cid);
        (tunnel.challenge, tunnel.unanswered_since) = (None, None);
        self.act(Action::SetPath { id, remote, wire_cid });
        // The peer sees at once where packets come from now.
        match moved {
            true => self.send_candidates(now, id, true),
            false => self.control(now, id, TunnelControl::Ping),
        }
        self.changed();
    }
}
