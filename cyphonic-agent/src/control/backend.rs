//! What the control socket needs from the engine.

use std::net::Ipv6Addr;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::StatusReport;
use crate::config::Reloadable;
use crate::dns::ResolveError;

/// The engine's side of the control socket.
pub trait Backend: Send + Sync + 'static {
    /// Everything `cyphonic status` shows, as of now. The daemon fills in [`StatusReport::dns`] itself.
    fn status(&self) -> BoxFuture<'_, StatusReport>;

    /// Whether the engine takes what it is asked in turn, and answers. It costs it next to nothing.
    fn is_alive(&self) -> BoxFuture<'_, bool>;

    /// The overlay's DNS zone; empty where it is not known yet.
    fn zone(&self) -> &str;

    /// As [`crate::dns::Resolver::resolve`]: sets the tunnel up if need be.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>>;

    /// Takes tunnels down so that the next packet or query sets them up anew. Returns how many there were.
    fn reset(&self, target: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>>;

    /// Takes over settings in place of those before.
    fn take_over(&self, settings: Reloadable) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Asks the daemon to stop. Returns before it has.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

/// Which tunnels to reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetTarget {
    /// Every tunnel of this node.
    All,
    /// Those to one peer.
    Peer(String),
}

/// Why a request to the engine failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The engine knows no such peer.
    #[error("no tunnel to {0}: see `cyphonic status` for the peers there are")]
    UnknownPeer(String),
    /// The engine knows several.
    #[error("several peers are meant: {0}; give the name with its further parts")]
    AmbiguousPeer(String),
    /// The settings are wrong, or could not be put into force: those before still are.
    #[error("the settings before stay in force: {0}")]
    Settings(String),
    /// The engine is stopping or failed.
    #[error("the daemon cannot do this now: {0}")]
    Unavailable(String),
}
