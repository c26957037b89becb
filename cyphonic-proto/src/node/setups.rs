//! Set-ups: from a RouteDirection to the peers' handshake.
//!
//! The NMS directs both ends at the same moment. For a relay each opens a leg at the TRS, and the one that
//! dials sends its first handshake packets together with its BindingRequest: the TRS holds them until both
//! legs stand. The other listens for a connection of this set-up (`peer_exchange`), and confirms to the NMS
//! when it is ready.

mod binding;
mod direction;
mod ending;
mod initiator;
mod responder;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use rand::Rng;
use zeroize::Zeroizing;

use super::peer_exchange::Agreed;
use super::relay_legs::OwnLeg;
use super::{Action, Node, PeerVia, Relay, Service};
use crate::ConnectionId;
use crate::id::{ExchangeId, PeerConnectionId, SetupId};
use crate::message::RouteKind;

/// Endpoints of one address that are dialled in a set-up: a NAT that shows more has another for each
/// destination, and none for us.
const OF_ONE_HOST: usize = 2;

/// A set-up in progress.
pub(super) struct Setup {
    pub(super) id: SetupId,
    pub(super) peer: Ipv6Addr,
    pub(super) fqdn: String,
    pub(super) kind: RouteKind,
    pub(super) reason: String,
    pub(super) initiator: bool,
    pub(super) dial: bool,
    pub(super) key: Zeroizing<[u8; 32]>,
    /// Where the peer may be reached without a relay, whatever the kind.
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) relay: Option<OwnRelay>,
    /// How this end wants to be reached in data packets.
    pub(super) cid: ConnectionId,
    pub(super) stage: Stage,
    request: Request,
}

/// The relay of a set-up, and this end's part in it.
pub(super) struct OwnRelay {
    pub(super) relay: Relay,
    /// What prefixes the DATAGRAMs of this end's leg.
    context: u64,
    /// The request for the leg, until it is answered.
    binding: Option<ExchangeId>,
    /// The leg, once the TRS has told of it.
    pub(super) leg: Option<OwnLeg>,
}

/// How far a set-up has come.
pub(super) enum Stage {
    /// The TRS is being connected to.
    Connecting,
    /// The peer is being dialled.
    Dialling,
    /// The peer is expected to dial.
    Listening,
    /// Both ends agreed; only this end's leg is missing. At the listening end with the connection that waits
    /// for the answer.
    Agreed(Agreed, Option<PeerConnectionId>),
}

/// The NMS's request to take part, which its responder answers.
pub(super) enum Request {
    /// There was none, or not yet: the answer to this node's own request may tell of the set-up first.
    None,
    /// It waits for the answer.
    Open(ExchangeId),
    /// It was answered with a RouteConfirmation.
    Confirmed(ExchangeId),
}

impl Setup {
    /// How the peers' connection travels.
    pub(super) fn via(&self) -> PeerVia {
        match &self.relay {
            Some(own) => PeerVia::Relay { trs: own.relay.name.clone(), context: own.context },
            None => PeerVia::Direct(self.dialled()),
        }
    }

    /// The endpoints that are dialled, or punched to. They are where the peer says that it is, perhaps at a
    /// host that has nothing to do with it: that one is sent few packets.
    fn dialled(&self) -> Vec<SocketAddr> {
        let mut few: Vec<SocketAddr> = Vec::new();
        for endpoint in &self.endpoints {
            if few.iter().filter(|other| other.ip() == endpoint.ip()).count() < OF_ONE_HOST {
                few.push(*endpoint);
            }
        }
        few
    }

    /// Whether the peers' connection came as it should.
    pub(super) fn came_as_directed(&self, via: &PeerVia) -> bool {
        match via {
            PeerVia::Direct(_) => self.relay.is_none(),
            PeerVia::Relay { .. } => self.via() == *via,
        }
    }

    pub(super) fn uses(&self, trs: &str) -> bool {
        self.relay_name() == Some(trs)
    }

    /// Whether something of it travels over the connection to a relay.
    pub(super) fn is_begun_via(&self, trs: &str) -> bool {
        self.uses(trs) && !matches!(self.stage, Stage::Connecting)
    }

    fn relay_name(&self) -> Option<&str> {
        self.relay.as_ref().map(|own| own.relay.name.as_str())
    }

    /// Whether both ends agreed.
    pub(super) fn is_agreed(&self) -> bool {
        matches!(self.stage, Stage::Agreed(..))
    }

    /// Whether the peer is expected to dial.
    pub(super) fn is_listening(&self) -> bool {
        matches!(self.stage, Stage::Listening)
    }

    /// Whether the peer is being dialled.
    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.stage, Stage::Dialling)
    }

    /// Whether this end has what it needs of a relay.
    pub(super) fn is_bound(&self) -> bool {
        self.relay.as_ref().is_none_or(|own| own.leg.is_some())
    }
}

impl Node {
    /// The first step of a new set-up.
    fn advance(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get(&id) else { return };
        if let Some(relay) = setup.relay.as_ref().map(|own| own.relay.clone()) {
            self.want_relay(now, &relay);
            self.hurry(now, &Service::Trs(relay.name.clone()));
            if self.is_connected(&Service::Trs(relay.name)) {
                self.bind(now, id);
            }
            return;
        }
        let remotes = setup.dialled();
        self.act(Action::Punch { remotes });
        self.confirm(id);
        self.meet(now, id);
    }

    fn meet(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get_mut(&id) else { return };
        if setup.dial {
            setup.stage = Stage::Dialling;
            let (peer_fqdn, peer_address, via) = (setup.fqdn.clone(), setup.peer, setup.via());
            self.act(Action::DialPeer { setup: id, peer_fqdn, peer_address, via });
        } else {
            setup.stage = Stage::Listening;
            self.hear_early(now, id);
        }
    }

    pub(super) fn fresh_cid(&mut self) -> ConnectionId {
        loop {
            let cid = ConnectionId::from_random_data(self.rng.random());
            let used = self.tunnels.values().any(|tunnel| tunnel.local_cid == cid)
                || self.setups.values().any(|setup| setup.cid == cid)
                || self.offers.values().any(|offer| offer.cid == cid);
            if !used {
                return cid;
            }
        }
    }
}
