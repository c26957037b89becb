//! What the listening end offers to whoever dials it, before the dialler has proved who it is.
//!
//! A connection of a peer arrives with the dialler's first packets. The offer leaves with the listener's part
//! of the handshake, so that the dialler can take it as soon as it knows the listener, one round trip after
//! its first packet. It tells only how packets of a tunnel would have to look; the tunnel itself takes a
//! set-up that the NMS directed, the dialler's certificate, and both ends' keys (`peer_exchange`).
//!
//! **Invariants.** Offers are bounded, and end with their connection or their time. One connection takes one
//! offer, and an offer yields at most one tunnel.

use std::time::Instant;

use super::setups::Stage;
use super::{Action, Node, PeerVia, Timer, config};
use crate::id::{PeerConnectionId, SetupId};
use crate::identity::Identity;
use crate::message::{Message, Refusal, TunnelOffer, TunnelRequest};
use crate::tunnel::Exported;
use crate::{ConnectionId, version};

/// A connection of a peer, and what it was offered.
pub(super) struct Offer {
    /// By which data packets of the tunnel would arrive.
    pub(super) cid: ConnectionId,
    /// The dialler took it, but the NMS's word of its set-up is not here yet.
    pub(super) early: Option<EarlyRequest>,
}

/// A TunnelRequest that was faster than the NMS.
pub(super) struct EarlyRequest {
    pub(super) setup: SetupId,
    pub(super) via: PeerVia,
    pub(super) identity: Identity,
    pub(super) request: TunnelRequest,
    pub(super) exported: Exported,
}

impl Node {
    /// A peer opened a connection; who it is, is not known yet. `via` has the one address it comes from.
    /// Answered by [`Action::OfferPeer`] or [`Action::ClosePeer`].
    pub fn handle_peer_arrived(&mut self, now: Instant, connection: PeerConnectionId, via: PeerVia) {
        let Some(cid) = self.cid_for(&via) else {
            return self.act(Action::ClosePeer { connection });
        };
        self.timers.set(Timer::Offer(connection), now + self.config.timing.setup);
        self.offers.insert(connection, Offer { cid, early: None });
        let offer = TunnelOffer {
            protocol_version: version::CURRENT,
            data_connection_id: cid.as_bytes().to_vec(),
            inner_mtu: u32::from(self.config.inner_mtu),
            suites: self.config.suites.iter().map(|suite| suite.number()).collect(),
        };
        self.act(Action::ExpectTunnel { local_cid: cid });
        self.act(Action::OfferPeer { connection, offer: Message::TunnelOffer(offer) });
    }

    /// A connection that was offered a tunnel ended, or will bring no request.
    pub fn handle_peer_left(&mut self, _now: Instant, connection: PeerConnectionId) {
        self.drop_offer(connection);
        for setup in self.setups.values_mut() {
            // Its answer has nobody to go to; the tunnel has its keys all the same.
            if let Stage::Agreed(_, waiting) = &mut setup.stage
                && *waiting == Some(connection)
            {
                *waiting = None;
            }
        }
    }

    /// Nothing came of an offer in time.
    pub(super) fn offer_due(&mut self, connection: PeerConnectionId) {
        match self.drop_offer(connection).map(|offer| offer.early.is_some()) {
            Some(true) => self.answer_peer(connection, super::peer_exchange::not_directed().into()),
            Some(false) => self.act(Action::ClosePeer { connection }),
            None => {}
        }
    }

    /// This end was directed to a set-up: perhaps its peer was faster than the NMS.
    pub(super) fn hear_early(&mut self, now: Instant, setup: SetupId) {
        let of_setup = |offer: &Offer| offer.early.as_ref().is_some_and(|early| early.setup == setup);
        let waiting =
            self.offers.iter().find(|(_, offer)| of_setup(offer)).map(|(connection, _)| *connection);
        let Some(connection) = waiting else { return };
        if let Some(early) = self.offers.get_mut(&connection).and_then(|offer| offer.early.take()) {
            self.take_request(now, connection, early);
        }
    }

    /// Takes an offer out of the tables. Packets that came for it are dropped.
    pub(super) fn drop_offer(&mut self, connection: PeerConnectionId) -> Option<Offer> {
        let offer = self.take_offer(connection)?;
        // A relayed set-up has one connection ID, whoever asks how often.
        let wanted = self.offers.values().any(|other| other.cid == offer.cid)
            || self.setups.values().any(|setup| setup.is_agreed() && setup.cid == offer.cid);
        if !wanted {
            self.act(Action::ForgetTunnel { local_cid: offer.cid });
        }
        Some(offer)
    }

    /// Takes an offer out of the tables because its tunnel takes its place.
    pub(super) fn take_offer(&mut self, connection: PeerConnectionId) -> Option<Offer> {
        self.timers.clear(&Timer::Offer(connection));
        self.offers.remove(&connection)
    }

    pub(super) fn answer_peer(&mut self, connection: PeerConnectionId, message: Message) {
        self.act(Action::RespondPeer { connection, message });
    }

    /// Refuses a peer, and forgets what it was offered.
    pub(super) fn refuse_peer(&mut self, connection: PeerConnectionId, refusal: Refusal) {
        self.drop_offer(connection);
        self.answer_peer(connection, refusal.into());
    }

    /// How the tunnel of a connection would be reached. Through a relay that was agreed with the TRS, and no
    /// other connection can come; straight, nobody knows yet which set-up it is for.
    fn cid_for(&mut self, via: &PeerVia) -> Option<ConnectionId> {
        if self.stopped || self.offers.len() >= config::MAX_OFFERS {
            return None;
        }
        match via {
            PeerVia::Direct(_) => Some(self.fresh_cid()),
            PeerVia::Relay { .. } => {
                let listening = |setup: &&super::Setup| setup.is_listening() && setup.via() == *via;
                self.setups.values().find(listening).map(|setup| setup.cid)
            }
        }
    }
}
