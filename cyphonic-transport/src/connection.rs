//! A verified QUIC connection: exchanges and DATAGRAMs.
//!
//! An *exchange* is one request and one answer on a bidirectional stream of its own, so that an answer that takes
//! long delays no other. Requests are read in the order in which they were begun, each to its end: nodes go by
//! that. Either end may ask: that is how the NMS reaches a node behind a NAT. A *notice* is one
//! message without an answer, on a unidirectional stream: only the listening end of two peers sends one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cyphonic_proto::close;
use cyphonic_proto::identity::Identity;
use cyphonic_proto::message::{self, MAX_MESSAGE_BYTES, Message, Refusal, RefusalCode};
use cyphonic_proto::time::Validity;
use cyphonic_proto::tunnel::{ExportError, Exporter};
use futures_util::FutureExt as _;
use quinn::{
    ConnectionError, ReadError, ReadToEndError, RecvStream, SendStream, StoppedError, VarInt, WriteError,
};

use crate::carry;
use crate::detour::Detour;
use crate::handshakes::Place;

/// An exchange that takes longer has failed. The longest is a Route Direction to a responder, which confirms
/// when it has its leg at a TRS.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(8);

/// The length prefix of a message: a variable-length integer (RFC 9000 §16).
const PREFIX_BYTES: usize = 8;

/// Codes with which a connection is closed for a TLS alert (RFC 9001 §4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Why an exchange brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Connection(#[from] ConnectionError),
    /// No answer in time.
    #[error("no answer within {} s", EXCHANGE_TIMEOUT.as_secs())]
    TimedOut,
    /// The peer ended the stream early.
    #[error("the peer gave up the request: {0}")]
    Stream(String),
    /// The peer sent something that is not a message.
    #[error("the peer's message is malformed: {0}")]
    Malformed(String),
}

impl ExchangeError {
    /// Whether the peer ended the connection on purpose: it did not merely vanish.
    pub fn is_closed_by_peer(&self) -> bool {
        matches!(self, Self::Connection(ConnectionError::ApplicationClosed(_)))
    }
}

// A stream fails with its connection or alone; only the former names whose end it was.

impl From<WriteError> for ExchangeError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(reason) => Self::Connection(reason),
            error => Self::Stream(error.to_string()),
        }
    }
}

impl From<ReadToEndError> for ExchangeError {
    fn from(error: ReadToEndError) -> Self {
        match error {
            ReadToEndError::TooLong => Self::Malformed(format!("longer than {MAX_MESSAGE_BYTES} bytes")),
            ReadToEndError::Read(ReadError::ConnectionLost(reason)) => Self::Connection(reason),
            ReadToEndError::Read(error) => Self::Stream(error.to_string()),
        }
    }
}

impl From<StoppedError> for ExchangeError {
    fn from(error: StoppedError) -> Self {
        match error {
            StoppedError::ConnectionLost(reason) => Self::Connection(reason),
            error => Self::Stream(error.to_string()),
        }
    }
}

/// A connection whose other end proved who it is.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
    identity: Option<Identity>,
    /// Where the handshake of one that the other end dialled came from.
    dialled_from: Option<SocketAddr>,
    /// What it runs through, where UDP does not; closed with the last clone.
    detour: Option<Arc<Detour>>,
    /// What the connection of a stranger, or of a peer that dialled, takes up until its last clone is gone.
    _place: Option<Arc<Place>>,
}

impl Connection {
    pub(crate) fn new(inner: quinn::Connection, identity: Option<Identity>) -> Self {
        Self { inner, identity, dialled_from: None, detour: None, _place: None }
    }

    pub(crate) fn dialled_from(self, address: SocketAddr) -> Self {
        Self { dialled_from: Some(address), ..self }
    }

    pub(crate) fn through(self, detour: Detour) -> Self {
        Self { detour: Some(Arc::new(detour)), ..self }
    }

    pub(crate) fn in_place(self, place: Place) -> Self {
        Self { _place: Some(Arc::new(place)), ..self }
    }

