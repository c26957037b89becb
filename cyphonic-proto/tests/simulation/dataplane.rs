//! A device's tunnels, as its ring has them.

use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::node::{PathMtu, TunnelActivity, TunnelControl, TunnelParameters};
use cyphonic_proto::{ConnectionId, TunnelId};

use crate::world::{Content, Data, Event, Packet, World, virtual_address};

/// Every path carries it: QUIC's least datagram.
pub(crate) const SMALLEST: u16 = 1200;

/// A tunnel in the dataplane.
pub(crate) struct Installed {
    pub(crate) parameters: TunnelParameters,
    pub(crate) confirmed: bool,
    pub(crate) activity: TunnelActivity,
    pub(crate) mtu: PathMtu,
    pub(crate) waiting: Vec<u64>,
    pub(crate) sent: u64,
    pub(crate) newest: Option<u64>,
    /// Where the relay is, and what stands on the wire there.
    pub(crate) relay: Option<(SocketAddr, ConnectionId)>,
    /// Packets that were sent, of any kind.
    pub(crate) packets: u64,
}

impl Installed {
    /// As the ring: what came through the relay is answered through it.
    pub(crate) fn path_to(&self, to: SocketAddr) -> (SocketAddr, ConnectionId) {
        self.relay.filter(|(relay, _)| *relay == to).unwrap_or((to, self.parameters.remote_cid))
    }

    fn learn(&mut self, path: (SocketAddr, ConnectionId)) {
        if path.1 != self.parameters.remote_cid {
            self.relay = Some(path);
        }
    }

    pub(crate) fn path(&self) -> (SocketAddr, ConnectionId) {
        (self.parameters.remote, self.parameters.wire_cid)
    }
}

impl World {
    pub(crate) fn install(&mut self, name: &'static str, parameters: TunnelParameters) {
        self.check_key(*parameters.send.as_bytes(), true);
        let host = self.hosts.get_mut(name).unwrap();
        assert_ne!(parameters.send, parameters.recv);
        assert!(parameters.local_cid.is_data() && parameters.remote_cid.is_data());
        assert!(host.tunnels.values().all(|tunnel| tunnel.parameters.local_cid != parameters.local_cid));
        let (id, peer, confirmed) = (parameters.id, parameters.peer, parameters.confirmed);
        let early = host.early.remove(&parameters.local_cid).unwrap_or_default();
        let waiting = host.held.remove(&peer).unwrap_or_default();
        host.installs += 1;
        let mtu = PathMtu { datagram: SMALLEST, inner: parameters.inner_mtu };
        let relayed = parameters.wire_cid != parameters.remote_cid;
        let relay = relayed.then_some((parameters.remote, parameters.wire_cid));
        let installed = Installed {
            parameters,
            confirmed,
            activity: TunnelActivity::default(),
            mtu,
            waiting,
            sent: 0,
            newest: None,
            relay,
            packets: 0,
        };
        assert!(host.tunnels.insert(id, installed).is_none());
        self.flush(name, id);
        for (from, data) in early {
            self.receive(name, from, &data);
        }
    }

    fn tunnel_mut(&mut self, name: &'static str, id: TunnelId) -> &mut Installed {
        self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap()
    }

    pub(crate) fn remove_tunnel(&mut self, name: &'static str, id: TunnelId, close: bool) {
        if close {
            self.emit(name, id, Content::Close);
        }
        let removed = self.hosts.get_mut(name).unwrap().tunnels.remove(&id);
        assert!(removed.is_some(), "a tunnel is removed once");
    }

    pub(crate) fn set_path(
        &mut self,
        name: &'static str,
        id: TunnelId,
        (remote, wire_cid): (SocketAddr, ConnectionId),
    ) {
        let tunnel = self.tunnel_mut(name, id);
        (tunnel.parameters.remote, tunnel.parameters.wire_cid) = (remote, wire_cid);
        tunnel.learn((remote, wire_cid));
        tunnel.mtu.datagram = SMALLEST;
    }

    pub(crate) fn set_mtu(&mut self, name: &'static str, id: TunnelId, mtu: PathMtu) {
        assert!(mtu.datagram >= 1200 && mtu.inner >= 1280);
        self.tunnel_mut(name, id).mtu = mtu;
    }

    pub(crate) fn send_control(&mut self, name: &'static str, id: TunnelId, control: TunnelControl) {
        match control {
            TunnelControl::Ping => self.emit(name, id, Content::Ping),
            TunnelControl::PathChallenge(data) => self.emit(name, id, Content::Challenge(data)),
            TunnelControl::Probe { remote, wire_cid, data } => {
                self.tunnel_mut(name, id).learn((remote, wire_cid));
                self.emit_on(name, id, (remote, wire_cid), Content::Challenge(data));
            }
            TunnelControl::Candidates(set) => self.emit(name, id, Content::Candidates(set)),
        }
    }

