//! Watching tunnels: kept alive while in use, challenged when silent, replaced when old, closed when idle.

use super::{
    Action, CloseCode, Node, Timer, Timing, TunnelActivity, TunnelControl,
    tunnels::{Challenge, Tunnel},
};
use crate::{id::TunnelId, message::RouteKind};
use rand::Rng;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A listening end gives a tunnel this long for the first sign of its peer.
const UNCONFIRMED: Duration = Duration::from_secs(10);
/// A tunnel that just heard of its peer is not doubted.
const FRESH: Duration = Duration::from_secs(2);
/// A tunnel that carried something within this time is in use.
const IN_USE: Duration = Duration::from_secs(10);
/// Between attempts to replace an old tunnel.
const REFRESH_AGAIN: Duration = Duration::from_secs(60);

impl Node {
    pub(super) fn activity(&mut self, now: Instant, id: TunnelId, seen: TunnelActivity) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let sent = seen.tx_packets > tunnel.counted.tx_packets;
        let received = seen.rx_packets > tunnel.counted.rx_packets;
        let alive = received || seen.last_rx > tunnel.counted.last_rx;
        let before = std::mem::replace(&mut tunnel.counted, seen);
        if sent || received {
            tunnel.last_use = now;
        }
        if sent {
            tunnel.last_tx = now;
            tunnel.unanswered_since.get_or_insert(now);
        }
        if alive {
            tunnel.is_alive(seen.last_rx.unwrap_or(now).min(now));
        }
        self.watch(now, id);
        self.mtu_used(now, id, before, seen);
    }

    pub(super) fn challenge_answered(&mut self, now: Instant, id: TunnelId, data: [u8; 8]) {
        if self.mtu_answered(now, id, data) {
            return;
        }
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.challenge.is_some_and(|challenge| challenge.data == data) {
            tunnel.moved_from = None;
            tunnel.is_alive(now);
            self.watch(now, id);
        }
    }

    /// Somebody begins to use the tunnel: if it was silent for a while, it is checked before long.
    pub(super) fn doubt(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.last_use = now;
        let heard = tunnel.last_rx.unwrap_or(tunnel.since);
        if tunnel.challenge.is_none() && now.saturating_duration_since(heard) > FRESH {
            self.challenge(now, id);
        }
        self.watch(now, id);
    }

    /// Asks the peer for a sign of life.
    pub(super) fn challenge(&mut self, now: Instant, id: TunnelId) {
        let data = self.rng.random();
        let next = now + self.config.timing.challenge;
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let sent = tunnel.challenge.map_or(0, |challenge| challenge.sent);
        let data = tunnel.challenge.map_or(data, |challenge| challenge.data);
        tunnel.challenge = Some(Challenge { data, sent: sent + 1, next });
        self.control(now, id, TunnelControl::PathChallenge(data));
    }

    /// The peer seems to have another address. Packets go there only while it answers from there (RFC 9000 §9.3).
    pub(super) fn peer_moved(&mut self, now: Instant, id: TunnelId, from: SocketAddr) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.kind == RouteKind::Relay || tunnel.remote == from {
            return;
        }
        tunnel.moved_from.get_or_insert(tunnel.remote);
        tunnel.remote = from;
        tunnel.challenge = None;
        let wire_cid = tunnel.wire_cid;
        self.act(Action::SetPath { id, remote: from, wire_cid });
        self.challenge(now, id);
        self.watch(now, id);
        self.changed();
    }

    /// Does what is due for a tunnel, and sets the time of what is next.
    pub(super) fn watch(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let timing = &self.config.timing;
        // A relay that is being waited for says nothing about the peer.
        let away = tunnel.is_away();
        match () {
            () if tunnel.retires_at.is_some_and(|at| at <= now) => {
                self.remove_tunnel(now, id, None);
                return;
            }
            () if !away && tunnel.exhausted(now, self.patience(tunnel)) => return self.unanswered(now, id),
            () if !away
                && tunnel.last_rx.is_none()
                && tunnel.challenge.is_none()
                && tunnel.since + UNCONFIRMED <= now =>
            {
                return self.tunnel_died(now, id);
            }
            () if tunnel.last_use + timing.idle <= now => {
                self.remove_tunnel(now, id, Some(CloseCode::Idle));
                return;
            }
            () if tunnel.challenge.is_some_and(|challenge| challenge.next <= now) => self.challenge(now, id),
            () if tunnel.challenge.is_none() && tunnel.silent(now, timing.silence) => self.challenge(now, id),
            () if tunnel.last_tx + tunnel.keepalive(now, timing) <= now => {
                self.control(now, id, TunnelControl::Ping)
            }
            () => {}
        }
        if self.watch_leg(now, id) {
            self.refresh(now, id);
            self.set_watch(now, id);
        }
        self.search_new_path(now, id);
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
        let unconfirmed = tunnel.last_rx.is_none() && !challenged;
        let dues = [
            tunnel.retires_at,
            tunnel.challenge.map(|challenge| challenge.next),
            unconfirmed.then(|| tunnel.since + UNCONFIRMED),
            tunnel.unanswered_since.filter(|_| !challenged).map(|since| since + timing.silence),
            Some(tunnel.last_use + timing.idle),
            Some(tunnel.last_tx + tunnel.keepalive(now, timing)),
            tunnel.leg.as_ref().and_then(|leg| leg.next_due(tunnel.last_rx)),
            Some(tunnel.refresh_at),
        ];
        if let Some(at) = dues.into_iter().flatten().min() {
            self.timers.set(Timer::Tunnel(id), at);
        }
    }

    /// How many challenges may stay unanswered: a new tunnel gets more, as its peer may still be installing it.
    fn patience(&self, tunnel: &Tunnel) -> u32 {
        let challenges = self.config.timing.challenges;
        if tunnel.last_rx.is_none() { challenges.saturating_mul(2) } else { challenges }
    }

    /// The peer gave no sign of life, however often it was asked.
    fn unanswered(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        match tunnel.moved_from.take() {
            // It did not move after all, or not there.
            Some(before) => {
                tunnel.remote = before;
                tunnel.challenge = None;
                let wire_cid = tunnel.wire_cid;
                self.act(Action::SetPath { id, remote: before, wire_cid });
                self.challenge(now, id);
                self.watch(now, id);
            }
            None => self.tunnel_died(now, id),
        }
    }
}

impl Tunnel {
    fn is_alive(&mut self, at: Instant) {
        self.last_rx = self.last_rx.max(Some(at));
        self.unanswered_since = None;
        self.challenge = None;
    }

    /// Whether its relay is being waited for.
    pub(super) fn is_away(&self) -> bool {
        self.leg.as_ref().is_some_and(|leg| leg.away.is_some())
    }

    /// How long this end may be silent. One that only receives through a relay would not hear that the relay has
    /// restarted: the answer to its own packets tells.
    fn keepalive(&self, now: Instant, timing: &Timing) -> Duration {
        let in_use = now.saturating_duration_since(self.last_use) < IN_USE;
        if self.leg.is_some() && in_use { timing.relay_keepalive } else { timing.keepalive }
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
