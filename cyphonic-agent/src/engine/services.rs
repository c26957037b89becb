//! Connections to AS, NMS and TRS: dialling, listening to what they ask, noticing their end.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_proto::close;
use cyphonic_proto::identity::Role;
use cyphonic_proto::node::{PeerVia, STOOD, Service};
use cyphonic_transport::{ClientTls, Connection, Mux, RelayedAddress, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::admission::is_news;
use super::input::Input;
use super::run::Engine;
use crate::complaints::Complaints;

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

pub(super) struct ServiceConnection {
    pub(super) connection: Connection,
    pub(super) attempt: u64,
    since: Instant,
    listener: JoinHandle<()>,
}

/// The connections to services, and the attempts at them.
#[derive(Default)]
pub(super) struct Services {
    pub(super) standing: HashMap<Service, ServiceConnection>,
    /// Dials of services under way.
    dialling: HashMap<(Service, Way), Dialling>,
    /// What the log was told of dials that failed, by the name that was dialled: an NMS may have standbys.
    unreachable: Complaints<(Service, Way, String)>,
    /// What the log was told of connections that ended.
    ends: Complaints<Service>,
    /// Those whose last connection ended soon.
    pub(super) short: HashSet<Service>,
    /// Connections that stay open until those that replace them stand.
    replaced: HashMap<Service, Connection>,
}

struct Dialling {
    attempt: u64,
    name: String,
    task: JoinHandle<()>,
}

impl Engine {
    pub(super) fn connect(&mut self, service: Service, addresses: Vec<SocketAddr>, name: String) {
        self.give_up_dials(&service);
        if let Some(old) = self.services.standing.remove(&service) {
            // It may serve yet: only the service can say, when the new one stands.
            old.listener.abort();
            self.transport.mux().remove_legs(&old.connection);
            self.services.replaced.insert(service.clone(), old.connection);
        }
        self.dial(service, Way::Udp, addresses, name);
    }

    /// Dials beside whatever stands.
    pub(super) fn dial(&mut self, service: Service, way: Way, mut addresses: Vec<SocketAddr>, name: String) {
        // Attempts begin one after the other: none of them for an address that no route leads to, unless
        // there is no other.
        let routed = |address: &SocketAddr| self.port.source_for(*address).is_ok();
        if addresses.iter().any(routed) {
            addresses.retain(routed);
        }
        tracing::debug!(%service, ?way, ?addresses, "dialling");
        let attempt = self.fresh();
        let wanted = Dial { service: service.clone(), way, attempt, addresses, name: name.clone() };
        let task = dial(wanted, self.transport.clone(), self.tls.clone(), self.inputs.clone());
        let dialling = Dialling { attempt, name, task };
        if let Some(before) = self.services.dialling.insert((service, way), dialling) {
            before.task.abort();
        }
    }

    /// What a dial reports from now on is not wanted any more.
    fn give_up_dials(&mut self, service: &Service) {
        for way in Way::ALL {
            if let Some(dialling) = self.services.dialling.remove(&(service.clone(), way)) {
                dialling.task.abort();
            }
        }
    }

    pub(super) fn disconnect(&mut self, service: &Service) {
        self.give_up_dials(service);
        if let Some(old) = self.services.replaced.remove(service) {
            old.close(close::DONE, "not needed now");
        }
        if let Some(old) = self.services.standing.remove(service) {
            old.listener.abort();
            self.note_end(service, &old.connection);
            self.transport.mux().remove_legs(&old.connection);
            old.connection.close(close::DONE, "not needed now");
        }
    }

    pub(super) fn service_dialled(
        &mut self,
        now: Instant,
        service: Service,
        way: Way,
        attempt: u64,
        outcome: Result<Connection, String>,
    ) {
        let dialled = (service.clone(), way);
        let current = self.services.dialling.get(&dialled).is_some_and(|current| current.attempt == attempt);
        match outcome {
            // Only a dial that was given up in the last moment.
            Ok(connection) if !current => connection.close(close::DONE, "not wanted any more"),
            Err(_) if !current => {}
            Err(reason) => self.dial_failed(now, service, way, reason),
            Ok(connection) => self.service_stands(now, service, attempt, connection),
        }
    }

    fn dial_failed(&mut self, now: Instant, service: Service, way: Way, reason: String) {
        let dialled = self.services.dialling.remove(&(service.clone(), way));
        let name = dialled.map(|dialling| dialling.name).unwrap_or_default();
        self.note_unreachable(&service);
        let by_tcp = way == Way::Detour;
        if self.services.unreachable.is_news(now, (service.clone(), way, name.clone()), &reason) {
            match service {
                Service::Nms => {
                    tracing::warn!(%service, name, by_tcp, reason, "cannot connect; tried again all the time");
                }
                Service::As | Service::Trs(_) => {
                    tracing::info!(%service, name, by_tcp, reason, "cannot connect; tried again all the time");
                }
            }
        } else {
            tracing::debug!(%service, name, by_tcp, reason, "cannot connect");
        }
        match way {
            Way::Udp => {
                self.node.handle_connect_failed(now, service, reason);
            }
            Way::Detour => {
                self.node.handle_detour_failed(now, service, reason);
            }
        }
    }

    fn service_stands(&mut self, now: Instant, service: Service, attempt: u64, connection: Connection) {
        let through = connection.detour();
        let name = name_of(&connection);
        for way in Way::ALL {
            self.services.unreachable.settle(&(service.clone(), way, name.clone()));
        }
        // The slower dial, and the detour that is left.
        self.give_up_dials(&service);
        if let Some(left) = self.services.standing.remove(&service) {
            left.listener.abort();
            self.transport.mux().remove_legs(&left.connection);
            let_go(left.connection);
        }
        let remote = connection.remote_address();
        if let Service::Trs(_) = &service {
            self.transport.mux().enter(&connection);
        }
        let listener = listen(
            service.clone(),
            attempt,
            connection.clone(),
            self.transport.mux(),
            self.inputs.clone(),
            self.told_after(&service),
        );
        let since = now;
        let stands = ServiceConnection { connection, attempt, since, listener };
        self.services.standing.insert(service.clone(), stands);
        match self.services.replaced.remove(&service) {
            // Another NMS than the one before, which hears nothing of that.
            Some(old) if name_of(&old) != name => old.close(close::DONE, "registered elsewhere"),
            Some(old) => let_go(old),
            None => {}
        }
        match through {
            None => self.node.handle_connected(now, service, remote),
            Some(through) => self.node.handle_detour_connected(now, service, remote, through),
        }
    }

    pub(super) fn service_ended(&mut self, now: Instant, service: Service, attempt: u64, reason: String) {
        if self.services.standing.get(&service).is_some_and(|s| s.attempt == attempt) {
            if let Some(ended) = self.services.standing.remove(&service) {
                let stood = now.saturating_duration_since(ended.since);
                match stood < STOOD {
                    true => self.services.short.insert(service.clone()),
                    false => self.services.short.remove(&service),
                };
                if is_news(&mut self.services.ends, now, &service, stood, &reason) {
                    tracing::info!(%service, reason, "the connection ended");
                } else {
                    tracing::debug!(%service, reason, "the connection ended");
                }
                self.note_end(&service, &ended.connection);
                self.transport.mux().remove_legs(&ended.connection);
            }
            self.node.handle_disconnected(now, service, reason);
        }
    }

    /// The address of a leg, if its TRS is connected.
    pub(super) fn leg(&self, trs: &str, context: u64) -> Option<SocketAddr> {
        let service = self.services.standing.get(&Service::Trs(trs.to_owned()))?;
        let address = self.transport.mux().add_leg(&service.connection, context)?;
        Some(address.socket_addr())
    }

    /// How a connection with this far end travels.
    pub(super) fn via(&self, remote: SocketAddr) -> PeerVia {
        let leg =
            RelayedAddress::from_socket_addr(remote).and_then(|address| self.transport.mux().leg(address));
        let relayed = leg.and_then(|(id, context)| {
            let mut services = self.services.standing.iter();
            services.find_map(|(service, s)| match service {
                Service::Trs(trs) if s.connection.id() == id => {
                    Some(PeerVia::Relay { trs: trs.clone(), context })
                }
                Service::As | Service::Nms | Service::Trs(_) => None,
            })
        });
        relayed.unwrap_or_else(|| PeerVia::Direct(vec![remote]))
    }
}

/// Everything a dial needs.
struct Dial {
    service: Service,
    way: Way,
    attempt: u64,
    addresses: Vec<SocketAddr>,
    name: String,
}

/// Dials in a task of its own and reports.
fn dial(
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

/// Whose connection it is, by its certificate.
fn name_of(connection: &Connection) -> String {
    connection.identity().map(|identity| identity.fqdn.clone()).unwrap_or_default()
}

/// How long a service has to close a connection that a newer one replaced.
const REPLACED: Duration = Duration::from_secs(10);

/// Leaves it to the service to close a connection that a newer one replaced: told by us, it might take that
/// for the device's farewell, before it has seen the newer one.
fn let_go(connection: Connection) {
    tokio::spawn(async move { drop(tokio::time::timeout(REPLACED, connection.closed()).await) });
}

/// Listens on an established connection until it ends. The log is told of it once it has stood for
/// `told_after`.
fn listen(
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
            tracing::info!(%service, name = name_of(&connection), by_tcp, "connected");
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
        // Whichever of these has noticed it: the log compares reasons.
        let reason = connection.why_ended().unwrap_or(reason);
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
        mux.deliver_relayed(connection, &datagram);
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
