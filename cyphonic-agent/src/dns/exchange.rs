//! One query to one server, and its answer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{DnsRequest, Message};
use hickory_server::net::NetError;
use hickory_server::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioRuntimeProvider, TokioTime};
use hickory_server::net::tcp::TcpClientStream;
use hickory_server::net::udp::UdpClientStream;
use hickory_server::net::xfer::{DnsHandle, DnsRequestSender, FirstAnswer, Protocol};
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Between two times that one server is asked: it may be asking others itself, and programs wait for 5 s.
const AGAIN_MS: u64 = 1_000;

/// A socket of its own for every query: its random port is half of what makes answers hard to forge (RFC 5452
/// section 4). Who asks bounds the time.
pub(super) async fn exchange(
    server: SocketAddr,
    protocol: Protocol,
    query: Message,
    patience: Duration,
) -> Result<Message, NetError> {
    let query = DnsRequest::from(query);
    let answer = if protocol == Protocol::Udp {
        let client = UdpClientStream::builder(server, Connected::default());
        client.with_retry_interval_floor(AGAIN_MS).build().send_message(query).first_answer().await?
    } else {
        // The task that serves a connection ends with this.
        let provider = TokioRuntimeProvider::new();
        let connection = TcpClientStream::exchange(server, None, patience, None, provider.clone()).await?;
        connection.send(query).first_answer().await?
    };
    Ok(answer.into_message())
}

/// Whether nobody is there, or there is no way, rather than no answer.
pub(super) fn is_unreachable(error: &NetError) -> bool {
    let NetError::Io(error) = error else { return false };
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            // No address of our own that could ask it; a firewall of this host.
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::PermissionDenied
    )
}

/// Has UDP sockets connected. Only to those the kernel tells what ICMP said of their packets (udp(7)): without
/// that, a closed port is silence.
#[derive(Clone, Default)]
struct Connected(TokioRuntimeProvider);

impl RuntimeProvider for Connected {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = ConnectedUdp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, local, patience)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            // The library would rather have it unconnected, for systems where no address may be given then.
            socket.connect(server).await?;
            Ok(ConnectedUdp { socket, server })
        })
    }
}

struct ConnectedUdp {
    socket: UdpSocket,
    server: SocketAddr,
}

#[async_trait]
impl DnsUdpSocket for ConnectedUdp {
    type Time = TokioTime;

    fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        DnsUdpSocket::poll_recv_from(&self.socket, cx, buf)
    }

    /// Ends with what ICMP said, too: who waits for packets alone is not woken by that.
    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut receive = || Ok(recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT)?.0);
        let length = self.socket.async_io(Interest::READABLE | Interest::ERROR, &mut receive).await?;
        Ok((length, self.server))
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], target: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buf, target)
    }
}
