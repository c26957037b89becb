//! The loop: an input, the node's view of it, the actions that follow.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_dataplane::protect;
use cyphonic_dataplane::ring::{Control, EncapRing, Path, RingEvent, TunnelId as RingTunnel, TunnelInstall};
use cyphonic_dataplane::udp::{Transmit, UdpPort};
use cyphonic_proto::node::{
    Action, CachedState, CloseCode, Node, PeerVia, ResolveError, Service, Target, TunnelActivity,
    TunnelControl, TunnelParameters,
};
use cyphonic_proto::tunnel::{Secret, Suite};
use cyphonic_proto::{ExchangeId, Message, PeerConnectionId, QueryId, SetupId, TunnelId};
use cyphonic_transport::{ClientTls, Connection, RelayedAddress, Responder, Transport};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::input::Input;
use super::renewal::{Renewal, Validity, unix_now};
use super::report::{self, Surroundings};
use super::services::{self, Dial};
use super::{EngineParts, Names, peers};
use crate::control::{BackendError, ResetTarget};

/// How often the node hears what its tunnels carried.
const STATS_INTERVAL: Duration = Duration::from_millis(500);

/// The answered half of exchange ids: those that a service opened. The node counts its own from zero.
const INBOUND_EXCHANGES: u64 = 1 << 63;

/// One byte that no QUIC packet starts with: opens NATs on its way and is dropped on arrival.
const PUNCH: &[u8] = &[0];

/// The connection was replaced or is not wanted any more.
const CLOSE_DONE: u32 = 0;

/// The agent stops.
const CLOSE_STOPPING: u32 = 1;

struct ServiceConnection {
    connection: Connection,
    attempt: u64,
    listener: JoinHandle<()>,
}

type Answer = oneshot::Sender<Result<Ipv6Addr, ResolveError>>;

pub(crate) struct Engine {
    node: Node,
    tls: ClientTls,
    transport: Arc<Transport>,
    port: Arc<UdpPort>,
    ring: Arc<dyn EncapRing>,
    inputs: mpsc::Sender<Input>,
    names: Names,
    surroundings: Surroundings,
    save: Box<dyn Fn(&CachedState) + Send>,
    failure: Option<oneshot::Sender<String>>,
    certificate: Validity,
    renewal_failure: Option<String>,
    started: Instant,
    attempts: HashMap<Service, u64>,
    services: HashMap<Service, ServiceConnection>,
    requests: HashMap<ExchangeId, JoinHandle<()>>,
    asked: HashMap<ExchangeId, Responder>,
    dials: HashMap<SetupId, JoinHandle<()>>,
    peers: HashMap<PeerConnectionId, (Connection, Responder)>,
    queries: HashMap<QueryId, (Answer, Instant)>,
    tunnels: HashMap<TunnelId, Ipv6Addr>,
    setup_times: HashMap<Ipv6Addr, Duration>,
    next: u64,
}

impl Engine {
    /// The engine, and the task that renews its certificate.
    pub(crate) fn new(parts: EngineParts, inputs: mpsc::Sender<Input>, names: Names) -> (Self, Renewal) {
        let now = Instant::now();
        let certificate = Validity::of(&parts.identity);
        let renewal = Renewal {
            parts: parts.renewal,
            validity: certificate,
            as_name: parts.node.as_name.clone(),
            transport: parts.transport.clone(),
            inputs: inputs.clone(),
        };
        let engine = Self {
            node: Node::new(parts.node, rand::random(), now),
            tls: ClientTls::new(parts.credentials),
            transport: parts.transport,
            port: parts.port,
            ring: parts.ring,
            inputs,
            names,
            surroundings: parts.surroundings,
            save: parts.save,
            failure: Some(parts.failure),
            certificate,
            renewal_failure: None,
            started: now,
            attempts: HashMap::new(),
            services: HashMap::new(),
            requests: HashMap::new(),
            asked: HashMap::new(),
            dials: HashMap::new(),
            peers: HashMap::new(),
            queries: HashMap::new(),
            tunnels: HashMap::new(),
            setup_times: HashMap::new(),
            next: 0,
        };
        (engine, renewal)
    }

