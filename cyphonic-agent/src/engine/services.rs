//! Connections to AS, NMS and TRS: dialling, listening to what they ask, noticing their end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::identity::Role;
use cyphonic_proto::node::Service;
use cyphonic_transport::{ClientTls, Connection, Mux, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::input::Input;

/// Everything a dial needs.
pub(crate) struct Dial {
    pub(crate) service: Service,
    pub(crate) attempt: u64,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) name: String,
}

/// Dials in a task of its own and reports.
pub(crate) fn dial(
    dial: Dial,
    transport: Arc<Transport>,
    tls: ClientTls,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let role = role_of(&dial.service);
        let outcome = transport
            .connect_service(&tls, &dial.addresses, &dial.name, role)
            .await
            .map_err(|error| error.to_string());
        let report = Input::ServiceDialled { service: dial.service, attempt: dial.attempt, outcome };
        drop(inputs.send(report).await);
    })
}

/// How long a service has to close a connection that a newer one replaced.
const REPLACED: Duration = Duration::from_secs(10);

/// Leaves it to the service to close a connection that a newer one replaced: told by us, it might take that for the
/// device's farewell, before it has seen the newer one.
pub(crate) fn let_go(connection: Connection) {
    tokio::spawn(async move { drop(tokio::time::timeout(REPLACED, connection.closed()).await) });
}

/// Listens on an established connection until it ends.
pub(crate) fn listen(
    service: Service,
    attempt: u64,
    connection: Connection,
    mux: Arc<Mux>,
    inputs: mpsc::Sender<Input>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let asked = hear_requests(service.clone(), attempt, &connection, &inputs);
        let relayed = hear_datagrams(&connection, &mux);
        let reason = tokio::select! {
            reason = asked => reason,
            reason = relayed => reason,
        };
        mux.remove_legs(connection.quinn());
        drop(inputs.send(Input::ServiceEnded { service, attempt, reason }).await);
    })
}

async fn hear_requests(
    service: Service,
    attempt: u64,
    connection: &Connection,
    inputs: &mpsc::Sender<Input>,
) -> String {
    loop {
        match connection.accept_exchange().await {
            Ok((message, responder)) => {
                let asked = Input::Asked { service: service.clone(), attempt, message, responder };
                if inputs.send(asked).await.is_err() {
                    return "the agent stops".into();
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}

/// Handshakes of peers that a TRS relays. Other services send none; hearing them costs nothing.
async fn hear_datagrams(connection: &Connection, mux: &Mux) -> String {
    let deliver = |datagram| {
        mux.deliver_relayed(connection.quinn(), &datagram);
        true
    };
    let end = connection.receive_datagrams(deliver).await;
    end.map_or_else(|| "nothing is relayed any more".into(), |error| error.to_string())
}

fn role_of(service: &Service) -> Role {
    match service {
        Service::As => Role::As,
        Service::Nms => Role::Nms,
        Service::Trs(_) => Role::Trs,
    }
}
