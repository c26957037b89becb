//! Watching tunnels: kept alive while in use, challenged when silent, replaced when old, closed when idle.

use std::time::{Duration, Instant};

use super::tunnels::{Challenge, Tunnel};
use super::{CloseCode, Node, Timer, TunnelActivity, TunnelControl};
use crate::id::TunnelId;

/// A listening end gives a tunnel this long for the first sign of its peer.
const UNCONFIRMED: Duration = Duration::from_secs(10);
/// A tunnel whose time is up is kept for so long at a time while its successor waits for that sign.
const KEPT: Duration = Duration::from_secs(1);
/// A tunnel that just heard of its peer is not doubted.
const FRESH: Duration = Duration::from_secs(2);
/// A tunnel that carried something within this time is in use: worth a better path, and another tunnel if it
/// breaks.
const IN_USE: Duration = Duration::from_secs(10);
/// Between attempts to replace an old tunnel.
const REFRESH_AGAIN: Duration = Duration::from_secs(60);

impl Node {
    /// Counters of a tunnel; to be told of every tunnel about once a second.
    pub fn handle_tunnel_stats(&mut self, now: Instant, id: TunnelId, seen: TunnelActivity) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let sent = seen.tx_packets > tunnel.counted.tx_packets;
        let received = seen.rx_packets > tunnel.counted.rx_packets;
        let alive = received || seen.last_rx > tunnel.counted.last_rx;
        let before = std::mem::replace(&mut tunnel.counted, seen);
        if sent || received {
            tunnel.last_use = now;
        }
        if received {
            tunnel.paths.note_answer();
        }
        if sent || seen.last_tx.is_some() {
            tunnel.last_tx = tunnel.last_tx.max(seen.last_tx.unwrap_or(now).min(now));
        }
        if alive {
            tunnel.note_heard(seen.last_rx.unwrap_or(now).min(now));
            self.peers.get_mut(&tunnel.peer).into_iter().for_each(|peer| peer.refusals = 0);
        }
        let heard = tunnel.last_rx;
        if let Some(since) = seen.unanswered_since.filter(|since| heard.is_none_or(|heard| *since > heard)) {
            tunnel.unanswered_since.get_or_insert(since.max(tunnel.hears_since));
        }
        self.judge_silence(now, id);
        self.watch(now, id);
        self.mtu_used(now, id, before, seen);
    }

    /// Somebody begins to use the tunnel: if it was silent for a while, it is checked before long.
    pub(super) fn doubt(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.last_use = now;
        let heard = tunnel.last_rx.unwrap_or(tunnel.since);
        if !tunnel.is_stranded() && tunnel.challenge.is_none() && now.saturating_duration_since(heard) > FRESH
        {
            tunnel.challenge = Some(Challenge { sent: 1, next: now + self.config.timing.challenge });
            self.doubt_path(now, id);
        }
        self.watch(now, id);
    }

    /// Asks the peer for a sign of life.
    pub(super) fn challenge(&mut self, now: Instant, id: TunnelId) {
        let next = now + self.config.timing.challenge;
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|tunnel| !tunnel.is_stranded()) else { return };
        let sent = tunnel.challenge.map_or(0, |challenge| challenge.sent);
        tunnel.challenge = Some(Challenge { sent: sent + 1, next });
        self.probe_known(now, id);
    }

    /// Does what is due for a tunnel, and sets the time of what is next.
    pub(super) fn watch(&mut self, now: Instant, id: TunnelId) {
        self.keep_beside_unheard(now, id);
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let timing = &self.config.timing;
        // A relay that is being waited for says nothing about the peer, nor does silence where there is no
        // network.
        let stranded = tunnel.is_stranded();
        let away = tunnel.is_away() || stranded;
        if tunnel.retires_at.is_some_and(|at| at <= now) {
            self.remove_tunnel(now, id, None);
            return;
        }
        let unconfirmed = tunnel.last_rx.is_none() && tunnel.challenge.is_none();
        let never_answered = !tunnel.is_away() && unconfirmed && tunnel.since + UNCONFIRMED <= now;
        if never_answered || !away && tunnel.exhausted(now, self.patience(tunnel)) {
            return self.tunnel_died(now, id);
        }
        if self.idles_at(tunnel).is_some_and(|at| at <= now) {
            self.remove_tunnel(now, id, Some(CloseCode::Idle));
            return;
        }
        if tunnel.challenge.is_some_and(|challenge| challenge.next <= now) {
            self.challenge(now, id);
        } else if !stranded && tunnel.challenge.is_none() && tunnel.silent(now, timing.silence) {
            self.challenge(now, id);
            self.doubt_way(now, id);
        } else if self.speaks_at(now, tunnel).is_some_and(|at| at <= now) {
            self.control(now, id, TunnelControl::Ping);
        }
        if self.watch_paths(now, id) && self.watch_leg(now, id) {
            self.refresh(now, id);
            self.set_watch(now, id);
        }
        self.search_new_path(now, id);
    }

    /// The end that was to take this tunnel's place may come to nothing, at the same moment even: the peer
    /// has this one then. It has none that is older than one on which it was heard, and who set up one
    /// after the other would have this node keep them all.
    fn keep_beside_unheard(&mut self, now: Instant, id: TunnelId) {
        let unheard = |newer: &TunnelId| self.tunnels.get(newer).is_some_and(|newer| newer.last_rx.is_none());
        let peer = self.tunnels.get(&id).and_then(|tunnel| self.peers.get(&tunnel.peer));
        let is_kept = peer.is_some_and(|peer| {
            let newer = peer.tunnels.iter().position(|tunnel| *tunnel == id).unwrap_or(0);
            newer > 0 && peer.tunnels.iter().take(newer).all(unheard)
        });
        if let Some(tunnel) = self.tunnels.get_mut(&id).filter(|_| is_kept) {
            let due = |at: &mut Instant| *at <= now;
            if tunnel.retires_at.take_if(due).is_some() {
                tunnel.retires_at = Some(now + KEPT);
            }
        }
    }

    fn refresh(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.refresh_at <= now {
            tunnel.refresh_at = now + REFRESH_AGAIN;
            self.replace(now, id);
        }
    }

    fn set_watch(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let timing = &self.config.timing;
        let challenged = tunnel.challenge.is_some();
        let unconfirmed = tunnel.last_rx.is_none() && !challenged && !tunnel.is_away();
        let dues = [
            tunnel.retires_at,
            tunnel.challenge.map(|challenge| challenge.next),
            unconfirmed.then(|| tunnel.since + UNCONFIRMED),
            tunnel
                .unanswered_since
                .filter(|_| !challenged && !tunnel.is_stranded())
                .map(|since| since + timing.silence),
            self.idles_at(tunnel),
            self.speaks_at(now, tunnel),
            self.paths_due(now, id),
            tunnel.leg.as_ref().and_then(|leg| leg.next_due(tunnel.last_rx, tunnel.is_stranded())),
            Some(tunnel.refresh_at),
        ];
        if let Some(at) = dues.into_iter().flatten().min() {
            self.timers.set(Timer::Tunnel(id), at);
        }
    }

    /// How many challenges may stay unanswered: a new tunnel gets more, as its peer may still be installing
    /// it.
    fn patience(&self, tunnel: &Tunnel) -> u32 {
        let challenges = self.config.timing.challenges;
        if tunnel.last_rx.is_none() { challenges.saturating_mul(2) } else { challenges }
    }

    /// When an unused tunnel ends, unless an end keeps it open. Not while the NMS is away: none would take its
    /// place when it is wanted again.
    fn idles_at(&self, tunnel: &Tunnel) -> Option<Instant> {
        if self.keeps_open(tunnel.peer) || !self.registration.registered {
            return None;
        }
        let by_peer = tunnel.last_rx.filter(|_| tunnel.paths.kept_by_peer);
        let last = [Some(tunnel.last_use), by_peer, self.registration.since].into_iter().flatten().max();
        last.map(|last| last + self.config.timing.idle)
    }

    /// The NMS knows this node: tunnels end again when nobody uses them.
    pub(super) fn tunnels_may_idle(&mut self, now: Instant) {
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.watch(now, id);
        }
    }

    /// When this end has to say something on a tunnel.
    fn speaks_at(&self, now: Instant, tunnel: &Tunnel) -> Option<Instant> {
        self.tunnel_keepalive(now, tunnel).map(|interval| tunnel.last_tx + interval)
    }
}

