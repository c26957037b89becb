//! Sockets, and the limits on what is in hand.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Header, Message, MessageType, Query},
    serialize::binary::{BinDecodable, BinDecoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    DnsError, Resolver, Upstream, Zone,
    answer::{answer, malformed, overloaded, udp_limit, upstream_failed},
    zone::Subject,
};

/// Queries in hand, over both protocols. Each may wait for a set-up and holds a few kilobytes.
const MAX_IN_HAND: usize = 256;

/// Open TCP connections.
const MAX_CONNECTIONS: usize = 32;

/// A TCP client that sends nothing for so long is closed (RFC 7766 section 6.2.3: "a few seconds").
const TCP_IDLE: Duration = Duration::from_secs(10);

/// UDP queries longer than this are no queries: a question and an OPT record are below 400 bytes.
const MAX_UDP_QUERY: usize = 4096;

/// The running DNS server; stops when dropped.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    // Aborts its tasks when dropped.
    _tasks: JoinSet<()>,
}

/// What the server has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// Queries received.
    pub queries: u64,
    /// Of those, answered SERVFAIL.
    pub failures: u64,
    /// Of those, relayed to the host's own servers.
    pub relayed: u64,
    /// What was no DNS query.
    pub malformed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) queries: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) relayed: AtomicU64,
    pub(super) malformed: AtomicU64,
}

struct Shared {
    zone: Zone,
    resolver: Arc<dyn Resolver>,
    upstream: RwLock<Option<Arc<Upstream>>>,
    in_hand: Arc<Semaphore>,
    counters: Counters,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("zone", &self.zone.name()).finish_non_exhaustive()
    }
}

impl DnsServer {
    /// Listens on `address` (UDP and TCP; port 0 means one the kernel chooses, the same for both) and serves.
    ///
    /// # Errors
    ///
    /// When the address cannot be had. Nothing is left listening then.
    pub async fn start(
        address: SocketAddr,
        zone: Zone,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, DnsError> {
        let (udp, tcp) = bind(address).await?;
        let address = udp.local_addr().unwrap_or(address);
        let shared = Arc::new(Shared {
            zone,
            resolver,
            upstream: RwLock::new(None),
            in_hand: Arc::new(Semaphore::new(MAX_IN_HAND)),
            counters: Counters::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared.clone()));
        Ok(Self { shared, address, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The zone it serves.
    pub fn zone(&self) -> &Zone {
        &self.shared.zone
    }

    /// From now on relays what is outside the zone to these servers, or (with `None`) refuses it.
    pub fn set_upstream(&self, upstream: Option<Upstream>) {
        *self.shared.upstream.write().unwrap_or_else(PoisonError::into_inner) = upstream.map(Arc::new);
    }

    /// What it has done so far.
    pub fn stats(&self) -> DnsStats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsStats {
            queries: load(&counters.queries),
            failures: load(&counters.failures),
            relayed: load(&counters.relayed),
            malformed: load(&counters.malformed),
        }
    }
}

async fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let udp = UdpSocket::bind(address).await.map_err(|source| DnsError::Bind {
        address,
        protocol: "UDP",
        source,
    })?;
    let same = udp.local_addr().unwrap_or(address);
    let tcp = TcpListener::bind(same).await.map_err(|source| DnsError::Bind {
        address: same,
        protocol: "TCP",
        source,
    })?;
    Ok((udp, tcp))
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_UDP_QUERY];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // For example ECONNREFUSED of an answer to a client that is gone: the socket itself is fine.
                tracing::debug!(%error, "receiving a DNS query failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let raw = buffer[..length].to_vec();
        let Some(asked) = shared.read(&raw) else { continue };
        let Ok(permit) = shared.in_hand.clone().try_acquire_owned() else {
            if let Asked::Query(query) | Asked::Elsewhere(query, _) = asked {
                send_udp(&socket, &overloaded(&query), udp_limit(&query), from).await;
            }
            continue;
        };
        let (socket, shared) = (socket.clone(), shared.clone());
        tasks.spawn(async move {
            let _permit = permit;
            match asked {
                Asked::Unreadable(id) => send_udp(&socket, &malformed(id), 512, from).await,
                Asked::Query(query) => {
                    let reply = shared.answer(&query).await;
                    send_udp(&socket, &reply, udp_limit(&query), from).await;
                }
                Asked::Elsewhere(query, upstream) => match upstream.ask_udp(&raw).await {
                    Some(reply) => send_raw(&socket, &reply, from).await,
                    None => send_udp(&socket, &upstream_failed(&query), udp_limit(&query), from).await,
                },
            }
        });
    }
}

async fn send_udp(socket: &UdpSocket, reply: &Message, limit: usize, to: SocketAddr) {
    if let Some(bytes) = encode(reply, limit) {
        send_raw(socket, &bytes, to).await;
    }
}

async fn send_raw(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, to).await {
        tracing::debug!(%error, "sending a DNS answer failed");
    }
}

