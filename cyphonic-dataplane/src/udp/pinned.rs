//! Sends from a local address that the sender names, which may be gone by then.
//!
//! A host that moves loses addresses. The kernel refuses to send from one (EINVAL over IPv4, EINVAL or ENETUNREACH over
//! IPv6), but what was to be sent is as good from any other: the receiver authenticates it, and follows (RFC 9000 §9).
//! quinn-udp takes EINVAL for "this kernel takes no ECN field" and leaves it out from then on. So these sends have a state
//! of their own, made anew after each such refusal: neither they nor all others lose ECN by a move.

use std::io;
use std::sync::{PoisonError, RwLock};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use socket2::Socket;

/// The state of sends from a named address.
#[derive(Debug)]
pub(super) struct PinnedSends(RwLock<UdpSocketState>);

impl PinnedSends {
    pub(super) fn new(socket: &Socket) -> io::Result<Self> {
        Ok(Self(RwLock::new(UdpSocketState::new(UdpSockRef::from(socket))?)))
    }

    /// Sends from `transmit`'s source address while the host has it, else as `unpinned` does.
    pub(super) fn send(
        &self,
        socket: &Socket,
        transmit: &Transmit<'_>,
        unpinned: &UdpSocketState,
    ) -> io::Result<()> {
        let sent = {
            let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
            state.try_send(UdpSockRef::from(socket), transmit)
        };
        match sent {
            Err(error) if may_mean_no_such_source(&error) => self.send_from_any(socket, transmit, unpinned),
            sent => sent,
        }
    }

    #[cold]
    fn send_from_any(
        &self,
        socket: &Socket,
        transmit: &Transmit<'_>,
        unpinned: &UdpSocketState,
    ) -> io::Result<()> {
        if let Ok(fresh) = UdpSocketState::new(UdpSockRef::from(socket)) {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        let transmit = Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        unpinned.try_send(UdpSockRef::from(socket), &transmit)
    }
}

fn may_mean_no_such_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV)
    )
}
