//! What is due for a tunnel's paths.

use std::time::Instant;

use super::{CHECK, Race};
use crate::id::TunnelId;
use crate::node::Node;

impl Node {
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

    /// The relay behind a direct path keeps its leg, and is known to work; so is the one path of a tunnel
    /// that is kept open.
    fn check_spare(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|tunnel| tunnel.paths.check <= now) else {
            return;
        };
        tunnel.paths.check = now + CHECK;
        let (peer, current) = (tunnel.peer, tunnel.paths.current);
        let relay = tunnel.paths.relay().map(|candidate| candidate.remote);
        if self.keeps_open(peer) {
            // All that is known, several times if need be.
            self.begin_doubt(now, id, Race::No);
        } else if let Some(relay) = relay.filter(|relay| *relay != current) {
            self.probe(now, id, relay);
        }
    }
}
