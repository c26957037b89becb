//! The sending half of a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use rustix::net::{SendFlags, send};

use super::frame::{Frame, FramePool};
use super::ring::{Consumer, Producer};
use super::umem::Umem;

/// System calls that one [`XskTx::flush`] makes at most: in copy mode each sends up to 32 packets.
const MAX_KICKS: usize = 64;

/// Sends frames. Each comes back by [`XskTx::complete`] once it is out.
#[derive(Debug)]
pub struct XskTx {
    sent: Producer<XdpDesc>,
    completion: Consumer<u64>,
    umem: Umem,
    /// Frames the kernel named that were not its to name.
    strange: u64,
    socket: OwnedFd,
}

impl XskTx {
    pub(super) const fn new(
        socket: OwnedFd,
        umem: Umem,
        sent: Producer<XdpDesc>,
        completion: Consumer<u64>,
    ) -> Self {
        Self { sent, completion, umem, strange: 0, socket }
    }

    /// The memory its frames are in.
    #[must_use]
    pub const fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Queues a packet, which starts with its link-layer header. It leaves with the next [`XskTx::flush`].
    ///
    /// # Errors
    /// The frame again: the ring is full, the packet empty (the kernel would never give such a frame back),
    /// or the frame of another memory.
    #[inline]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        if frame.is_empty() || self.sent.free() == 0 {
            return Err(frame);
        }
        let len = frame.len() as u32;
        let addr = self.umem.lend(frame)?;
        // Cannot fail: there was room, and only this value puts.
        let _ = self.sent.put(XdpDesc { addr, len, options: XdpDescOptions::empty() });
        Ok(())
    }

    /// Packets that can be queued now.
    #[inline]
    pub fn free(&mut self) -> usize {
        self.sent.free() as usize
    }

    /// Packets that the kernel has not looked at yet.
    pub fn pending(&mut self) -> usize {
        self.sent.pending() as usize
    }

    /// Has the kernel send what was queued. True if all of it has left our ring; otherwise the kernel's own
    /// queue is full, and the rest leaves with a later call, best after [`XskTx::complete`].
    ///
    /// # Errors
    /// The interface is down or gone. What was queued stays queued.
    #[inline]
    pub fn flush(&mut self) -> io::Result<bool> {
        self.sent.publish();
        for _ in 0..MAX_KICKS {
            if self.sent.pending() == 0 {
                return Ok(true);
            }
            if !self.sent.needs_wakeup() {
                // The driver is at it by itself.
                return Ok(true);
            }
            match send(&self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) => {}
                // In copy mode: "32 sent, there are more".
                Err(Errno::AGAIN) => {}
                Err(error) => return unless_later(error).map(|()| false),
            }
        }
        Ok(self.sent.pending() == 0)
    }

    /// Takes back frames that were sent. Returns how many.
    #[inline]
    pub fn complete(&mut self, pool: &mut FramePool) -> usize {
        let mut done = 0;
        while let Some(address) = self.completion.take() {
            match self.umem.take_back(address, 0) {
                Some(frame) => pool.put(frame),
                None => self.strange += 1,
            }
            done += 1;
        }
        if done != 0 {
            self.completion.release();
        }
        done
    }

    /// Frames that the kernel named but did not have: always 0, or the kernel has a bug. They were not
    /// touched.
    #[must_use]
    pub const fn strange(&self) -> u64 {
        self.strange
    }
}

impl AsFd for XskTx {
    /// Writable when the ring has room again. Waiting on it sends too.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What only says "not now" is no error.
pub(super) fn unless_later(error: Errno) -> io::Result<()> {
    match error {
        Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR => Ok(()),
        error => Err(error.into()),
    }
}
