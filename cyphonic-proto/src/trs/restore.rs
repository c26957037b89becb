//! Legs without their owner's connection: kept for a while, restored from tickets.
//!
//! When a node's connection is lost its legs go on forwarding for [`TrsLimits::orphaned`](super::TrsLimits):
//! a node that comes back claims them with its tickets. A TRS that restarted has no legs, except those that a
//! kernel map kept forwarding meanwhile ([`Trs::handle_adopted`]), and gets all of them back the same way,
//! with the same connection IDs.
//!
//! **Invariants.** Only the owner under the key that it had restores a leg, and it restores no more than its
//! own end: packets flow again only once both ends were restored by their owners, so neither resurrects what
//! the other has left. Legs that nobody claims end.

use std::time::Instant;

use super::leg::Leg;
use super::ticket::Ticket;
use super::{Action, NodePath, Owner, Trs, not_connected};
use crate::ConnectionId;
use crate::id::Channel;
use crate::message::{BindingResponse, BindingRestore, Refusal, RefusalCode};

impl Trs {
    /// The map still forwards packets with these connection IDs for legs of an earlier process. They are
    /// given to no other leg, and those that are not restored in time are removed.
    pub fn handle_adopted(&mut self, now: Instant, cids: impl IntoIterator<Item = ConnectionId>) {
        self.adopted.extend(cids);
        if !self.adopted.is_empty() {
            self.adopted_until = Some(now + self.config.limits.orphaned);
        }
    }

    /// Restores a leg, or renews the ticket of one that stands.
    pub(super) fn restore(
        &mut self,
        now: Instant,
        channel: Channel,
        request: &BindingRestore,
    ) -> Result<BindingResponse, Refusal> {
        let ticket = self.check_ticket(now, channel, request)?;
        let cid = ticket.cid;
        match self.legs.get(&cid).map(|leg| leg.channel) {
            Some(Some(held)) if held == channel => {}
            Some(_) => self.attach(now, channel, cid, request.context)?,
            None => self.recreate(now, channel, &ticket, request.context)?,
        }
        match self.legs.get(&cid).map(|leg| leg.bound) {
            Some(true) => self.insert_pair(cid),
            Some(false) => self.find_other_end(now, cid, ticket.peer_path),
            None => {}
        }
        Ok(self.response(now, cid, ticket.peer_path))
    }

    /// The connection of a node is lost; it may come back. Its legs stay, those alone that bound nobody yet
    /// go.
    pub(super) fn orphan(&mut self, now: Instant, channel: Channel) {
        let Some(node) = self.nodes.remove(&channel) else { return };
        self.held.forget(channel);
        self.channels.remove(&node.fqdn);
        let owner = (node.holder, node.key);
        let waiting = self.orphans.get(&owner).map_or(0, |orphans| orphans.len());
        if waiting + node.contexts.len() > self.config.limits.legs_per_node {
            self.drop_orphans(owner);
        }
        for cid in node.contexts.into_values() {
            let Some(leg) = self.legs.get_mut(&cid) else { continue };
            leg.channel = None;
            leg.waiting_since = Some(now);
            let (owner, bound) = ((leg.owner, leg.owner_key), leg.bound);
            self.orphans.entry(owner).or_default().insert(cid);
            self.timers.set(cid, now + self.config.limits.orphaned);
            if !bound {
                self.remove(cid);
            }
        }
    }

    /// Removes what a device left behind, with the other ends.
    pub(super) fn drop_orphans(&mut self, owner: Owner) {
        for cid in self.orphans.remove(&owner).into_iter().flatten() {
            self.remove_pair(cid);
        }
    }

    /// A leg is an orphan no more.
    pub(super) fn no_orphan(&mut self, owner: Owner, cid: ConnectionId) {
        if let Some(orphans) = self.orphans.get_mut(&owner) {
            orphans.remove(&cid);
            if orphans.is_empty() {
                self.orphans.remove(&owner);
            }
        }
    }

