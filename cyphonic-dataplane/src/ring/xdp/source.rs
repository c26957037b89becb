//! What applications send, out of the far end's socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use cyphonic_common::packet::ethernet::ETHERNET_LEN;

use super::queue::Receiving;
use crate::gso::VnetHeader;
use crate::ring::device::Source;
use crate::xsk::{Frame, FramePool, Umem, XskRx};

/// Packets taken at a time: what stays in the cache while it is sealed.
const BATCH: usize = 64;
/// How soon a ring without traffic notices that its interface is gone: waiting on an AF_XDP socket does not
/// tell.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct XskSource {
    rx: XskRx,
    umem: Umem,
    pool: FramePool,
    /// Received and not read yet, the next one last.
    batch: Vec<Frame>,
    /// What was read last.
    current: Option<Frame>,
}

impl XskSource {
    pub(super) fn new(parts: Receiving) -> Self {
        let Receiving { rx, pool } = parts;
        let umem = rx.umem().clone();
        Self { rx, umem, pool, batch: Vec::with_capacity(BATCH), current: None }
    }

    /// Gives the kernel back what was read, and takes what it has.
    fn next_batch(&mut self) -> io::Result<()> {
        self.rx.refill(&mut self.pool, 0);
        if self.rx.recv(&mut self.batch) == 0 {
            if self.rx.needs_wakeup() {
                self.check()?;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.batch.reverse();
        Ok(())
    }
}

impl Source for XskSource {
    const CHECK_INTERVAL: Option<Duration> = Some(CHECK_INTERVAL);

    #[inline]
    fn read(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>> {
        if let Some(done) = self.current.take() {
            self.pool.put(done);
        }
        if self.batch.is_empty() {
            self.next_batch()?;
        }
        self.current = self.batch.pop();
        let frame = self.current.as_ref().map_or(&[][..], |frame| self.umem.packet(frame));
        // The program has seen to it that it is IPv6 in Ethernet.
        Ok(frame.get(ETHERNET_LEN..).map(|packet| (VnetHeader::PLAIN, packet)))
    }

    fn check(&self) -> io::Result<()> {
        match self.rx.wake() {
            // Down for now.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the virtual interface is gone"))
            }
            other => other,
        }
    }
}

impl AsFd for XskSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rx.as_fd()
    }
}
