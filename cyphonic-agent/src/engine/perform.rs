//! What the node asks for, done: the other half of the loop in `run`.

use std::net::SocketAddr;

use cyphonic_common::quic::PUNCH;
use cyphonic_dataplane::udp::Transmit;
use cyphonic_proto::node::Action;
use tokio::task::JoinHandle;

use super::run::{Engine, network_news};
use super::services::Way;

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
            Action::CancelRequest { exchange } => self.cancel_request(exchange),
            Action::Respond { exchange, message } => self.respond(exchange, message),
            Action::DialPeer { setup, peer_fqdn, via, .. } => self.dial_peer(setup, peer_fqdn, &via),
            Action::AskPeer { setup, request } => self.ask_peer(setup, request),
            Action::CancelDial { setup } => self.cancel_dial(setup),
            Action::OfferPeer { connection, offer } => self.offer_peer(connection, offer),
            Action::ClosePeer { connection } => self.close_peer(connection),
            Action::ExpectTunnel { local_cid } => self.ring.expect(local_cid),
            Action::ForgetTunnel { local_cid } => self.ring.forget(local_cid),
            Action::RespondPeer { connection, message } => self.respond_peer(connection, message),
            Action::Punch { remotes } => self.punch(&remotes),
            Action::Migrate => self.transport.migrate(),
            Action::InstallTunnel(tunnel) => self.install(*tunnel),
            Action::RemoveTunnel { id, close } => self.remove(id, close),
            Action::SetPath { id, remote, wire_cid } => self.set_path(id, remote, wire_cid),
            Action::ExpectReset { id, from } => self.transport.mux().follow_reset(id, from),
            Action::SendControl { id, control } => self.send_control(id, control),
            Action::SetMtu { id, mtu } => self.set_mtu(id, mtu),
            Action::ProbeMtu { id, remote, wire_cid, size, data } => {
                self.probe_mtu(id, remote, wire_cid, size, data);
            }
            Action::Answer { query, result } => self.answer(query, result),
            Action::DropHeld { dst, reason } => {
                tracing::debug!(%reason, "held packets are dropped");
                self.ring.drop_held(dst, true);
            }
            Action::Restrict(overlay) => self.restrict(overlay),
            Action::Save(state) => (self.save)(&state),
            // Status is asked for, not pushed.
            Action::StatusChanged => {}
        }
    }

    fn look(&mut self, servers: Vec<SocketAddr>, own: Vec<SocketAddr>) {
        self.netcheck.start(servers, own, network_news(self.inputs.clone()));
    }

    fn punch(&self, remotes: &[SocketAddr]) {
        for remote in remotes {
            if let Err(error) = self.port.send(&Transmit::new(*remote, PUNCH)) {
                tracing::debug!(%error, "a NAT could not be opened");
            }
        }
    }
}

/// Ends a task whose report nobody wants any more.
pub(super) fn abort(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
    }
}
