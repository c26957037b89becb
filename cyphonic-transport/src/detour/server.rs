//! The cloud's end: accepts TLS over TCP at the address and port at which a service has its UDP port, and
//! stands in for each client with a UDP socket on loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use cyphonic_dataplane::sync;
use cyphonic_proto::quic::HANDSHAKE_TIMEOUT;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::admission::{Admission, Admitted, MAX_CONNECTIONS, Refused};
use super::local::LocalSocket;
use super::tls::DetourTls;
use super::{files, prepare, pump};
use crate::enrol;

/// Who has no certificate may stay this long: longer than at the AS behind it, whose last words are to
/// arrive.
const STRANGER_STAYS: Duration = enrol::STRANGER_STAYS.saturating_add(Duration::from_secs(5));

/// After the host had no socket to give.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the log tells of connections that were not let in.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked whether an address that was taken is free.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 256;

/// The listener and all its connections; dropped, they close.
#[derive(Debug)]
pub struct DetourServer {
    local: SocketAddr,
    door: Arc<Door>,
    task: JoinHandle<()>,
}

impl DetourServer {
    /// Listens at `address`, for the UDP port that this host has there.
    ///
    /// # Errors
    /// Another program listens there, or the host refuses.
    pub fn start(address: SocketAddr, tls: DetourTls) -> io::Result<Self> {
        let listener = listen(address)?;
        let local = listener.local_addr()?;
        let door = Door::new(address, tls);
        let task = tokio::spawn(accept_all(listener, door.clone()));
        Ok(Self { local, door, task })
    }

    /// As [`start`](Self::start), as soon as the address is free: another program has it now.
    pub fn start_once_free(address: SocketAddr, tls: DetourTls) -> Self {
        let door = Door::new(address, tls);
        let inside = door.clone();
        let task = tokio::spawn(async move {
            let listener = loop {
                tokio::time::sleep(LISTEN_AGAIN).await;
                match listen(address) {
                    Ok(listener) => break listener,
                    Err(error) => tracing::debug!(%address, %error, "still not listening on TCP"),
                }
            };
            tracing::info!(%address, "listening on TCP");
            accept_all(listener, inside).await;
        });
        Self { local: address, door, task }
    }

    /// What it proves with who it is.
    pub fn certificates(&self) -> DetourCertificates {
        DetourCertificates(self.door.clone())
    }

    /// Where it listens, or is about to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for DetourServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The certificates of a [`DetourServer`].
#[derive(Clone, Debug)]
pub struct DetourCertificates(Arc<Door>);

impl DetourCertificates {
    /// Accepts with others from now on; connections that stand, stand.
    pub fn replace(&self, tls: DetourTls) {
        *sync::write(&self.0.tls) = tls;
    }
}

#[derive(Debug)]
struct Door {
    /// The one UDP port that all connections lead to.
    service: SocketAddr,
    tls: RwLock<DetourTls>,
    admission: Admission,
}

impl Door {
    fn new(address: SocketAddr, tls: DetourTls) -> Arc<Self> {
        let admission = Admission::new(files::room_for(MAX_CONNECTIONS));
        Arc::new(Self { service: reached_from_here(address), tls: RwLock::new(tls), admission })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // As the UDP port: every address means both families.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of an earlier process that are still closing do not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Where a socket on loopback finds the UDP port.
fn reached_from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // Both families are one port, and loopback has IPv4 on every host that has TCP at all.
        IpAddr::V6(ip) if ip == Ipv6Addr::UNSPECIFIED => Ipv4Addr::LOCALHOST.into(),
        ip => ip.to_canonical(),
    };
    SocketAddr::new(ip, address.port())
}

async fn accept_all(listener: TcpListener, door: Arc<Door>) {
    let mut connections = JoinSet::new();
    let mut refusals = Refusals::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => match door.admission.admit(from.ip()) {
                    Ok(place) => {
                        connections.spawn(serve(door.clone(), tcp, from, place));
                    }
                    Err(reason) => refusals.tell(from, reason),
                },
                Err(error) => {
                    tracing::debug!(%error, "a detour was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a detour's task failed");
                }
            }
        }
    }
}

/// Connections that were not let in: who tries again and again is told of now and then.
#[derive(Default)]
struct Refusals {
    told: Option<Instant>,
    /// Since then.
    silent: u64,
}

impl Refusals {
    fn tell(&mut self, from: SocketAddr, reason: Refused) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            self.silent += 1;
            return tracing::debug!(%from, %reason, "a connection over TCP was turned away");
        }
        tracing::warn!(%from, %reason, others_since = self.silent, "a connection over TCP was turned away");
        *self = Self { told: Some(Instant::now()), silent: 0 };
    }
}

async fn serve(door: Arc<Door>, tcp: TcpStream, from: SocketAddr, mut place: Admitted) {
    let tls = sync::read(&door.tls).clone();
    let handshake = async {
        prepare(&tcp)?;
        TlsAcceptor::from(tls.config.clone()).accept(tcp).await
    };
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%from, %error, "a detour's handshake failed"),
        Err(_) => return tracing::debug!(%from, "a detour's handshake did not complete in time"),
    };
    let known = match tls.judge(stream.get_ref().1) {
        Ok(known) => known,
        Err(reason) => return tracing::debug!(%from, reason, "a detour was refused"),
    };
    let socket = match LocalSocket::connect(door.service) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "no UDP socket for a detour"),
    };
    let ended = match known {
        Some(key) => {
            let replaced = place.count_as_device(key);
            tokio::select! {
                ended = pump::carry(stream, &socket, pump::Patience::USUAL) => ended.to_string(),
                _ = replaced => "its device has too many newer ones".into(),
            }
        }
        None => match timeout(STRANGER_STAYS, pump::carry(stream, &socket, pump::Patience::USUAL)).await {
            Ok(ended) => ended.to_string(),
            Err(_) => "an enrolment takes too long".into(),
        },
    };
    tracing::debug!(%from, reason = ended, "a detour ended");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_finds_the_port_wherever_it_listens() {
        let found = |text: &str| reached_from_here(text.parse().unwrap()).to_string();
        assert_eq!(found("[::]:443"), "127.0.0.1:443");
        assert_eq!(found("0.0.0.0:443"), "127.0.0.1:443");
        assert_eq!(found("192.0.2.1:443"), "192.0.2.1:443");
        assert_eq!(found("[2001:db8::1]:443"), "[2001:db8::1]:443");
    }
}