impl Tunnel {
    /// Whether it carried something lately.
    pub(super) fn is_used(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_use) < IN_USE
    }

    /// The peer gave a sign of life at this time.
    pub(super) fn note_heard(&mut self, at: Instant) {
        self.last_rx = self.last_rx.max(Some(at));
        // Counters tell late of what came before.
        self.stranded_since = self.stranded_since.filter(|since| *since >= at);
        self.unanswered_since = None;
        self.challenge = None;
    }

    /// Whether its packets go through a relay that is being waited for.
    pub(super) fn is_away(&self) -> bool {
        self.paths.is_relayed() && self.is_leg_away()
    }

    /// Whether the relay has lost its leg, or the connection to it is lost.
    pub(super) fn is_leg_away(&self) -> bool {
        self.leg.as_ref().is_some_and(|leg| leg.away.is_some())
    }

    /// Whether this host has no way to the peer: it is waited for until there is one.
    pub(super) fn is_stranded(&self) -> bool {
        self.stranded_since.is_some()
    }

    /// Whether its peer is told of changes: not that of one that is about to go, or has not been heard yet.
    pub(super) fn is_told(&self) -> bool {
        self.retires_at.is_none() && self.last_rx.is_some()
    }

    /// Sends without receiving.
    fn silent(&self, now: Instant, patience: Duration) -> bool {
        self.unanswered_since.is_some_and(|since| since + patience <= now)
    }

    /// All challenges allowed are sent, and the last one's time is up.
    fn exhausted(&self, now: Instant, allowed: u32) -> bool {
        self.challenge.is_some_and(|challenge| challenge.sent >= allowed && challenge.next <= now)
    }
}
