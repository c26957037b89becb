//! The fresh sockets of a look, each opened when it first sends, all closed with the look.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

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
}

impl Sockets {
    /// None yet, and where what they hear will come.
    pub(super) fn new() -> (Self, mpsc::Receiver<Heard>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { open: HashMap::new(), listeners: JoinSet::new(), sender }, receiver)
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
        let key = (family, socket);
        let sender = match self.open.get(&key) {
            Some(open) => Arc::clone(open),
            None => self.open(key).await?,
        };
        sender.send_to(payload, to).await.map(drop)
    }

    async fn open(&mut self, key: (Family, Socket)) -> io::Result<Arc<UdpSocket>> {
        let any: IpAddr = match key.0 {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let opened = Arc::new(UdpSocket::bind((any, 0)).await?);
        self.listeners.spawn(listen(key, Arc::clone(&opened), self.sender.clone()));
        self.open.insert(key, Arc::clone(&opened));
        Ok(opened)
    }
}

async fn listen((family, socket): (Family, Socket), from: Arc<UdpSocket>, heard: mpsc::Sender<Heard>) {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        match from.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                let message = buffer.get(..len).unwrap_or_default().to_vec();
                if heard.send(Heard { family, socket, from, message }).await.is_err() {
                    return;
                }
            }
            // What an ICMP error left on the socket is about a datagram long gone.
            Err(error) => tracing::trace!(%error, "a socket of the network check"),
        }
    }
}
