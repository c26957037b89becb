//! Legs: opened, bound, moved, ended.

use std::time::{Duration, Instant};

use rand::Rng;

use super::ticket::{Holder, Ticket};
use super::{Action, NodePath, Trs, not_connected};
use crate::id::{Channel, SetupId};
use crate::identity::KeyHash;
use crate::message::{BindingRequest, BindingResponse, Refusal, RefusalCode, field};
use crate::{ConnectionId, relayed};

/// One node's end of a relayed tunnel.
pub(super) struct Leg {
    /// The owner's connection, unless that was lost.
    pub(super) channel: Option<Channel>,
    pub(super) context: u64,
    pub(super) setup: SetupId,
    pub(super) owner: Holder,
    /// The owner's key when it was opened: a name may pass to another device.
    pub(super) owner_key: KeyHash,
    /// Who may bind to it.
    pub(super) peer: Holder,
    /// What the owner wants to find on packets.
    pub(super) data_cid: ConnectionId,
    /// The other leg; until it is bound, the connection ID that is kept for it.
    pub(super) partner: ConnectionId,
    pub(super) bound: bool,
    /// Whether the map has an entry.
    pub(super) inserted: bool,
    /// Where the owner is, or was.
    pub(super) path: NodePath,
    pub(super) last_seen: Instant,
    /// Since when the owner's connection is lost, or since when a restored leg waits for the other end.
    pub(super) waiting_since: Option<Instant>,
}

impl Leg {
    /// The leg at the other end.
    pub(super) fn bound_to(&self) -> Option<ConnectionId> {
        self.bound.then_some(self.partner)
    }

    /// Whether this is the other end of `leg`, whose connection ID is `cid`.
    pub(super) fn is_other_end_of(&self, cid: ConnectionId, leg: &Self) -> bool {
        self.partner == cid && self.setup == leg.setup && self.peer == leg.owner && self.owner == leg.peer
    }
}

/// A BindingRequest with its fields checked.
struct Wanted {
    setup: SetupId,
    owner: Holder,
    peer: Holder,
    peer_fqdn: String,
    data_cid: ConnectionId,
    context: u64,
}

impl Trs {
    /// Opens a leg, and binds it where that of the other end stands.
    pub(super) fn bind(
        &mut self,
        now: Instant,
        channel: Channel,
        request: &BindingRequest,
    ) -> Result<BindingResponse, Refusal> {
        let wanted = self.check(channel, request)?;
        if let Some(cid) = self.repeated(channel, &wanted) {
            return Ok(self.response(now, cid, None));
        }
        self.check_context(channel, wanted.context)?;
        self.make_room_between(channel, wanted.peer);
        self.check_room(channel)?;
        let other = self.other_end(&wanted);
        let (cid, partner) = other.unwrap_or_else(|| self.fresh_pair());
        self.open(now, channel, cid, partner, wanted)?;
        if other.is_some() {
            self.join(now, cid, partner);
        }
        Ok(self.response(now, cid, None))
    }

    /// Inserts both entries of a bound leg, with the addresses of the moment.
    pub(super) fn insert_pair(&mut self, cid: ConnectionId) {
        let Some(other) = self.legs.get(&cid).and_then(Leg::bound_to) else { return };
        for (cid, other) in [(cid, other), (other, cid)] {
            let Some(from) = self.legs.get(&other).map(|leg| leg.path) else { return };
            let Some(leg) = self.legs.get_mut(&cid) else { return };
            leg.inserted = true;
            self.actions.push_back(Action::Insert { cid, from, to: leg.path, real_cid: leg.data_cid });
        }
    }

    /// Ends a leg and the one bound to it.
    pub(super) fn remove_pair(&mut self, cid: ConnectionId) {
        if let Some(peer) = self.remove(cid).and_then(|leg| leg.bound_to()) {
            self.remove(peer);
        }
    }

    /// A leg's deadline: those that wait for somebody end; bound ones live while either direction does.
    pub(super) fn leg_due(&mut self, now: Instant, cid: ConnectionId) {
        let Some(leg) = self.legs.get(&cid) else { return };
        let limits = &self.config.limits;
        let ends = match (leg.waiting_since, leg.bound_to()) {
            (Some(since), _) => since + limits.orphaned,
            (None, None) => leg.last_seen + limits.unbound,
            (None, Some(peer)) => {
                let peer_seen = self.legs.get(&peer).map_or(leg.last_seen, |peer| peer.last_seen);
                leg.last_seen.max(peer_seen) + limits.idle
            }
        };
        if ends > now {
            self.timers.set(cid, ends);
            return;
        }
        self.counters.expired += 1;
        self.remove_pair(cid);
    }

