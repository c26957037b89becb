//! The host's own DNS servers, for names outside the overlay.
//!
//! Used only where the host's resolver cannot be told to send us one zone and others elsewhere (`/etc/resolv.conf`).
//! Queries and answers pass through as the bytes they are: what the host's servers say, including what we do not
//! understand, reaches the program unchanged.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// As many as glibc uses (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// For each server; all three fit below the asker's own 5 s.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The largest UDP answer: what EDNS can announce.
const MAX_UDP: usize = u16::MAX as usize;

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

    /// The first answer by UDP, or nothing when no server answered.
    pub(super) async fn ask_udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        for server in &self.servers {
            match timeout(PATIENCE, exchange_udp(*server, query)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "DNS server failed"),
                Err(_) => tracing::debug!(%server, "DNS server did not answer"),
            }
        }
        None
    }

    /// The first answer by TCP, or nothing when no server answered.
    pub(super) async fn ask_tcp(&self, query: &[u8]) -> Option<Vec<u8>> {
        for server in &self.servers {
            match timeout(PATIENCE, exchange_tcp(*server, query)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "DNS server failed by TCP"),
                Err(_) => tracing::debug!(%server, "DNS server did not answer by TCP"),
            }
        }
        None
    }
}

/// A socket of its own for every query: the kernel's random port is half of what makes answers hard to forge
/// (RFC 5452 section 4), and connecting it refuses what comes from elsewhere.
async fn exchange_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(query, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn exchange_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(query, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("the answer is to another question"))
    }
}

/// Same ID, and the bit that says "response" (RFC 1035 section 4.1.1).
fn answers(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && query.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0
}
