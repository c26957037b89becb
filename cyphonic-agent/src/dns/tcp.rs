//! DNS over TCP (RFC 7766), for a bounded number of clients.
//!
//! Any program of the host may connect as often as it likes, and each connection takes a descriptor of a
//! process that needs them for everything else. So there are few places, and who waits without asking gives
//! its place up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use hickory_proto::op::{Header, Message, MessageType, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use hickory_server::net::BufDnsStreamHandle;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandle};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::server::Handler;

/// Connections at a time. One program needs one; a whole query is sent at once, so none waits long for its
/// place.
const MAX_CONNECTIONS: usize = 64;

/// A client that asks nothing for so long is closed (RFC 7766 section 6.2.3: "a few seconds").
const IDLE: Duration = Duration::from_secs(10);

/// What a client has begun to send, or is to read, takes this long at most: its place is its own meanwhile,
/// and on one host either takes no time.
const PROMPT: Duration = Duration::from_secs(1);

/// After the host had no descriptor to give.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves all that connect, for as long as it is polled.
pub(super) async fn accept_all(listener: TcpListener, handler: Arc<Handler>) {
    let mut clients = Clients::default();
    loop {
        match listener.accept().await {
            Ok((tcp, from)) => clients.admit(tcp, from, &handler),
            Err(error) => {
                tracing::debug!(%error, "a DNS client was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Those that are connected, the oldest first.
#[derive(Default)]
struct Clients {
    connected: Vec<Client>,
    // Aborts them when dropped.
    tasks: JoinSet<()>,
}

struct Client {
    task: AbortHandle,
    /// Whether a query of its is in hand: from its first bytes until the answer is written.
    asks: Arc<AtomicBool>,
}

impl Clients {
    /// Serves one more, in the place of the one that has been connected longest and asks nothing. Where all
    /// ask, it is turned away.
    fn admit(&mut self, tcp: TcpStream, from: SocketAddr, handler: &Arc<Handler>) {
        while self.tasks.try_join_next().is_some() {}
        self.connected.retain(|client| !client.task.is_finished());
        if self.connected.len() >= MAX_CONNECTIONS {
            let waits = |client: &Client| !client.asks.load(Ordering::Acquire);
            let Some(oldest) = self.connected.iter().position(waits) else {
                return tracing::debug!("a DNS client was turned away: all the others ask");
            };
            self.connected.remove(oldest).task.abort();
        }
        let asks = Arc::new(AtomicBool::new(false));
        let (handler, in_hand) = (handler.clone(), asks.clone());
        let task = self.tasks.spawn(async move {
            let served = async {
                tcp.set_nodelay(true)?;
                serve(tcp, from, &*handler, &in_hand).await
            };
            if let Err(error) = served.await {
                tracing::debug!(%error, "a DNS client's connection ended");
            }
        });
        self.connected.push(Client { task, asks });
    }
}

/// Takes one query after the other, so that a client has one at most in hand.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    from: SocketAddr,
    handler: &impl RequestHandler,
    in_hand: &AtomicBool,
) -> io::Result<()> {
    loop {
        // RFC 1035 section 4.2.2: the length, then the message.
        let length = timeout(IDLE, stream.read_u16()).await??;
        in_hand.store(true, Ordering::Release);
        let mut query = vec![0; usize::from(length)];
        timeout(PROMPT, stream.read_exact(&mut query)).await??;
        if let Some(answer) = answer(query, from, handler).await {
            timeout(PROMPT, write(&mut stream, &answer)).await??;
        }
        in_hand.store(false, Ordering::Release);
    }
}

/// As one segment where it fits (RFC 7766 section 8).
async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// None for what is no query.
async fn answer(query: Vec<u8>, from: SocketAddr, handler: &impl RequestHandler) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(&query)).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    let Ok(request) = Request::from_bytes(query, from, Protocol::Tcp) else {
        return Message::error_msg(header.id, header.op_code, ResponseCode::FormErr).to_vec().ok();
    };
    let (client, mut answers) = BufDnsStreamHandle::with_buffer_size(from, 1);
    let client = ResponseHandle::new(from, client, Protocol::Tcp);
    handler.handle_request::<_, TokioTime>(&request, client).await;
    // The handler's half is gone by now: there is an answer, or there will be none.
    answers.next().await.map(|answer| answer.into_parts().0)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use hickory_server::net::runtime::Time;
    use hickory_server::server::{ResponseHandler, ResponseInfo};
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// What is no whole query is answered without it.
    struct Nobody;

    #[async_trait]
    impl RequestHandler for Nobody {
        async fn handle_request<R: ResponseHandler, T: Time>(&self, _: &Request, _: R) -> ResponseInfo {
            std::future::pending().await
        }
    }

    /// A header that promises a question that is not there, which is told so.
    const QUERY: [u8; 12] = [0xab, 0xcd, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    /// Less than an answer.
    const ROOM: usize = 8;

    fn client() -> (DuplexStream, Arc<AtomicBool>, JoinHandle<io::Result<()>>) {
        let (near, far) = duplex(ROOM);
        let asks = Arc::new(AtomicBool::new(false));
        let in_hand = asks.clone();
        let from = SocketAddr::from(([127, 0, 0, 1], 1024));
        let ends = tokio::spawn(async move { serve(far, from, &Nobody, &in_hand).await });
        (near, asks, ends)
    }

    async fn becomes(asks: &AtomicBool, wanted: bool) {
        let settled = async {
            while asks.load(Ordering::Acquire) != wanted {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), settled).await.expect("it takes no time");
    }

    #[tokio::test]
    async fn a_client_keeps_its_place_from_its_first_bytes_to_the_answers_last() {
        let (mut near, asks, _) = client();
        near.write_u16(QUERY.len() as u16).await.unwrap();
        becomes(&asks, true).await;
        near.write_all(&QUERY).await.unwrap();
        assert_eq!(near.read_u16().await.unwrap(), QUERY.len() as u16);
        assert!(asks.load(Ordering::Acquire), "the rest of its answer is not written yet");
        near.read_exact(&mut [0; QUERY.len()]).await.unwrap();
        becomes(&asks, false).await;
    }

    #[tokio::test]
    async fn nobody_keeps_a_place_by_half_a_query_or_by_not_reading() {
        let (mut half, _, half_ends) = client();
        half.write_u16(QUERY.len() as u16).await.unwrap();
        let (mut deaf, _, deaf_ends) = client();
        deaf.write_u16(QUERY.len() as u16).await.unwrap();
        deaf.write_all(&QUERY).await.unwrap();
        for ends in [half_ends, deaf_ends] {
            let end = timeout(IDLE / 2, ends).await.expect("long before one that asks nothing").unwrap();
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
