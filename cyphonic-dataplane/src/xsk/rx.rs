//! The receiving half of a socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::xdp::XdpDesc;
use rustix::net::{RecvFlags, sockopt};

use super::XskError;
use super::frame::{Frame, FramePool};
use super::ring::{Consumer, Producer};
use super::umem::Umem;

/// Takes what the interface's program redirects to this socket.
///
/// The kernel needs free frames to put packets into ([`XskRx::refill`]); without any it drops packets and
/// counts them.
#[derive(Debug)]
pub struct XskRx {
    received: Consumer<XdpDesc>,
    fill: Producer<u64>,
    umem: Umem,
    /// Frames the kernel named that were not its to name.
    strange: u64,
    // The rings' mappings keep the kernel's half alive by themselves; the descriptor is for waiting and
    // waking.
    socket: OwnedFd,
}

/// What the kernel counts about a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XskStats {
    /// Packets dropped because there was no free frame, or none long enough.
    pub rx_dropped: u64,
    /// Packets dropped because we took too little from the receive ring.
    pub rx_ring_full: u64,
    /// Times the kernel had no free frame.
    pub fill_ring_empty: u64,
    /// Frames that the kernel did not accept for filling.
    pub rx_invalid: u64,
    /// Descriptors that the kernel did not accept for sending.
    pub tx_invalid: u64,
}

impl XskRx {
    pub(super) const fn new(
        socket: OwnedFd,
        umem: Umem,
        received: Consumer<XdpDesc>,
        fill: Producer<u64>,
    ) -> Self {
        Self { received, fill, umem, strange: 0, socket }
    }

    /// The memory its frames are in.
    #[must_use]
    pub const fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Appends received packets to `batch`, as many as fit without allocating. Returns how many.
    #[inline]
    pub fn recv(&mut self, batch: &mut Vec<Frame>) -> usize {
        let before = batch.len();
        while batch.len() < batch.capacity() {
            let Some(entry) = self.received.take() else { break };
            match self.umem.take_back(entry.addr, entry.len) {
                Some(frame) => batch.push(frame),
                None => self.strange += 1,
            }
        }
        self.received.release();
        batch.len() - before
    }

    /// Gives the kernel free frames, as many as its ring takes but for `keep` that stay in the pool. Returns
    /// how many.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool, keep: usize) -> usize {
        let spare = pool.len().saturating_sub(keep);
        let room = self.fill.all_free() as usize;
        let mut given = 0;
        while given < spare.min(room) {
            let Some(frame) = pool.take() else { break };
            match self.umem.lend(frame) {
                // `put` cannot fail: there was room, and only this value puts.
                Ok(address) => _ = self.fill.put(address),
                Err(frame) => {
                    pool.put(frame);
                    break;
                }
            }
            given += 1;
        }
        if given != 0 {
            self.fill.publish();
        }
        given
    }

    /// Packets that can be taken now.
    #[inline]
    pub fn ready(&mut self) -> usize {
        self.received.ready() as usize
    }

    /// Whether the driver sleeps until [`XskRx::wake`], or a `poll`, tells it of new free frames (zero-copy
    /// only).
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Has the driver look for free frames, and packets.
    ///
    /// # Errors
    /// The interface is down or gone.
    pub fn wake(&self) -> io::Result<()> {
        let mut nothing = [0u8; 0];
        match rustix::net::recv(&self.socket, &mut nothing, RecvFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(error) => super::tx::unless_later(error),
        }
    }

    /// Asks once for what [`wake`](Self::wake) will ask for again and again.
    pub(super) fn check_wakeups(&self) -> Result<(), XskError> {
        match self.wake() {
            // Before Linux 5.11 these sockets cannot be received from.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(XskError::Unsupported(error)),
            // An interface that is down is no reason.
            _ => Ok(()),
        }
    }

    /// What the kernel has counted.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn statistics(&self) -> io::Result<XskStats> {
        statistics(&self.socket)
    }

    /// For asking what the kernel has counted from another thread. The socket stays open as long as this
    /// lives.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn watch(&self) -> io::Result<XskWatch> {
        Ok(XskWatch { socket: self.socket.try_clone()? })
    }

    /// Frames that the kernel named but did not have: always 0, or the kernel has a bug. They were not
    /// touched.
    #[must_use]
    pub const fn strange(&self) -> u64 {
        self.strange
    }
}

/// A second look at an [`XskRx`].
#[derive(Debug)]
pub struct XskWatch {
    socket: OwnedFd,
}

impl XskWatch {
    /// What the kernel has counted.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn statistics(&self) -> io::Result<XskStats> {
        statistics(&self.socket)
    }
}

impl AsRawFd for XskWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn statistics(socket: &OwnedFd) -> io::Result<XskStats> {
    let stats = sockopt::xdp_statistics(socket)?;
    Ok(XskStats {
        rx_dropped: stats.rx_dropped,
        rx_ring_full: stats.rx_ring_full.unwrap_or_default(),
        fill_ring_empty: stats.rx_fill_ring_empty_descs.unwrap_or_default(),
        rx_invalid: stats.rx_invalid_descs,
        tx_invalid: stats.tx_invalid_descs,
    })
}

impl XskStats {
    /// Received packets that the kernel dropped itself.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.rx_dropped.saturating_add(self.rx_ring_full)
    }
}

impl AsFd for XskRx {
    /// Readable when there are packets. Waiting on it never sends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for XskRx {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