    fn check(&self, channel: Channel, request: &BindingRequest) -> Result<Wanted, Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        let peer_fqdn =
            crate::name::canonical(&request.peer_fqdn).map_err(|_| field::BadField("peer_fqdn"))?;
        if peer_fqdn == node.fqdn {
            return Err(field::BadField("peer_fqdn").into());
        }
        Ok(Wanted {
            setup: field::setup_id(&request.setup_id)?,
            owner: node.holder,
            peer: Holder::of(&peer_fqdn),
            peer_fqdn,
            data_cid: field::data_connection_id(&request.data_connection_id, "data_connection_id")?,
            context: request.context,
        })
    }

    /// The leg that an identical request opened before: its answer was lost.
    fn repeated(&self, channel: Channel, wanted: &Wanted) -> Option<ConnectionId> {
        let node = self.nodes.get(&channel)?;
        let same = |cid: &&ConnectionId| {
            self.legs.get(cid).is_some_and(|leg| {
                leg.setup == wanted.setup
                    && leg.data_cid == wanted.data_cid
                    && leg.peer == wanted.peer
                    && leg.context == wanted.context
            })
        };
        node.contexts.values().find(same).copied()
    }

    /// The other end's leg, if it waits for this device in this set-up, and the connection ID that is kept
    /// for this end's.
    fn other_end(&self, wanted: &Wanted) -> Option<(ConnectionId, ConnectionId)> {
        let peer = self.channels.get(&wanted.peer_fqdn).and_then(|channel| self.nodes.get(channel))?;
        let fits = |leg: &Leg| {
            leg.setup == wanted.setup
                && leg.peer == wanted.owner
                && leg.owner == wanted.peer
                && !leg.bound
                && !self.legs.contains_key(&leg.partner)
        };
        let legs = peer.contexts.values().filter_map(|cid| Some((cid, self.legs.get(cid)?)));
        legs.filter(|(_, leg)| fits(leg)).map(|(cid, leg)| (leg.partner, *cid)).next()
    }

    /// Of two devices' legs the pair goes that has been silent longest, where they have as many as they may
    /// have: whoever asks for one tunnel after another would otherwise take the places of the other end, who
    /// opens a leg for each.
    fn make_room_between(&mut self, channel: Channel, peer: Holder) {
        let Some(node) = self.nodes.get(&channel) else { return };
        let own = node.contexts.values().filter_map(|cid| Some((*cid, self.legs.get(cid)?)));
        let between: Vec<_> = own.filter(|(_, leg)| leg.peer == peer).collect();
        if between.len() < self.config.limits.legs_per_pair {
            return;
        }
        let last_seen = |leg: &Leg| {
            let other = leg.bound_to().and_then(|other| self.legs.get(&other));
            other.map_or(leg.last_seen, |other| other.last_seen.max(leg.last_seen))
        };
        let silent = between.into_iter().min_by_key(|(_, leg)| last_seen(leg)).map(|(cid, _)| cid);
        if let Some(cid) = silent {
            self.counters.displaced += 1;
            self.remove_pair(cid);
        }
    }

    /// Room for a leg that is none yet.
    pub(super) fn check_room(&self, channel: Channel) -> Result<(), Refusal> {
        if self.legs.len() < self.config.limits.legs {
            return self.check_room_of_node(channel);
        }
        Err(no_room())
    }

    /// Room for one more among the owner's.
    pub(super) fn check_room_of_node(&self, channel: Channel) -> Result<(), Refusal> {
        let own = self.nodes.get(&channel).map_or(0, |node| node.contexts.len());
        if own < self.config.limits.legs_per_node { Ok(()) } else { Err(no_room()) }
    }

    fn open(
        &mut self,
        now: Instant,
        channel: Channel,
        cid: ConnectionId,
        partner: ConnectionId,
        wanted: Wanted,
    ) -> Result<(), Refusal> {
        let Wanted { setup, owner, peer, data_cid, context, .. } = wanted;
        let owner_key = self.nodes.get(&channel).ok_or_else(not_connected)?.key;
        let path = self.take_context(channel, cid, context)?;
        let leg = Leg {
            channel: Some(channel),
            context,
            setup,
            owner,
            owner_key,
            peer,
            data_cid,
            partner,
            bound: false,
            inserted: false,
            path,
            last_seen: now,
            waiting_since: None,
        };
        self.timers.set(cid, now + self.config.limits.unbound);
        self.legs.insert(cid, leg);
        self.counters.legs += 1;
        Ok(())
    }

    /// Notes the number of a leg's DATAGRAMs on its owner's connection, and says where that leads.
    pub(super) fn take_context(
        &mut self,
        channel: Channel,
        cid: ConnectionId,
        context: u64,
    ) -> Result<NodePath, Refusal> {
        self.check_context(channel, context)?;
        let node = self.nodes.get_mut(&channel).ok_or_else(not_connected)?;
        node.contexts.insert(context, cid);
        Ok(node.path)
    }

    fn check_context(&self, channel: Channel, context: u64) -> Result<(), Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        if !relayed::CONTEXTS.contains(&context) || node.contexts.contains_key(&context) {
            return Err(field::BadField("context").into());
        }
        Ok(())
    }

    pub(super) fn join(&mut self, now: Instant, a: ConnectionId, b: ConnectionId) {
        for cid in [a, b] {
            if let Some(leg) = self.legs.get_mut(&cid) {
                leg.bound = true;
                leg.last_seen = now;
                leg.waiting_since = leg.waiting_since.filter(|_| leg.channel.is_none());
            }
            self.leg_due(now, cid);
        }
        self.counters.bound += 1;
        self.insert_pair(a);
        for cid in [a, b] {
            self.release(now, cid);
        }
    }

    pub(super) fn remove(&mut self, cid: ConnectionId) -> Option<Leg> {
        let leg = self.legs.remove(&cid)?;
        self.timers.clear(&cid);
        match leg.channel {
            Some(channel) => {
                if let Some(node) = self.nodes.get_mut(&channel) {
                    node.contexts.remove(&leg.context);
                }
                self.held.take((channel, leg.context));
            }
            None => self.no_orphan((leg.owner, leg.owner_key), cid),
        }
        if leg.inserted {
            self.actions.push_back(Action::Remove { cid });
        }
        Some(leg)
    }

    /// Connection IDs for a leg and for the one that will be bound to it.
    fn fresh_pair(&mut self) -> (ConnectionId, ConnectionId) {
        let cid = self.fresh_cid(None);
        (cid, self.fresh_cid(Some(cid)))
    }

    fn fresh_cid(&mut self, not: Option<ConnectionId>) -> ConnectionId {
        loop {
            let cid = ConnectionId::from_random_data(self.rng.random());
            if !self.legs.contains_key(&cid) && !self.adopted.contains(&cid) && not != Some(cid) {
                return cid;
            }
        }
    }

    /// What the owner needs to know of its leg. `hint`: where the other end was, for as long as it is not
    /// bound.
    pub(super) fn response(
        &mut self,
        now: Instant,
        cid: ConnectionId,
        hint: Option<NodePath>,
    ) -> BindingResponse {
        let salt = self.rng.random();
        let Some(leg) = self.legs.get(&cid) else { return BindingResponse::default() };
        let other = leg.bound_to().and_then(|other| self.legs.get(&other));
        let node = leg.channel.and_then(|channel| self.nodes.get(&channel));
        let (keys, clock, lifetime) = (&self.config.keys, self.config.clock, self.config.limits.ticket);
        let ticket = node.map(|node| Ticket {
            cid,
            partner: leg.partner,
            data_cid: leg.data_cid,
            setup: leg.setup,
            owner: leg.owner,
            owner_key: node.key,
            peer: leg.peer,
            expires: clock.unix_after(now, lifetime),
            peer_path: other.map(|other| other.path).or(hint),
        });
        BindingResponse {
            connection_id: cid.as_bytes().to_vec(),
            peer_connection_id: leg.partner.as_bytes().to_vec(),
            ticket: ticket.map(|ticket| keys.seal(&ticket, salt)).unwrap_or_default(),
            ticket_lifetime_s: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
            reset_token: keys.reset_token(leg.partner).to_vec(),
            bound: other.is_some(),
        }
    }
}

fn no_room() -> Refusal {
    Refusal::retry(RefusalCode::TooMany, "the relay has no leg left", Duration::from_secs(1))
}
