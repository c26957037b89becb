//! Waking the sending worker while it waits for its device.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::udp::UdpPort;

/// A flag that a busy worker reads without a system call, and an eventfd that ends an idle one's wait.
#[derive(Debug)]
pub(super) struct Waker {
    called: AtomicBool,
    fd: OwnedFd,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { called: AtomicBool::new(false), fd })
    }

    /// Has the worker look at what it was sent. Call after sending.
    pub(super) fn wake(&self) {
        if !self.called.swap(true, Ordering::AcqRel) {
            // Only fails when the counter is at its limit, and then the worker is woken already.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Whether it was called since the last time. What was sent before the call can be taken now.
    pub(super) fn take(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::AcqRel)
    }

    /// For a wait for several things.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&self.fd, PollFlags::IN)
    }

    /// Takes note of what a wait found about [`poll_fd`](Self::poll_fd).
    pub(super) fn settle(&self, called: PollFlags) {
        if !called.is_empty() {
            let mut count = [0; 8];
            // Emptied here and nowhere else: a call whose message is taken already ends one more wait, no
            // more.
            let _ = rustix::io::read(&self.fd, &mut count);
        }
    }

    /// Waits until the source has what is wanted of it, until there is room in `port`, until called, or for
    /// `timeout`.
    pub(super) fn wait(
        &self,
        source: PollFd<'_>,
        port: Option<&UdpPort>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let room = port.map_or_else(|| self.poll_fd(), |port| PollFd::new(port, PollFlags::OUT));
        let mut fds = [source, self.poll_fd(), room];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [source, called, _] = fds.each_ref().map(PollFd::revents);
        self.settle(called);
        if source.intersects(PollFlags::ERR | PollFlags::NVAL) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the virtual interface is gone"));
        }
        Ok(())
    }
}
