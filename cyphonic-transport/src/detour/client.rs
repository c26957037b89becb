//! The node's end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use cyphonic_proto::alpn;
use cyphonic_proto::quic::HANDSHAKE_TIMEOUT;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::local::LocalSocket;
use super::{prepare, pump};
use crate::dial::DialError;
use crate::race::first_success;

/// Why no detour stands.
#[derive(Debug, thiserror::Error)]
pub enum DetourError {
    /// There was no address to try, or the name is none.
    #[error("no address is known")]
    NoAddress,
    /// TCP did not connect.
    #[error("TCP to {address}: {source}")]
    Tcp {
        /// The address that was tried last.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Something else listens there, or something on the way answers in its place.
    #[error(
        "TLS with {address}: {source}; does something on the way intercept TLS, or another program have that port?"
    )]
    Tls {
        /// The address that was tried last.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No answer.
    #[error("no answer over TCP within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// QUIC inside did not come to an end in what TCP and TLS left of the time.
    #[error("TLS with {address} stands, but the service behind it did not answer within {} s: is it running?", HANDSHAKE_TIMEOUT.as_secs())]
    Silent {
        /// Where it stands.
        address: SocketAddr,
    },
    /// It ended while QUIC shook hands inside.
    #[error("the TLS connection ended: {0}")]
    Ended(String),
    /// This host has no socket to give.
    #[error("no UDP socket on loopback: {0}")]
    Local(io::Error),
}

/// Where a detour leads, and how.
pub(crate) struct Target<'a> {
    /// Where the service listens.
    pub(crate) addresses: &'a [SocketAddr],
    /// Whose certificate is asked for.
    pub(crate) name: &'a str,
    /// How its certificate is judged.
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// The node's own UDP port.
    pub(crate) port: u16,
}

/// An open detour; dropped, it closes.
pub struct Detour {
    local: SocketAddr,
    through: SocketAddr,
    ended: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl Detour {
    /// The UDP address that stands for the service.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The TCP address that it leads to.
    pub fn through(&self) -> SocketAddr {
        self.through
    }

    /// Waits until it has ended and says why.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| "it was closed".into())
    }
}

impl Detour {
    /// What is done inside, unless the detour ends before.
    async fn unless_it_ends<T>(
        &self,
        inside: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        tokio::select! {
            done = inside => done,
            reason = self.ended() => Err(DetourError::Ended(reason).into()),
        }
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detour").field("local", &self.local).field("through", &self.through).finish()
    }
}

/// What is done inside gets more time than there is: on a busy machine its own would be over in the same moment, and it would
/// say that UDP did not reach an address on this host.
pub(crate) const INSIDE_TIMEOUT: Duration = HANDSHAKE_TIMEOUT.saturating_mul(2);

/// Opens a detour, and has something done inside, towards the address that stands for the service: all in the
/// time of one handshake, which is what a dial over UDP has too.
pub(crate) async fn dial<T>(
    target: Target<'_>,
    inside: impl AsyncFnOnce(SocketAddr) -> Result<T, DialError>,
) -> Result<(T, Detour), DialError> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let detour = timeout_at(deadline, open(target)).await.map_err(|_| DetourError::TimedOut)??;
    let address = detour.through;
    let done = timeout_at(deadline, detour.unless_it_ends(inside(detour.local))).await;
    Ok((done.map_err(|_| DetourError::Silent { address })??, detour))
}

/// Opens a detour at the first address that answers.
async fn open(target: Target<'_>) -> Result<Detour, DetourError> {
    let name = ServerName::try_from(target.name.to_owned()).map_err(|_| DetourError::NoAddress)?;
    let attempts =
        first_success(target.addresses, |address| attempt(address, name.clone(), target.tls.clone()));
    let (stream, through) = attempts.await.unwrap_or(Err(DetourError::NoAddress))?;
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, target.port));
    let socket = LocalSocket::connect(own).map_err(DetourError::Local)?;
    let local = socket.local_addr();
    let (end, ended) = watch::channel(None);
    let task = tokio::spawn(async move {
        let reason = pump::carry(stream, &socket, pump::Patience::USUAL).await.to_string();
        tracing::debug!(%through, reason, "a detour ended");
        // Nobody waits for one whose connection is gone already.
        drop(end.send(Some(reason)));
    });
    Ok(Detour { local, through, ended, task })
}

type Opened = (TlsStream<TcpStream>, SocketAddr);

async fn attempt(
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Opened, DetourError> {
    let tcp = TcpStream::connect(address).await.map_err(|source| DetourError::Tcp { address, source })?;
    prepare(&tcp).map_err(|source| DetourError::Tcp { address, source })?;
    let failed = |source| DetourError::Tls { address, source };
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(failed)?;
    if stream.get_ref().1.alpn_protocol() != Some(alpn::DETOUR) {
        return Err(failed(io::Error::other("it does not speak this protocol")));
    }
    Ok((stream, address))
}
