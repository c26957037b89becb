//! The handshakes between this node and others.
//!
//! A connection between peers lives for one offer and one exchange: TunnelOffer, then Tunnel Request and
//! Response. The dialling end closes it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_proto::node::{PeerVia, ProvedPeer};
use cyphonic_proto::{Message, PeerConnectionId, SetupId, close};
use cyphonic_transport::{ArrivingPeer, ClientTls, Connection, Responder, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::input::Input;
use super::perform::abort;
use super::run::Engine;

/// The node gives a dial up before this; it only bounds a task that nobody waits for.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The dialler closes when it has the answer. One that does not is closed here.
const LINGER: Duration = Duration::from_secs(5);

/// The handshakes under way, with peers that we dial and with peers that dial us.
#[derive(Default)]
pub(super) struct PeerHandshakes {
    /// Tasks that dial a peer, or ask one that was dialled.
    dials: HashMap<SetupId, JoinHandle<()>>,
    /// Connections to peers that were dialled and have made their offer.
    dialled: HashMap<SetupId, Connection>,
    /// Peers that dial, until the node knows what to offer.
    arriving: HashMap<PeerConnectionId, ArrivingPeer>,
    /// Peers that were made an offer.
    offered: HashMap<PeerConnectionId, JoinHandle<()>>,
    /// Peers that have asked and wait for our answer.
    asking: HashMap<PeerConnectionId, (Connection, Responder)>,
}

impl Engine {
    pub(super) fn dial_peer(&mut self, setup: SetupId, peer: String, via: &PeerVia) {
        let addresses = match via {
            PeerVia::Direct(addresses) => addresses.clone(),
            PeerVia::Relay { trs, context } => self.leg(trs, *context).into_iter().collect(),
        };
        let (transport, tls, inputs) = (self.transport.clone(), self.tls.clone(), self.inputs.clone());
        let task = dial(setup, peer, addresses, transport, tls, inputs);
        self.handshakes.dials.insert(setup, task);
    }

    pub(super) fn peer_offered(
        &mut self,
        now: Instant,
        setup: SetupId,
        outcome: Result<(Connection, Message), String>,
    ) {
        if self.handshakes.dials.remove(&setup).is_none() {
            return;
        }
        match outcome {
            Ok((connection, message)) => {
                let Some(identity) = connection.identity().cloned() else { return };
                if !self.is_identity_valid_now(&identity) {
                    connection.close(close::NOT_ALLOWED, "the certificate is not valid now");
                    return self.node.handle_dial_failed(
                        now,
                        setup,
                        "its certificate is not valid now".into(),
                    );
                }
                let via = self.via(connection.remote_address());
                self.handshakes.dialled.insert(setup, connection.clone());
                let peer = ProvedPeer { via, identity: &identity, exporter: &connection };
                self.node.handle_peer_offer(now, setup, peer, message);
            }
            Err(reason) => self.node.handle_dial_failed(now, setup, reason),
        }
    }

    pub(super) fn ask_peer(&mut self, setup: SetupId, request: Message) {
        if let Some(connection) = self.handshakes.dialled.remove(&setup) {
            self.handshakes.dials.insert(setup, ask(setup, connection, request, self.inputs.clone()));
        }
    }

    pub(super) fn peer_answered(&mut self, now: Instant, setup: SetupId, outcome: Result<Message, String>) {
        if self.handshakes.dials.remove(&setup).is_none() {
            return;
        }
        match outcome {
            Ok(message) => self.node.handle_peer_response(now, setup, message),
            // The tunnel stands or does not, whatever became of the connection.
            Err(reason) => tracing::debug!(reason, "a peer did not answer"),
        }
    }

    pub(super) fn cancel_dial(&mut self, setup: SetupId) {
        abort(self.handshakes.dials.remove(&setup));
        if let Some(connection) = self.handshakes.dialled.remove(&setup) {
            connection.close(close::DONE, "not wanted any more");
        }
    }

    pub(super) fn peer_arrived(&mut self, now: Instant, peer: ArrivingPeer) {
        let id = PeerConnectionId(self.fresh());
        let via = self.via(peer.remote_address());
        self.handshakes.arriving.insert(id, peer);
        self.node.handle_peer_arrived(now, id, via);
    }

    pub(super) fn offer_peer(&mut self, connection: PeerConnectionId, message: Message) {
        if let Some(peer) = self.handshakes.arriving.remove(&connection) {
            let task = offer(connection, peer, message, self.inputs.clone());
            self.handshakes.offered.insert(connection, task);
        }
    }

    pub(super) fn peer_asked(
        &mut self,
        now: Instant,
        id: PeerConnectionId,
        connection: Connection,
        message: Message,
        responder: Responder,
    ) {
        let Some(identity) = connection.identity().cloned() else { return };
        if self.handshakes.offered.remove(&id).is_none() {
            return;
        }
        // TLS judged it by the clock of that moment.
        if !self.is_identity_valid_now(&identity) {
            connection.close(close::NOT_ALLOWED, "the certificate is not valid now");
            return self.node.handle_peer_left(now, id);
        }
        let via = self.via(connection.remote_address());
        self.handshakes.asking.insert(id, (connection.clone(), responder));
        let peer = ProvedPeer { via, identity: &identity, exporter: &connection };
        self.node.handle_peer_request(now, id, peer, message);
    }

    pub(super) fn respond_peer(&mut self, connection: PeerConnectionId, message: Message) {
        if let Some((connection, responder)) = self.handshakes.asking.remove(&connection) {
            answer(connection, responder, message);
        }
    }

    pub(super) fn peer_left(&mut self, now: Instant, id: PeerConnectionId) {
        if self.handshakes.offered.remove(&id).is_some() {
            self.node.handle_peer_left(now, id);
        }
    }

    pub(super) fn close_peer(&mut self, connection: PeerConnectionId) {
        const REASON: &str = "no tunnel was made";
        if let Some(peer) = self.handshakes.arriving.remove(&connection) {
            peer.close(REASON);
        }
        // With its task the connection goes.
        abort(self.handshakes.offered.remove(&connection));
        if let Some((connection, _)) = self.handshakes.asking.remove(&connection) {
            connection.close(close::DONE, REASON);
        }
    }
}

/// Dials a peer and reports what it offers.
fn dial(
    setup: SetupId,
    peer: String,
    addresses: Vec<SocketAddr>,
    transport: Arc<Transport>,
    tls: ClientTls,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let outcome = reach(&peer, &addresses, &transport, &tls).await;
        drop(inputs.send(Input::PeerOffered { setup, outcome }).await);
    })
}

