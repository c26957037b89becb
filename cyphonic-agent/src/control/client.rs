//! The command's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::group::way_in_at;
use super::protocol::{Envelope, MAX_REPLY_BYTES};
use super::{
    DnsStatus, Failure, FailureCode, PROTOCOL_VERSION, Reloaded, Reply, Request, ResetDone, ResetTarget,
    Resolved, StatusReport, VersionInfo,
};
use crate::config::instance;

/// Longer than the daemon itself takes to give up.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection to the daemon.
#[derive(Debug)]
pub struct ControlClient {
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to the daemon that listens at `path`.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.to_owned() }
            }
            io::ErrorKind::PermissionDenied => {
                ClientError::NotAllowed { path: path.to_owned(), way_in: way_in_at(path) }
            }
            _ => ClientError::Io(source),
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The daemon's version.
    pub async fn version(&mut self) -> Result<VersionInfo, ClientError> {
        self.ask(Request::Version).await
    }

    /// Everything there is to know.
    pub async fn status(&mut self) -> Result<StatusReport, ClientError> {
        self.ask(Request::Status).await
    }

    /// A name's virtual address, once its tunnel stands.
    pub async fn resolve(&mut self, name: &str) -> Result<Resolved, ClientError> {
        self.ask(Request::Resolve { name: name.to_owned() }).await
    }

    /// Takes tunnels down.
    pub async fn reset(&mut self, target: ResetTarget) -> Result<ResetDone, ClientError> {
        self.ask(Request::Reset { target }).await
    }

    /// The DNS server and the host's resolver.
    pub async fn dns_status(&mut self) -> Result<DnsStatus, ClientError> {
        self.ask(Request::DnsStatus).await
    }

    /// Has the daemon read its settings again.
    pub async fn reload(&mut self) -> Result<Reloaded, ClientError> {
        self.ask(Request::Reload).await
    }

    /// Asks the daemon to stop, and returns before it has.
    pub async fn shutdown(&mut self) -> Result<(), ClientError> {
        self.ask(Request::Shutdown).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        timeout(PATIENCE, self.exchange(request)).await.map_err(|_| ClientError::Silent)?
    }

    async fn exchange<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        let envelope = Envelope { v: PROTOCOL_VERSION, request };
        let mut line = serde_json::to_vec(&envelope).map_err(ClientError::Form)?;
        line.push(b'\n');
        // A daemon that refuses us answers and closes before it reads, so a failed write still has an answer.
        let _ = self.stream.get_mut().write_all(&line).await;
        let mut answer = Vec::new();
        (&mut self.stream)
            .take(MAX_REPLY_BYTES as u64)
            .read_until(b'\n', &mut answer)
            .await
            .map_err(ClientError::Io)?;
        if answer.is_empty() {
            return Err(ClientError::Closed);
        }
        let reply: Reply = serde_json::from_slice(&answer).map_err(ClientError::Form)?;
        match reply {
            Reply { error: Some(failure), .. } => Err(ClientError::Refused(failure)),
            Reply { ok: Some(value), .. } => serde_json::from_value(value).map_err(ClientError::Form),
            Reply { .. } => Err(ClientError::Closed),
        }
    }
}

impl ClientError {
    /// Whether the daemon may be well, and we may not ask: said by the socket's mode or by the daemon.
    pub fn is_not_allowed(&self) -> bool {
        match self {
            Self::NotAllowed { .. } => true,
            Self::Refused(failure) => failure.code == FailureCode::NotAllowed,
            _ => false,
        }
    }
}

/// Why the daemon did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon is not running: nobody listens on {}; start it with `systemctl start {}`, or with `{}`", path.display(), instance::unit(), instance::daemon())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's mode keeps us out.
    #[error("no access to {}: {way_in}", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
        /// What helps.
        way_in: String,
    },
    /// The connection failed.
    #[error("the connection to the daemon failed: {0}")]
    Io(io::Error),
    /// The daemon closed the connection without an answer.
    #[error("the daemon closed the connection without an answer: see its log")]
    Closed,
    /// The daemon does not answer at all.
    #[error("the daemon does not answer: see its log")]
    Silent,
    /// The answer is not of the expected form.
    #[error("the daemon's answer cannot be read: {0}; are daemon and command of the same release?")]
    Form(serde_json::Error),
    /// The daemon answered that it cannot.
    #[error("{0}")]
    Refused(Failure),
}
