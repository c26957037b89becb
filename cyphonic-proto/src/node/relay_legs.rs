//! This node's legs at relays, under tunnels that stand: their tickets renewed, and the legs restored when a
//! relay has lost them.
//!
//! A relay that restarts, or a connection to it that breaks, does not end the tunnels through it: packets may
//! still pass (the relay's kernel program forwards on its own), and if not, they will again once both ends
//! have restored their legs. The relay says at once that it lost a leg, by a stateless reset; this node then
//! connects anew, without waiting unless that would interrupt a set-up, and hands in its tickets. While a leg
//! is away the tunnel's silence proves nothing, so it is not given up for [`AWAY`]; in use, another way is
//! looked for meanwhile.

use std::time::{Duration, Instant};

use rand::Rng;

use super::exchanges::Purpose;
use super::moves::ANSWERED;
use super::registration::unexpected;
use super::tunnels::Tunnel;
use super::{Node, ResolveError, Service};
use crate::ConnectionId;
use crate::id::{ExchangeId, TunnelId};
use crate::message::{BindingResponse, BindingRestore, Message, field};
use crate::trs::{MAX_TICKET, RESET_TOKEN_LEN};

/// How long a tunnel waits for its relay. After this a relay that was only restarted is back.
pub(super) const AWAY: Duration = Duration::from_secs(30);
/// After this long another route is looked for, if the tunnel is in use and silent.
pub(super) const ELSEWHERE: Duration = Duration::from_secs(6);
/// A ticket from before the other end bound its leg is renewed after this: the new one tells where that end
/// is.
const RENEW_SOON: Duration = Duration::from_secs(1);
/// Tickets are renewed no more often, however short-lived they are.
const RENEW_LEAST: Duration = Duration::from_secs(60);
/// A relay that is said to have restarted, and has not, says so within this and two round trips; within
/// [`ANSWERED`] where the round trip is not known.
const SAME: Duration = Duration::from_millis(250);
/// Waits of a restored leg whose other end is not back: each time the relay calls it.
const AGAIN_LEAST: Duration = Duration::from_millis(250);
const AGAIN_MOST: Duration = Duration::from_secs(30);

/// This node's leg at a relay.
#[derive(Clone)]
pub(super) struct OwnLeg {
    pub(super) cid: ConnectionId,
    /// The other end's: what this node writes on what it sends.
    pub(super) peer_cid: ConnectionId,
    /// What prefixes the DATAGRAMs of the leg: this node's choice.
    pub(super) context: u64,
    /// What gets it back from a relay that has lost it; empty where the relay gives none.
    pub(super) ticket: Vec<u8>,
    lifetime: Duration,
    /// What ends the reset by which the relay says that it does not know the leg of the other end.
    pub(super) reset_token: Option<[u8; RESET_TOKEN_LEN]>,
    bound: bool,
    /// Whether the relay may have lost it, as a reset says.
    doubted: bool,
    /// When the ticket is handed in next.
    due: Option<Instant>,
    under_way: Option<ExchangeId>,
    pub(super) away: Option<Away>,
    unbound: u32,
}

/// The relay has lost the leg, or its connection.
#[derive(Clone, Copy)]
pub(super) struct Away {
    since: Instant,
    /// Whether another route was looked for.
    sought: bool,
}

impl OwnLeg {
    /// The leg in a BindingResponse.
    pub(super) fn from_wire(response: &BindingResponse, context: u64) -> Result<Self, field::BadField> {
        let cid = field::data_connection_id(&response.connection_id, "connection_id")?;
        let peer_cid = field::data_connection_id(&response.peer_connection_id, "peer_connection_id")?;
        let reset_token = match response.reset_token.as_slice() {
            [] => None,
            bytes => Some(bytes.try_into().map_err(|_| field::BadField("reset_token"))?),
        };
        if response.ticket.len() > MAX_TICKET {
            return Err(field::BadField("ticket"));
        }
        Ok(Self {
            cid,
            peer_cid,
            context,
            ticket: response.ticket.clone(),
            lifetime: Duration::from_secs(u64::from(response.ticket_lifetime_s)),
            reset_token,
            bound: response.bound,
            doubted: false,
            due: None,
            under_way: None,
            away: None,
            unbound: 0,
        })
    }

    /// The tunnel stands: the ticket is good until half its life, or until the other end is known.
    pub(super) fn take_up(&mut self, now: Instant) {
        self.renew(now, RENEW_SOON);
    }

    fn renew(&mut self, now: Instant, soon: Duration) {
        let wait = if self.bound { (self.lifetime / 2).max(RENEW_LEAST) } else { soon };
        self.due = (!self.ticket.is_empty()).then_some(now + wait);
    }

