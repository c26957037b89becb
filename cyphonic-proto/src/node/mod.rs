//! A device's side of the protocol.
pub mod action;
pub mod cache;
pub mod config;
pub mod status;

pub use action::{
    Action, CloseCode, PeerVia, ResolveError, Service, Target, TunnelActivity, TunnelControl,
    TunnelParameters,
};
pub use cache::{CachedState, DamagedCache, Relay};
pub use config::{NodeConfig, Timing};
pub use status::{NodeStatus, PeerState, PeerStatus, ServiceState, ServiceStatus, TunnelStatus};

use crate::{
    id::{ExchangeId, PeerConnectionId, QueryId, SetupId, TunnelId},
    identity::Identity,
    message::Message,
    tunnel::Exporter,
};
use std::{
    collections::VecDeque,
    net::{Ipv6Addr, SocketAddr},
    time::Instant,
};

/// The machine of a device.
pub struct Node {
    config: NodeConfig,
    actions: VecDeque<Action>,
}
impl Node {
    /// A node that starts now.
    pub fn new(config: NodeConfig, _seed: [u8; 32], _now: Instant) -> Self {
        Self { config, actions: VecDeque::new() }
    }
    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}
    /// A connection is up.
    pub fn handle_connected(&mut self, _now: Instant, _service: Service, _remote: SocketAddr) {}
    /// A connection could not be opened.
    pub fn handle_connect_failed(&mut self, _now: Instant, _service: Service, _reason: String) {}
    /// A connection ended.
    pub fn handle_disconnected(&mut self, _now: Instant, _service: Service, _reason: String) {}
    /// An answer arrived.
    pub fn handle_response(&mut self, _now: Instant, _exchange: ExchangeId, _message: Message) {}
    /// No answer will arrive.
    pub fn handle_exchange_failed(&mut self, _now: Instant, _exchange: ExchangeId, _reason: String) {}
    /// A service asks.
    pub fn handle_request(
        &mut self,
        _now: Instant,
        _service: Service,
        _exchange: ExchangeId,
        _message: Message,
    ) {
    }
    /// Somebody wants to reach a peer.
    pub fn handle_resolve(&mut self, _now: Instant, _query: QueryId, _target: Target) {}
    /// A packet for a peer without a tunnel is held.
    pub fn handle_unknown_destination(&mut self, _now: Instant, _dst: Ipv6Addr) {}
    /// The node's own addresses changed.
    pub fn handle_addresses(&mut self, _now: Instant, _addresses: Vec<SocketAddr>) {}
    /// A peer opened a connection, proved who it is, and asks.
    pub fn handle_peer_request(
        &mut self,
        _now: Instant,
        _connection: PeerConnectionId,
        _via: PeerVia,
        _identity: &Identity,
        _message: Message,
        _exporter: &dyn Exporter,
    ) {
    }
    /// The peer that was dialled proved who it is, and answered.
    pub fn handle_peer_response(
        &mut self,
        _now: Instant,
        _setup: SetupId,
        _via: PeerVia,
        _identity: &Identity,
        _message: Message,
        _exporter: &dyn Exporter,
    ) {
    }
    /// A dial failed.
    pub fn handle_dial_failed(&mut self, _now: Instant, _setup: SetupId, _reason: String) {}
    /// Counters of a tunnel: about once a second.
    pub fn handle_tunnel_stats(&mut self, _now: Instant, _id: TunnelId, _activity: TunnelActivity) {}
    /// An answer to a challenge.
    pub fn handle_path_response(&mut self, _now: Instant, _id: TunnelId, _data: [u8; 8]) {}
    /// The peer closed a tunnel.
    pub fn handle_tunnel_closed(&mut self, _now: Instant, _id: TunnelId) {}
    /// A tunnel's keys are nearly used up.
    pub fn handle_keys_exhausted(&mut self, _now: Instant, _id: TunnelId) {}
    /// Authenticated packets of the peer come from another address.
    pub fn handle_peer_moved(&mut self, _now: Instant, _id: TunnelId, _from: SocketAddr) {}
    /// The operator resets the tunnels of a peer, or of all.
    pub fn handle_reset(&mut self, _now: Instant, _target: Option<Target>) {}
    /// The node stops.
    pub fn handle_shutdown(&mut self, _now: Instant) {}
    /// A snapshot for people.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            fqdn: self.config.identity.fqdn.clone(),
            virtual_address: Ipv6Addr::UNSPECIFIED,
            zone: self.config.zone.clone(),
            addresses: vec![],
            logged_in: false,
            registered: false,
            services: vec![],
            observations: vec![],
            nat_v4: crate::nat::NatFinding::NoAddress,
            nat_v6: crate::nat::NatFinding::NoAddress,
            relays: vec![],
            peers: vec![],
        }
    }
}
