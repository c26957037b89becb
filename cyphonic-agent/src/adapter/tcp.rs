//! Connections: each is one of this host's own to the machine.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::machine::{Machine, Trouble};
use super::may_pass;
use crate::config::OfferedPort;

/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// A machine on the same link answers at once, or is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// What is read at a time, in each direction.
const PIECE: usize = 16 * 1024;

/// Who is silent for so long is asked whether it is there, and is not after as many more minutes: a peer may
/// lose its power, and a controller its cable.
const SILENT: Duration = Duration::from_secs(60);
const PROBES: u32 = 4;

/// Whose other half has ended, and who sends nothing for so long, will send nothing more: a program that has
/// gone does not end what it has left behind.
const ALONE: Duration = Duration::from_secs(300);

/// What has been read goes on before a connection is reset, as far as it does in this time.
const GRACE: Duration = Duration::from_secs(2);

/// After the host had no descriptor to give.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn listen(here: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // Connections of an agent before this one may still be ending.
    socket.set_reuseaddr(true)?;
    socket.bind(here)?;
    socket.listen(BACKLOG)
}

/// Carries all that connect, for as long as it is polled; returns when the listener is of no more use.
pub(super) async fn carry_all(
    listener: &TcpListener,
    port: OfferedPort,
    machine: &Arc<Machine>,
) -> io::Error {
    loop {
        match listener.accept().await {
            Ok((peer, from)) => {
                machine.is_well_here(port);
                let Some(place) = machine.admit(from.ip(), port) else {
                    machine.has_turned_away(from.ip());
                    reset(peer);
                    continue;
                };
                let carrying = Arc::clone(machine);
                machine.spawn(async move {
                    carry(peer, port, &carrying).await;
                    drop(place);
                });
            }
            Err(error) if may_pass(&error) => {
                machine.note(port, Trouble::Here, &error);
                sleep(PAUSE).await;
            }
            Err(error) => return error,
        }
    }
}

async fn carry(mut peer: TcpStream, port: OfferedPort, machine: &Machine) {
    let connected = match timeout(CONNECT, TcpStream::connect(machine.at(port))).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let mut there = match connected {
        Ok(there) => there,
        Err(error) => {
            machine.note(port, Trouble::of(&error), &error);
            return reset(peer);
        }
    };
    machine.has_answered(port);
    machine.has_begun();
    for end in [&peer, &there] {
        if let Err(error) = prepare(end) {
            tracing::debug!(%error, "a connection is carried as it is");
        }
    }
    match carry_both(&mut peer, &mut there).await {
        Ok(()) => [peer, there].into_iter().for_each(end_well),
        // Both are reset, so that neither end takes this for the other's last word.
        Err(error) => tracing::debug!(%error, "a connection has failed"),
    }
}

/// Until both halves have ended, or one has failed and the other had its time.
async fn carry_both(peer: &mut TcpStream, there: &mut TcpStream) -> io::Result<()> {
    let ((from_peer, to_peer), (from_there, to_there)) = (peer.split(), there.split());
    let has_ended = AtomicBool::new(false);
    let (mut up, mut down) = (
        pin!(carry_half(from_peer, to_there, &has_ended)),
        pin!(carry_half(from_there, to_peer, &has_ended)),
    );
    let (first, other) = tokio::select! {
        ended = &mut up => (ended, down),
        ended = &mut down => (ended, up),
    };
    match first {
        Ok(()) => {
            let ended = other.await;
            if ended.is_err() {
                // What was read before is on its way.
                sleep(GRACE).await;
            }
            ended
        }
        Err(error) => {
            // What an end has sent before it failed is still to be had.
            let begun = Instant::now();
            let _ = timeout(GRACE, other).await;
            sleep_until(begun + GRACE).await;
            Err(error)
        }
    }
}

/// Until one end has no more to say, which the other one is told.
async fn carry_half(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    other_has_ended: &AtomicBool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let was_alone = other_has_ended.load(Ordering::Relaxed);
        let length = match timeout(ALONE, from.read(&mut piece)).await {
            Ok(length) => length?,
            Err(_) if was_alone => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => continue,
        };
        if length == 0 {
            to.shutdown().await?;
            other_has_ended.store(true, Ordering::Relaxed);
            return Ok(());
        }
        to.write_all(piece.get(..length).unwrap_or_default()).await?;
    }
}

fn prepare(end: &TcpStream) -> io::Result<()> {
    // What came as one piece goes on as one.
    end.set_nodelay(true)?;
    // However this comes to an end before both ends have said so, be it that this process is killed, neither is to
    // take it for the other's last word.
    let end = SockRef::from(end);
    end.set_linger(Some(Duration::ZERO))?;
    let keepalive = TcpKeepalive::new().with_time(SILENT).with_interval(SILENT).with_retries(PROBES);
    end.set_tcp_keepalive(&keepalive)
}

/// Ends a connection whose ends have both said all.
fn end_well(end: TcpStream) {
    if let Err(error) = SockRef::from(&end).set_linger(None) {
        tracing::debug!(%error, "a connection is reset that had ended");
    }
}

/// Ends a connection as one that is refused.
pub(super) fn reset(end: TcpStream) {
    if let Err(error) = SockRef::from(&end).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection is closed instead of reset");
    }
}