async fn reach(
    peer: &str,
    addresses: &[SocketAddr],
    transport: &Transport,
    tls: &ClientTls,
) -> Result<(Connection, Message), String> {
    let connection = transport
        .connect_peer(tls, addresses, peer, DIAL_TIMEOUT)
        .await
        .map_err(|error| error.to_string())?;
    let offer = connection.accept_notice().await.map_err(|error| error.to_string())?;
    Ok((connection, offer))
}

/// Takes a peer's offer and reports its answer.
fn ask(
    setup: SetupId,
    connection: Connection,
    request: Message,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let outcome = connection.open_exchange(&request).await.map_err(|error| error.to_string());
        connection.close(close::DONE, "set up");
        drop(inputs.send(Input::PeerAnswered { setup, outcome }).await);
    })
}

/// Hears of peers that dial for as long as the transport lives.
pub(crate) fn accept(transport: Arc<Transport>, inputs: mpsc::Sender<Input>) {
    tokio::spawn(async move {
        while let Some(peer) = transport.accept_peer().await {
            if inputs.send(Input::PeerArrived(peer)).await.is_err() {
                return;
            }
        }
    });
}

/// Makes an offer to a peer, and reports what it asks once it has proved who it is.
fn offer(
    id: PeerConnectionId,
    peer: ArrivingPeer,
    offer: Message,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let input = match tokio::time::timeout(DIAL_TIMEOUT, hear(peer, &offer)).await {
            Ok(Ok((connection, message, responder))) => {
                Input::PeerAsked { id, connection, message, responder }
            }
            Ok(Err(reason)) => {
                tracing::debug!(reason, "a peer came and took no tunnel");
                Input::PeerLeft(id)
            }
            Err(_) => Input::PeerLeft(id),
        };
        drop(inputs.send(input).await);
    })
}

async fn hear(peer: ArrivingPeer, offer: &Message) -> Result<(Connection, Message, Responder), String> {
    peer.notify(offer).await.map_err(|error| error.to_string())?;
    let connection = peer.verified().await?;
    let (message, responder) = connection.accept_exchange().await.map_err(|error| error.to_string())?;
    Ok((connection, message, responder))
}

/// Answers a peer and waits for it to close, so that the answer is not cut off.
fn answer(connection: Connection, responder: Responder, message: Message) {
    tokio::spawn(async move {
        if let Err(error) = responder.respond(&message).await {
            tracing::debug!(%error, "the answer did not reach the peer");
        }
        if tokio::time::timeout(LINGER, connection.closed()).await.is_err() {
            connection.close(close::DONE, "done");
        }
    });
}
