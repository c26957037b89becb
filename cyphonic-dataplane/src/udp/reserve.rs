//! Room in the send buffer that bulk leaves to others.
//!
//! A flood that is faster than the link fills the buffer whenever it gets less than full, and what others
//! send from the same port without waiting (signalling, a tunnel's control) would never find room. So while
//! bulk waits the buffer is a little larger, and bulk goes on only when what is in it is again less than what
//! the buffer is else.

#![expect(unsafe_code, reason = "what is in a send buffer is told by ioctl")]

use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rustix::net::sockopt;
use socket2::Socket;

/// Bytes for others: a hundred packets, as the kernel counts them.
const RESERVE: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Reserve {
    /// The size of the buffer without it, as the kernel counts; `None` where the buffer stays as it is.
    bulk: Option<usize>,
    /// Whether the buffer is larger now.
    open: AtomicBool,
}

impl Reserve {
    /// Of a socket whose buffer has the size that it is to have.
    pub(super) fn new(socket: &Socket) -> Self {
        let bulk = socket.send_buffer_size().ok();
        // Only with CAP_NET_ADMIN; without it, setting a size anew could make it smaller.
        Self { bulk: bulk.filter(|size| resize(socket, *size)), open: AtomicBool::new(false) }
    }

    /// Bulk found no room.
    pub(super) fn open(&self, socket: &Socket) {
        if let Some(bulk) = self.bulk
            && !self.open.swap(true, Relaxed)
        {
            resize(socket, bulk + RESERVE);
        }
    }

    /// Whether there is room for bulk; then the buffer is as it was.
    #[inline]
    pub(super) fn close(&self, socket: &Socket) -> bool {
        !self.open.load(Relaxed) || self.close_if_needless(socket)
    }

    #[cold]
    fn close_if_needless(&self, socket: &Socket) -> bool {
        let Some(bulk) = self.bulk else { return true };
        let has_room = queued(socket).is_none_or(|queued| queued < bulk);
        if has_room {
            resize(socket, bulk);
            self.open.store(false, Relaxed);
        }
        has_room
    }
}

/// Gives the buffer a size, as the kernel counts: it doubles what it is told.
fn resize(socket: &Socket, size: usize) -> bool {
    sockopt::set_socket_send_buffer_size_force(socket, size / 2).is_ok()
}

/// Bytes in the buffer, as the kernel counts.
fn queued(socket: &Socket) -> Option<usize> {
    let mut queued: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one `int`, which `queued` is and which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    (result == 0).then_some(queued).and_then(|queued| usize::try_from(queued).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::UdpPort;

    #[test]
    fn the_buffer_is_larger_while_bulk_waits() {
        let port = UdpPort::bind(0).unwrap();
        let size = || port.buffer_sizes().unwrap().0;
        let usual = size();
        port.reserve();
        assert_eq!(size(), usual + RESERVE);
        port.reserve();
        assert_eq!(size(), usual + RESERVE);
        assert!(port.admits_bulk(), "nothing is in it");
        assert_eq!(size(), usual);
    }
}
