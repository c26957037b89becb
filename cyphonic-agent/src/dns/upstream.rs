//! The host's own DNS servers, for names outside the overlay.
//!
//! Used only where the host's resolver cannot be told to send us one zone and others elsewhere
//! (`/etc/resolv.conf`). A query travels on by the protocol it came by. So a truncated answer reaches the
//! program as such, the program asks again by TCP, and so do we: nothing is fetched that nobody can receive.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{DnsRequest, Message, ResponseCode};
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::net::tcp::TcpClientStream;
use hickory_server::net::udp::UdpClientStream;
use hickory_server::net::xfer::{DnsRequestSender, FirstAnswer, Protocol};
use hickory_server::net::{DnsHandle, NetError};
use hickory_server::server::Request;
use tokio::time::{Instant, timeout};

/// As many as glibc uses (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// For all servers: just under the asker's own 5 s. Each has its part of what the ones before it have left: a
/// host with one server waits for it as long as programs would, and one that refuses leaves its time to the
/// next.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// Between two times that one server is asked: it may be asking others itself, and programs wait for 5 s.
const AGAIN_MS: u64 = 1_000;

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

    /// The first answer that says something of the name; failing that the first that says why not. Nothing
    /// when no server answered.
    pub(super) async fn ask(&self, request: &Request) -> Option<Message> {
        let query = Message::from_vec(request.as_slice()).ok()?;
        let (mut refusal, deadline) = (None, Instant::now() + PATIENCE);
        for (left, server) in (1..=self.servers.len() as u32).rev().zip(&self.servers) {
            let patience = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(patience, exchange(*server, request.protocol(), query.clone())).await {
                Ok(Ok(answer)) if !is_refusal(answer.metadata.response_code) => return Some(answer),
                Ok(Ok(answer)) => {
                    tracing::debug!(%server, code = %answer.metadata.response_code, "DNS server has no answer");
                    refusal.get_or_insert(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "DNS server failed"),
                Err(_) => tracing::debug!(%server, "DNS server did not answer"),
            }
        }
        refusal
    }
}

/// What programs take as a reason to ask the next server (glibc's `res_send`).
fn is_refusal(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused)
}

/// A socket of its own for every query: its random port is half of what makes answers hard to forge (RFC 5452
/// section 4).
async fn exchange(server: SocketAddr, protocol: Protocol, query: Message) -> Result<Message, NetError> {
    let query = DnsRequest::from(query);
    // The task that serves a TCP connection ends with this.
    let provider = TokioRuntimeProvider::new();
    let answer = if protocol == Protocol::Udp {
        let client = UdpClientStream::builder(server, provider).with_retry_interval_floor(AGAIN_MS);
        client.build().send_message(query).first_answer().await?
    } else {
        let connection = TcpClientStream::exchange(server, None, PATIENCE, None, provider.clone()).await?;
        connection.send(query).first_answer().await?
    };
    Ok(answer.into_message())
}
