//! What a tunnel's paths have sent, and when.

use super::{
    CHECK, CandidateSet, Doubt, Race, SEEK, Steps, Target,
    candidate::{self, Whereabouts},
};
use crate::{
    id::TunnelId,
    nat::Family,
    node::{Action, Node, TunnelControl},
};
use cyphonic_common::frame::CandidateFlags;
use rand::Rng;
use std::{net::SocketAddr, time::Instant};

/// Probes of all tunnels together but for those of paths in use and relays; each has 1,200 bytes. Many may
/// leave at once: a network change concerns all tunnels.
const OF_NODE: Rate = Rate { per_second: 100, at_once: 400 };
/// What probes of addresses that have never answered leave of the node's: for those that have, which peers
/// can ask for too.
const FOR_PROVED: u32 = 200;
/// Those to addresses that one peer named and that have never answered. They may be anybody's, and lists of
/// them come as often as the peer likes: two rounds of as many as there can be, and then about a round of as
/// many as are common in 20 s.
const OF_PEER: Rate = Rate { per_second: 2, at_once: 224 };
/// What rounds leave of a peer's: for where it is heard from, as after a move.
const RESERVE: u32 = 16;

#[derive(Clone, Copy)]
struct Rate {
    per_second: u32,
    at_once: u32,
}

/// How many probes may be sent now: a token bucket.
pub(in crate::node) struct ProbeBudget {
    rate: Rate,
    left: u32,
    since: Instant,
}

impl ProbeBudget {
    pub(in crate::node) const fn of_node(now: Instant) -> Self {
        Self { rate: OF_NODE, left: OF_NODE.at_once, since: now }
    }

    pub(in crate::node) const fn of_peer(now: Instant) -> Self {
        Self { rate: OF_PEER, left: OF_PEER.at_once, since: now }
    }

    /// Takes one, if more than `reserve` are left.
    fn take(&mut self, now: Instant, reserve: u32) -> bool {
        let granted = self.has(now, reserve);
        self.left -= u32::from(granted);
        granted
    }

    fn has(&mut self, now: Instant, reserve: u32) -> bool {
        let passed = now.saturating_duration_since(self.since).as_millis();
        let grown = u32::try_from(passed * u128::from(self.rate.per_second) / 1000).unwrap_or(u32::MAX);
        if grown > 0 {
            self.left = self.left.saturating_add(grown).min(self.rate.at_once);
            self.since = now;
        }
        self.left > reserve
    }
}

impl Node {
    /// Probes one path of a tunnel; the current one as a challenge.
    pub(in crate::node) fn probe(&mut self, now: Instant, id: TunnelId, remote: SocketAddr) {
        self.probe_with(now, id, remote, 0);
    }

    /// The same, with so many of the peer's probes to be left for others.
    fn probe_with(&mut self, now: Instant, id: TunnelId, remote: SocketAddr, reserve: u32) {
        let data = self.rng.random();
        if !self.affords(now, id, remote, reserve) {
            return;
        }
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let current = tunnel.paths.current;
        let Some(target) = tunnel.paths.targets.iter_mut().find(|target| target.remote == remote) else {
            return;
        };
        target.sent(now, data);
        let wire_cid = target.wire_cid;
        if remote == current {
            return self.control(now, id, TunnelControl::PathChallenge(data));
        }
        let control = TunnelControl::Probe { remote, wire_cid, data };
        self.act(Action::SendControl { id, control });
    }

    /// Takes a probe of a path from what the node and the peer have left.
    fn affords(&mut self, now: Instant, id: TunnelId, remote: SocketAddr, reserve: u32) -> bool {
        let Some(tunnel) = self.tunnels.get(&id) else { return false };
        let Some(target) = tunnel.paths.target(remote) else { return false };
        // What a tunnel's life depends on is bounded by the number of tunnels.
        if remote == tunnel.paths.current || target.is_relay() {
            return true;
        }
        if target.proved.is_some() {
            return self.probes.take(now, 0);
        }
        let peer = self.peers.get_mut(&tunnel.peer);
        // Neither pays for what the other has not got.
        self.probes.has(now, FOR_PROVED)
            && peer.is_none_or(|peer| peer.probes.take(now, reserve))
            && self.probes.take(now, FOR_PROVED)
    }

    /// Probes the current path, and those that are known to have worked.
    pub(in crate::node) fn probe_known(&mut self, now: Instant, id: TunnelId) {
        let Some(paths) = self.tunnels.get(&id).map(|tunnel| &tunnel.paths) else { return };
        let known =
            |target: &&Target| target.remote == paths.current || target.is_relay() || target.proved.is_some();
        let remotes: Vec<_> = paths.targets.iter().filter(known).map(|target| target.remote).collect();
        remotes.into_iter().for_each(|remote| self.probe(now, id, remote));
    }

    pub(super) fn probe_relay(&mut self, now: Instant, id: TunnelId) {
        let relay = self.tunnels.get(&id).and_then(|tunnel| tunnel.paths.relay()).map(|target| target.remote);
        if let Some(relay) = relay {
            self.probe(now, id, relay);
        }
    }

