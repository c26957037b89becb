//! Doubt: the current path is perhaps dead.

use std::net::SocketAddr;
use std::time::Instant;

use super::{SEEK, Steps};
use crate::id::TunnelId;
use crate::node::Node;

/// Who may take the place of a path in doubt before its time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Race {
    /// Nobody: the path gets its time.
    No,
    /// The path on which the peer sends now, if it answers before the other.
    With(SocketAddr),
    /// Any that answers: this end has moved.
    Open,
}

/// The current path is perhaps dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) steps: Steps,
    pub(super) race: Race,
    /// When another path that answers is taken.
    pub(super) until: Instant,
    /// It was begun for silence alone.
    pub(super) silent: bool,
    /// The peer may have given its end up, and a relay would not help.
    pub(super) forsaken: bool,
    /// Another tunnel was asked for.
    pub(super) sought: bool,
    /// When the relay is asked once more.
    pub(super) relay_again: Option<Instant>,
}

impl Node {
    /// A tunnel that takes packets and brings none is perhaps on a dead path. Where there is no other, the
    /// tunnel bears silence for longer, and only its relay is asked: that may be beyond reach, and found
    /// again another way.
    pub(in crate::node) fn judge_silence(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let paths = &tunnel.paths;
        let silent = tunnel.unanswered_since.is_some_and(|since| since + paths.silence() <= now);
        let spare =
            !paths.is_relayed() || paths.candidates.iter().any(|c| !c.is_relay() && c.proved.is_some());
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

    /// False if the tunnel is gone.
    pub(super) fn step_doubt(&mut self, now: Instant, id: TunnelId) -> bool {
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
}
