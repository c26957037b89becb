//! What can happen to the engine.

use std::net::{Ipv6Addr, SocketAddr};

use cyphonic_dataplane::ring::RingEvent;
use cyphonic_proto::access::Services;
use cyphonic_proto::node::{ResolveError, Service, Sleep, Target};
use cyphonic_proto::stun::Transaction;
use cyphonic_proto::{ExchangeId, Message, PeerConnectionId, SetupId, TunnelId};
use cyphonic_transport::{ArrivingPeer, Connection, Credentials, Responder};
use tokio::sync::oneshot;

use super::renewal::Lifetime;
use super::services::Way;
use crate::config::Reloadable;
use crate::control::{BackendError, ResetTarget, StatusReport};

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A connection to a service stands, or not. `attempt` tells a late report from the current one.
    ServiceDialled { service: Service, way: Way, attempt: u64, outcome: Result<Connection, String> },
    /// A connection to a service ended.
    ServiceEnded { service: Service, attempt: u64, reason: String },
    /// A request of ours was answered, or not.
    Answered { exchange: ExchangeId, service: Service, outcome: Result<Message, String> },
    /// A service asks us.
    Asked { service: Service, attempt: u64, message: Message, responder: Responder },
    /// A service did not wait for our answer.
    GivenUp { exchange: ExchangeId },
    /// A peer dials us.
    PeerArrived(ArrivingPeer),
    /// A peer that was made an offer has proved who it is, and asks.
    PeerAsked { id: PeerConnectionId, connection: Connection, message: Message, responder: Responder },
    /// A peer that was made an offer takes none.
    PeerLeft(PeerConnectionId),
    /// A peer that we dialled is there with an offer, or not.
    PeerOffered { setup: SetupId, outcome: Result<(Connection, Message), String> },
    /// A peer that we dialled has answered our request, or not.
    PeerAnswered { setup: SetupId, outcome: Result<Message, String> },
    /// The ring reports.
    Ring(RingEvent),
    /// A relay has lost the leg that a tunnel sends to.
    RelayReset(TunnelId),
    /// Somebody calls this node by a number, as a TRS does that sees it elsewhere.
    Called { from: SocketAddr, number: Transaction },
    /// An application asks for a peer.
    Resolve { target: Target, answer: oneshot::Sender<Result<Ipv6Addr, ResolveError>> },
    /// The host is attached to networks in another way: its addresses now.
    Addresses(Vec<SocketAddr>),
    /// The host slept, or this process was stopped.
    Resumed(Sleep),
    /// The cloud's names resolve, perhaps to other addresses than before.
    Cloud(Vec<SocketAddr>),
    /// Peers whose tunnels stay.
    KeepOpen(Vec<String>),
    /// Peers may open these services here at most.
    Offer { services: Services, answer: oneshot::Sender<()> },
    /// The settings were read again.
    Settings { settings: Reloadable, answer: oneshot::Sender<Result<(), BackendError>> },
    /// The operator takes tunnels down.
    Reset { target: ResetTarget, answer: oneshot::Sender<Result<usize, BackendError>> },
    /// There is a new certificate.
    Renewed { credentials: Credentials, lifetime: Lifetime },
    /// A service has told the time, which was not known before.
    TimeTold,
    /// Something speaks against it.
    TimeDoubted,
    /// The new certificate is on disk.
    RenewalKept,
    /// There is no new certificate, or it is not on disk.
    RenewalFailed(String),
    /// A look at the network has found something.
    Network(crate::netcheck::News),
    /// Somebody asks whether the engine comes to what it is told. Dropping it is the answer "no".
    SignOfLife(oneshot::Sender<()>),
    /// Somebody asks for the status.
    Status(oneshot::Sender<StatusReport>),
    /// Stop: close tunnels and connections, then answer.
    Shutdown(oneshot::Sender<()>),
}
