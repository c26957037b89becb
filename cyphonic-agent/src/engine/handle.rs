//! What DNS and the control socket see of the engine.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cyphonic_proto::access::Services;
use cyphonic_proto::node::{ResolveError as NodeError, Sleep, Target};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::Names;
use super::input::Input;
use crate::config::Reloadable;
use crate::control::{Backend, BackendError, ResetTarget, StatusReport};
use crate::dns::{ResolveError, Resolver};

const STOPPED: &str = "the engine has stopped; see the daemon's log";

/// A handle on the running engine. Clones are the same engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    sender: mpsc::Sender<Input>,
    names: Names,
    zone: Arc<str>,
}

impl EngineHandle {
    pub(crate) fn new(sender: mpsc::Sender<Input>, names: Names, zone: &str) -> Self {
        Self { sender, names, zone: zone.into() }
    }

    /// Tells the engine the host's addresses, each with the node's port.
    pub async fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        // A stopped engine needs no addresses.
        let _ = self.sender.send(Input::Addresses(addresses)).await;
    }

    /// Tells the engine that the host slept, or this process was stopped.
    pub async fn resumed(&self, sleep: Sleep) {
        // A stopped engine needs not to know.
        let _ = self.sender.send(Input::Resumed(sleep)).await;
    }

    /// Tells the engine where the AS is.
    pub async fn set_cloud(&self, addresses: Vec<SocketAddr>) {
        let _ = self.sender.send(Input::Cloud(addresses)).await;
    }

    /// Names the peers whose tunnels stay while nobody uses them.
    pub async fn keep_open(&self, names: Vec<String>) {
        let _ = self.sender.send(Input::KeepOpen(names)).await;
    }

    /// Where this device stands for a machine: peers may open these services here at most. Returns once that is
    /// so.
    pub async fn offer(&self, services: Services) {
        let (answer, done) = oneshot::channel();
        if self.sender.send(Input::Offer { services, answer }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Closes every tunnel and connection and tells the peers.
    pub async fn stop(&self) {
        let (answer, done) = oneshot::channel();
        if self.sender.send(Input::Shutdown(answer)).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<T, BackendError>>) -> Input,
    ) -> Result<T, BackendError> {
        let (answer, result) = oneshot::channel();
        let gone = || BackendError::Unavailable(STOPPED.into());
        self.sender.send(input(answer)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn ask_for(&self, target: Target) -> Result<Ipv6Addr, ResolveError> {
        let (answer, result) = oneshot::channel();
        let gone = |_| ResolveError::Internal(STOPPED.into());
        self.sender.send(Input::Resolve { target, answer }).await.map_err(|_| gone(()))?;
        result.await.map_err(|_| gone(()))?.map_err(for_dns)
    }
}

impl Resolver for EngineHandle {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        self.ask_for(Target::Name(name.to_owned())).boxed()
    }

    fn name_of(&self, address: Ipv6Addr) -> Option<String> {
        self.names.get(address)
    }
}

impl Backend for EngineHandle {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        async {
            let (answer, report) = oneshot::channel();
            if self.sender.send(Input::Status(answer)).await.is_err() {
                return StatusReport::default();
            }
            report.await.unwrap_or_default()
        }
        .boxed()
    }

    fn is_alive(&self) -> BoxFuture<'_, bool> {
        async {
            let (answer, sign) = oneshot::channel();
            self.sender.send(Input::SignOfLife(answer)).await.is_ok() && sign.await.is_ok()
        }
        .boxed()
    }

    fn zone(&self) -> &str {
        &self.zone
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        self.ask_for(Target::Name(name.to_owned())).boxed()
    }

    fn reset(&self, target: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        self.ask(|answer| Input::Reset { target, answer }).boxed()
    }

    fn take_over(&self, settings: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
        self.ask(|answer| Input::Settings { settings, answer }).boxed()
    }

    /// Nothing to do here: the daemon stops the engine last, by [`EngineHandle::stop`].
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        futures_util::future::ready(()).boxed()
    }
}

/// The node's error in the terms of DNS.
fn for_dns(error: NodeError) -> ResolveError {
    match error {
        NodeError::NotInZone | NodeError::NoSuchPeer => ResolveError::NoSuchPeer,
        NodeError::Offline { reason } => ResolveError::PeerOffline(reason),
        NodeError::NoRoute { reason } => ResolveError::NoRoute(reason),
        NodeError::TimedOut { during } => ResolveError::TimedOut(during),
        NodeError::NotConnected { why } => ResolveError::NotConnected(why),
        NodeError::PeerRefused { reason } | NodeError::NotAllowed { reason } => ResolveError::Refused(reason),
        NodeError::CertificateMismatch { what } => {
            ResolveError::Refused(format!("wrong certificate: {what}"))
        }
        NodeError::TooMany { what } => ResolveError::Overloaded(what),
        NodeError::Protocol { what } => ResolveError::Refused(format!("protocol error: {what}")),
        NodeError::Cancelled { why } => ResolveError::NotConnected(why),
    }
}
