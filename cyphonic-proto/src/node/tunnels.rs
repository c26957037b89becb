//! Tunnels: installed, replaced, removed.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use super::paths::Paths;
use super::relay_legs::OwnLeg;
use super::setups::Setup;
use super::{
    Action, CloseCode, Node, PathMtu, Service, Timer, TunnelActivity, TunnelControl, TunnelParameters, mtu,
};
use crate::ConnectionId;
use crate::id::{SetupId, TunnelId};
use crate::message::RouteKind;
use crate::tunnel::{Secret, Suite};

/// A tunnel in the dataplane.
pub(super) struct Tunnel {
    pub(super) peer: Ipv6Addr,
    pub(super) setup: SetupId,
    pub(super) kind: RouteKind,
    pub(super) reason: String,
    pub(super) relay: Option<String>,
    /// This end's leg at the relay.
    pub(super) leg: Option<OwnLeg>,
    pub(super) initiator: bool,
    pub(super) local_cid: ConnectionId,
    /// The current path: what stands on the wire, and where packets go.
    pub(super) wire_cid: ConnectionId,
    pub(super) remote: SocketAddr,
    pub(super) paths: Paths,
    pub(super) since: Instant,
    pub(super) retires_at: Option<Instant>,
    pub(super) counted: TunnelActivity,
    /// When an inner packet last went either way, as far as the counters tell.
    pub(super) last_use: Instant,
    /// When this end last sent anything.
    pub(super) last_tx: Instant,
    /// When the peer last gave a sign of life.
    pub(super) last_rx: Option<Instant>,
    /// Since when this end sends without a sign of life.
    pub(super) unanswered_since: Option<Instant>,
    pub(super) challenge: Option<Challenge>,
    /// Since when this host has had no way to anywhere where the peer may be, nor to the NMS.
    pub(super) stranded_since: Option<Instant>,
    /// Silence before this says nothing: nobody could be heard.
    pub(super) hears_since: Instant,
    /// When a tunnel in use gets a successor.
    pub(super) refresh_at: Instant,
    /// For what the path carries.
    pub(super) search: mtu::Search,
    /// What the dataplane was told of it.
    pub(super) mtu: PathMtu,
}

/// Challenges without an answer.
#[derive(Clone, Copy)]
pub(super) struct Challenge {
    pub(super) sent: u32,
    pub(super) next: Instant,
}

/// What a set-up ended in.
pub(super) struct Install {
    pub(super) remote_cid: ConnectionId,
    pub(super) wire_cid: ConnectionId,
    pub(super) remote: SocketAddr,
    pub(super) suite: Suite,
    /// What both ends take at most.
    pub(super) inner_mtu: u16,
    pub(super) send: Secret,
    pub(super) recv: Secret,
    pub(super) confirmed: bool,
}

impl Node {
    /// Installs the tunnel of a set-up, then answers all who wait for the peer.
    pub(super) fn install(&mut self, now: Instant, setup: Setup, install: Install) {
        let id = TunnelId(self.next_tunnel);
        self.next_tunnel += 1;
        let (peer, setup_id, dial) = (setup.peer, setup.id, setup.dial);
        let relay_reset =
            setup.relay.as_ref().and_then(|own| own.leg.as_ref()).and_then(|leg| leg.reset_token);
        self.tunnels.insert(id, self.new_tunnel(now, &setup, &install));
        if let Some(peer) = self.peers.get_mut(&peer) {
            // Its certificate has it, whoever asked for what.
            peer.fqdn = Some(setup.fqdn.clone());
        }
        let Install { remote_cid, wire_cid, remote, suite, inner_mtu, send, recv, confirmed } = install;
        self.act(Action::InstallTunnel(Box::new(TunnelParameters {
            id,
            setup: setup_id,
            peer_fqdn: setup.fqdn.clone(),
            peer,
            local_cid: setup.cid,
            remote_cid,
            remote,
            wire_cid,
            suite,
            send,
            recv,
            inner_mtu: mtu::first_inner(inner_mtu),
            confirmed,
            relay_reset,
        })));
        self.supersede(now, peer, id);
        self.begin_paths(now, id, &setup);
        if dial {
            // The listening end sends nothing before it hears of us.
            self.challenge(now, id);
        }
        self.reached(now, peer, setup_id);
        self.hold_mappings(now);
        self.watch(now, id);
        if confirmed {
            self.search_mtu(now, id);
        }
    }

    /// Takes a tunnel from the dataplane and all tables. Whether another is wanted is for the caller to say.
    pub(super) fn remove_tunnel(
        &mut self,
        now: Instant,
        id: TunnelId,
        close: Option<CloseCode>,
    ) -> Option<Tunnel> {
        let tunnel = self.tunnels.remove(&id)?;
        self.timers.clear(&Timer::Tunnel(id));
        self.timers.clear(&Timer::Mtu(id));
        if let Some(peer) = self.peers.get_mut(&tunnel.peer) {
            peer.tunnels.retain(|other| *other != id);
            peer.since = if peer.tunnels.is_empty() { now } else { peer.since };
        }
        if tunnel.last_rx.is_none() {
            self.recall(tunnel.peer);
        }
        self.act(Action::RemoveTunnel { id, close });
        self.keep_after(now, tunnel.peer);
        if let Some(relay) = &tunnel.relay {
            let listed = self.registration.known.relays.iter().any(|known| known.name == *relay);
            if !listed && !self.uses_relay(relay) {
                self.unwant(now, &Service::Trs(relay.clone()));
            }
        }
        self.changed();
        Some(tunnel)
    }

