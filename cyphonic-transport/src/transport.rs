//! The QUIC endpoint of a node: dials, accepts, limits.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use std::{fmt, io};

use cyphonic_dataplane::sync;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::identity::{Identity, NetworkId, Role};
use cyphonic_proto::quic::HANDSHAKE_TIMEOUT;
use cyphonic_proto::{alpn, close};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::sync::{Mutex, mpsc};

use crate::config::endpoint_config;
use crate::connection::Connection;
use crate::detour;
use crate::dial::{self, DialError};
use crate::handshakes::{Answer, Handshakes, Place};
use crate::mux::Mux;
use crate::peer::ArrivingPeer;
use crate::tls::{self, ClientTls, ServerTls, TlsError};

/// The rest of three probe time-outs in which a closed connection answers late packets (RFC 9000 §10.2) is
/// forgone: a stop must be quick, and a peer that missed the close finds out by its own time-out.
const LINGER: Duration = Duration::from_millis(250);

/// Accepted connections that wait for their owner.
const ACCEPT_QUEUE: usize = 256;

/// Why the endpoint did not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Keys or certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The runtime refused.
    #[error("the QUIC endpoint cannot start: {0}")]
    Io(#[from] io::Error),
}

/// An accepted connection.
#[derive(Debug)]
pub struct Incoming {
    /// The connection; its identity is absent only for [`alpn::ENROL`].
    pub connection: Connection,
    /// The protocol it speaks, one of [`alpn`].
    pub alpn: Vec<u8>,
}

/// The QUIC endpoint over a node's port.
#[derive(Debug)]
pub struct Transport {
    endpoint: Endpoint,
    mux: Arc<Mux>,
    incoming: Mutex<mpsc::Receiver<Incoming>>,
    arriving: Mutex<mpsc::Receiver<ArrivingPeer>>,
    server: Option<Arc<CurrentServer>>,
}

/// How connections are accepted now.
struct CurrentServer(RwLock<Arc<ServerTls>>);

impl fmt::Debug for CurrentServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentServer").finish_non_exhaustive()
    }
}

impl CurrentServer {
    fn get(&self) -> Arc<ServerTls> {
        sync::read(&self.0).clone()
    }

    fn set(&self, tls: ServerTls) {
        *sync::write(&self.0) = Arc::new(tls);
    }
}