    /// Since when the leg is away and nothing came through it.
    fn silent_since(&self, last_rx: Option<Instant>) -> Option<Instant> {
        let since = self.away?.since;
        Some(last_rx.map_or(since, |heard| heard.max(since)))
    }

    /// There is a way to the relay again: what it says of the relay that nothing came begins anew.
    pub(super) fn wait_anew(&mut self, now: Instant) {
        self.away.iter_mut().for_each(|away| away.since = now);
    }

    /// When [`Node::watch_leg`] has something to do. Where there is no network the relay is not to blame.
    pub(super) fn next_due(&self, last_rx: Option<Instant>, stranded: bool) -> Option<Instant> {
        let sought = self.away.is_some_and(|away| away.sought);
        let patience = if sought { AWAY } else { ELSEWHERE };
        let silence = self.silent_since(last_rx).filter(|_| !stranded).map(|since| since + patience);
        [self.due, silence].into_iter().flatten().min()
    }
}

impl Node {
    /// The connection to a relay is lost. What has a ticket waits for it; the rest is gone.
    pub(super) fn relay_lost(&mut self, now: Instant, trs: &str, why: &str) {
        self.fail_setups_via(now, trs, why);
        for id in self.tunnels_via(trs) {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            let keeps = |leg: &&mut OwnLeg| !leg.ticket.is_empty();
            match tunnel.leg.as_mut().filter(keeps) {
                Some(leg) => {
                    (leg.under_way, leg.unbound) = (None, 0);
                    self.leg_away(now, id);
                    self.watch(now, id);
                }
                None => self.leg_lost(now, id),
            }
        }
    }