    /// Nobody claimed these.
    pub(super) fn adopted_due(&mut self, now: Instant) {
        if self.adopted_until.is_some_and(|until| until <= now) {
            self.adopted_until = None;
            let unclaimed = std::mem::take(&mut self.adopted);
            self.actions.extend(unclaimed.into_iter().map(|cid| Action::Remove { cid }));
        }
    }

    fn check_ticket(
        &self,
        now: Instant,
        channel: Channel,
        request: &BindingRestore,
    ) -> Result<Ticket, Refusal> {
        let node = self.nodes.get(&channel).ok_or_else(not_connected)?;
        let ticket = self.config.keys.open(&request.ticket);
        let own = |ticket: &Ticket| ticket.owner == node.holder && ticket.owner_key == node.key;
        // Whose it is, if it is not the asker's, is nobody's business.
        let ticket =
            ticket.filter(own).ok_or_else(|| refused("the ticket is none of this relay for this device"))?;
        let leg = self.legs.get(&ticket.cid);
        // A leg that is still here needs no ticket, and its ticket may be of before the clock was set right.
        if leg.is_none() && ticket.expires <= self.config.clock.unix(now) {
            return Err(refused("the ticket has expired"));
        }
        let same = |leg: &Leg| {
            leg.setup == ticket.setup
                && leg.owner == ticket.owner
                && leg.peer == ticket.peer
                && leg.data_cid == ticket.data_cid
                && leg.partner == ticket.partner
        };
        if !leg.is_none_or(same) {
            return Err(refused("another leg has taken the place of this one"));
        }
        Ok(ticket)
    }

    /// The owner of a leg is back, on another connection.
    fn attach(
        &mut self,
        now: Instant,
        channel: Channel,
        cid: ConnectionId,
        context: u64,
    ) -> Result<(), Refusal> {
        // In all it has its place.
        self.check_room_of_node(channel)?;
        let path = self.take_context(channel, cid, context)?;
        let Some(leg) = self.legs.get_mut(&cid) else { return Ok(()) };
        let owner = (leg.owner, leg.owner_key);
        leg.channel = Some(channel);
        (leg.context, leg.path, leg.last_seen, leg.waiting_since) = (context, path, now, None);
        self.no_orphan(owner, cid);
        self.leg_due(now, cid);
        self.counters.restored += 1;
        Ok(())
    }

    /// This process does not know the leg; an earlier one did.
    fn recreate(
        &mut self,
        now: Instant,
        channel: Channel,
        ticket: &Ticket,
        context: u64,
    ) -> Result<(), Refusal> {
        self.check_room(channel)?;
        let cid = ticket.cid;
        let path = self.take_context(channel, cid, context)?;
        let leg = Leg {
            channel: Some(channel),
            context,
            setup: ticket.setup,
            owner: ticket.owner,
            owner_key: ticket.owner_key,
            peer: ticket.peer,
            data_cid: ticket.data_cid,
            partner: ticket.partner,
            bound: false,
            // Then the entry that was left is the leg's, and goes with it.
            inserted: self.adopted.remove(&cid),
            path,
            last_seen: now,
            waiting_since: Some(now),
        };
        self.timers.set(cid, now + self.config.limits.orphaned);
        self.legs.insert(cid, leg);
        self.counters.restored += 1;
        Ok(())
    }

    /// Binds a restored leg to the other end's, or calls that end back.
    fn find_other_end(&mut self, now: Instant, cid: ConnectionId, hint: Option<NodePath>) {
        let Some(leg) = self.legs.get(&cid) else { return };
        match self.legs.get(&leg.partner) {
            Some(other) if !other.bound && other.is_other_end_of(cid, leg) => {
                let partner = leg.partner;
                self.join(now, cid, partner);
            }
            Some(_) => {}
            None => {
                // What the other end writes on its packets is this leg's connection ID.
                self.actions.extend(hint.map(|to| Action::Reset { cid, to }));
            }
        }
    }
}

fn refused(reason: &'static str) -> Refusal {
    Refusal::new(RefusalCode::NotAllowed, reason)
}
