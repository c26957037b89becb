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

/// How a service is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// From the node's own port.
    Udp,
    /// By TLS over TCP.
    Detour,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::Udp, Self::Detour];
}

/// Everything a dial needs.
pub(crate) struct Dial {
    pub(crate) service: Service,
    pub(crate) way: Way,
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
        let (addresses, name) = (&dial.addresses, &dial.name);
        let outcome = match dial.way {
            Way::Udp => transport.connect_service(&tls, addresses, name, role).await,
            Way::Detour => transport.connect_service_by_detour(&tls, addresses, name, role).await,
        };
        let outcome = outcome.map_err(|error| error.to_string());
        let Dial { service, way, attempt, .. } = dial;
        let report = Input::ServiceDialled { service, way, attempt, outcome };
        drop(inputs.send(report).await);
    })
}

/// How long a service has to close a connection that a newer one replaced.
const REPLACED: Duration = Duration::from_secs(10);

/// Leaves it to the service to close a connection that a newer one replaced: told by us, it might take that
/// for the device's farewell, before it has seen the newer one.
pub(crate) fn let_go(connection: Connection) {
    tokio::spawn(async move { drop(tokio::time::timeout(REPLACED, connection.closed()).await) });
}

/// Listens on an established connection until it ends. The log is told of it once it has stood for
/// `told_after`.
pub(crate) fn listen(
    service: Service,
    attempt: u64,
    connection: Connection,
    mux: Arc<Mux>,
    inputs: mpsc::Sender<Input>,
    told_after: Duration,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let by_tcp = connection.detour().is_some();
        let told = async {
            if !told_after.is_zero() {
                tokio::time::sleep(told_after).await;
            }
            tracing::info!(%service, by_tcp, "connected");
            std::future::pending().await
        };
        let asked = hear_requests(service.clone(), attempt, &connection, &inputs);
        let relayed = hear_datagrams(&connection, &mux);
        let reason = tokio::select! {
            reason = asked => reason,
            reason = relayed => reason,
            reason = told => reason,
            // QUIC would find out by its idle time-out.
            reason = connection.detour_ended() => format!("the detour over TCP ended: {reason}"),
        };
        // Its legs go when the engine hears of it: until then it may dial through one.
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
