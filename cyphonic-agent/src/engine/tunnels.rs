//! Tunnels: what the node decides of them, in the ring's terms, and what the ring tells.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cyphonic_common::cid::ConnectionId;
use cyphonic_common::policy::EVERY_CLASS;
use cyphonic_dataplane::protect;
use cyphonic_dataplane::ring::{
    self, Control, Path, PathMtu, RingEvent, TunnelId as RingTunnel, TunnelInstall,
};
use cyphonic_proto::TunnelId;
use cyphonic_proto::node::{self, CloseCode, Target, TunnelActivity, TunnelControl, TunnelParameters};
use cyphonic_proto::tunnel::{Secret, Suite};
use cyphonic_transport::Transport;
use tokio::sync::{mpsc, watch};

use super::PeerMtus;
use super::access::Class;
use super::input::Input;
use super::mtu::InnerMtus;
use super::run::Engine;
use crate::control::{BackendError, ResetTarget};

/// The tunnels in the ring.
pub(super) struct Tunnels {
    pub(super) installed: HashSet<TunnelId>,
    pub(super) mtus: InnerMtus,
}

impl Tunnels {
    pub(super) fn new(mtus: watch::Sender<PeerMtus>) -> Self {
        Self { installed: HashSet::new(), mtus: InnerMtus::new(mtus) }
    }
}

impl Engine {
    pub(super) fn install(&mut self, tunnel: TunnelParameters) {
        let id = tunnel.id;
        self.names.insert(tunnel.peer, tunnel.peer_fqdn.clone());
        self.names.keep(|address| self.node.is_acquainted(address));
        self.tunnels.installed.insert(id);
        self.tunnels.mtus.installed(id, tunnel.setup, tunnel.peer, tunnel.inner_mtu);
        if let Some(token) = tunnel.relay_reset {
            self.transport.mux().expect_reset(id, tunnel.remote, token);
        }
        let class = self.class_of(&tunnel.peer_fqdn);
        if let Err(error) = self.ring.install(for_ring(&tunnel, class)) {
            tracing::error!(%error, "a tunnel could not be installed");
            self.tunnels.installed.remove(&id);
            self.tunnels.mtus.removed(id);
            self.transport.mux().forget_reset(id);
            self.node.handle_tunnel_closed(Instant::now(), id);
        }
    }

    /// The class of a peer in the port policy, which knows it then.
    pub(super) fn class_of(&mut self, fqdn: &str) -> u32 {
        let access = &mut self.access;
        match access.class_of(fqdn) {
            Class::Known(class) => {
                access.is_known(fqdn);
                class
            }
            Class::New(new) => match self.ring.set_permissions(Arc::new(new.permissions.clone())) {
                Ok(()) => {
                    let class = new.class;
                    access.is_given(new, fqdn);
                    class
                }
                Err(error) => {
                    tracing::error!(peer = fqdn, %error, "what `access` allows this peer but not everybody is denied");
                    access.is_refused(fqdn, &error);
                    EVERY_CLASS
                }
            },
        }
    }

    pub(super) fn remove(&mut self, id: TunnelId, close: Option<CloseCode>) {
        self.tunnels.installed.remove(&id);
        self.tunnels.mtus.removed(id);
        self.transport.mux().forget_reset(id);
        if let Some(code) = close {
            let close = Control::Close { code: code as u64, reason: close_reason(code).into() };
            self.ring.send_control(RingTunnel(id.0), close);
        }
        self.ring.remove(RingTunnel(id.0));
    }

    pub(super) fn set_path(&self, id: TunnelId, remote: SocketAddr, wire_cid: ConnectionId) {
        self.ring.set_path(RingTunnel(id.0), Path { remote, wire_cid })
    }

    pub(super) fn send_control(&self, id: TunnelId, control: TunnelControl) {
        self.ring.send_control(RingTunnel(id.0), for_control(control));
    }

    pub(super) fn set_mtu(&mut self, id: TunnelId, mtu: node::PathMtu) {
        let mtu = PathMtu { datagram: mtu.datagram, inner: mtu.inner };
        self.ring.set_mtu(RingTunnel(id.0), mtu);
        self.tunnels.mtus.set(id, mtu.inner);
    }

    pub(super) fn probe_mtu(
        &self,
        id: TunnelId,
        remote: SocketAddr,
        wire_cid: ConnectionId,
        size: u16,
        data: [u8; 8],
    ) {
        let probe = Control::MtuProbe { path: Path { remote, wire_cid }, size, data };
        self.ring.send_control(RingTunnel(id.0), probe);
    }