    /// The leg is waited for.
    fn leg_away(&mut self, now: Instant, id: TunnelId) {
        if let Some(leg) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut()) {
            leg.away.get_or_insert(Away { since: now, sought: false });
            self.challenge(now, id);
        }
    }

    /// The leg is gone for good: so is the tunnel, unless its packets go elsewhere.
    fn leg_lost(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.paths.is_relayed() {
            return self.tunnel_died(now, id);
        }
        tunnel.leg = None;
        tunnel.paths.set_relay(None);
        self.changed();
    }

    /// The relay is connected: the legs of tunnels through it are restored.
    pub(super) fn restore_legs(&mut self, now: Instant, trs: &str) {
        for id in self.tunnels_via(trs) {
            self.restore_leg(now, id);
        }
    }

    /// The TRS said with a stateless reset that it has lost the leg that a tunnel sends to.
    ///
    /// The relay has restarted, or dropped the leg. Whoever saw such a reset can send it again, so it is
    /// believed ever less often.
    pub fn handle_relay_reset(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let (Some(leg), Some(trs)) = (&tunnel.leg, &tunnel.relay) else { return };
        // A relay that is connected and has not all of the leg yet says so of every packet.
        let known = leg.away.is_some() && self.is_connected(&Service::Trs(trs.clone()));
        if !known {
            let trs = trs.clone();
            self.relay_restarted(now, &trs);
        }
    }

    /// Whether something is being set up over the connection to a relay, which would end with it.
    pub(super) fn joins_via(&self, trs: &str) -> bool {
        // The dialling end's request may still be on its way.
        let unheard = |tunnel: &Tunnel| tunnel.relay.as_deref() == Some(trs) && tunnel.last_rx.is_none();
        self.setups.values().any(|setup| setup.is_begun_via(trs)) || self.tunnels.values().any(unheard)
    }

    /// The tickets are handed in over the connection that stands. If the relay does not answer there, it is
    /// dialled.
    pub(super) fn ask_relay(&mut self, now: Instant, trs: &str) {
        let rtt = self.registration.network.latencies.get(trs);
        let patience = rtt.map_or(ANSWERED, |rtt| SAME + *rtt * 2);
        self.nudge_for(now, &Service::Trs(trs.into()), patience);
        for id in self.tunnels_via(trs) {
            let leg = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut());
            leg.into_iter().for_each(|leg| leg.doubted = true);
            self.restore_leg(now, id);
        }
    }

    pub(super) fn restore_answered(
        &mut self,
        now: Instant,
        id: TunnelId,
        exchange: ExchangeId,
        answer: Result<Message, String>,
    ) {
        let Some(leg) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut()) else { return };
        if leg.under_way != Some(exchange) {
            return;
        }
        leg.under_way = None;
        match answer {
            Ok(Message::BindingResponse(response)) => match OwnLeg::from_wire(&response, leg.context) {
                Ok(fresh) if (fresh.cid, fresh.peer_cid) == (leg.cid, leg.peer_cid) => {
                    self.leg_restored(now, id, fresh)
                }
                Ok(_) => self.leg_refused(now, id, "the relay gave another leg"),
                Err(bad) => self.leg_refused(now, id, &bad.to_string()),
            },
            Ok(Message::Refusal(refusal)) => match refusal.retry_after() {
                Some(wait) => self.restore_later(now, id, wait),
                None => self.leg_refused(now, id, &refusal.shown_reason()),
            },
            Ok(other) => self.leg_refused(now, id, &unexpected("TRS", Ok(other))),
            Err(_) => self.restore_later(now, id, RENEW_SOON),
        }
        self.watch(now, id);
    }

    /// Does what is due for a tunnel's leg; false if the tunnel is gone.
    pub(super) fn watch_leg(&mut self, now: Instant, id: TunnelId) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return false };
        let stranded = tunnel.is_stranded();
        let (peer, current) = (tunnel.peer, tunnel.retires_at.is_none() && tunnel.paths.is_relayed());
        // What is heard on another path says nothing about the relay.
        let last_rx = tunnel.last_rx.filter(|_| tunnel.paths.is_relayed());
        let used = now.saturating_duration_since(tunnel.last_use) < self.config.timing.keepalive * 2;
        let Some(leg) = &mut tunnel.leg else { return true };
        let due = leg.due.is_some_and(|due| due <= now);
        let silent =
            leg.silent_since(last_rx).filter(|_| !stranded).map(|since| now.saturating_duration_since(since));
        if silent.is_some_and(|silent| silent >= AWAY) {
            self.leg_lost(now, id);
            return self.tunnels.contains_key(&id);
        }
        let seeks = silent.is_some_and(|silent| silent >= ELSEWHERE);
        let seeks = seeks && leg.away.as_mut().is_some_and(|away| !std::mem::replace(&mut away.sought, true));
        if due {
            self.restore_leg(now, id);
        }
        if seeks && used && current {
            self.want_anew(now, peer);
        }
        true
    }

    fn restore_leg(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (Some(leg), Some(trs)) = (&mut tunnel.leg, &tunnel.relay) else { return };
        let (ticket, context, service) = (leg.ticket.clone(), leg.context, Service::Trs(trs.clone()));
        leg.due = None;
        // A relay that is not connected is asked once it is.
        if ticket.is_empty() || leg.under_way.is_some() || !self.is_connected(&service) {
            return;
        }
        let request = Message::BindingRestore(BindingRestore { ticket, context });
        let exchange = self.request(now, service, Purpose::Restore { tunnel: id }, request);
        if let Some(leg) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut()) {
            leg.under_way = Some(exchange);
        }
    }

    fn leg_restored(&mut self, now: Instant, id: TunnelId, fresh: OwnLeg) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(leg) = &mut tunnel.leg else { return };
        (leg.ticket, leg.lifetime) = (fresh.ticket, fresh.lifetime);
        leg.doubted = false;
        let was_bound = std::mem::replace(&mut leg.bound, fresh.bound);
        if leg.bound {
            leg.unbound = 0;
            leg.renew(now, RENEW_SOON);
            if leg.away.take().is_some() {
                // What it says of the peer's life begins anew.
                (tunnel.unanswered_since, tunnel.challenge) = (None, None);
                self.challenge(now, id);
                self.changed();
            }
            return;
        }
        let wait = AGAIN_LEAST.saturating_mul(1 << leg.unbound.min(8)).min(AGAIN_MOST);
        leg.unbound = leg.unbound.saturating_add(1);
        leg.renew(now, wait.mul_f64(self.rng.random_range(0.5..=1.0)));
        if was_bound {
            // The relay had lost it, though the connection stood.
            self.leg_away(now, id);
        }
    }

    fn restore_later(&mut self, now: Instant, id: TunnelId, wait: Duration) {
        if let Some(leg) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut()) {
            leg.due = Some(now + wait);
        }
    }

    /// The relay will not restore the leg. One that it has, it has; one that it lost, as a lost connection or
    /// a reset says, is lost for good.
    fn leg_refused(&mut self, now: Instant, id: TunnelId, why: &str) {
        let Some(leg) = self.tunnels.get_mut(&id).and_then(|tunnel| tunnel.leg.as_mut()) else { return };
        leg.ticket.clear();
        leg.due = None;
        if leg.away.is_some() || leg.doubted {
            let peer = self.tunnels.get(&id).map(|tunnel| tunnel.peer);
            if let Some(peer) = peer.and_then(|peer| self.peers.get_mut(&peer)) {
                let reason = format!("the relay did not restore the leg: {why}");
                peer.last_error = Some(ResolveError::PeerRefused { reason });
            }
            self.leg_lost(now, id);
        }
    }

    pub(super) fn tunnels_via(&self, trs: &str) -> Vec<TunnelId> {
        let through = |tunnel: &Tunnel| tunnel.relay.as_deref() == Some(trs);
        self.tunnels.iter().filter(|(_, tunnel)| through(tunnel)).map(|(id, _)| *id).collect()
    }
}
