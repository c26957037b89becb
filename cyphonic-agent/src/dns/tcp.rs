//! DNS over TCP (RFC 7766), for a bounded number of clients.
//!
//! Any program of the host may connect as often as it likes, and each connection takes a descriptor of a process that
//! needs them for everything else. So there are few places, and who waits without asking gives its place up.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use hickory_proto::{
    op::{Header, Message, MessageType, ResponseCode},
    serialize::binary::{BinDecodable, BinDecoder},
};
use hickory_server::{
    net::{BufDnsStreamHandle, runtime::TokioTime, xfer::Protocol},
    server::{Request, RequestHandler, ResponseHandle},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::server::Handler;

/// Connections at a time. One program needs one; a whole query is sent at once, so none waits long for its place.
const MAX_CONNECTIONS: usize = 64;

/// A client that sends no whole query for so long is closed (RFC 7766 section 6.2.3: "a few seconds"), and so is one that
/// does not read its answer.
const IDLE: Duration = Duration::from_secs(10);

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
    /// Whether a query of its is in hand.
    asks: Arc<AtomicBool>,
}

impl Clients {
    /// Serves one more, in the place of the one that has been connected longest and asks nothing. Where all ask, it is
    /// turned away.
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
            if let Err(error) = serve(tcp, from, &handler, &in_hand).await {
                tracing::debug!(%error, "a DNS client's connection ended");
            }
        });
        self.connected.push(Client { task, asks });
    }
}

/// Takes one query after the other, so that a client has one at most in hand.
async fn serve(
    mut tcp: TcpStream,
    from: SocketAddr,
    handler: &Handler,
    in_hand: &AtomicBool,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    loop {
        let query = timeout(IDLE, read(&mut tcp)).await??;
        in_hand.store(true, Ordering::Release);
        let answer = answer(query, from, handler).await;
        in_hand.store(false, Ordering::Release);
        if let Some(answer) = answer {
            timeout(IDLE, write(&mut tcp, &answer)).await??;
        }
    }
}

/// RFC 1035 section 4.2.2: the length, then the message.
async fn read(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(tcp.read_u16().await?)];
    tcp.read_exact(&mut message).await?;
    Ok(message)
}

/// As one segment where it fits (RFC 7766 section 8).
async fn write(tcp: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    tcp.write_all(&framed).await
}

/// None for what is no query.
async fn answer(query: Vec<u8>, from: SocketAddr, handler: &Handler) -> Option<Vec<u8>> {
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