/// What does not fit goes out truncated (TC), so that the client asks again by TCP (RFC 2181 section 9).
fn encode(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = match reply.to_vec() {
        Ok(bytes) if bytes.len() <= limit => return Some(bytes),
        Ok(_) => reply.truncate().to_vec(),
        Err(error) => Err(error),
    };
    bytes.inspect_err(|error| tracing::warn!(%error, "a DNS answer could not be encoded")).ok()
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        // Above the limit, clients wait in the kernel's backlog.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    serve_connection(stream, &shared).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One query after the other, until the client closes, is silent for too long, or sends what is no query.
async fn serve_connection(mut stream: TcpStream, shared: &Shared) {
    while let Ok(Ok(raw)) = timeout(TCP_IDLE, read_framed(&mut stream)).await {
        let Some(asked) = shared.read(&raw) else { return };
        let Ok(_permit) = shared.in_hand.acquire().await else { return };
        let reply = match asked {
            Asked::Unreadable(id) => encode(&malformed(id), usize::from(u16::MAX)),
            Asked::Query(query) => encode(&shared.answer(&query).await, usize::from(u16::MAX)),
            Asked::Elsewhere(query, upstream) => match upstream.ask_tcp(&raw).await {
                Some(reply) => Some(reply),
                None => encode(&upstream_failed(&query), usize::from(u16::MAX)),
            },
        };
        let Some(reply) = reply else { return };
        if !matches!(timeout(TCP_IDLE, write_framed(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut raw = vec![0; usize::from(length)];
    stream.read_exact(&mut raw).await?;
    Ok(raw)
}

async fn write_framed(stream: &mut TcpStream, reply: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(reply);
    stream.write_all(&framed).await
}

/// What a packet turned out to be.
enum Asked {
    /// For us, or to be refused.
    Query(Message),
    /// Not ours, and the host relies on us to pass it on.
    Elsewhere(Message, Arc<Upstream>),
    /// Has the ID of a query and nothing readable behind it.
    Unreadable(u16),
}

impl Shared {
    /// Reads a packet; nothing if it deserves no answer (too short, or itself an answer: two servers that answer
    /// each other's answers would never stop).
    fn read(&self, raw: &[u8]) -> Option<Asked> {
        let mut decoder = BinDecoder::new(raw);
        let header =
            Header::read(&mut decoder).ok().filter(|header| header.message_type == MessageType::Query);
        let Some(header) = header else {
            self.counters.malformed.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        // The question decides whose it is. What stands behind it matters only to who answers.
        let question = Query::read(&mut decoder);
        let upstream = self.upstream.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Ok(question), Some(upstream)) = (&question, upstream)
            && self.zone.subject(question.name()) == Subject::Outside
        {
            self.counters.relayed.fetch_add(1, Ordering::Relaxed);
            // Needed only to say that nobody answered.
            let query = Message::from_vec(raw).unwrap_or_else(|_| {
                let mut query = Message::new(header.id, MessageType::Query, header.op_code);
                query.add_query(question.clone());
                query
            });
            return Some(Asked::Elsewhere(query, upstream));
        }
        Some(Message::from_vec(raw).map_or_else(
            |_| {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                Asked::Unreadable(header.id)
            },
            Asked::Query,
        ))
    }

    async fn answer(&self, query: &Message) -> Message {
        answer(&self.zone, self.resolver.as_ref(), &self.counters, query).await
    }
}
