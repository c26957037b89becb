//! Datagrams at a rate, and who counts them: iperf3 sends them one by one and is itself the limit.
//!
//! [`send`] sends batches with one system call each and keeps to its rate by sleeping in between; [`receive`]
//! takes batches the same way. Every datagram begins with the number of its run, so that stragglers of
//! another run are not counted. Neither uses segmentation offloads: what is measured is what single datagrams
//! cost.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// Datagrams of one system call.
const BATCH: usize = 64;
/// Datagrams that are due before they are sent, unless the rate is so low that this would take longer than
/// [`PAUSE`].
const DUE: f64 = 16.0;
/// The longest pause between two batches.
const PAUSE: Duration = Duration::from_millis(1);
/// The largest datagram.
const MAX_BYTES: usize = 2_048;
/// What the receiver's socket holds: a busy machine runs the receiver late, which is not the network's loss.
const RECEIVE_BUFFER: usize = 16 << 20;
/// The number of the run, in front of each datagram.
const TAG: usize = 8;

/// What was sent or received.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// Datagrams.
    pub packets: u64,
    /// From the first to the last, in seconds.
    pub seconds: f64,
}

/// Sends datagrams of `bytes` at `rate` per second for `time`. Those the socket refuses are not counted.
///
/// # Errors
/// The socket cannot be made, or `bytes` does not fit.
pub fn send(to: SocketAddr, run: u64, bytes: usize, rate: f64, time: Duration) -> io::Result<Count> {
    if !(TAG..=MAX_BYTES).contains(&bytes) || !rate.is_finite() || rate <= 0.0 {
        return Err(io::Error::other(format!("{TAG} to {MAX_BYTES} bytes at a positive rate, please")));
    }
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(to)?;
    // Sleeps are as short as they are asked to be.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut payload = vec![0x5a; bytes];
    if let Some(tag) = payload.first_chunk_mut::<TAG>() {
        *tag = run.to_be_bytes();
    }
    let pause = Duration::from_secs_f64(DUE / rate).min(PAUSE);
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let (start, mut offered, mut packets) = (Instant::now(), 0.0_f64, 0);
    loop {
        let elapsed = start.elapsed();
        let due = rate * elapsed.min(time).as_secs_f64() - offered;
        if due < 1.0 {
            if elapsed >= time {
                return Ok(Count { packets, seconds: elapsed.as_secs_f64() });
            }
            thread::sleep(pause);
            continue;
        }
        // A socket that blocks makes the sender late. It catches up for a moment, but has no debts without
        // end.
        let late = due - rate * 0.02;
        if late > 0.0 {
            offered += late;
        }
        let batch = (due as usize).min(BATCH);
        packets += send_batch(&socket, &mut headers, &payload, batch)?;
        offered += batch as f64;
        if elapsed >= time {
            return Ok(Count { packets, seconds: elapsed.as_secs_f64() });
        }
    }
}

fn send_batch(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    payload: &[u8],
    batch: usize,
) -> io::Result<u64> {
    let slices = [[IoSlice::new(payload)]; BATCH];
    let slices = slices.get(..batch).unwrap_or_default();
    match sendmmsg(socket.as_raw_fd(), headers, slices, [None; BATCH], [], MsgFlags::empty()) {
        Ok(sent) => Ok(sent.count() as u64),
        // A full queue, or the peer's ICMP about a port that is not open yet.
        Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Counts the datagrams of a run that reach `socket`, until none has come for `idle`, or none at all within
/// `limit`.
///
/// # Errors
/// The socket is broken.
pub fn receive(socket: &UdpSocket, run: u64, idle: Duration, limit: Duration) -> io::Result<Count> {
    socket.set_read_timeout(Some(idle.min(limit)))?;
    let mut buffers = vec![0; BATCH * MAX_BYTES];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let (start, mut first, mut last, mut packets) = (Instant::now(), None, Instant::now(), 0);
    loop {
        let received = receive_batch(socket, &mut headers, &mut buffers)?;
        let now = Instant::now();
        let ours = |datagram: &&[u8]| datagram.first_chunk::<TAG>() == Some(&run.to_be_bytes());
        let counted = buffers.chunks(MAX_BYTES).take(received).filter(ours).count() as u64;
        if counted > 0 {
            first.get_or_insert(now);
            last = now;
            packets += counted;
        } else if first.map_or(start.elapsed() > limit, |_| last.elapsed() > idle) {
            let seconds = first.map_or(0.0, |first| last.duration_since(first).as_secs_f64());
            return Ok(Count { packets, seconds });
        }
    }
}

fn receive_batch(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    buffers: &mut [u8],
) -> io::Result<usize> {
    let mut slices: Vec<[IoSliceMut<'_>; 1]> =
        buffers.chunks_mut(MAX_BYTES).map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let received = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
    match received {
        Ok(received) => Ok(received.count()),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// A socket that [`receive`] reads from.
///
/// # Errors
/// The address is in use.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Without the right to more, as much as everyone may have.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_counted_and_another_run_is_not() {
        let socket = bind((Ipv6Addr::LOCALHOST, 0).into()).unwrap();
        let to = socket.local_addr().unwrap();
        let counting =
            thread::spawn(move || receive(&socket, 7, Duration::from_millis(300), Duration::from_secs(20)));
        let stranger = send(to, 8, 64, 1_000.0, Duration::from_millis(20)).unwrap();
        let sent = send(to, 7, 1360, 2_000.0, Duration::from_millis(200)).unwrap();
        let counted = counting.join().unwrap().unwrap();
        assert!(stranger.packets > 0 && sent.packets > 0, "{stranger:?} {sent:?}");
        assert!(sent.packets <= 400, "{sent:?}");
        assert_eq!(counted.packets, sent.packets);
    }
}
