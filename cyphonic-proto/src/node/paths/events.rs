//! What a tunnel's paths learn: answers, probes of the peer, its lists, moves.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::schedule::PROOF;
use super::{Candidate, CandidateSet, MAX_REFLEXIVE, Race, candidate};
use crate::id::TunnelId;
use crate::message::RouteKind;
use crate::node::setups::Setup;
use crate::node::tunnels::Tunnel;
use crate::node::{Action, Node, Routes, Service, Timer};

/// A path that answered within this time is not challenged because the peer sends on another.
const SURE: Duration = Duration::from_secs(1);

impl Node {
    /// A tunnel was installed: the dialling end tells where it is, and both look for better paths.
    pub(in crate::node) fn begin_paths(&mut self, now: Instant, id: TunnelId, setup: &Setup) {
        if setup.dial {
            self.tell(now, id);
            self.begin_anew(now, id);
        } else if setup.kind == RouteKind::Relay {
            // Nothing may be sent through the tunnel yet, but this end's NAT can let the first probe in.
            let remotes: Vec<_> =
                setup.endpoints.iter().copied().filter(|remote| self.may_probe(*remote)).collect();
            if !remotes.is_empty() {
                self.act(Action::Punch { remotes });
            }
        }
    }

    /// The peer answered a challenge or a probe.
    pub fn handle_path_response(&mut self, now: Instant, id: TunnelId, data: [u8; 8]) {
        if self.mtu_answered(now, id, data) {
            return;
        }
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let paths = &mut tunnel.paths;
        let Some(candidate) = paths.candidates.iter_mut().find_map(|c| c.answered(now, data).then_some(&*c))
        else {
            return;
        };
        let (remote, proved) = (candidate.remote, candidate.proved);
        let resolved = remote == paths.current
            && paths.doubt.is_some_and(|doubt| proved.is_some_and(|at| at >= doubt.steps.began));
        if resolved {
            let silent = paths.doubt.is_some_and(|doubt| doubt.silent);
            paths.doubt = None;
            if silent {
                paths.bear_longer_silence();
            }
        }
        tunnel.note_heard(now);
        self.consider(now, id);
        self.watch(now, id);
    }

    /// The peer's challenge came from an address that is not the path's, and was answered there.
    pub fn handle_probed(&mut self, now: Instant, id: TunnelId, from: SocketAddr) {
        if let Some((from, new)) = self.meet_at(id, from) {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
            tunnel.note_heard(now);
            // Its own probe got through, so it is time for ours (RFC 8445 §7.3.1.4), unless there is nothing
            // to gain.
            let sought =
                tunnel.paths.candidate(from).is_some_and(|candidate| tunnel.paths.is_sought(candidate));
            let waits =
                tunnel.paths.candidate(from).is_some_and(|c| c.proved.is_none_or(|at| at + SURE <= now));
            if new || (sought && waits) || tunnel.paths.is_doubted() {
                self.probe(now, id, from);
            }
        }
        self.watch(now, id);
    }

    /// Authenticated packets of the peer, newer than all before and not only to try a path, come from another
    /// address.
    ///
    /// The path is followed once it is validated, unless the one in use answers first: then there is nothing
    /// wrong with it (RFC 9000 §9.3).
    pub fn handle_peer_moved(&mut self, now: Instant, id: TunnelId, from: SocketAddr) {
        let Some((from, _)) = self.meet_at(id, from) else { return };
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.note_heard(now);
        let sure = tunnel.paths.current().is_some_and(|c| c.proved.is_some_and(|at| at + SURE > now));
        if !sure {
            let relay = tunnel.paths.candidate(from).is_some_and(Candidate::is_relay);
            let race = if relay { Race::No } else { Race::With(from) };
            self.begin_doubt(now, id, race);
        }
        self.probe(now, id, from);
        self.watch(now, id);
    }

    /// The peer tells where it may be reached.
    pub fn handle_candidates(&mut self, now: Instant, id: TunnelId, set: &CandidateSet) {
        let remotes = candidate::checked(&set.endpoints, self.prefix);
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.note_heard(now);
        let paths = &mut tunnel.paths;
        if set.heard >= paths.sequence {
            // Not any list of the peer's: one that was under way for long says nothing of this end's newest.
            (paths.telling, paths.untold, paths.moved) = (None, None, false);
        }
        let first = paths.heard.is_none();
        let newer = paths.heard.is_none_or(|heard| set.sequence > heard);
        // A list is told again with other flags; one that was overtaken says nothing of now.
        if newer || paths.heard == Some(set.sequence) {
            paths.kept_by_peer = set.flags.keep;
        }
        if newer {
            paths.heard = Some(set.sequence);
            let relay = paths.relay().map(|candidate| candidate.remote);
            let remotes: Vec<_> = remotes.into_iter().filter(|remote| Some(*remote) != relay).collect();
            paths.name(&remotes);
        }
        if set.flags.answer {
            if paths.sequence == 0 {
                paths.sequence = 1;
            }
            self.send_candidates(now, id, false);
        }
        if newer {
            // Several lists may tell of one move.
            let known = self.tunnels.get(&id).is_some_and(|tunnel| tunnel.paths.is_moving());
            if !first && set.flags.moved && !known {
                // It is elsewhere: the way to it that answers first is taken.
                self.begin_doubt(now, id, Race::Open);
            }
            self.begin_anew(now, id);
        }
        self.watch(now, id);
    }

