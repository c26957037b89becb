//! Dialling several addresses of one peer at once.
//!
//! A peer may be reachable over one family and not the other, or at its private address and not its public
//! one. Attempts start one after the other without waiting for the earlier to fail (RFC 8305's happy
//! eyeballs); the first completed handshake wins and the others are closed.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::{ClientConfig, ConnectError, ConnectionError, Endpoint};

/// RFC 8305 §5 recommends 250 ms between attempts; a handshake between edge devices is worth a few packets
/// more.
const STAGGER: Duration = Duration::from_millis(100);

/// At most this many addresses are tried.
const MAX_ATTEMPTS: usize = 8;

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
    let attempts: FuturesUnordered<_> = addresses
        .iter()
        .take(MAX_ATTEMPTS)
        .zip(0_u32..)
        .map(|(address, turn)| attempt(endpoint, config.clone(), *address, name, STAGGER * turn))
        .collect();
    let first = first_success(attempts);
    tokio::time::timeout(timeout, first)
        .await
        .map_err(|_| DialError::TimedOut { addresses: addresses.to_vec(), timeout })?
}

async fn first_success<F>(mut attempts: FuturesUnordered<F>) -> Result<quinn::Connection, DialError>
where
    F: Future<Output = Result<quinn::Connection, DialError>>,
{
    let mut failure = DialError::NoAddress;
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(connection) => return Ok(connection),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn attempt(
    endpoint: &Endpoint,
    config: ClientConfig,
    address: SocketAddr,
    name: &str,
    delay: Duration,
) -> Result<quinn::Connection, DialError> {
    tokio::time::sleep(delay).await;
    let connecting = endpoint
        .connect_with(config, address, name)
        .map_err(|error| DialError::Connect { address, error })?;
    connecting.await.map_err(|error| DialError::Handshake { address, error })
}