    /// A tunnel that takes packets and brings none is perhaps on a dead path. Where there is no other, the
    /// tunnel bears silence for longer, and only its relay is asked: that may be beyond reach, and found
    /// again another way.
    pub(in crate::node) fn judge_silence(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let paths = &tunnel.paths;
        let silent = tunnel.unanswered_since.is_some_and(|since| since + paths.silence() <= now);
        let spare = !paths.is_relayed() || paths.targets.iter().any(|t| !t.is_relay() && t.proved.is_some());
        let silent = silent && tunnel.last_rx.is_some() && !paths.is_doubted() && !tunnel.is_stranded();
        if silent && !spare {
            self.doubt_way(now, id);
        } else if silent {
            self.begin_doubt(now, id, Race::No);
            if let Some(doubt) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.paths.doubt.as_mut()) {
                doubt.silent = true;
            }
        }
    }

    /// Begins to look for better paths, at once.
    pub(super) fn begin_round(&mut self, now: Instant, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.paths.round = Some(Steps::round(now));
            tunnel.paths.next_round = None;
        }
        self.step_round(now, id);
    }

    /// Tells the peer where this end may be reached, until it has answered.
    pub(in crate::node) fn tell(&mut self, now: Instant, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.paths.sequence += 1;
            tunnel.paths.telling = Some(Steps::telling(now));
        }
        self.step_telling(now, id);
    }

    /// Somebody begins to use a tunnel that was silent.
    pub(in crate::node) fn doubt_path(&mut self, now: Instant, id: TunnelId) {
        self.begin_doubt(now, id, Race::No);
    }

    /// Challenges the current path and those that could take its place.
    pub(super) fn begin_doubt(&mut self, now: Instant, id: TunnelId, race: Race) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.is_stranded() {
            return;
        }
        let paths = &mut tunnel.paths;
        if let Some(doubt) = &mut paths.doubt {
            // One is enough, but a move makes answers to what was sent before worthless.
            match (race, doubt.race) {
                (Race::Open, _) => {}
                (Race::No, _) | (Race::With(_), Race::Open) => return,
                (Race::With(_), Race::No | Race::With(_)) => {
                    doubt.race = race;
                    return;
                }
            }
        }
        let until = now + paths.patience();
        // No path has answered since that was said.
        let forsaken = paths.doubt.is_some_and(|doubt| doubt.forsaken);
        paths.doubt = Some(Doubt {
            steps: Steps::doubt(now),
            race,
            until,
            silent: false,
            forsaken,
            sought: false,
            relay_again: None,
        });
        self.step_doubt(now, id);
    }

    /// Does what is due for a tunnel's paths; false if the tunnel is gone.
    pub(in crate::node) fn watch_paths(&mut self, now: Instant, id: TunnelId) -> bool {
        self.step_telling(now, id);
        self.step_round(now, id);
        if !self.step_doubt(now, id) {
            return false;
        }
        let Some(tunnel) = self.tunnels.get(&id) else { return false };
        let in_use = tunnel.is_used(now);
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if in_use && tunnel.paths.round.is_none() && due(tunnel.paths.next_round) {
            self.begin_round(now, id);
        }
        self.check_spare(now, id);
        true
    }

    /// When [`Node::watch_paths`] has something to do.
    pub(in crate::node) fn paths_due(&self, now: Instant, id: TunnelId) -> Option<Instant> {
        let tunnel = self.tunnels.get(&id)?;
        let paths = &tunnel.paths;
        let in_use = tunnel.is_used(now);
        let doubt = paths.doubt.as_ref().map(|doubt| {
            let others = if doubt.until > now { doubt.until } else { doubt.steps.due() };
            let seeks = doubt.steps.began + paths.seek_after();
            let seeks = if doubt.sought || seeks <= now { others } else { seeks };
            let relay = doubt.relay_again.unwrap_or(others);
            doubt.steps.due().min(others).min(seeks).min(relay)
        });
        let round = paths.round.map(|steps| steps.due());
        let next = paths.next_round.filter(|_| in_use && paths.round.is_none());
        let telling = paths.telling.map(|steps| steps.due());
        [doubt, round, next, telling, Some(paths.check)].into_iter().flatten().min()
    }

    fn step_telling(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(steps) = &mut tunnel.paths.telling else { return };
        if steps.take(now) {
            self.send_candidates(now, id, true);
        } else if steps.is_over(now) {
            tunnel.paths.telling = None;
        }
    }

    /// Where this node may be reached.
    pub(super) fn candidates(&self) -> Vec<SocketAddr> {
        let known = Whereabouts {
            addresses: &self.registration.addresses,
            observations: &self.registration.observations,
            mapped: Family::ALL.map(|family| self.findings().of(family).port_mapped.as_slice()),
            port_delta: self.findings().v4.port_delta,
        };
        candidate::own(known, self.prefix)
    }

    /// Sends this end's list once.
    pub(super) fn send_candidates(&mut self, now: Instant, id: TunnelId, answer: bool) {
        let endpoints = self.candidates();
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let flags = CandidateFlags { answer, keep: self.keeps_open(tunnel.peer), moved: tunnel.paths.moved };
        let set = CandidateSet {
            sequence: tunnel.paths.sequence,
            heard: tunnel.paths.heard.unwrap_or_default(),
            flags,
            endpoints,
        };
        self.control(now, id, TunnelControl::Candidates(set));
    }

    fn step_round(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(steps) = &mut tunnel.paths.round else { return };
        if steps.take(now) {
            let began = steps.began;
            let paths = &tunnel.paths;
            let waits = |target: &&Target| paths.is_sought(target) && !target.is_proved_since(began);
            let mut targets: Vec<_> = paths.targets.iter().filter(waits).collect();
            targets.sort_by_key(|target| target.class);
            let remotes: Vec<_> = targets.iter().map(|target| target.remote).collect();
            for remote in remotes {
                if self.may_probe(remote) {
                    self.probe_with(now, id, remote, RESERVE);
                }
            }
        } else if steps.is_over(now) {
            tunnel.paths.end_round(now);
            self.changed();
        }
    }

    /// Not what this host cannot reach, and not this host.
    pub(super) fn may_probe(&self, remote: SocketAddr) -> bool {
        let registration = &self.registration;
        let family = Family::of(&remote);
        let has = registration.addresses.iter().any(|own| Family::of(own) == family)
            || registration.observations.iter().any(|(_, seen)| Family::of(seen) == family);
        has && !registration.addresses.contains(&remote)
    }

    /// False if the tunnel is gone.
    fn step_doubt(&mut self, now: Instant, id: TunnelId) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return false };
        let Some(doubt) = &mut tunnel.paths.doubt else { return true };
        let began = doubt.steps.began;
        let relay_again = doubt.relay_again.take_if(|at| *at <= now).is_some();
        if doubt.steps.take(now) {
            self.probe_known(now, id);
        } else if relay_again {
            self.probe_relay(now, id);
        }
        self.consider(now, id);
        self.seek_another(now, id);
        self.suspect_network(now, id);
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return false };
        let Some(doubt) = tunnel.paths.doubt.filter(|doubt| doubt.steps.began == began) else { return true };
        if !doubt.steps.is_over(now) {
            return true;
        }
        tunnel.paths.doubt = None;
        if tunnel.is_away() {
            // What is waited for says nothing of the peer.
            return true;
        }
        let used = tunnel.is_used(now);
        let kept = self.tunnels.get(&id).is_some_and(|tunnel| self.keeps_open(tunnel.peer));
        if used || kept {
            self.tunnel_died(now, id);
            return false;
        }
        true
    }

    /// Not even the relay answers: perhaps nothing gets out.
    fn suspect_network(&mut self, now: Instant, id: TunnelId) {
        let doubt = self.tunnels.get(&id).and_then(|tunnel| tunnel.paths.doubt);
        if doubt.is_some_and(|doubt| doubt.steps.began + SEEK <= now) {
            self.doubt_way(now, id);
        }
    }

    /// A tunnel that has nothing to fall back on, no relay or a peer that may be gone, asks for another in
    /// time.
    fn seek_another(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let used = tunnel.is_used(now);
        let spare = tunnel.paths.relay().is_some();
        let seek = tunnel.paths.seek_after();
        let Some(doubt) = &mut tunnel.paths.doubt else { return };
        if used && (!spare || doubt.forsaken) && !doubt.sought && doubt.steps.began + seek <= now {
            doubt.sought = true;
            self.replace(now, id);
        }
    }

    /// Takes a better path if there is one now.
    pub(super) fn consider(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(remote) = tunnel.paths.choose(now) else { return };
        let moved = tunnel.paths.doubt.is_some_and(|doubt| doubt.race == Race::Open);
        let Some(target) = tunnel.paths.take(now, remote) else { return };
        let wire_cid = target.wire_cid;
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

    /// The relay behind a direct path keeps its leg, and is known to work; so is the one path of a tunnel
    /// that is kept open.
    fn check_spare(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|tunnel| tunnel.paths.check <= now) else {
            return;
        };
        tunnel.paths.check = now + CHECK;
        let (peer, current) = (tunnel.peer, tunnel.paths.current);
        let relay = tunnel.paths.relay().map(|target| target.remote);
        if self.keeps_open(peer) {
            // All that is known, several times if need be.
            self.begin_doubt(now, id, Race::No);
        } else if let Some(relay) = relay.filter(|relay| *relay != current) {
            self.probe(now, id, relay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
    fn probes_are_bounded_and_come_back_with_time() {
        let now = Instant::now();
        let mut budget = ProbeBudget::of_node(now);
        let granted = |budget: &mut ProbeBudget, at| (0..1000).filter(|_| budget.take(at, 0)).count();
        assert_eq!(granted(&mut budget, now), 400);
        assert_eq!(granted(&mut budget, now + Duration::from_millis(500)), 50);
        assert_eq!(granted(&mut budget, now + Duration::from_secs(3600)), 400);
    }
}
