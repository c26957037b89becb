//! What the node asks for, done: the other half of the loop in `run`.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use cyphonic_common::quic::PUNCH;
use cyphonic_dataplane::protect;
use cyphonic_dataplane::ring::{CandidateSet, Control, Path, PathMtu, TunnelId as RingTunnel, TunnelInstall};
use cyphonic_dataplane::udp::Transmit;
use cyphonic_proto::node::{
    self, Action, CloseCode, PeerVia, ResolveError, Service, TunnelControl, TunnelParameters,
};
use cyphonic_proto::tunnel::{Secret, Suite};
use cyphonic_proto::{ExchangeId, Message, PeerConnectionId, QueryId, SetupId, TunnelId, close};
use cyphonic_transport::ExchangeError;
use tokio::task::JoinHandle;

use super::input::Input;
use super::peers;
use super::run::{Engine, network_news};
use super::services::{self, Dial, Way};
use super::time;

impl Engine {
    pub(super) fn perform_all(&mut self) {
        while let Some(action) = self.node.poll_action() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Connect { service, addresses, name } => self.connect(service, addresses, name),
            Action::ConnectByDetour { service, addresses, name } => {
                self.dial(service, Way::Detour, addresses, name);
            }
            Action::LeaveDetour { service, addresses, name } => self.dial(service, Way::Udp, addresses, name),
            Action::Netcheck { servers, own } => self.look(servers, own),
            Action::Disconnect { service } => self.disconnect(&service),
            Action::Request { exchange, service, message } => self.request(exchange, &service, message),
            Action::CancelRequest { exchange } => abort(self.requests.remove(&exchange)),
            Action::Respond { exchange, message } => self.respond(exchange, message),
            Action::DialPeer { setup, peer_fqdn, via, .. } => self.dial_peer(setup, peer_fqdn, &via),
            Action::AskPeer { setup, request } => {
                if let Some(connection) = self.dialled.remove(&setup) {
                    self.dials.insert(setup, peers::ask(setup, connection, request, self.inputs.clone()));
                }
            }
            Action::CancelDial { setup } => {
                abort(self.dials.remove(&setup));
                if let Some(connection) = self.dialled.remove(&setup) {
                    connection.close(close::DONE, "not wanted any more");
                }
            }
            Action::OfferPeer { connection, offer } => {
                if let Some(peer) = self.arriving.remove(&connection) {
                    let task = peers::offer(connection, peer, offer, self.inputs.clone());
                    self.offered.insert(connection, task);
                }
            }
            Action::ClosePeer { connection } => self.close_peer(connection),
            Action::ExpectTunnel { local_cid } => self.ring.expect(local_cid),
            Action::ForgetTunnel { local_cid } => self.ring.forget(local_cid),
            Action::RespondPeer { connection, message } => {
                if let Some((connection, responder)) = self.peers.remove(&connection) {
                    peers::answer(connection, responder, message);
                }
            }
            Action::Punch { remotes } => self.punch(&remotes),
            Action::Migrate => self.transport.migrate(),
            Action::InstallTunnel(tunnel) => self.install(*tunnel),
            Action::RemoveTunnel { id, close } => self.remove(id, close),
            Action::SetPath { id, remote, wire_cid } => {
                self.ring.set_path(RingTunnel(id.0), Path { remote, wire_cid })
            }
            Action::ExpectReset { id, from } => self.transport.mux().follow_reset(id, from),
            Action::SendControl { id, control } => {
                self.ring.send_control(RingTunnel(id.0), for_control(control));
            }
            Action::SetMtu { id, mtu } => {
                let mtu = PathMtu { datagram: mtu.datagram, inner: mtu.inner };
                self.ring.set_mtu(RingTunnel(id.0), mtu);
                self.mtus.set(id, mtu.inner);
            }
            Action::ProbeMtu { id, remote, wire_cid, size, data } => {
                let probe = Control::MtuProbe { path: Path { remote, wire_cid }, size, data };
                self.ring.send_control(RingTunnel(id.0), probe);
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
        self.give_up_dials(&service);
        if let Some(old) = self.services.remove(&service) {
            // It may serve yet: only the service can say, when the new one stands.
            old.listener.abort();
            self.transport.mux().remove_legs(old.connection.quinn());
            self.replaced.insert(service.clone(), old.connection);
        }
        self.dial(service, Way::Udp, addresses, name);
    }

    /// Dials beside whatever stands.
    fn dial(&mut self, service: Service, way: Way, mut addresses: Vec<SocketAddr>, name: String) {
        // Attempts begin one after the other: none of them for an address that no route leads to, unless
        // there is no other.
        let routed = |address: &SocketAddr| self.port.source_for(*address).is_ok();
        if addresses.iter().any(routed) {
            addresses.retain(routed);
        }
        tracing::debug!(%service, ?way, ?addresses, "dialling");
        let attempt = self.fresh();
        let dial = Dial { service: service.clone(), way, attempt, addresses, name };
        let task = services::dial(dial, self.transport.clone(), self.tls.clone(), self.inputs.clone());
        if let Some((_, task)) = self.dialling.insert((service, way), (attempt, task)) {
            task.abort();
        }
    }

    /// What a dial reports from now on is not wanted any more.
    pub(super) fn give_up_dials(&mut self, service: &Service) {
        for way in Way::ALL {
            if let Some((_, task)) = self.dialling.remove(&(service.clone(), way)) {
                task.abort();
            }
        }
    }

    fn look(&mut self, servers: Vec<SocketAddr>, own: Vec<SocketAddr>) {
        self.netcheck.start(servers, own, network_news(self.inputs.clone()));
    }

    fn disconnect(&mut self, service: &Service) {
        self.give_up_dials(service);
        if let Some(old) = self.replaced.remove(service) {
            old.close(close::DONE, "not needed now");
        }
        if let Some(old) = self.services.remove(service) {
            old.listener.abort();
            self.note_end(service, &old.connection);
            self.transport.mux().remove_legs(old.connection.quinn());
            old.connection.close(close::DONE, "not needed now");
        }
    }

    fn request(&mut self, exchange: ExchangeId, service: &Service, message: Message) {
        tracing::trace!(%service, request = message.name(), "asking");
        let connection = self.services.get(service).map(|s| s.connection.clone());
        // Begun here: what is asked behind a registration is answered only if it is read behind it.
        let asked = connection.map(|connection| (connection.begin_exchange(message), connection));
        let (inputs, clock, service) = (self.inputs.clone(), self.clock.clone(), service.clone());
        let task = tokio::spawn(async move {
            let outcome = match asked {
                Some((answer, connection)) => {
                    let answer = answer.await.map_err(|error| error.to_string());
                    answer.and_then(|answer| time::believed(&clock, &connection, answer))
                }
                None => Err("the connection has just ended".into()),
            };
            drop(inputs.send(Input::Answered { exchange, service, outcome }).await);
        });
        self.requests.insert(exchange, task);
    }

    fn respond(&mut self, exchange: ExchangeId, message: Message) {
        if let Some(responder) = self.asked.remove(&exchange) {
            let inputs = self.inputs.clone();
            tokio::spawn(async move {
                let Err(error) = responder.respond_acknowledged(&message).await else { return };
                tracing::debug!(%error, "an answer did not reach its asker");
                if matches!(error, ExchangeError::Stream(_)) {
                    drop(inputs.send(Input::GivenUp { exchange }).await);
                }
            });
        }
    }

    fn dial_peer(&mut self, setup: SetupId, peer: String, via: &PeerVia) {
        let addresses = match via {
            PeerVia::Direct(addresses) => addresses.clone(),
            PeerVia::Relay { trs, context } => self.leg(trs, *context).into_iter().collect(),
        };
        let (transport, tls, inputs) = (self.transport.clone(), self.tls.clone(), self.inputs.clone());
        let task = peers::dial(setup, peer, addresses, transport, tls, inputs);
        self.dials.insert(setup, task);
    }

    fn close_peer(&mut self, connection: PeerConnectionId) {
        const REASON: &str = "no tunnel was made";
        if let Some(peer) = self.arriving.remove(&connection) {
            peer.close(REASON);
        }
        // With its task the connection goes.
        abort(self.offered.remove(&connection));
        if let Some((connection, _)) = self.peers.remove(&connection) {
            connection.close(close::DONE, REASON);
        }
    }

    /// The address of a leg, if its TRS is connected.
    fn leg(&self, trs: &str, context: u64) -> Option<SocketAddr> {
        let service = self.services.get(&Service::Trs(trs.to_owned()))?;
        let address = self.transport.mux().add_leg(service.connection.quinn(), context);
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
        self.mtus.installed(id, tunnel.setup, tunnel.peer, tunnel.inner_mtu);
        if let Some(token) = tunnel.relay_reset {
            self.transport.mux().expect_reset(id, tunnel.remote, token);
        }
        if let Err(error) = self.ring.install(for_ring(&tunnel)) {
            tracing::error!(%error, "a tunnel could not be installed");
            self.tunnels.remove(&id);
            self.mtus.removed(id);
            self.transport.mux().forget_reset(id);
            self.node.handle_tunnel_closed(Instant::now(), id);
        }
    }

    fn remove(&mut self, id: TunnelId, close: Option<CloseCode>) {
        self.tunnels.remove(&id);
        self.mtus.removed(id);
        self.transport.mux().forget_reset(id);
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
}

fn abort(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
    }
}

fn for_control(control: TunnelControl) -> Control {
    match control {
        TunnelControl::Ping => Control::Ping,
        TunnelControl::PathChallenge(data) => Control::PathChallenge(data),
        TunnelControl::Probe { remote, wire_cid, data } => {
            Control::Probe { path: Path { remote, wire_cid }, data }
        }
        TunnelControl::Candidates(set) => {
            let node::CandidateSet { sequence, heard, flags, endpoints } = set;
            Control::Candidates(CandidateSet { sequence, heard, flags, endpoints })
        }
    }
}

fn for_ring(tunnel: &TunnelParameters) -> TunnelInstall {
    let secret = |secret: &Secret| protect::Secret::from(*secret.as_bytes());
    TunnelInstall {
        id: RingTunnel(tunnel.id.0),
        precedence: u128::from_be_bytes(tunnel.setup.0),
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
        mtu: PathMtu::unknown(tunnel.inner_mtu),
        confirmed: tunnel.confirmed,
    }
}

fn close_reason(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Idle => "idle",
        CloseCode::Shutdown => "the agent stops",
        CloseCode::Reset => "reset by the operator",
        CloseCode::Superseded => "a newer tunnel took over",
        CloseCode::Revoked => "the device was revoked",
    }
}