    /// The TCP address that the connection runs through, where UDP is blocked. [`Self::remote_address`] is
    /// then the local address that stands for the service.
    pub fn detour(&self) -> Option<SocketAddr> {
        self.detour.as_ref().map(|detour| detour.through())
    }

    /// Waits until the detour has ended, and says why; for ever, where there is none.
    pub async fn detour_ended(&self) -> String {
        match &self.detour {
            Some(detour) => detour.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Who is at the other end; absent only for a device that is enrolling.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// While every certificate that the other end presented is valid.
    pub fn validity(&self) -> Validity {
        crate::clock::validity_of(&self.inner)
    }

    /// The peer's address as of now: it changes when the peer moves or its NAT rebinds (RFC 9000 §9), or somebody
    /// repeats its packets from elsewhere. Nobody has proved yet to be there.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.inner.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Where the peer has proved to be by its handshake, which cannot move (RFC 9000 §9).
    pub fn handshake_address(&self) -> SocketAddr {
        self.dialled_from.map_or_else(
            || self.remote_address(),
            |from| SocketAddr::new(from.ip().to_canonical(), from.port()),
        )
    }

    /// The local address that the peer's packets arrive at, where the kernel tells.
    pub fn local_ip(&self) -> Option<std::net::IpAddr> {
        self.inner.local_ip().map(|ip| ip.to_canonical())
    }

    /// Tells connections apart within this process.
    pub fn id(&self) -> u64 {
        self.inner.stable_id() as u64
    }

    /// The latest round-trip estimate.
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// Asks and waits for the answer.
    pub async fn open_exchange(&self, request: &Message) -> Result<Message, ExchangeError> {
        let exchange = async { exchange(self.inner.open_bi().await?, request).await };
        tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_| ExchangeError::TimedOut)?
    }

    /// What asks and waits for the answer, wherever it runs. The other end reads requests in the order of
    /// these calls, unless it allows no more of them at the moment.
    pub fn begin_exchange(
        &self,
        request: Message,
    ) -> impl Future<Output = Result<Message, ExchangeError>> + Send + use<> {
        let connection = self.inner.clone();
        // Streams are accepted in the order in which they were opened.
        let place = connection.open_bi().now_or_never();
        async move {
            let exchange = async {
                let streams = match place {
                    Some(streams) => streams?,
                    None => connection.open_bi().await?,
                };
                exchange(streams, &request).await
            };
            tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_| ExchangeError::TimedOut)?
        }
    }

