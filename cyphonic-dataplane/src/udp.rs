//! The node's one UDP port, which carries signalling and tunnel data alike.
//!
//! [`UdpPort`] is a dual-stack socket (IPv4 alone where the host has no IPv6) that never fragments, sends
//! many segments with one system call (UDP_SEGMENT), receives many with one (UDP_GRO, recvmmsg), and carries
//! ECN and the local address both ways. Its receive loop belongs to one worker thread; any thread may send.
//! What arrives and is not the worker's goes to a [`SignallingSink`].
//!
//! Where the host has IPv6 alone and its network a translator to IPv4 (NAT64), the port can be told of it
//! ([`UdpPort::set_nat64`]): IPv4 is then reached, and heard of, through it. Whoever misleads the host about
//! the translator misdirects datagrams, as any router on the way can: what is in them is authenticated end to
//! end.
//!
//! **Invariants.** Addresses in this API are canonical: IPv4 is `V4`, never `::ffff:…` nor within a
//! translator's prefix that the port knows. A [`Message`] has at least one
//! byte and a stride of at least one.

mod batch;
mod group;
mod pinned;
mod port;
mod reserve;
mod segmentation;
mod sends;
#[cfg(test)]
mod tests;
mod translation;

use std::io;
use std::net::{IpAddr, SocketAddr};

pub use batch::{Message, RecvBatch};
use cyphonic_common::DropReason;
pub use group::PortGroup;
pub use port::{BindError, UdpPort, Woken, enlarge_buffers};

/// What to send: one datagram, or several of equal size for one destination.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Where to.
    pub dest: SocketAddr,
    /// The two ECN bits of the outer header.
    pub ecn: Option<u8>,
    /// One datagram, or several back to back.
    pub payload: &'a [u8],
    /// The size of each datagram in `payload`; the last may be shorter. Without it, `payload` is one
    /// datagram.
    pub segment_size: Option<usize>,
    /// The local address to send from, where it matters; ignored if it is not of `dest`'s family, or the
    /// host's no more.
    pub src_ip: Option<IpAddr>,
}

impl<'a> Transmit<'a> {
    /// One datagram with nothing special about it.
    pub fn new(dest: SocketAddr, payload: &'a [u8]) -> Self {
        Self { dest, ecn: None, payload, segment_size: None, src_ip: None }
    }
}

/// Takes the datagrams that are not tunnel data: QUIC connections' packets.
///
/// Called from the port's worker thread for each run of datagrams, so it must neither block nor panic: a sink
/// that is full drops, and counts what it drops.
pub trait SignallingSink: Send + Sync {
    /// `payload` holds datagrams of `stride` bytes each; the last may be shorter.
    fn deliver(
        &self,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<u8>,
        payload: &[u8],
        stride: usize,
    );

    /// One STUN message ([`cyphonic_common::stun::is_stun`]) that came to `local_ip`. False where nobody here
    /// speaks STUN: it is then counted as a datagram that is not the port's.
    fn deliver_stun(&self, _from: SocketAddr, _local_ip: Option<IpAddr>, _datagram: &[u8]) -> bool {
        false
    }
}

/// Takes the STUN messages that come to a port. Called like [`SignallingSink::deliver`], under the same
/// duties.
pub trait StunSink: Send + Sync {
    /// One message from `from` that came to `local_ip`.
    fn deliver(&self, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]);
}

/// Why what the kernel did not send is dropped.
pub(crate) fn drop_reason(error: &io::Error) -> DropReason {
    if error.kind() == io::ErrorKind::WouldBlock {
        DropReason::QueueFull
    } else if error.raw_os_error() == Some(libc::EMSGSIZE) {
        DropReason::TooBig
    } else {
        DropReason::SendFailed
    }
}

/// Whether an error of receiving says nothing against the socket, so that who gets it receives on. Not among them is
/// that nothing is there ([`io::ErrorKind::WouldBlock`]), for which one waits.
///
/// - Refused, reset, host or network unreachable: what an ICMP error left on the socket is told once, and is about a
///   datagram long gone. The kernel leaves it on connected sockets alone, unless others ask for it.
/// - No memory, for the call or for buffers: the next call may find some.
/// - A signal came first.
///
/// All others speak of the socket itself, or of something that nobody has thought of: what they are worth is for
/// the receiver to know.
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::OutOfMemory
            | io::ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// IPv4-mapped IPv6 addresses become IPv4 ones; of an IPv6 address the flow label goes, the scope stays.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => SocketAddr::V6(std::net::SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
        },
    }
}