    pub(crate) async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut stats = tokio::time::interval(STATS_INTERVAL);
        stats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.perform_all();
        loop {
            let wake = self.node.poll_timeout();
            tokio::select! {
                input = receiver.recv() => match input {
                    Some(Input::Shutdown(answer)) => return self.stop(answer).await,
                    Some(input) => self.handle(input),
                    None => return,
                },
                () = sleep_until(wake) => self.node.handle_timeout(Instant::now()),
                _ = stats.tick() => self.report_tunnels(),
            }
            self.perform_all();
        }
    }

    fn handle(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::ServiceDialled { service, attempt, outcome } => {
                self.service_dialled(now, service, attempt, outcome)
            }
            Input::ServiceEnded { service, attempt, reason } => {
                self.service_ended(now, service, attempt, reason)
            }
            Input::Answered { exchange, outcome } => self.answered(now, exchange, outcome),
            Input::Asked { service, attempt, message, responder } => {
                self.asked(now, service, attempt, message, responder);
            }
            Input::PeerAsked { connection, message, responder } => {
                self.peer_asked(now, connection, message, responder)
            }
            Input::PeerAnswered { setup, outcome } => self.peer_answered(now, setup, outcome),
            Input::Ring(event) => self.ring_event(now, event),
            Input::Resolve { target, answer } => self.resolve(now, target, answer),
            Input::Addresses(addresses) => self.node.handle_addresses(now, addresses),
            Input::Reset { target, answer } => drop(answer.send(self.reset(now, target))),
            Input::Renewed { credentials, validity } => {
                self.tls = ClientTls::new(credentials);
                self.certificate = validity;
            }
            Input::RenewalKept => self.renewal_failure = None,
            Input::RenewalFailed(reason) => self.renewal_failure = Some(reason),
            Input::Status(answer) => drop(answer.send(self.status())),
            // Taken out by `run`.
            Input::Shutdown(answer) => drop(answer),
        }
    }

    fn service_dialled(
        &mut self,
        now: Instant,
        service: Service,
        attempt: u64,
        outcome: Result<Connection, String>,
    ) {
        let current = self.attempts.get(&service) == Some(&attempt);
        match outcome {
            Ok(connection) if !current => connection.close(CLOSE_DONE, "not wanted any more"),
            Err(_) if !current => {}
            Err(reason) => {
                tracing::info!(%service, reason, "cannot connect");
                self.node.handle_connect_failed(now, service, reason);
            }
            Ok(connection) => {
                tracing::info!(%service, "connected");
                let remote = connection.remote_address();
                let listener = services::listen(
                    service.clone(),
                    attempt,
                    connection.clone(),
                    self.transport.mux(),
                    self.inputs.clone(),
                );
                self.services.insert(service.clone(), ServiceConnection { connection, attempt, listener });
                self.node.handle_connected(now, service, remote);
            }
        }
    }

    fn service_ended(&mut self, now: Instant, service: Service, attempt: u64, reason: String) {
        if self.services.get(&service).is_some_and(|s| s.attempt == attempt) {
            tracing::info!(%service, reason, "the connection ended");
            self.services.remove(&service);
            self.node.handle_disconnected(now, service, reason);
        }
    }

    fn answered(&mut self, now: Instant, exchange: ExchangeId, outcome: Result<Message, String>) {
        if self.requests.remove(&exchange).is_none() {
            return;
        }
        match outcome {
            Ok(message) => self.node.handle_response(now, exchange, message),
            Err(reason) => self.node.handle_exchange_failed(now, exchange, reason),
        }
    }

    fn asked(
        &mut self,
        now: Instant,
        service: Service,
        attempt: u64,
        message: Message,
        responder: Responder,
    ) {
        if self.services.get(&service).is_none_or(|s| s.attempt != attempt) {
            return;
        }
        let exchange = ExchangeId(INBOUND_EXCHANGES | self.fresh());
        self.asked.insert(exchange, responder);
        self.node.handle_request(now, service, exchange, message);
    }

    fn peer_asked(&mut self, now: Instant, connection: Connection, message: Message, responder: Responder) {
        let Some(identity) = connection.identity().cloned() else { return };
        let id = PeerConnectionId(self.fresh());
        let via = self.via(&connection);
        self.peers.insert(id, (connection.clone(), responder));
        self.node.handle_peer_request(now, id, via, &identity, message, &connection);
    }

    fn peer_answered(
        &mut self,
        now: Instant,
        setup: SetupId,
        outcome: Result<(Connection, Message), String>,
    ) {
        if self.dials.remove(&setup).is_none() {
            return;
        }
        match outcome {
            Ok((connection, message)) => {
                let Some(identity) = connection.identity().cloned() else { return };
                let via = self.via(&connection);
                self.node.handle_peer_response(now, setup, via, &identity, message, &connection);
                // The tunnel is in the ring before the other end learns that we are done.
                self.perform_all();
                connection.close(CLOSE_DONE, "set up");
            }
            Err(reason) => self.node.handle_dial_failed(now, setup, reason),
        }
    }

    fn ring_event(&mut self, now: Instant, event: RingEvent) {
        match event {
            RingEvent::UnknownDestination { dst } => self.node.handle_unknown_destination(now, dst),
            RingEvent::PathResponse { tunnel, data } => {
                self.node.handle_path_response(now, TunnelId(tunnel.0), data)
            }
            RingEvent::PeerMoved { tunnel, from } => {
                self.node.handle_peer_moved(now, TunnelId(tunnel.0), from)
            }
            RingEvent::PeerClosed { tunnel, code, reason } => {
                tracing::debug!(%tunnel, code, reason, "the peer closed the tunnel");
                self.node.handle_tunnel_closed(now, TunnelId(tunnel.0));
            }
            RingEvent::KeysExhausted { tunnel } => {
                tracing::warn!(%tunnel, "the keys of a tunnel are used up; it is set up anew");
                self.node.handle_keys_exhausted(now, TunnelId(tunnel.0));
            }
            RingEvent::Failed { reason } => {
                tracing::error!(reason, "the encapsulation ring has stopped; restart the daemon");
                self.surroundings.ring_failure = Some(reason.clone());
                if let Some(failure) = self.failure.take() {
                    drop(failure.send(format!("the encapsulation ring has stopped: {reason}")));
                }
            }
        }
    }

    fn resolve(&mut self, now: Instant, target: Target, answer: Answer) {
        let query = QueryId(self.fresh());
        self.queries.insert(query, (answer, now));
        self.node.handle_resolve(now, query, target);
    }

    fn reset(&mut self, now: Instant, target: ResetTarget) -> Result<usize, BackendError> {
        let before = self.tunnels.len();
        let target = match target {
            ResetTarget::All => None,
            ResetTarget::Peer(name) => Some(self.known_peer(&name)?),
        };
        self.node.handle_reset(now, target.map(Target::Name));
        self.perform_all();
        Ok(before.saturating_sub(self.tunnels.len()))
    }

    /// The full name of a peer given by full name or first label.
    fn known_peer(&self, name: &str) -> Result<String, BackendError> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let peers = self.node.status().peers;
        let names = || peers.iter().filter_map(|peer| peer.fqdn.clone());
        names()
            .find(|fqdn| *fqdn == name)
            .or_else(|| names().find(|fqdn| fqdn.split('.').next() == Some(name.as_str())))
            .ok_or(BackendError::UnknownPeer(name))
    }

    fn status(&self) -> crate::control::StatusReport {
        report::report(&report::Sources {
            node: self.node.status(),
            ring: self.ring.as_ref(),
            surroundings: &self.surroundings,
            setup_times: &self.setup_times,
            started: self.started,
            udp_port: self.port.local_port(),
            certificate: self.certificate,
            certificate_health: self.certificate.health(self.renewal_failure.as_deref(), unix_now()),
        })
    }

    fn report_tunnels(&mut self) {
        let now = Instant::now();
        for (id, stats) in self.ring.all_stats() {
            let activity = TunnelActivity {
                tx_packets: stats.tx_packets,
                rx_packets: stats.rx_packets,
                last_rx: stats.last_rx,
            };
            self.node.handle_tunnel_stats(now, TunnelId(id.0), activity);
        }
    }

    /// How a connection that a peer dialled travels.
    fn via(&self, connection: &Connection) -> PeerVia {
        let leg = RelayedAddress::from_socket_addr(connection.quinn().remote_address())
            .and_then(|address| self.transport.mux().leg(address));
        let relayed = leg.and_then(|(id, context)| {
            let mut services = self.services.iter();
            services.find_map(|(service, s)| match service {
                Service::Trs(trs) if s.connection.quinn().stable_id() == id => {
                    Some(PeerVia::Relay { trs: trs.clone(), context })
                }
                Service::As | Service::Nms | Service::Trs(_) => None,
            })
        });
        relayed.unwrap_or_else(|| PeerVia::Direct(vec![connection.remote_address()]))
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn perform_all(&mut self) {
        while let Some(action) = self.node.poll_action() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Connect { service, addresses, name } => self.connect(service, addresses, name),
            Action::Disconnect { service } => self.disconnect(&service),
            Action::Request { exchange, service, message } => self.request(exchange, &service, message),
            Action::CancelRequest { exchange } => abort(self.requests.remove(&exchange)),
            Action::Respond { exchange, message } => self.respond(exchange, message),
            Action::DialPeer { setup, peer_fqdn, via, request, .. } => {
                self.dial_peer(setup, peer_fqdn, &via, request)
            }
            Action::CancelDial { setup } => abort(self.dials.remove(&setup)),
            Action::RespondPeer { connection, message } => {
                if let Some((connection, responder)) = self.peers.remove(&connection) {
                    peers::answer(connection, responder, message);
                }
            }
            Action::Punch { remotes } => self.punch(&remotes),
            Action::InstallTunnel(tunnel) => self.install(*tunnel),
            Action::RemoveTunnel { id, close } => self.remove(id, close),
            Action::SetPath { id, remote, wire_cid } => {
                self.ring.set_path(RingTunnel(id.0), Path { remote, wire_cid })
            }
            Action::SendControl { id, control } => {
                let control = match control {
                    TunnelControl::Ping => Control::Ping,
                    TunnelControl::PathChallenge(data) => Control::PathChallenge(data),
                };
                self.ring.send_control(RingTunnel(id.0), control);
            }
            Action::Answer { query, result } => self.answer(query, result),
            Action::DropHeld { dst, reason } => {
                tracing::debug!(%reason, "held packets are dropped");
                self.ring.drop_held(dst, true);
            }
            Action::Save(state) => (self.save)(&state),
            // Status is asked for, not pushed.
            Action::StatusChanged => {}
        }
    }

    fn connect(&mut self, service: Service, addresses: Vec<SocketAddr>, name: String) {
        let attempt = self.fresh();
        self.attempts.insert(service.clone(), attempt);
        let dial = Dial { service, attempt, addresses, name };
        services::dial(dial, self.transport.clone(), self.tls.clone(), self.inputs.clone());
    }

    fn disconnect(&mut self, service: &Service) {
        self.attempts.remove(service);
        if let Some(old) = self.services.remove(service) {
            old.listener.abort();
            self.transport.mux().remove_legs(old.connection.quinn());
            old.connection.close(CLOSE_DONE, "not needed now");
        }
    }

    fn request(&mut self, exchange: ExchangeId, service: &Service, message: Message) {
        let connection = self.services.get(service).map(|s| s.connection.clone());
        let inputs = self.inputs.clone();
        let task = tokio::spawn(async move {
            let outcome = match connection {
                Some(connection) => {
                    connection.open_exchange(&message).await.map_err(|error| error.to_string())
                }
                None => Err("the connection has just ended".into()),
            };
            drop(inputs.send(Input::Answered { exchange, outcome }).await);
        });
        self.requests.insert(exchange, task);
    }

    fn respond(&mut self, exchange: ExchangeId, message: Message) {
        if let Some(responder) = self.asked.remove(&exchange) {
            tokio::spawn(async move {
                if let Err(error) = responder.respond(&message).await {
                    tracing::debug!(%error, "an answer did not reach its asker");
                }
            });
        }
    }

    fn dial_peer(&mut self, setup: SetupId, peer: String, via: &PeerVia, request: Message) {
        let addresses = match via {
            PeerVia::Direct(addresses) => addresses.clone(),
            PeerVia::Relay { trs, context } => self.leg(trs, *context).into_iter().collect(),
        };
        let (transport, tls, inputs) = (self.transport.clone(), self.tls.clone(), self.inputs.clone());
        let task = peers::dial(setup, peer, addresses, request, transport, tls, inputs);
        self.dials.insert(setup, task);
    }

    /// The address of a leg, if its TRS is connected.
    fn leg(&self, trs: &str, context: u64) -> Option<SocketAddr> {
        let service = self.services.get(&Service::Trs(trs.to_owned()))?;
        let address = self.transport.mux().add_leg(service.connection.quinn(), context)?;
        Some(address.socket_addr())
    }

    fn punch(&self, remotes: &[SocketAddr]) {
        for remote in remotes {
            if let Err(error) = self.port.send(&Transmit::new(*remote, PUNCH)) {
                tracing::debug!(%error, "a NAT could not be opened");
            }
        }
    }

    fn install(&mut self, tunnel: TunnelParameters) {
        let id = tunnel.id;
        self.names.insert(tunnel.peer, tunnel.peer_fqdn.clone());
        self.tunnels.insert(id, tunnel.peer);
        if let Err(error) = self.ring.install(for_ring(&tunnel)) {
            tracing::error!(%error, "a tunnel could not be installed");
            self.tunnels.remove(&id);
            self.node.handle_tunnel_closed(Instant::now(), id);
        }
    }

    fn remove(&mut self, id: TunnelId, close: Option<CloseCode>) {
        self.tunnels.remove(&id);
        if let Some(code) = close {
            let close = Control::Close { code: code as u64, reason: close_reason(code).into() };
            self.ring.send_control(RingTunnel(id.0), close);
        }
        self.ring.remove(RingTunnel(id.0));
    }

    fn answer(&mut self, query: QueryId, result: Result<Ipv6Addr, ResolveError>) {
        let Some((answer, asked)) = self.queries.remove(&query) else { return };
        if let Ok(address) = result {
            self.setup_times.entry(address).or_default();
            let took = asked.elapsed();
            // A query that finds its tunnel standing says nothing about setting one up.
            if took > Duration::from_millis(1) {
                self.setup_times.insert(address, took);
            }
        }
        // The asker may have given up: then nobody needs the answer.
        drop(answer.send(result));
    }

    async fn stop(mut self, answer: oneshot::Sender<()>) {
        self.node.handle_shutdown(Instant::now());
        self.perform_all();
        for service in self.services.values() {
            service.connection.close(CLOSE_STOPPING, "the agent stops");
        }
        self.transport.shutdown("the agent stops").await;
        let _ = answer.send(());
    }
}

fn abort(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

fn for_ring(tunnel: &TunnelParameters) -> TunnelInstall {
    let secret = |secret: &Secret| protect::Secret::from(*secret.as_bytes());
    TunnelInstall {
        id: RingTunnel(tunnel.id.0),
        peer: tunnel.peer,
        local_cid: tunnel.local_cid,
        remote_cid: tunnel.remote_cid,
        path: Path { remote: tunnel.remote, wire_cid: tunnel.wire_cid },
        suite: match tunnel.suite {
            Suite::Aes128Gcm => protect::Suite::Aes128Gcm,
            Suite::ChaCha20Poly1305 => protect::Suite::ChaCha20Poly1305,
        },
        send: secret(&tunnel.send),
        recv: secret(&tunnel.recv),
        inner_mtu: tunnel.inner_mtu,
        confirmed: tunnel.confirmed,
    }
}

fn close_reason(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Idle => "idle",
        CloseCode::Shutdown => "the agent stops",
        CloseCode::Reset => "reset by the operator",
        CloseCode::Superseded => "a newer tunnel took over",
    }
}
