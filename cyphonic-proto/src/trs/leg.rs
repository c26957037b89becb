//! Legs: opened, bound, moved, ended.

use super::{Action, Trs, not_connected};
use crate::{
    ConnectionId,
    id::{Channel, SetupId},
    message::{BindingRequest, BindingResponse, Refusal, RefusalCode, field},
    relayed,
};
use rand::Rng;
use std::time::{Duration, Instant};

/// One node's end of a relayed tunnel.
pub(super) struct Leg {
    pub(super) channel: Channel,
    pub(super) context: u64,
    setup: SetupId,
    owner: String,
    peer_fqdn: String,
    /// What the owner wants to find on packets.
    data_cid: ConnectionId,
    /// The other leg, once bound.
    pub(super) peer: Option<ConnectionId>,
    pub(super) last_seen: Instant,
}

/// A BindingRequest with its fields checked.
struct Wanted {
    setup: SetupId,
    owner: String,
    peer_fqdn: String,
    data_cid: ConnectionId,
    peer: Option<ConnectionId>,
}

impl Trs {
    /// Opens a leg, and binds it where the request names another.
    pub(super) fn bind(
        &mut self,
        now: Instant,
        channel: Channel,
        request: &BindingRequest,
    ) -> Result<BindingResponse, Refusal> {
        let wanted = self.check(channel, request)?;
        if let Some(cid) = self.repeated(channel, &wanted) {
            return Ok(self.response(cid));
        }
        if let Some(peer) = wanted.peer {
            self.check_peer(&wanted, peer)?;
        }
        self.check_room(channel)?;
        let peer = wanted.peer;
        let cid = self.open(now, channel, wanted)?;
        if let Some(peer) = peer {
            self.join(now, cid, peer);
        }
        Ok(self.response(cid))
    }

    /// Inserts both entries of a bound leg, with the addresses of the moment.
    pub(super) fn insert_pair(&mut self, cid: ConnectionId) {
        let Some(other) = self.legs.get(&cid).and_then(|leg| leg.peer) else { return };
        for (cid, other) in [(cid, other), (other, cid)] {
            let (Some(to), Some(from)) = (self.legs.get(&cid), self.legs.get(&other)) else { return };
            let address = |leg: &Leg| self.nodes.get(&leg.channel).map(|node| node.remote);
            let (Some(to_address), Some(from_address)) = (address(to), address(from)) else { return };
            let real_cid = to.data_cid;
            self.actions.push_back(Action::Insert { cid, from: from_address, to: to_address, real_cid });
        }
    }

    /// Ends a leg and the one bound to it.
    pub(super) fn remove_pair(&mut self, cid: ConnectionId) {
        let Some(leg) = self.remove(cid) else { return };
        let Some(peer) = leg.peer else { return };
        self.actions.push_back(Action::Remove { cid });
        if self.remove(peer).is_some() {
            self.actions.push_back(Action::Remove { cid: peer });
        }
    }

    /// A leg's deadline: unbound legs end; bound ones live while either direction does.
    pub(super) fn leg_due(&mut self, now: Instant, cid: ConnectionId) {
        let Some(leg) = self.legs.get(&cid) else { return };
        let peer_seen = leg.peer.and_then(|peer| self.legs.get(&peer)).map(|peer| peer.last_seen);
        let ends = leg.last_seen.max(peer_seen.unwrap_or(leg.last_seen)) + self.patience(leg);
        if ends > now {
            self.timers.set(cid, ends);
            return;
        }
        self.counters.expired += 1;
        self.remove_pair(cid);
    }