    /// Waits for the peer's next request. What is no message is answered so and passed over.
    pub async fn accept_exchange(&self) -> Result<(Message, Responder), ExchangeError> {
        loop {
            let (send, mut recv) = self.inner.accept_bi().await?;
            let responder = Responder { send };
            match tokio::time::timeout(EXCHANGE_TIMEOUT, read_message(&mut recv)).await {
                Ok(Ok(message)) => return Ok((message, responder)),
                Ok(Err(ExchangeError::Connection(error))) => return Err(error.into()),
                Ok(Err(ExchangeError::Malformed(what))) => {
                    let refusal = Refusal::new(RefusalCode::Malformed, what);
                    if let Err(error) = responder.respond(&Message::Refusal(refusal)).await {
                        tracing::debug!(%error, "a malformed request could not be refused");
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "a request was dropped"),
                Err(_) => tracing::debug!("a request was dropped: it did not arrive in time"),
            }
        }
    }

    /// Waits for the other end's notice.
    ///
    /// # Errors
    /// When none comes within [`EXCHANGE_TIMEOUT`], or what comes is no message.
    pub async fn accept_notice(&self) -> Result<Message, ExchangeError> {
        let notice = async {
            let mut recv = self.inner.accept_uni().await?;
            read_message(&mut recv).await
        };
        tokio::time::timeout(EXCHANGE_TIMEOUT, notice).await.map_err(|_| ExchangeError::TimedOut)?
    }

    /// Sends a relayed packet with its context: as DATAGRAM (RFC 9221), or on a stream of its own where it
    /// does not fit one. It may be lost.
    pub fn send_datagram(&self, datagram: Bytes) {
        carry::send(&self.inner, datagram);
    }

    /// Gives `deliver` every relayed packet that the other end sends, until it returns false or the
    /// connection ends, for the reason returned.
    pub async fn receive_datagrams(&self, deliver: impl Fn(Bytes) -> bool) -> Option<ConnectionError> {
        carry::receive(&self.inner, deliver).await
    }

    /// Ends the connection; the peer learns code and reason.
    pub fn close(&self, code: u32, reason: &str) {
        self.inner.close(VarInt::from_u32(code), reason.as_bytes());
    }

    /// Waits until the connection has ended and says why.
    pub async fn closed(&self) -> ConnectionError {
        self.inner.closed().await
    }

    /// Why the connection has ended, if it has.
    pub fn why_ended(&self) -> Option<String> {
        self.inner.close_reason().map(|reason| reason.to_string())
    }

    /// The peer's words, if it has ended the connection because we may not be there.
    pub fn refused_us(&self) -> Option<String> {
        match self.inner.close_reason()? {
            ConnectionError::ApplicationClosed(closed)
                if closed.error_code == VarInt::from_u32(close::NOT_ALLOWED) =>
            {
                Some(message::bounded(&String::from_utf8_lossy(&closed.reason)))
            }
            _ => None,
        }
    }

    /// Whether the peer has refused the certificate that we came with: by a TLS alert, which comes once ours
    /// has been read.
    pub fn refused_our_certificate(&self) -> bool {
        let Some(ConnectionError::ConnectionClosed(closed)) = self.inner.close_reason() else { return false };
        TLS_ALERTS.contains(&u64::from(closed.error_code))
    }

    /// quinn's connection, for what this one has no words for.
    pub fn quinn(&self) -> &quinn::Connection {
        &self.inner
    }
}

impl Exporter for Connection {
    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExportError> {
        let mut secret = [0; 32];
        self.inner.export_keying_material(&mut secret, label, context).map_err(|_| ExportError)?;
        Ok(secret)
    }
}

/// The one answer that an accepted request waits for. Dropped unanswered, the asker sees its stream end.
#[derive(Debug)]
pub struct Responder {
    send: SendStream,
}

impl Responder {
    /// Answers.
    pub async fn respond(mut self, answer: &Message) -> Result<(), ExchangeError> {
        write_message(&mut self.send, answer).await
    }

    /// Answers, and returns once the peer's QUIC has acknowledged the answer, or says that nobody waits for
    /// it ([`ExchangeError::Stream`]).
    pub async fn respond_acknowledged(mut self, answer: &Message) -> Result<(), ExchangeError> {
        write_message(&mut self.send, answer).await?;
        match self.send.stopped().await? {
            None => Ok(()),
            Some(code) => Err(WriteError::Stopped(code).into()),
        }
    }
}

/// Sends a notice.
pub(crate) async fn send_notice(
    connection: &quinn::Connection,
    message: &Message,
) -> Result<(), ExchangeError> {
    let mut send = connection.open_uni().await?;
    write_message(&mut send, message).await
}

async fn exchange(
    (mut send, mut recv): (SendStream, RecvStream),
    request: &Message,
) -> Result<Message, ExchangeError> {
    write_message(&mut send, request).await?;
    read_message(&mut recv).await
}

async fn write_message(send: &mut SendStream, message: &Message) -> Result<(), ExchangeError> {
    let bytes = message::encode(message);
    send.write_all(&bytes).await?;
    // Fails only when already finished or reset by the peer, which the reader of the answer will see.
    send.finish().map_err(|error| ExchangeError::Stream(error.to_string()))
}

async fn read_message(recv: &mut RecvStream) -> Result<Message, ExchangeError> {
    let bytes = recv.read_to_end(MAX_MESSAGE_BYTES + PREFIX_BYTES).await?;
    message::decode(&bytes).map_err(|error| ExchangeError::Malformed(error.to_string()))
}