    pub(super) fn report_tunnels(&mut self) {
        let now = Instant::now();
        for (id, stats) in self.ring.all_stats() {
            let activity = TunnelActivity {
                tx_packets: stats.tx_packets,
                tx_large: stats.tx_large,
                rx_packets: stats.rx_packets,
                last_rx: stats.last_rx,
                last_tx: stats.last_tx,
                unanswered_since: stats.unanswered_since,
            };
            self.node.handle_tunnel_stats(now, TunnelId(id.0), activity);
        }
    }

    pub(super) fn ring_event(&mut self, now: Instant, event: RingEvent) {
        match event {
            RingEvent::UnknownDestination { dst } => self.node.handle_unknown_destination(now, dst),
            RingEvent::PathResponse { tunnel, data } => {
                self.node.handle_path_response(now, TunnelId(tunnel.0), data)
            }
            RingEvent::PeerMoved { tunnel, from } => {
                self.node.handle_peer_moved(now, TunnelId(tunnel.0), from)
            }
            RingEvent::Probed { tunnel, from } => self.node.handle_probed(now, TunnelId(tunnel.0), from),
            RingEvent::Candidates { tunnel, set } => {
                let ring::CandidateSet { sequence, heard, flags, endpoints } = set;
                let set = node::CandidateSet { sequence, heard, flags, endpoints };
                self.node.handle_candidates(now, TunnelId(tunnel.0), &set);
            }
            RingEvent::PeerClosed { tunnel, code, reason } => {
                tracing::debug!(%tunnel, code, reason, "the peer closed the tunnel");
                self.node.handle_tunnel_closed(now, TunnelId(tunnel.0));
            }
            RingEvent::KeysExhausted { tunnel } => {
                tracing::warn!(%tunnel, "the keys of a tunnel are used up; it is set up anew");
                self.node.handle_keys_exhausted(now, TunnelId(tunnel.0));
            }
            RingEvent::TooBig { tunnel, probe } => {
                self.node.handle_too_big(now, TunnelId(tunnel.0), probe);
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

    pub(super) fn reset(&mut self, now: Instant, target: ResetTarget) -> Result<usize, BackendError> {
        let before = self.tunnels.installed.len();
        let target = match target {
            ResetTarget::All => None,
            ResetTarget::Peer(name) => Some(self.known_peer(&name)?),
        };
        self.node.handle_reset(now, target.map(Target::Name));
        self.perform_all();
        Ok(before.saturating_sub(self.tunnels.installed.len()))
    }

    /// The full name of a peer, given with or without the zone, or by a first label that only one has.
    fn known_peer(&self, name: &str) -> Result<String, BackendError> {
        let status = self.node.status();
        let names: Vec<_> = status.peers.iter().filter_map(|peer| peer.fqdn.as_deref()).collect();
        meant(name, &status.zone, &names)
    }
}

fn meant(name: &str, zone: &str, names: &[&str]) -> Result<String, BackendError> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let in_zone = format!("{name}.{zone}");
    if let Some(known) = names.iter().find(|known| **known == name || **known == in_zone) {
        return Ok((*known).to_owned());
    }
    let alike: Vec<_> = names.iter().filter(|known| known.split('.').next() == Some(&name)).collect();
    match alike[..] {
        [only] => Ok((*only).to_owned()),
        [] => Err(BackendError::UnknownPeer(name)),
        [..] => Err(BackendError::AmbiguousPeer(alike.into_iter().copied().collect::<Vec<_>>().join(", "))),
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
            Control::Candidates(ring::CandidateSet { sequence, heard, flags, endpoints })
        }
    }
}

fn for_ring(tunnel: &TunnelParameters, class: u32) -> TunnelInstall {
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
        class,
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

/// A reset that finds the queue full is lost: the relay answers the tunnel's next packet with another.
pub(super) fn report_resets(transport: &Transport, inputs: mpsc::Sender<Input>) {
    transport.mux().report_resets(Arc::new(move |tunnel| {
        drop(inputs.try_send(Input::RelayReset(tunnel)));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_meant_by_its_name_or_by_a_label_that_no_other_has() {
        let names = ["b.hall.lab.internal", "b.gate.lab.internal", "c.gate.lab.internal"];
        for (name, known) in
            [("b.gate", names[1]), ("B.Gate.", names[1]), ("b.hall.lab.internal", names[0]), ("c", names[2])]
        {
            assert_eq!(meant(name, "lab.internal", &names).unwrap(), known, "{name}");
        }
        assert!(matches!(meant("d", "lab.internal", &names), Err(BackendError::UnknownPeer(_))));
        let error = meant("b", "lab.internal", &names).unwrap_err().to_string();
        assert!(error.contains("b.hall.lab.internal, b.gate.lab.internal"), "{error}");
    }
}