impl Transport {
    /// Starts the endpoint. The caller then gives [`Transport::mux`] to the data-plane worker that receives
    /// on the port, as its signalling sink.
    ///
    /// # Errors
    /// When the certificates cannot be used. Nothing was started.
    pub fn start(port: Arc<UdpPort>, server: Option<(ServerTls, NetworkId)>) -> Result<Self, TransportError> {
        let mux = Mux::new(port);
        let config = server.as_ref().map(|(tls, _)| tls.config()).transpose()?;
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(server.as_ref().map(|(tls, _)| tls.reset_key())),
            config,
            mux.clone(),
            Arc::new(TokioRuntime),
        )?;
        let (sender, receiver) = mpsc::channel(ACCEPT_QUEUE);
        let (peers, arriving) = mpsc::channel(ACCEPT_QUEUE);
        let server = server.map(|(tls, network)| {
            let server = Arc::new(CurrentServer(RwLock::new(Arc::new(tls))));
            tokio::spawn(accept_all(endpoint.clone(), server.clone(), network, sender, peers));
            server
        });
        let (incoming, arriving) = (Mutex::new(receiver), Mutex::new(arriving));
        Ok(Self { endpoint, mux, incoming, arriving, server })
    }

    /// Accepts with other certificates from now on; connections that stand, stand. An endpoint that was
    /// started without a server stays without.
    ///
    /// # Errors
    /// When the certificates cannot be used. The old ones stay.
    pub fn set_server(&self, tls: ServerTls) -> Result<(), TlsError> {
        let Some(server) = &self.server else { return Ok(()) };
        self.endpoint.set_server_config(Some(tls.config()?));
        server.set(tls);
        Ok(())
    }

    /// Where the data plane delivers what is not tunnel data.
    pub fn mux(&self) -> Arc<Mux> {
        self.mux.clone()
    }

    /// The next peer that dials a node ([`ServerTls::peer`]), before it has proved who it is; none once the
    /// endpoint is closed.
    pub async fn accept_peer(&self) -> Option<ArrivingPeer> {
        self.arriving.lock().await.recv().await
    }

    /// The next accepted connection of a service; none once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.incoming.lock().await.recv().await
    }

    /// Connects to the AS, NMS or TRS of this name.
    ///
    /// # Errors
    /// When no address answered in time, or the other end is not that service.
    pub async fn connect_service(
        &self,
        tls: &ClientTls,
        addresses: &[SocketAddr],
        name: &str,
        role: Role,
    ) -> Result<Connection, DialError> {
        let config = tls.config(role, alpn_of(role))?;
        self.connect(config, addresses, name, HANDSHAKE_TIMEOUT).await
    }

    /// Connects to the same by TLS over TCP, for networks that pass no UDP.
    ///
    /// # Errors
    /// When no address answered in time, or the other end is not that service.
    pub async fn connect_service_by_detour(
        &self,
        tls: &ClientTls,
        addresses: &[SocketAddr],
        name: &str,
        role: Role,
    ) -> Result<Connection, DialError> {
        let config = tls.config(role, alpn_of(role))?;
        let (outer, port) = (detour::service_tls(tls, role)?, self.mux.local_port());
        // TCP goes by a socket of its own.
        let outward: Vec<_> = addresses.iter().map(|address| self.mux.outward(*address)).collect();
        let target = detour::Target { addresses: &outward, name, tls: outer, port };
        let inside = async |local| self.connect(config, &[local], name, detour::INSIDE_TIMEOUT).await;
        let (connection, detour) = detour::dial(target, inside).await?;
        Ok(connection.through(detour))
    }

    /// Connects over UDP, or by the detour where UDP does not answer.
    ///
    /// # Errors
    /// When neither brought a connection.
    pub async fn connect_service_somehow(
        &self,
        tls: &ClientTls,
        addresses: &[SocketAddr],
        name: &str,
        role: Role,
    ) -> Result<Connection, DialError> {
        detour::race(
            self.connect_service(tls, addresses, name, role),
            self.connect_service_by_detour(tls, addresses, name, role),
        )
        .await
    }

    /// Connects to the NMS of this name as one that stands in for it.
    ///
    /// # Errors
    /// When no address answered in time, or the other end is not that NMS.
    pub async fn connect_nms_as_standby(
        &self,
        tls: &ClientTls,
        addresses: &[SocketAddr],
        name: &str,
    ) -> Result<Connection, DialError> {
        self.connect(tls.config(Role::Nms, alpn::STANDBY)?, addresses, name, HANDSHAKE_TIMEOUT).await
    }

    /// Connects to another node directly.
    ///
    /// # Errors
    /// When no address answered within `timeout`, or another device did.
    pub async fn connect_peer(
        &self,
        tls: &ClientTls,
        addresses: &[SocketAddr],
        name: &str,
        timeout: Duration,
    ) -> Result<Connection, DialError> {
        self.connect(tls.config(Role::Device, alpn::PEER)?, addresses, name, timeout).await
    }

    async fn connect(
        &self,
        config: quinn::ClientConfig,
        addresses: &[SocketAddr],
        name: &str,
        timeout: Duration,
    ) -> Result<Connection, DialError> {
        // A resolver that helps a translator (DNS64) gives addresses by which nothing will be heard of.
        let known: Vec<_> = addresses.iter().map(|address| self.mux.inward(*address)).collect();
        let inner = dial::first_of(&self.endpoint, config, &known, name, timeout).await?;
        let identity = match tls::identity_of(&inner) {
            Some(Ok(identity)) => identity,
            Some(Err(error)) => return Err(DialError::Identity(error)),
            None => return Err(DialError::Identity("none was presented".into())),
        };
        Ok(Connection::new(inner, Some(identity)))
    }

    /// This host's addresses or routes have changed: every connection sends at once, from wherever the kernel
    /// now sends, and with a connection ID not used before (RFC 9000 §9.5), so that its other end
    /// follows. Only connections that this end opened can be followed; the others lose nothing by it.
    pub fn migrate(&self) {
        // The socket stays: it is bound to no address.
        if let Err(error) = self.endpoint.rebind_abstract(self.mux.clone()) {
            tracing::warn!(%error, "connections will notice the new network only with their next packet");
        }
    }

    /// Closes every connection. The peers are told at once; then late packets of theirs are answered for a
    /// moment.
    pub async fn shutdown(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(close::STOPPING), reason.as_bytes());
        if tokio::time::timeout(LINGER, self.endpoint.wait_idle()).await.is_err() {
            tracing::trace!("some connections were still draining");
        }
    }
}

