//! The handshakes between this node and others.
//!
//! A connection between peers lives for one exchange, Tunnel Request and Tunnel Response. The dialling end closes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::{Message, SetupId, close};
use cyphonic_transport::{ClientTls, Connection, Incoming, Responder, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::input::Input;

/// The node gives a dial up before this; it only bounds a task that nobody waits for.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The dialler closes when it has the answer. One that does not is closed here.
const LINGER: Duration = Duration::from_secs(5);

/// Dials a peer, sends the request, and reports the answer.
pub(crate) fn dial(
    setup: SetupId,
    peer: String,
    addresses: Vec<SocketAddr>,
    request: Message,
    transport: Arc<Transport>,
    tls: ClientTls,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let outcome = ask(&peer, &addresses, &request, &transport, &tls).await;
        drop(inputs.send(Input::PeerAnswered { setup, outcome }).await);
    })
}

async fn ask(
    peer: &str,
    addresses: &[SocketAddr],
    request: &Message,
    transport: &Transport,
    tls: &ClientTls,
) -> Result<(Connection, Message), String> {
    let connection = transport
        .connect_peer(tls, addresses, peer, DIAL_TIMEOUT)
        .await
        .map_err(|error| error.to_string())?;
    let answer = connection.open_exchange(request).await.map_err(|error| error.to_string())?;
    Ok((connection, answer))
}

/// Accepts peers for as long as the transport lives.
pub(crate) fn accept(transport: Arc<Transport>, inputs: mpsc::Sender<Input>) {
    tokio::spawn(async move {
        while let Some(Incoming { connection, .. }) = transport.accept().await {
            tokio::spawn(hear(connection, inputs.clone()));
        }
    });
}

async fn hear(connection: Connection, inputs: mpsc::Sender<Input>) {
    match tokio::time::timeout(DIAL_TIMEOUT, connection.accept_exchange()).await {
        Ok(Ok((message, responder))) => {
            drop(inputs.send(Input::PeerAsked { connection, message, responder }).await);
        }
        Ok(Err(error)) => tracing::debug!(%error, "a peer connected and asked nothing"),
        Err(_) => connection.close(close::DONE, "no request arrived"),
    }
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
