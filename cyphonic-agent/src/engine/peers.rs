//! The handshakes between this node and others.
//!
//! A connection between peers lives for one offer and one exchange: TunnelOffer, then Tunnel Request and
//! Response. The dialling end closes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::{Message, PeerConnectionId, SetupId, close};
use cyphonic_transport::{ArrivingPeer, ClientTls, Connection, Responder, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::input::Input;

/// The node gives a dial up before this; it only bounds a task that nobody waits for.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The dialler closes when it has the answer. One that does not is closed here.
const LINGER: Duration = Duration::from_secs(5);

/// Dials a peer and reports what it offers.
pub(crate) fn dial(
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
pub(crate) fn ask(
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
pub(crate) fn offer(
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
pub(crate) fn answer(connection: Connection, responder: Responder, message: Message) {
    tokio::spawn(async move {
        if let Err(error) = responder.respond(&message).await {
            tracing::debug!(%error, "the answer did not reach the peer");
        }
        if tokio::time::timeout(LINGER, connection.closed()).await.is_err() {
            connection.close(close::DONE, "done");
        }
    });
}
