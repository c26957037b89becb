//! The end that asked for the set-up.

use std::net::Ipv6Addr;
use std::time::Instant;

use super::Setup;
use super::responder::confirmation;
use crate::id::{ExchangeId, SetupId};
use crate::message::{Refusal, RefusalCode, RouteDirection, RouteWithdrawal, field};
use crate::node::peers::{Attempt, Retry};
use crate::node::{Node, ResolveError, Timer};

impl Node {
    /// The NMS answered our DirectionRequest.
    pub(in crate::node) fn route_directed(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        direction: RouteDirection,
    ) {
        let is_ours = |id: &SetupId| self.setups.get(id).is_some_and(|setup| setup.peer == address);
        let joined = SetupId::from_slice(&direction.setup_id).filter(is_ours);
        if let Some(setup) = joined {
            // The peer was faster; ours is its responder's part, which is under way.
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.attempt = Some(Attempt::Setup(setup));
            }
            return;
        }
        match self.setup_of(direction).and_then(|setup| {
            if setup.peer == address {
                Ok(setup)
            } else {
                Err(field::BadField("peer_virtual_address").into())
            }
        }) {
            Ok(setup) if setup.initiator => self.initiate(now, setup),
            Ok(setup) => {
                // The peer was faster, and this answer faster than the NMS's request to take part.
                if let Some(peer) = self.peers.get_mut(&address) {
                    peer.attempt = Some(Attempt::Setup(setup.id));
                }
                self.take_part(now, setup);
            }
            Err(refusal) => {
                let what = format!("RouteDirection: {}", refusal.reason);
                self.attempt_failed(now, address, ResolveError::Protocol { what }, Retry::No);
            }
        }
    }

    fn initiate(&mut self, now: Instant, setup: Setup) {
        let timing = &self.config.timing;
        let patience = if setup.relay.is_some() { timing.relay_attempt } else { timing.direct_attempt };
        let id = setup.id;
        if let Some(peer) = self.peers.get_mut(&setup.peer) {
            peer.fqdn = Some(setup.fqdn.clone());
            peer.attempt = Some(Attempt::Setup(id));
        }
        self.timers.set(Timer::Setup(id), now + patience);
        self.setups.insert(id, setup);
        self.advance(now, id);
    }

    /// The responder will not take part: the attempt goes on as if the NMS had refused.
    pub(in crate::node) fn withdrawn(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        withdrawal: &RouteWithdrawal,
    ) -> Result<(), Refusal> {
        let id = field::setup_id(&withdrawal.setup_id)?;
        let refusal = withdrawal.refusal.as_ref().ok_or(field::BadField("refusal"))?;
        self.act(confirmation(exchange, id));
        let ours = |setup: &Setup| setup.initiator && !setup.is_agreed();
        if self.setups.get(&id).is_some_and(ours) {
            self.setup_withdrawn(now, id, refusal);
        }
        Ok(())
    }

    fn setup_withdrawn(&mut self, now: Instant, id: SetupId, refusal: &Refusal) {
        let Some(setup) = self.drop_setup(id, "withdrawn") else { return };
        if let Some(relay) = setup.relay_name().filter(|_| refusal.code() != RefusalCode::PeerOffline) {
            self.relay_not_taken(now, setup.peer, relay);
        }
        let ours = self.peers.get(&setup.peer).is_some_and(|peer| peer.carries_out(id));
        if ours {
            self.direction_refused(now, setup.peer, refusal, Some(setup.kind));
        }
        self.note_unanswered_dial(now, &setup);
        self.warm_relays(now);
    }
}
