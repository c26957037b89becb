//! The one connection that a device makes before it has a certificate.
//!
//! It has an ephemeral socket of its own: the node's port, its data plane and its interface come to life only
//! once the device is somebody.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use cyphonic_proto::alpn;
use cyphonic_proto::quic::HANDSHAKE_TIMEOUT;
use quinn::Endpoint;

use crate::clock::Clock;
use crate::connection::Connection;
use crate::detour;
use crate::dial::{self, DialError};
use crate::tls::{self, TlsError};

/// Who has no certificate may stay this long at an AS: what an enrolment may take, retries included.
pub const STRANGER_STAYS: Duration = Duration::from_secs(30);

/// The name sent when enrolling: the verifier pins the root instead (RFC 2606's reserved domain).
const ENROLMENT_NAME: &str = "enrolment.invalid";

/// Connects to an AS to enrol, over UDP or, where that does not answer, by the [detour]: the AS proves that
/// its root is the one whose SHA-256 the token carries; the device proves nothing yet.
///
/// Nothing that it answers is to be used before [`Clock::hear`] has heard it.
///
/// # Errors
/// When no address answered in time, or the cloud is not the one that issued the token. Nothing was sent to
/// it.
pub async fn connect(
    addresses: &[SocketAddr],
    root_sha256: [u8; 32],
    clock: &Clock,
) -> Result<Connection, DialError> {
    let endpoint = Endpoint::client((Ipv6Addr::UNSPECIFIED, 0).into())
        .or_else(|_| Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()))
        .map_err(|error| TlsError::Quic(error.to_string()))?;
    detour::race(
        by_udp(&endpoint, addresses, root_sha256, clock, HANDSHAKE_TIMEOUT),
        by_detour(&endpoint, addresses, root_sha256, clock),
    )
    .await
}

async fn by_udp(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    root_sha256: [u8; 32],
    clock: &Clock,
    timeout: Duration,
) -> Result<Connection, DialError> {
    let (config, refusal) = tls::enrolment_config(root_sha256, alpn::ENROL, clock)?;
    let dialled = dial::first_of(endpoint, config, addresses, ENROLMENT_NAME, timeout).await;
    let inner = dialled.map_err(|error| refusal.get().map_or(error, |reason| DialError::Refused(reason)))?;
    let identity = tls::identity_of(&inner).transpose().map_err(DialError::Identity)?;
    Ok(Connection::new(inner, identity))
}

async fn by_detour(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    root_sha256: [u8; 32],
    clock: &Clock,
) -> Result<Connection, DialError> {
    let port = endpoint.local_addr().map_err(|error| TlsError::Quic(error.to_string()))?.port();
    let (name, tls) = (ENROLMENT_NAME, detour::enrolment_tls(root_sha256, clock)?);
    let target = detour::Target { addresses, name, tls, port };
    let inside = async |local| by_udp(endpoint, &[local], root_sha256, clock, detour::INSIDE_TIMEOUT).await;
    let (connection, detour) = detour::dial(target, inside).await?;
    Ok(connection.through(detour))
}
