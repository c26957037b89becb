//! Connections: each is one of this host's own to the machine.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::machine::{Machine, Trouble};
use super::may_pass;
use crate::config::{Carried, OfferedPort};

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
pub(super) async fn carry_all(listener: TcpListener, port: OfferedPort, machine: &Arc<Machine>) -> io::Error {
    // Aborts them when dropped.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((peer, from)) => match machine.admit(from.ip(), Carried::Tcp) {
                Some(place) => {
                    let machine = Arc::clone(machine);
                    connections.spawn(async move {
                        carry(peer, port, &machine).await;
                        drop(place);
                    });
                }
                None => reset(peer),
            },
            Err(error) if may_pass(&error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
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
            machine.note(port, Trouble::There, &error);
            return reset(peer);
        }
    };
    machine.has_answered(port);
    for end in [&peer, &there] {
        if let Err(error) = prepare(end) {
            tracing::debug!(%error, "a connection is carried as it is");
        }
    }
    if let Err(error) = copy_bidirectional_with_sizes(&mut peer, &mut there, PIECE, PIECE).await {
        tracing::debug!(%error, "a connection has failed");
        // Whichever end it was, the other one is to know that this was no end.
        reset(peer);
        reset(there);
    }
}

fn prepare(end: &TcpStream) -> io::Result<()> {
    // What came as one piece goes on as one.
    end.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(SILENT).with_interval(SILENT).with_retries(PROBES);
    SockRef::from(end).set_tcp_keepalive(&keepalive)
}

/// Ends a connection as one that is refused, or that has failed.
pub(super) fn reset(end: TcpStream) {
    if let Err(error) = SockRef::from(&end).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection is closed instead of reset");
    }
}
