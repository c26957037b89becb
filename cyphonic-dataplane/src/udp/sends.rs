//! Sends whose ECN field outlives a refusal.
//!
//! quinn-udp takes EINVAL for "this kernel takes no ECN field" and leaves it out over IPv4 from then on. But
//! the kernel also answers so where a destination has port 0 or, before Linux 6.14, where segments are larger
//! than the interface carries. So the state that has seen EINVAL is not used again.

use std::io;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use socket2::Socket;

use crate::sync;

/// What quinn-udp knows of a socket. Until the first EINVAL it is read without a lock.
#[derive(Debug)]
pub(super) struct Sends {
    first: UdpSocketState,
    is_first_spoiled: AtomicBool,
    later: RwLock<UdpSocketState>,
}

impl Sends {
    pub(super) fn new(socket: &Socket) -> io::Result<Self> {
        let state = || UdpSocketState::new(UdpSockRef::from(socket));
        Ok(Self { first: state()?, is_first_spoiled: AtomicBool::new(false), later: RwLock::new(state()?) })
    }

    /// The state for everything but sending.
    #[inline]
    pub(super) fn state(&self) -> &UdpSocketState {
        &self.first
    }

    #[inline]
    pub(super) fn send(&self, socket: &Socket, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = if self.is_first_spoiled.load(Ordering::Relaxed) {
            let later = sync::read(&self.later);
            later.try_send(UdpSockRef::from(socket), transmit)
        } else {
            self.first.try_send(UdpSockRef::from(socket), transmit)
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.renew(socket, error),
            sent => sent,
        }
    }

    #[cold]
    fn renew(&self, socket: &Socket, error: io::Error) -> io::Result<()> {
        match UdpSocketState::new(UdpSockRef::from(socket)) {
            Ok(fresh) => *sync::write(&self.later) = fresh,
            Err(error) => {
                tracing::debug!(%error, "the UDP port sends without ECN over IPv4 until it is refused again")
            }
        }
        self.is_first_spoiled.store(true, Ordering::Relaxed);
        Err(error)
    }
}
