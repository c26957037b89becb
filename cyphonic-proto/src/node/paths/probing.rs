//! Probes of a tunnel's paths: which may be sent, and what is noted of them.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use super::Candidate;
use super::budget::FOR_PROVED;
use crate::id::TunnelId;
use crate::nat::Family;
use crate::node::{Action, Node, TunnelControl};

impl Node {
    /// Probes one path of a tunnel; the current one as a challenge.
    pub(in crate::node) fn probe(&mut self, now: Instant, id: TunnelId, remote: SocketAddr) {
        self.probe_with(now, id, remote, 0);
    }

    /// The same, with so many of the peer's probes to be left for others.
    pub(super) fn probe_with(&mut self, now: Instant, id: TunnelId, remote: SocketAddr, reserve: u32) {
        let data = self.rng.random();
        if !self.affords(now, id, remote, reserve) {
            return;
        }
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let current = tunnel.paths.current;
        let Some(candidate) = tunnel.paths.candidates.iter_mut().find(|candidate| candidate.remote == remote)
        else {
            return;
        };
        candidate.sent(now, data);
        let wire_cid = candidate.wire_cid;
        if remote == current {
            return self.control(now, id, TunnelControl::PathChallenge(data));
        }
        let control = TunnelControl::Probe { remote, wire_cid, data };
        self.act(Action::SendControl { id, control });
    }

    /// Takes a probe of a path from what the node and the peer have left.
    fn affords(&mut self, now: Instant, id: TunnelId, remote: SocketAddr, reserve: u32) -> bool {
        let Some(tunnel) = self.tunnels.get(&id) else { return false };
        let Some(candidate) = tunnel.paths.candidate(remote) else { return false };
        // What a tunnel's life depends on is bounded by the number of tunnels.
        if remote == tunnel.paths.current || candidate.is_relay() {
            return true;
        }
        let proved = candidate.proved.is_some();
        let peer = self.peers.get_mut(&tunnel.peer);
        if proved {
            // Rounds come as often as the peer likes, and it may have answered from many addresses.
            return (reserve == 0 || peer.is_none_or(|peer| peer.probes.take(now, reserve)))
                && self.probes.take(now, 0);
        }
        // Neither pays for what the other has not got.
        self.probes.has(now, FOR_PROVED)
            && peer.is_none_or(|peer| peer.probes.take(now, reserve))
            && self.probes.take(now, FOR_PROVED)
    }

    /// Probes the current path, and those that are known to have worked.
    pub(in crate::node) fn probe_known(&mut self, now: Instant, id: TunnelId) {
        let Some(paths) = self.tunnels.get(&id).map(|tunnel| &tunnel.paths) else { return };
        let known = |candidate: &&Candidate| {
            candidate.remote == paths.current || candidate.is_relay() || candidate.proved.is_some()
        };
        let remotes: Vec<_> =
            paths.candidates.iter().filter(known).map(|candidate| candidate.remote).collect();
        remotes.into_iter().for_each(|remote| self.probe(now, id, remote));
    }

    pub(super) fn probe_relay(&mut self, now: Instant, id: TunnelId) {
        let relay =
            self.tunnels.get(&id).and_then(|tunnel| tunnel.paths.relay()).map(|candidate| candidate.remote);
        if let Some(relay) = relay {
            self.probe(now, id, relay);
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
}
