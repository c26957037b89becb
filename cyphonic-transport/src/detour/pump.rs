//! What both ends do once TLS stands: datagrams of the local socket into the stream, and back.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::frame::{Decoder, EMPTY, Oversized, Run, encode};
use super::local::LocalSocket;

/// Room for what the kernel joins into one message.
const BATCH: usize = 1 << 16;

/// How long each direction may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Without a datagram to send, an empty frame is sent after this long: firewalls forget idle TCP
    /// connections, and tell nobody. QUIC's own keep-alive is usually sooner.
    pub(super) keep_alive: Duration,
    /// A connection that brings nothing for this long is dead.
    pub(super) idle: Duration,
}

impl Patience {
    /// Two empty frames are missing before a connection counts as dead.
    pub(super) const USUAL: Self =
        Self { keep_alive: Duration::from_secs(25), idle: Duration::from_secs(60) };
}

/// Why a detour ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The far end closed it.
    #[error("the far end closed it")]
    Closed,
    /// Nothing came for too long.
    #[error("nothing came for too long")]
    Silent,
    /// TCP or TLS failed.
    #[error("TLS over TCP failed: {0}")]
    Stream(io::Error),
    /// The local socket failed.
    #[error("the local UDP socket failed: {0}")]
    Local(io::Error),
    /// The far end does not speak this protocol.
    #[error("the far end broke the protocol: {0}")]
    Protocol(#[from] Oversized),
}

/// Carries datagrams both ways until one side ends.
pub(super) async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    socket: &LocalSocket,
    patience: Patience,
) -> Ended {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        ended = inward(reader, socket, patience.idle) => ended,
        ended = outward(writer, socket, patience.keep_alive) => ended,
    }
}

/// From the stream to the local socket.
async fn inward(mut reader: ReadHalf<impl AsyncRead>, socket: &LocalSocket, idle: Duration) -> Ended {
    let (mut decoder, mut run) = (Decoder::new(), Run::default());
    loop {
        match timeout(idle, reader.read(decoder.room())).await {
            Err(_) => return Ended::Silent,
            Ok(Err(error)) => return Ended::Stream(error),
            Ok(Ok(0)) => return Ended::Closed,
            Ok(Ok(bytes)) => decoder.filled(bytes),
        }
        if let Err(oversized) = deliver(&mut decoder, &mut run, socket) {
            return oversized.into();
        }
    }
}

/// All whole frames that are there: runs of one size in one system call each.
fn deliver(decoder: &mut Decoder, run: &mut Run, socket: &LocalSocket) -> Result<(), Oversized> {
    let most = socket.max_segments();
    while let Some(datagram) = decoder.next()? {
        if datagram.is_empty() || run.push(datagram, most) {
            continue;
        }
        flush(run, socket);
        run.push(datagram, most);
    }
    flush(run, socket);
    Ok(())
}

fn flush(run: &mut Run, socket: &LocalSocket) {
    if let Some((datagrams, stride)) = run.get() {
        socket.send(datagrams, stride);
    }
    run.clear();
}

/// From the local socket to the stream. While TCP is busy nothing is taken from the socket, whose queue then
/// drops.
async fn outward(
    mut writer: WriteHalf<impl AsyncWrite>,
    socket: &LocalSocket,
    keep_alive: Duration,
) -> Ended {
    let (mut batch, mut frames) = (vec![0; BATCH], Vec::new());
    loop {
        frames.clear();
        match timeout(keep_alive, socket.recv(&mut batch)).await {
            Err(_) => frames.extend_from_slice(&EMPTY),
            Ok(Err(error)) => return Ended::Local(error),
            Ok(Ok((len, stride))) => encode(batch.get(..len).unwrap_or_default(), stride, &mut frames),
        }
        if let Err(error) = write(&mut writer, &frames).await {
            return Ended::Stream(error);
        }
    }
}

async fn write(writer: &mut WriteHalf<impl AsyncWrite>, frames: &[u8]) -> io::Result<()> {
    writer.write_all(frames).await?;
    // TLS keeps what TCP did not take.
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::UdpSocket;

    use super::*;

    /// A detour between two UDP ports over a stream in memory: their addresses, as the other sees them.
    struct Joined {
        here: UdpSocket,
        there: UdpSocket,
        /// Where `here` sends for `there`.
        entry: SocketAddr,
    }

    async fn joined() -> Joined {
        let (here, there) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (near, far) = tokio::io::duplex(1 << 16);
        let near_socket = LocalSocket::connect(here.local_addr().unwrap()).unwrap();
        let far_socket = LocalSocket::connect(there.local_addr().unwrap()).unwrap();
        let entry = near_socket.local_addr();
        tokio::spawn(async move { carry(near, &near_socket, Patience::USUAL).await });
        tokio::spawn(async move { carry(far, &far_socket, Patience::USUAL).await });
        Joined { here, there, entry }
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways_with_their_bounds() {
        let joined = joined().await;
        let mut buffer = vec![0; 2_000];
        for size in [1, 1_200, 1_201, 1_452] {
            let sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
            joined.here.send_to(&sent, joined.entry).await.unwrap();
            let (len, from) = joined.there.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..len], sent);
            joined.there.send_to(&sent, from).await.unwrap();
            let (len, from) = joined.here.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..len], from), (sent.as_slice(), joined.entry));
        }
    }

    #[tokio::test]
    async fn another_port_cannot_send_into_it() {
        let joined = joined().await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // The kernel has no socket for it: the stranger is told so, or not, and the port hears nothing of it.
        drop(stranger.send_to(b"strange", joined.entry).await);
        joined.here.send_to(b"own", joined.entry).await.unwrap();
        let mut buffer = [0; 100];
        let (len, _) = joined.there.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"own");
    }

    #[tokio::test]
    async fn a_length_that_no_datagram_has_ends_it() {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = LocalSocket::connect(port.local_addr().unwrap()).unwrap();
        near.write_all(&[0xff, 0xfe]).await.unwrap();
        assert!(matches!(carry(far, &socket, Patience::USUAL).await, Ended::Protocol(_)));
    }

    #[tokio::test]
    async fn a_far_end_that_reads_nothing_costs_nothing_but_datagrams() {
        let (near, far) = tokio::io::duplex(4_096);
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = LocalSocket::connect(port.local_addr().unwrap()).unwrap();
        let entry = socket.local_addr();
        let pump = tokio::spawn(async move { carry(far, &socket, Patience::USUAL).await });
        for _ in 0..20_000 {
            port.send_to(&[7; 1_400], entry).await.unwrap();
        }
        assert!(!pump.is_finished());
        drop(near);
        assert!(matches!(pump.await.unwrap(), Ended::Closed | Ended::Stream(_)));
    }

    #[tokio::test]
    async fn a_silent_connection_is_kept_alive_and_a_dead_one_ends() {
        let (mut near, far) = tokio::io::duplex(4_096);
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = LocalSocket::connect(port.local_addr().unwrap()).unwrap();
        let patience = Patience { keep_alive: Duration::from_millis(1), idle: Duration::from_millis(100) };
        let pump = tokio::spawn(async move { carry(far, &socket, patience).await });
        let mut first = [1; 2];
        near.read_exact(&mut first).await.unwrap();
        assert_eq!(first, EMPTY);
        assert!(matches!(pump.await.unwrap(), Ended::Silent));
    }
}
