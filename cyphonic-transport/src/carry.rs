//! Packets of peers' handshakes inside a connection to a TRS.
//!
//! A packet of QUIC's least size, 1,200 bytes, and its context do not fit a DATAGRAM of a connection that
//! knows of no more than that of its path: at its beginning, and on narrow paths for ever. A packet that does
//! not fit goes on a unidirectional stream of its own, which QUIC cuts into pieces that fit. The receiver
//! cannot tell the two apart.
//!
//! **Invariants.** Both ways are bounded and may lose: the peers' own QUIC repairs that. Packets leave in the
//! order they were sent, as long as there is room: one that overtakes the handshake's keys is dropped at its
//! end, and costs a probe time-out.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use quinn::{Connection, ConnectionError, RecvStream, SendDatagramError};

/// Streams with packets that one end may have open on a connection: two handshakes' flights.
pub(crate) const MAX_STREAMS: u32 = 16;

/// Packets of this process on their way into streams. More are lost.
const MAX_SENDING: usize = 1_024;

/// A packet that could not be sent, or did not arrive whole, in this time is lost: the peers' QUIC has sent
/// it again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The largest that is accepted on a stream: far above a peers' packet, which stays at QUIC's least size.
const MAX_PACKET: usize = 2_048;

static SENDING: AtomicUsize = AtomicUsize::new(0);

/// Sends a context and its packet. False if it is lost at once.
pub(crate) fn send(connection: &Connection, datagram: Bytes) -> bool {
    match connection.send_datagram(datagram.clone()) {
        Ok(()) => true,
        Err(SendDatagramError::TooLarge) => send_on_stream(connection.clone(), datagram),
        Err(error) => {
            tracing::trace!(%error, "a datagram was dropped");
            false
        }
    }
}

fn send_on_stream(connection: Connection, packet: Bytes) -> bool {
    let mut sending = Box::pin(async move {
        let mut stream = connection.open_uni().await?;
        stream.write_all(&packet).await?;
        // Fails only on a stream that is finished or reset already.
        let _ = stream.finish();
        Ok::<(), quinn::WriteError>(())
    });
    // Here and now where there is room, which is nearly always: tasks of a burst would run in any order, the
    // last one first.
    if let Some(sent) = sending.as_mut().now_or_never() {
        return sent.is_ok();
    }
    let (Ok(runtime), Some(place)) = (tokio::runtime::Handle::try_current(), Place::take()) else {
        return false;
    };
    runtime.spawn(async move {
        let _place = place;
        if !matches!(tokio::time::timeout(PATIENCE, sending).await, Ok(Ok(()))) {
            tracing::trace!("a relayed packet was dropped: no stream, or no room");
        }
    });
    true
}

/// One of the packets that may be on their way.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken =
            SENDING.fetch_update(Relaxed, Relaxed, |sending| (sending < MAX_SENDING).then_some(sending + 1));
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        SENDING.fetch_sub(1, Relaxed);
    }
}

/// Gives `deliver` everything that [`send`] sends at the other end, until it returns false or the connection
/// ends.
pub(crate) async fn receive(
    connection: &Connection,
    deliver: impl Fn(Bytes) -> bool,
) -> Option<ConnectionError> {
    tokio::select! {
        end = receive_datagrams(connection, &deliver) => end,
        end = receive_streams(connection, &deliver) => end,
    }
}

async fn receive_datagrams(
    connection: &Connection,
    deliver: &impl Fn(Bytes) -> bool,
) -> Option<ConnectionError> {
    loop {
        match connection.read_datagram().await.map(deliver) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(error),
        }
    }
}

async fn receive_streams(
    connection: &Connection,
    deliver: &impl Fn(Bytes) -> bool,
) -> Option<ConnectionError> {
    // As many as the other end may open.
    let mut arriving = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => arriving.push(read(stream)),
                Err(error) => return Some(error),
            },
            Some(first) = arriving.next() => {
                // One that was complete when it was looked at may come before earlier ones that became so a moment ago.
                let mut packets = vec![first];
                while let Some(Some(packet)) = arriving.next().now_or_never() {
                    packets.push(packet);
                }
                packets.sort_unstable_by_key(|(stream, _)| *stream);
                for packet in packets.into_iter().filter_map(|(_, packet)| packet) {
                    if !deliver(packet) {
                        return None;
                    }
                }
            }
        }
    }
}

/// A stream's number, and the packet on it if it arrives whole.
async fn read(mut stream: RecvStream) -> (u64, Option<Bytes>) {
    let packet = tokio::time::timeout(PATIENCE, stream.read_to_end(MAX_PACKET)).await;
    (stream.id().index(), packet.ok().and_then(Result::ok).map(Bytes::from))
}