    /// The NMS says where a peer is that has moved as well, the best place first. The round that looks for it goes on
    /// with these.
    pub(in crate::node) fn peer_found(&mut self, now: Instant, peer: Ipv6Addr, places: &[SocketAddr]) {
        for id in self.tunnels_with(peer) {
            if !self.tunnels.get(&id).is_some_and(|tunnel| tunnel.paths.is_moving()) {
                continue;
            }
            let places: Vec<_> = places.iter().take(MAX_REFLEXIVE).copied().collect();
            for place in places {
                let Some((place, true)) = self.meet_at(id, place) else { continue };
                self.probe(now, id, place);
            }
            self.watch(now, id);
        }
    }

    /// This node is elsewhere, or was asleep: every tunnel's path is in doubt, its peer is told where this
    /// node is now, and the first path that answers is taken.
    pub(in crate::node) fn move_tunnels(&mut self, now: Instant) {
        self.timers.clear(&Timer::Candidates);
        // What services observed is not known yet, and is to be told even if it turns out to be as before: the
        // lists of now, which are without it, take the place of those before.
        self.told.clear();
        let concerned = |tunnel: &Tunnel| tunnel.is_told() && !tunnel.is_stranded();
        let all = self.tunnels.iter().filter(|(_, tunnel)| concerned(tunnel)).map(|(id, _)| *id);
        let all: Vec<_> = all.collect();
        // What the tunnels' lives depend on goes first.
        for id in &all {
            self.begin_doubt(now, *id, Race::Open);
        }
        for id in all {
            if let Some(tunnel) = self.tunnels.get_mut(&id) {
                tunnel.paths.moved = true;
                // Those that went unanswered elsewhere say nothing of here.
                tunnel.challenge = None;
            }
            self.tell(now, id);
            self.begin_anew(now, id);
            self.watch(now, id);
        }
    }

    /// Notes to which tunnels' peers this host has no way any more, or has one again. Where it has none to
    /// the NMS either, whom they could be asked for anew, they are neither challenged nor told dead:
    /// their peers have their ends for as long as they bear silence. Returns those that were waited for
    /// longer than that.
    pub(in crate::node) fn note_ways(&mut self, now: Instant, routes: &dyn Routes) -> Vec<TunnelId> {
        let mut late = Vec::new();
        let asks = self.services.get(&Service::Nms).is_some_and(|slot| slot.reachable);
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            // A detour's address is this host's own, wherever the relay is.
            let relay = tunnel.relay.as_ref().and_then(|name| self.services.get(&Service::Trs(name.clone())));
            let is_way = |candidate: &Candidate| match candidate.remote.ip().is_loopback() {
                true => relay.is_some_and(|slot| slot.reachable),
                false => routes.source_for(candidate.remote).is_some(),
            };
            if !asks && !tunnel.paths.candidates.iter().any(is_way) {
                tunnel.stranded_since.get_or_insert(now);
                (tunnel.paths.doubt, tunnel.challenge) = (None, None);
                self.watch(now, id);
            } else if let Some(since) = tunnel.stranded_since.take() {
                (tunnel.hears_since, tunnel.unanswered_since) = (now, None);
                tunnel.leg.iter_mut().for_each(|leg| leg.wait_anew(now));
                if since + self.config.timing.silence <= now {
                    late.push(id);
                }
            }
        }
        late
    }

    /// Peers may have given up their ends of tunnels: whoever does not answer on any path is asked for
    /// another tunnel.
    pub(in crate::node) fn expect_nobody(&mut self, tunnels: &[TunnelId]) {
        for id in tunnels {
            if let Some(doubt) = self.tunnels.get_mut(id).and_then(|tunnel| tunnel.paths.doubt.as_mut()) {
                doubt.forsaken = true;
            }
        }
    }

    /// A relay knows where this node is now: tunnels that wait for an answer need not wait for their next
    /// step.
    pub(in crate::node) fn relay_followed(&mut self, now: Instant, trs: &str) {
        for id in self.tunnels_via(trs) {
            let doubt = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.paths.doubt.as_mut());
            let Some(doubt) = doubt else { continue };
            doubt.relay_again = Some(now + PROOF);
            self.probe_relay(now, id);
            self.watch(now, id);
        }
    }

    /// The address in its canonical form if it may be sent to, noted, and whether it is new.
    fn meet_at(&mut self, id: TunnelId, from: SocketAddr) -> Option<(SocketAddr, bool)> {
        let tunnel = self.tunnels.get_mut(&id)?;
        let from = crate::message::endpoint::canonical(from);
        if tunnel.paths.candidate(from).is_some() {
            return Some((from, false));
        }
        let from = *candidate::checked(&[from], self.prefix).first()?;
        Some((from, tunnel.paths.meet(from)))
    }
}
