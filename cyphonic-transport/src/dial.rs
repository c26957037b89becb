//! Dialling several addresses of one peer at once (`race.rs`): the first completed handshake wins, and the
//! others are closed.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ClientConfig, ConnectError, ConnectionError, Endpoint};

use crate::race::first_success;

/// Why no address could be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There was no address to try.
    #[error("no address is known")]
    NoAddress,
    /// The address or name cannot be dialled.
    #[error("{address}: {error}")]
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// Why it cannot be dialled.
        error: ConnectError,
    },
    /// The handshake failed.
    #[error("{address}: {error}")]
    Handshake {
        /// The address that was tried last.
        address: SocketAddr,
        /// Why the handshake failed.
        error: ConnectionError,
    },
    /// The other end's certificate is not what it should be.
    #[error("its certificate was refused: {0}")]
    Refused(&'static str),
    /// No handshake completed in time.
    #[error("no answer from {} within {} s: is the address right, and does UDP reach it?", listed(addresses), timeout.as_secs_f32())]
    TimedOut {
        /// All that was tried.
        addresses: Vec<SocketAddr>,
        /// How long.
        timeout: Duration,
    },
    /// The certificate that was accepted cannot be read.
    #[error("the peer's certificate is not one of this overlay: {0}")]
    Identity(String),
    /// Where UDP is blocked: TCP brought nothing either.
    #[error("{0}")]
    Detour(#[from] crate::detour::DetourError),
    /// The TLS configuration is unusable.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Dials all addresses and returns the first connection that stands.
pub(crate) async fn first_of(
    endpoint: &Endpoint,
    config: ClientConfig,
    addresses: &[SocketAddr],
    name: &str,
    timeout: Duration,
) -> Result<quinn::Connection, DialError> {
    let first = first_success(addresses, |address| attempt(endpoint, config.clone(), address, name));
    tokio::time::timeout(timeout, first)
        .await
        .map_err(|_| DialError::TimedOut { addresses: addresses.to_vec(), timeout })?
        .unwrap_or(Err(DialError::NoAddress))
}

async fn attempt(
    endpoint: &Endpoint,
    config: ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<quinn::Connection, DialError> {
    let connecting = endpoint
        .connect_with(config, address, name)
        .map_err(|error| DialError::Connect { address, error })?;
    connecting.await.map_err(|error| DialError::Handshake { address, error })
}