    /// Of a peer's tunnels the one of the latest set-up stays; both ends judge alike, as the NMS numbers
    /// set-ups.
    fn supersede(&mut self, now: Instant, peer: Ipv6Addr, id: TunnelId) {
        let retires_at = now + self.config.timing.overlap;
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.tunnels.push(id);
        let setup_of = |id: &TunnelId| self.tunnels.get(id).map(|tunnel| tunnel.setup);
        entry.tunnels.sort_by_key(|id| std::cmp::Reverse(setup_of(id)));
        for old in entry.tunnels.clone().into_iter().skip(1) {
            if let Some(tunnel) = self.tunnels.get_mut(&old) {
                tunnel.retires_at.get_or_insert(retires_at);
            }
            self.watch(now, old);
        }
    }

    /// A tunnel of which the peer perhaps never heard is gone: the one before it stays, as it does at the
    /// peer then.
    fn recall(&mut self, peer: Ipv6Addr) {
        let newest = self.peers.get(&peer).and_then(|peer| peer.tunnels.first());
        if let Some(tunnel) = newest.and_then(|id| self.tunnels.get_mut(id)) {
            tunnel.retires_at = None;
        }
    }

    /// Whether a peer has a tunnel that is to stay.
    pub(super) fn has_lasting_tunnel(&self, peer: Ipv6Addr) -> bool {
        let lasts = |id: &TunnelId| self.tunnels.get(id).is_some_and(|tunnel| tunnel.retires_at.is_none());
        self.peers.get(&peer).is_some_and(|peer| peer.tunnels.iter().any(lasts))
    }

    /// The peer closed a tunnel, or the dataplane lost it.
    pub fn handle_tunnel_closed(&mut self, now: Instant, id: TunnelId) {
        self.remove_tunnel(now, id, None);
    }

    /// A tunnel's keys are nearly used up: a fresh tunnel replaces it.
    pub fn handle_keys_exhausted(&mut self, now: Instant, id: TunnelId) {
        self.replace(now, id);
    }

    /// A fresh tunnel is to replace this one.
    pub(super) fn replace(&mut self, now: Instant, id: TunnelId) {
        if let Some(peer) =
            self.tunnels.get(&id).filter(|tunnel| tunnel.retires_at.is_none()).map(|tunnel| tunnel.peer)
        {
            self.want_anew(now, peer);
        }
    }

    /// Removes a tunnel that no longer carries; a new one is set up at once if it was in use.
    pub(super) fn tunnel_died(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.remove_tunnel(now, id, None) else { return };
        if tunnel.last_rx.is_none() {
            self.route_failed(now, tunnel.peer, tunnel.kind, tunnel.relay.as_deref());
        }
        let others = self.has_lasting_tunnel(tunnel.peer);
        // One that was never heard counts as used only if something was sent: else a peer that answers nothing
        // would be set up to for ever.
        let wanted = tunnel.last_rx.is_some() || tunnel.last_use > tunnel.since;
        let used =
            wanted && now.saturating_duration_since(tunnel.last_use) < self.config.timing.keepalive * 2;
        if !others && (used || self.keeps_open(tunnel.peer)) {
            self.want_anew(now, tunnel.peer);
        }
    }

    pub(super) fn uses_relay(&self, name: &str) -> bool {
        self.setups.values().any(|setup| setup.uses(name))
            || self.tunnels.values().any(|tunnel| tunnel.relay.as_deref() == Some(name))
    }

    pub(super) fn control(&mut self, now: Instant, id: TunnelId, control: TunnelControl) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.last_tx = now;
            self.act(Action::SendControl { id, control });
        }
    }

    fn new_tunnel(&self, now: Instant, setup: &Setup, install: &Install) -> Tunnel {
        // The end that asked renews; the other steps in if that does not happen.
        let slack = if setup.initiator { 0 } else { 1 };
        let mut leg = setup.relay.as_ref().and_then(|own| own.leg.clone());
        leg.iter_mut().for_each(|leg| leg.take_up(now));
        let refresh_at = now + self.config.timing.refresh + self.config.timing.setup * 12 * slack;
        let search = mtu::Search::begin(now, install.remote, install.wire_cid, install.inner_mtu);
        Tunnel {
            peer: setup.peer,
            setup: setup.id,
            kind: setup.kind,
            reason: setup.reason.clone(),
            relay: setup.relay.as_ref().map(|own| own.relay.name.clone()),
            leg,
            initiator: setup.initiator,
            local_cid: setup.cid,
            wire_cid: install.wire_cid,
            remote: install.remote,
            paths: Paths::new(now, setup, install.remote_cid, (install.remote, install.wire_cid)),
            since: now,
            retires_at: None,
            counted: TunnelActivity::default(),
            last_use: now,
            last_tx: now,
            last_rx: None,
            unanswered_since: None,
            stranded_since: None,
            hears_since: now,
            challenge: None,
            refresh_at,
            mtu: search.mtu(),
            search,
        }
    }
}