    /// An application's packet.
    pub(crate) fn send_inner(&mut self, name: &'static str, to: &str) -> u64 {
        let (packet, dst) = (self.fresh(), virtual_address(to));
        let host = self.hosts.get_mut(name).unwrap();
        if host.node.is_none() {
            return packet;
        }
        if let Some(id) = host.sending(dst) {
            host.tunnels.get_mut(&id).unwrap().waiting.push(packet);
            self.flush(name, id);
        } else {
            let life = host.life;
            host.held.entry(dst).or_default().push(packet);
            self.with_node(name, life, |node, now| node.handle_unknown_destination(now, dst));
        }
        packet
    }

    /// Sends what waited, once the peer is known to have the tunnel.
    pub(crate) fn flush(&mut self, name: &'static str, id: TunnelId) {
        let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
        if tunnel.confirmed {
            for packet in std::mem::take(&mut tunnel.waiting) {
                self.emit(name, id, Content::Inner(packet));
            }
        }
    }

    pub(crate) fn emit(&mut self, name: &'static str, id: TunnelId, content: Content) {
        let path = self.hosts[name].tunnels[&id].path();
        self.emit_on(name, id, path, content);
    }

    pub(crate) fn emit_on(
        &mut self,
        name: &'static str,
        id: TunnelId,
        (remote, wire_cid): (SocketAddr, ConnectionId),
        content: Content,
    ) {
        let now = self.now;
        let tunnel = self.hosts.get_mut(name).unwrap().tunnels.get_mut(&id).unwrap();
        if !tunnel.confirmed {
            return;
        }
        // Applications send the largest that goes whole.
        let size = match content {
            Content::Inner(_) => tunnel.mtu.datagram,
            Content::Probe(_, size) => size,
            Content::Ping
            | Content::Challenge(_)
            | Content::Response(_)
            | Content::Candidates(_)
            | Content::Close => SMALLEST,
        };
        tunnel.packets += 1;
        tunnel.sent += 1;
        let activity = &mut tunnel.activity;
        if matches!(content, Content::Inner(_)) {
            activity.tx_packets += 1;
            activity.tx_large += u64::from(size > SMALLEST);
            activity.unanswered_since = activity.unanswered_since.or(Some(now));
        }
        if remote == tunnel.parameters.remote {
            activity.last_tx = Some(now);
        }
        let p = &tunnel.parameters;
        let data = Data {
            wire_cid: *wire_cid.as_bytes(),
            real_cid: *p.remote_cid.as_bytes(),
            key: *p.send.as_bytes(),
            number: tunnel.sent,
            size,
            content,
        };
        self.send(name, remote, Packet::Data(data));
    }

    pub(crate) fn receive(&mut self, name: &'static str, from: SocketAddr, data: &Data) {
        let cid = ConnectionId::from_bytes(data.wire_cid);
        let (now, host) = (self.now, self.hosts.get_mut(name).unwrap());
        let life = host.life;
        let opens = |tunnel: &Installed| {
            tunnel.parameters.local_cid == cid
                && data.real_cid == data.wire_cid
                && *tunnel.parameters.recv.as_bytes() == data.key
        };
        let Some((id, tunnel)) = host.tunnels.iter_mut().find(|(_, tunnel)| opens(tunnel)) else {
            if let Some(early) = host.early.get_mut(&cid).filter(|early| early.len() < 16) {
                early.push((from, data.clone()));
            }
            return;
        };
        let id = *id;
        tunnel.confirmed = true;
        tunnel.activity.last_rx = Some(now);
        tunnel.activity.unanswered_since = None;
        let newest = tunnel.newest < Some(data.number);
        tunnel.newest = tunnel.newest.max(Some(data.number));
        let elsewhere = tunnel.parameters.remote != from;
        let probing =
            matches!(data.content, Content::Challenge(_) | Content::Probe(..) | Content::Response(_));
        match data.content.clone() {
            Content::Inner(packet) => {
                tunnel.activity.rx_packets += 1;
                self.delivered.insert((name, packet));
            }
            Content::Ping => {}
            Content::Challenge(challenge) | Content::Probe(challenge, _) => {
                let path = tunnel.path_to(from);
                self.emit_on(name, id, path, Content::Response(challenge));
                if elsewhere {
                    self.with_node(name, life, |node, now| node.handle_probed(now, id, from));
                }
            }
            Content::Response(data) => {
                self.with_node(name, life, |node, now| node.handle_path_response(now, id, data));
            }
            Content::Candidates(set) => {
                self.with_node(name, life, |node, now| node.handle_candidates(now, id, &set));
            }
            Content::Close => {
                self.with_node(name, life, |node, now| node.handle_tunnel_closed(now, id));
                return;
            }
        }
        if elsewhere && newest && !probing {
            self.with_node(name, life, |node, now| node.handle_peer_moved(now, id, from));
        }
        if self.hosts[name].tunnels.contains_key(&id) {
            self.flush(name, id);
        }
    }

    pub(crate) fn report_stats(&mut self, device: &'static str, life: u32) {
        if self.hosts[device].life != life {
            return;
        }
        let all: Vec<_> =
            self.hosts[device].tunnels.iter().map(|(id, tunnel)| (*id, tunnel.activity)).collect();
        for (id, activity) in all {
            self.with_node(device, life, |node, now| node.handle_tunnel_stats(now, id, activity));
        }
        self.schedule(Duration::from_millis(250), Event::Stats { device, life });
    }
}
