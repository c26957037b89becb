//! Rounds: the search for better paths.

use std::time::Instant;

use super::budget::RESERVE;
use super::{Candidate, PAUSE_LEAST, Steps};
use crate::id::TunnelId;
use crate::node::Node;

impl Node {
    /// Begins to look for better paths, at once.
    pub(super) fn begin_round(&mut self, now: Instant, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.paths.round = Some(Steps::round(now));
            tunnel.paths.next_round = None;
        }
        self.step_round(now, id);
    }

    /// Begins to look because something is new: what was in vain before says nothing of it.
    pub(super) fn begin_anew(&mut self, now: Instant, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.paths.pause = PAUSE_LEAST;
        }
        self.begin_round(now, id);
    }

    pub(super) fn step_round(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(steps) = &mut tunnel.paths.round else { return };
        if steps.take(now) {
            let began = steps.began;
            let paths = &tunnel.paths;
            let waits =
                |candidate: &&Candidate| paths.is_sought(candidate) && !candidate.is_proved_since(began);
            let mut candidates: Vec<_> = paths.candidates.iter().filter(waits).collect();
            candidates.sort_by_key(|candidate| candidate.class);
            let remotes: Vec<_> = candidates.iter().map(|candidate| candidate.remote).collect();
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
}
