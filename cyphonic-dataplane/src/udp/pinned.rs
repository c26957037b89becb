//! Sends from a local address that the sender names, which may be gone by then.
//!
//! A host that moves loses addresses. The kernel refuses to send from one (EINVAL over IPv4, EINVAL or
//! ENETUNREACH over IPv6), but what was to be sent is as good from any other: the receiver authenticates it,
//! and follows (RFC 9000 §9). These refusals are frequent while a host moves, so that these sends have a
//! state of their own.

use std::io;

use quinn_udp::Transmit;
use socket2::Socket;

use super::sends::Sends;

/// The state of sends from a named address.
#[derive(Debug)]
pub(super) struct PinnedSends(Sends);

impl PinnedSends {
    pub(super) fn new(socket: &Socket) -> io::Result<Self> {
        Ok(Self(Sends::new(socket)?))
    }

    /// Sends from `transmit`'s source address while the host has it, else as `unpinned` does.
    pub(super) fn send(&self, socket: &Socket, transmit: &Transmit<'_>, unpinned: &Sends) -> io::Result<()> {
        match self.0.send(socket, transmit) {
            Err(error) if may_mean_no_such_source(&error) => send_from_any(socket, transmit, unpinned),
            sent => sent,
        }
    }
}

#[cold]
fn send_from_any(socket: &Socket, transmit: &Transmit<'_>, unpinned: &Sends) -> io::Result<()> {
    let transmit = Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        contents: transmit.contents,
        segment_size: transmit.segment_size,
        src_ip: None,
    };
    unpinned.send(socket, &transmit)
}

fn may_mean_no_such_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV)
    )
}
