//! The host's own DNS servers, for names outside the overlay.
//!
//! Used only where the host's resolver cannot be told to send us one zone and others elsewhere (`/etc/resolv.conf`).
//! A query travels on by the protocol it came by. So a truncated answer reaches the program as such, the program asks
//! again by TCP, and so do we: nothing is fetched that nobody can receive.

use std::{net::SocketAddr, time::Duration};

use hickory_proto::op::{DnsRequest, Message};
use hickory_server::{
    net::{
        DnsHandle, NetError,
        runtime::TokioRuntimeProvider,
        tcp::TcpClientStream,
        udp::UdpClientStream,
        xfer::{DnsRequestSender, FirstAnswer, Protocol},
    },
    server::Request,
};
use tokio::time::timeout;

/// As many as glibc uses (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// For each server; all three fit below the asker's own 5 s.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The host's own DNS servers, in the host's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Uses at most the first three, as resolvers do, and never `own` (that would be a loop).
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>, own: SocketAddr) -> Self {
        Self { servers: servers.into_iter().filter(|server| *server != own).take(MAX_SERVERS).collect() }
    }

    /// The servers.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// The first answer, or nothing when no server answered.
    pub(super) async fn ask(&self, request: &Request) -> Option<Message> {
        let query = Message::from_vec(request.as_slice()).ok()?;
        for server in &self.servers {
            match timeout(PATIENCE, exchange(*server, request.protocol(), query.clone())).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "DNS server failed"),
                Err(_) => tracing::debug!(%server, "DNS server did not answer"),
            }
        }
        None
    }
}

/// A socket of its own for every query: its random port is half of what makes answers hard to forge (RFC 5452
/// section 4).
async fn exchange(server: SocketAddr, protocol: Protocol, query: Message) -> Result<Message, NetError> {
    let query = DnsRequest::from(query);
    // The task that serves a TCP connection ends with this.
    let provider = TokioRuntimeProvider::new();
    let answer = if protocol == Protocol::Udp {
        UdpClientStream::builder(server, provider).build().send_message(query).first_answer().await?
    } else {
        let connection = TcpClientStream::exchange(server, None, PATIENCE, None, provider.clone()).await?;
        connection.send(query).first_answer().await?
    };
    Ok(answer.into_message())
}