    fn check(&self, channel: Channel, request: &BindingRequest) -> Result<Wanted, Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        let peer = match request.peer_connection_id.as_slice() {
            [] => None,
            bytes => Some(field::data_connection_id(bytes, "peer_connection_id")?),
        };
        let peer_fqdn =
            crate::name::canonical(&request.peer_fqdn).map_err(|_| field::BadField("peer_fqdn"))?;
        if peer_fqdn == node.fqdn {
            return Err(field::BadField("peer_fqdn").into());
        }
        Ok(Wanted {
            setup: field::setup_id(&request.setup_id)?,
            owner: node.fqdn.clone(),
            peer_fqdn,
            data_cid: field::data_connection_id(&request.data_connection_id, "data_connection_id")?,
            peer,
        })
    }

    /// The leg that an identical request opened before: its answer was lost.
    fn repeated(&self, channel: Channel, wanted: &Wanted) -> Option<ConnectionId> {
        let node = self.nodes.get(&channel)?;
        let same = |cid: &&ConnectionId| {
            self.legs.get(cid).is_some_and(|leg| {
                leg.setup == wanted.setup
                    && leg.data_cid == wanted.data_cid
                    && leg.peer_fqdn == wanted.peer_fqdn
                    && (wanted.peer.is_none() || leg.peer == wanted.peer)
            })
        };
        node.contexts.values().find(same).copied()
    }

    /// Only the device that the leg names may bind to it, for the same set-up, once. The refusal does not tell which
    /// of these failed: connection IDs of others are nobody's business.
    fn check_peer(&self, wanted: &Wanted, peer: ConnectionId) -> Result<(), Refusal> {
        let fits = self.legs.get(&peer).is_some_and(|leg| {
            leg.setup == wanted.setup
                && leg.peer_fqdn == wanted.owner
                && leg.owner == wanted.peer_fqdn
                && leg.peer.is_none()
        });
        let refusal = || Refusal::new(RefusalCode::NotAllowed, "no leg of this set-up waits for this device");
        fits.then_some(()).ok_or_else(refusal)
    }

    fn check_room(&self, channel: Channel) -> Result<(), Refusal> {
        let own = self.nodes.get(&channel).map_or(0, |node| node.contexts.len());
        let limits = &self.config.limits;
        if own < limits.legs_per_node && self.legs.len() < limits.legs {
            return Ok(());
        }
        Err(Refusal::retry(RefusalCode::TooMany, "the relay has no leg left", Duration::from_secs(1)))
    }

    fn open(&mut self, now: Instant, channel: Channel, wanted: Wanted) -> Result<ConnectionId, Refusal> {
        let cid = self.fresh_cid();
        let node = self.nodes.get_mut(&channel).ok_or_else(not_connected)?;
        let last = node.contexts.last_key_value().map_or(relayed::MIN_CONTEXT, |(last, _)| last + 1);
        // After 2^30 legs on one connection numbers are used again, from the lowest that is free.
        let context = match last <= relayed::MAX_CONTEXT {
            true => last,
            false => (relayed::MIN_CONTEXT..).find(|n| !node.contexts.contains_key(n)).unwrap_or(last),
        };
        node.contexts.insert(context, cid);
        let Wanted { setup, owner, peer_fqdn, data_cid, .. } = wanted;
        let leg = Leg { channel, context, setup, owner, peer_fqdn, data_cid, peer: None, last_seen: now };
        self.timers.set(cid, now + self.patience(&leg));
        self.legs.insert(cid, leg);
        self.counters.legs += 1;
        Ok(cid)
    }

    fn join(&mut self, now: Instant, a: ConnectionId, b: ConnectionId) {
        for (cid, peer) in [(a, b), (b, a)] {
            if let Some(leg) = self.legs.get_mut(&cid) {
                leg.peer = Some(peer);
                leg.last_seen = now;
                self.timers.set(cid, now + self.config.limits.idle);
            }
        }
        self.counters.bound += 1;
        self.insert_pair(a);
    }

    fn remove(&mut self, cid: ConnectionId) -> Option<Leg> {
        let leg = self.legs.remove(&cid)?;
        self.timers.clear(&cid);
        if let Some(node) = self.nodes.get_mut(&leg.channel) {
            node.contexts.remove(&leg.context);
        }
        Some(leg)
    }

    fn patience(&self, leg: &Leg) -> Duration {
        if leg.peer.is_some() { self.config.limits.idle } else { self.config.limits.unbound }
    }

    fn fresh_cid(&mut self) -> ConnectionId {
        loop {
            let cid = ConnectionId::from_random_data(self.rng.random());
            if !self.legs.contains_key(&cid) {
                return cid;
            }
        }
    }

    fn response(&self, cid: ConnectionId) -> BindingResponse {
        let context = self.legs.get(&cid).map_or(0, |leg| leg.context);
        BindingResponse { connection_id: cid.as_bytes().to_vec(), context }
    }
}
