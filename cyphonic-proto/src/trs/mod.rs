//! The Tunnel Relay Service.
mod config;
use crate::{Channel, ConnectionId, ExchangeId, Identity, Message};
pub use config::{Action, TrsConfig, TrsCounters, TrsLimits};
use std::{collections::VecDeque, net::SocketAddr, time::Instant};

/// The machine of a TRS.
pub struct Trs {
    _config: TrsConfig,
    actions: VecDeque<Action>,
}
impl Trs {
    /// A TRS that starts now.
    pub fn new(config: TrsConfig, _seed: [u8; 32]) -> Self {
        Self { _config: config, actions: VecDeque::new() }
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
    /// A node connected.
    pub fn handle_connected(
        &mut self,
        _now: Instant,
        _channel: Channel,
        _identity: Identity,
        _remote: SocketAddr,
    ) {
    }
    /// A node's connection moved to another validated path.
    pub fn handle_moved(&mut self, _now: Instant, _channel: Channel, _remote: SocketAddr) {}
    /// A node's connection ended.
    pub fn handle_disconnected(&mut self, _now: Instant, _channel: Channel) {}
    /// A node asks.
    pub fn handle_request(
        &mut self,
        _now: Instant,
        _channel: Channel,
        _exchange: ExchangeId,
        _message: Message,
    ) {
    }
    /// A DATAGRAM arrived.
    pub fn handle_datagram(&mut self, _now: Instant, _channel: Channel, _datagram: &[u8]) {}
    /// Data packets of a leg were last forwarded at `last_seen`.
    pub fn handle_leg_activity(&mut self, _now: Instant, _cid: ConnectionId, _last_seen: Instant) {}
    /// The AS revoked a device.
    pub fn handle_revoked(&mut self, _now: Instant, _fqdn: &str) {}
    /// What happened so far.
    pub fn counters(&self) -> TrsCounters {
        TrsCounters::default()
    }
}
