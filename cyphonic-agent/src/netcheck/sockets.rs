//! The fresh sockets of a look, each opened when it first sends, all closed with the look.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cyphonic_dataplane::udp::{self, UdpPort};
use cyphonic_proto::nat::Family;
use cyphonic_proto::netcheck::Socket;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{MAX_MESSAGE, QUEUE};

/// A datagram that came to a fresh socket.
pub(super) struct Heard {
    pub(super) family: Family,
    pub(super) socket: Socket,
    pub(super) from: SocketAddr,
    pub(super) message: Vec<u8>,
}

/// See the module.
pub(super) struct Sockets {
    open: HashMap<(Family, Socket), Arc<UdpSocket>>,
    listeners: JoinSet<()>,
    sender: mpsc::Sender<Heard>,
    /// Knows how IPv4 is reached.
    port: Arc<UdpPort>,
}

impl Sockets {
    /// None yet, and where what they hear will come. They reach IPv4 as `port` does.
    pub(super) fn new(port: Arc<UdpPort>) -> (Self, mpsc::Receiver<Heard>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { open: HashMap::new(), listeners: JoinSet::new(), sender, port }, receiver)
    }

    /// Sends from one of them.
    ///
    /// # Errors
    /// The host has no such socket to give, or no route.
    pub(super) async fn send(
        &mut self,
        family: Family,
        socket: Socket,
        to: SocketAddr,
        payload: &[u8],
    ) -> io::Result<()> {
        let (key, to) = ((family, socket), self.port.outward(to));
        let sender = match self.open.get(&key) {
            Some(open) => Arc::clone(open),
            None => self.open(key, to).await?,
        };
        sender.send_to(payload, to).await.map(drop)
    }

    async fn open(&mut self, key: (Family, Socket), to: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let opened = Arc::new(UdpSocket::bind((any, 0)).await?);
        self.listeners.spawn(listen(key, Arc::clone(&opened), Arc::clone(&self.port), self.sender.clone()));
        self.open.insert(key, Arc::clone(&opened));
        Ok(opened)
    }
}

async fn listen(
    (family, socket): (Family, Socket),
    from: Arc<UdpSocket>,
    port: Arc<UdpPort>,
    heard: mpsc::Sender<Heard>,
) {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        match from.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                let (message, from) = (buffer.get(..len).unwrap_or_default().to_vec(), port.inward(from));
                if heard.send(Heard { family, socket, from, message }).await.is_err() {
                    return;
                }
            }
            Err(error) if udp::is_passing(&error) => tracing::trace!(%error, "a socket of the network check"),
            Err(error) => {
                tracing::debug!(%error, "a socket of the network check hears nothing more");
                return;
            }
        }
    }
}
