//! The UDP socket that stands for the far end.
//!
//! It is on loopback, and connected: the kernel lets in what the one port at its other end sends, and nothing
//! else. A loopback address is also what makes the address that a service "observes" through a detour no
//! candidate for anybody ([`cyphonic_proto::message::endpoint::is_candidate`]), as it says nothing of a NAT.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cyphonic_dataplane::udp;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Bytes wanted for what waits while TCP is busy. At 10 Mbit/s they are most of a second, at 300 Mbit/s a
/// burst.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Bytes wanted for what is sent: loopback takes it at once.
const SEND_BUFFER: usize = 1 << 20;

pub(super) struct LocalSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    peer: SocketAddr,
    local: SocketAddr,
}

impl LocalSocket {
    /// A socket on loopback that speaks with `peer`, a port of this host, alone.
    ///
    /// # Errors
    /// The host has no loopback of that family, or no socket to give.
    pub(super) fn connect(peer: SocketAddr) -> io::Result<Self> {
        let own = match peer.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let socket = std::net::UdpSocket::bind(SocketAddr::new(own, 0))?;
        socket.connect(peer)?;
        socket.set_nonblocking(true)?;
        if let Err(error) = udp::enlarge_buffers(&socket, RECEIVE_BUFFER, SEND_BUFFER) {
            tracing::debug!(%error, "a detour keeps the kernel's default buffers: expect loss at high rates");
        }
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, peer, local })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many datagrams of one size leave together.
    pub(super) fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Waits for datagrams: their bytes in all, and the size of each but perhaps the last.
    pub(super) async fn recv(&self, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        loop {
            self.socket.readable().await?;
            let mut meta = [RecvMeta::default()];
            let received = self.socket.try_io(Interest::READABLE, || {
                let mut buffers = [IoSliceMut::new(buffer)];
                self.state.recv(UdpSockRef::from(&self.socket), &mut buffers, &mut meta)
            });
            let [meta] = meta;
            match received {
                Ok(1) => return Ok((meta.len, meta.stride)),
                Ok(_) => {}
                // A refusal: the port at the other end was not open then.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || udp::is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends datagrams of `stride` bytes each, the last perhaps shorter. What the kernel does not take at
    /// once is lost, as on any network.
    pub(super) fn send(&self, datagrams: &[u8], stride: usize) {
        let segment_size = (datagrams.len() > stride).then_some(stride);
        if self.send_once(datagrams, segment_size).is_ok() || segment_size.is_none() {
            return;
        }
        // Where segmentation is refused, one at a time; what was sent twice is the receiver's to notice, as
        // always.
        for datagram in datagrams.chunks(stride.max(1)) {
            if let Err(error) = self.send_once(datagram, None) {
                tracing::trace!(%error, "a datagram was lost on loopback");
            }
        }
    }

    fn send_once(&self, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit { destination: self.peer, ecn: None, contents, segment_size, src_ip: None };
        self.socket
            .try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.socket), &transmit))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_port_that_opens_late_is_heard_though_it_refused_before() {
        let port = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = port.local_addr().unwrap();
        let socket = LocalSocket::connect(address).unwrap();
        drop(port);
        socket.send(b"too early", 9);
        let opens = async {
            // The refusal is taken from the socket first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let port = UdpSocket::bind(address).await.unwrap();
            port.send_to(b"hello", socket.local_addr()).await.unwrap();
        };
        let mut buffer = [0; 100];
        let received = async { tokio::join!(socket.recv(&mut buffer), opens).0 };
        assert_eq!(timeout(Duration::from_secs(10), received).await.unwrap().unwrap(), (5, 5));
    }
}