/// The protocol that a service of this role speaks with nodes.
fn alpn_of(role: Role) -> &'static [u8] {
    match role {
        Role::As => alpn::AS,
        Role::Nms => alpn::NMS,
        Role::Trs => alpn::TRS,
        Role::Device => alpn::PEER,
    }
}

async fn accept_all(
    endpoint: Endpoint,
    server: Arc<CurrentServer>,
    network: NetworkId,
    sender: mpsc::Sender<Incoming>,
    peers: mpsc::Sender<ArrivingPeer>,
) {
    let handshakes = Handshakes::new();
    while let Some(incoming) = endpoint.accept().await {
        let place = match handshakes.begin(incoming.remote_address(), incoming.remote_address_validated()) {
            Answer::Enter(place) => place,
            Answer::Prove => {
                if let Err(error) = incoming.retry() {
                    tracing::debug!(%error, "a handshake could not be answered with Retry");
                }
                continue;
            }
            Answer::Refuse => {
                incoming.refuse();
                continue;
            }
        };
        let tls = server.get();
        if tls.is_peer() {
            let peers = peers.clone();
            tokio::spawn(async move {
                let arrived = ArrivingPeer::accept(incoming, tls, network, place);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, arrived).await {
                    Ok(Ok(peer)) => drop(peers.send(peer).await),
                    Ok(Err(reason)) => tracing::debug!(reason, "a peer's connection was refused"),
                    Err(_) => tracing::debug!("a peer's first message did not come in time"),
                }
            });
            continue;
        }
        let sender = sender.clone();
        tokio::spawn(async move {
            let shaken = shake_hands(incoming, &tls, network, place);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
                Ok(Ok(incoming)) => drop(sender.send(incoming).await),
                Ok(Err(reason)) => tracing::debug!(reason, "a connection was refused"),
                Err(_) => tracing::debug!("a handshake did not complete in time"),
            }
        });
    }
}

async fn shake_hands(
    incoming: quinn::Incoming,
    tls: &ServerTls,
    network: NetworkId,
    place: Place,
) -> Result<Incoming, String> {
    let from = incoming.remote_address();
    let inner = incoming.await.map_err(|error| error.to_string())?;
    let alpn = inner
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .ok_or("no application protocol was negotiated")?;
    let refused = match may_speak(tls, network, &alpn, tls::identity_of(&inner)) {
        Ok(Some(identity)) => {
            let connection = Connection::new(inner, Some(identity)).dialled_from(from);
            return Ok(Incoming { connection, alpn });
        }
        Ok(None) => match place.of_a_stranger() {
            Some(place) => {
                let connection = Connection::new(inner, None).dialled_from(from).in_place(place);
                return Ok(Incoming { connection, alpn });
            }
            None => "too many enrol from the same address: try again in half a minute".to_owned(),
        },
        Err(reason) => reason,
    };
    inner.close(VarInt::from_u32(close::NOT_ALLOWED), refused.as_bytes());
    Err(refused)
}

/// Devices of this overlay are clients, and only they may come without a certificate, to enrol; and NMSs are, of the one
/// that they stand in for.
pub(crate) fn may_speak(
    tls: &ServerTls,
    network: NetworkId,
    alpn: &[u8],
    identity: Option<Result<Identity, String>>,
) -> Result<Option<Identity>, String> {
    match identity {
        None if tls.allows_anonymous(alpn) => Ok(None),
        None => Err("a device certificate is required".into()),
        Some(Err(error)) => Err(error),
        Some(Ok(identity)) if identity.network_id != network => {
            Err("the certificate is of another network".into())
        }
        Some(Ok(identity)) if alpn == alpn::STANDBY && identity.role != Role::Nms => {
            Err("only an NMS may follow an NMS: the certificate has another role".into())
        }
        Some(Ok(identity)) if alpn != alpn::STANDBY && identity.role != Role::Device => {
            Err("only devices connect here: the certificate has another role".into())
        }
        Some(Ok(identity)) => Ok(Some(identity)),
    }
}
