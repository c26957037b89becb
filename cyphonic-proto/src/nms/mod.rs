//! The Node Management Service.
mod config;
use crate::{Channel, ExchangeId, Identity, Message};
pub use config::{Action, NmsConfig, NmsCounters, NmsTiming};
use std::{collections::VecDeque, net::SocketAddr, time::Instant};

/// The machine of an NMS.
pub struct Nms {
    _config: NmsConfig,
    actions: VecDeque<Action>,
}
impl Nms {
    /// An NMS that starts now.
    pub fn new(config: NmsConfig, _seed: [u8; 32], _now: Instant) -> Self {
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
        _observed: SocketAddr,
        _server: SocketAddr,
    ) {
    }
    /// A node's connection moved.
    pub fn handle_moved(&mut self, _now: Instant, _channel: Channel, _observed: SocketAddr) {}
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
    /// A node answers.
    pub fn handle_response(&mut self, _now: Instant, _exchange: ExchangeId, _message: Message) {}
    /// A node will not answer.
    pub fn handle_exchange_failed(&mut self, _now: Instant, _exchange: ExchangeId, _reason: &str) {}
    /// The AS enrolled a device.
    pub fn handle_enrolled(&mut self, _fqdn: &str) {}
    /// The AS revoked a device.
    pub fn handle_revoked(&mut self, _now: Instant, _fqdn: &str) {}
    /// What happened so far.
    pub fn counters(&self) -> NmsCounters {
        NmsCounters::default()
    }
}
