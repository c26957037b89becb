//! The socket itself: binding, sending, receiving, waiting.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::Nat64Prefix;
use cyphonic_common::limits::MAX_UDP4_PAYLOAD;
use quinn_udp::EcnCodepoint;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};

use super::pinned::PinnedSends;
use super::reserve::Reserve;
use super::segmentation::Segmentation;
use super::sends::Sends;
use super::translation::Translation;
use super::{PortGroup, RecvBatch, Transmit, canonical};

/// Bytes wanted for the kernel's buffers, as wireguard-go asks for: seven milliseconds at 10 Gbit/s.
const SOCKET_BUFFER: usize = 7 << 20;

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open UDP port {port}: {source}. {}", advice(.source))]
pub struct BindError {
    /// The port asked for; 0 is any.
    pub port: u16,
    /// What the kernel said.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "Another program has it: choose another port or stop that program",
        io::ErrorKind::PermissionDenied => "Ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "The address is not one of this host's",
        _ => "Check the address and the host's limits on open files",
    }
}

/// Why [`UdpPort::wait`] returned. Neither: the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Woken {
    /// Datagrams can be received.
    pub readable: bool,
    /// Someone called [`UdpPort::wake`].
    pub called: bool,
}

/// A non-blocking UDP socket for all of a node's traffic. See the [module](super).
#[derive(Debug)]
pub struct UdpPort {
    socket: Socket,
    sends: Sends,
    pinned: PinnedSends,
    reserve: Reserve,
    /// Segments per send: see [`UdpPort::send_counted`] for when they drop to one.
    segmentation: Segmentation,
    local: SocketAddr,
    /// Takes IPv6 addresses, and IPv4 ones in mapped form.
    ipv6: bool,
    /// How IPv4 is reached, where it is not by IPv4. One for all sockets of the port.
    translation: Arc<Translation>,
    waker: Arc<OwnedFd>,
    /// The other sockets of the same port, and which of them this is.
    group: Option<(Arc<PortGroup>, usize)>,
}

impl UdpPort {
    /// Opens `port` (0: any) on all addresses of both families, or of IPv4 alone where the host has no IPv6.
    ///
    /// # Errors
    /// The port is taken, or the host refuses.
    pub fn bind(port: u16) -> Result<Self, BindError> {
        match Self::bind_to(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Err(error) if is_without_ipv6(&error.source) => {
                Self::bind_to(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
            }
            result => result,
        }
    }

    /// Opens `port` as [`bind`](Self::bind) does, with a socket for each of several workers. Which of them a
    /// datagram comes to is the kernel's guess until a program is attached. While several share a port,
    /// other programs of the same user could join them (Linux lets no one else).
    ///
    /// # Errors
    /// As [`bind`](Self::bind). No socket stays open then.
    pub fn bind_group(port: u16, sockets: usize) -> Result<Vec<Self>, BindError> {
        if sockets <= 1 {
            return Self::bind(port).map(|port| vec![port]);
        }
        let shared = |address: SocketAddr| {
            Self::open(address, true).map_err(|source| BindError { port: address.port(), source })
        };
        // A port that somebody else has must be refused, also by a user's second program with the same idea.
        drop(Self::bind(port)?);
        let first = match shared(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Err(error) if is_without_ipv6(&error.source) => {
                shared(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?
            }
            result => result?,
        };
        let any: IpAddr =
            if first.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let address = SocketAddr::new(any, first.local_port());
        let mut group = vec![first];
        while group.len() < sockets {
            group.push(shared(address)?);
        }
        let common = Arc::new(PortGroup::new(group.iter().map(|port| Arc::clone(&port.waker))));
        let translation = Arc::<Translation>::default();
        for (worker, port) in group.iter_mut().enumerate() {
            port.translation = Arc::clone(&translation);
            port.group = Some((Arc::clone(&common), worker));
        }
        Ok(group)
    }

    /// Opens one address only. The unspecified IPv6 address means both families.
    ///
    /// # Errors
    /// The port is taken, the address is not the host's, or the host refuses.
    pub fn bind_to(address: SocketAddr) -> Result<Self, BindError> {
        Self::open(address, false).map_err(|source| BindError { port: address.port(), source })
    }

    fn open(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_reuse_port(shared)?;
        if let Err(error) = enlarge_buffers(&socket, SOCKET_BUFFER, SOCKET_BUFFER) {
            tracing::warn!(%error, "the UDP port keeps the kernel's default buffers: expect loss at high rates");
        }
        socket.bind(&address.into())?;
        let sends = Sends::new(&socket)?;
        let pinned = PinnedSends::new(&socket)?;
        let reserve = Reserve::new(&socket);
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let waker = Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let segmentation = Segmentation::new(sends.state().max_gso_segments(), Instant::now());
        Ok(Self {
            socket,
            sends,
            pinned,
            reserve,
            segmentation,
            local: canonical(local),
            ipv6: local.is_ipv6(),
            translation: Arc::default(),
            waker,
            group: None,
        })
    }

    /// The port's number.
    pub fn local_port(&self) -> u16 {
        self.local.port()
    }

    /// The bound address: usually unspecified, with the port's number.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether both families can be reached; otherwise the host has IPv4 only, or one address was bound.
    pub fn is_dual_stack(&self) -> bool {
        self.ipv6 && self.local.ip().is_unspecified()
    }

    /// From now on IPv4 is reached through the translator with this prefix, or natively again. For all
    /// sockets of the port; without effect on one that has no IPv6.
    pub fn set_nat64(&self, prefix: Option<Nat64Prefix>) {
        self.translation.set(prefix.filter(|_| self.ipv6));
    }

    /// The translator's prefix that [`set_nat64`](Self::set_nat64) told the port.
    #[inline]
    pub fn nat64(&self) -> Option<Nat64Prefix> {
        self.translation.get()
    }

    /// The address that datagrams and connections from this host to `dest` are for: within the translator's
    /// prefix for an IPv4 one where the port knows a translator, otherwise `dest`.
    pub fn outward(&self, dest: SocketAddr) -> SocketAddr {
        match self.nat64() {
            Some(prefix) => prefix.outward(dest),
            None => dest,
        }
    }

    /// The address by which this API names `from`: the inverse of [`outward`](Self::outward).
    pub fn inward(&self, from: SocketAddr) -> SocketAddr {
        match self.nat64() {
            Some(prefix) => prefix.inward(canonical(from)),
            None => canonical(from),
        }
    }

    /// Segments that one send may have. One for a while after the kernel or the network card refused
    /// segmentation.
    pub fn max_gso_segments(&self) -> usize {
        self.segmentation.segments(Instant::now)
    }

    /// Whether the kernel might fragment what is sent, because it cannot be told not to.
    pub fn may_fragment(&self) -> bool {
        self.sends.state().may_fragment()
    }

    /// The kernel's send and receive buffers, in bytes, as it counts them.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn buffer_sizes(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.send_buffer_size()?, self.socket.recv_buffer_size()?))
    }

    /// Receives what is there, without waiting. Returns how many messages; [`RecvBatch::messages_mut`] has
    /// them.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there.
    #[inline]
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.translated_by(self.nat64());
        let Some((group, own)) = &self.group else { return batch.receive(self.sends.state(), &self.socket) };
        // They take turns: neither the socket nor the mailbox keeps the other waiting.
        let sockets_turn = batch.is_handed_on();
        if !sockets_turn {
            let handed_on = batch.collect(group, *own);
            if handed_on > 0 {
                return Ok(handed_on);
            }
        }
        match batch.receive(self.sends.state(), &self.socket) {
            Ok(received) => {
                batch.sort(group, *own);
                Ok(received)
            }
            Err(error) if sockets_turn && error.kind() == io::ErrorKind::WouldBlock => {
                match batch.collect(group, *own) {
                    0 => Err(error),
                    handed_on => Ok(handed_on),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// What the sockets of one port share, where there are several.
    pub fn group(&self) -> Option<&Arc<PortGroup>> {
        self.group.as_ref().map(|(group, _)| group)
    }

    /// Sends, without waiting. Any number of segments may be given: they go out in as few system calls as the
    /// kernel takes, down to one each where segmentation is refused.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the socket's buffer is full, `EMSGSIZE` when a segment is larger
    /// than the interface carries, others as the kernel says. Segments before the refused one were sent,
    /// those after were not.
    #[inline]
    pub fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send_counted(transmit).1
    }

    /// [`send`](Self::send), which also says how many of the payload's bytes went out before an error.
    pub fn send_counted(&self, transmit: &Transmit<'_>) -> (usize, io::Result<()>) {
        let dest = match self.wire_address(transmit.dest) {
            Ok(dest) => dest,
            Err(error) => return (0, Err(error)),
        };
        let segment = transmit.segment_size.unwrap_or(transmit.payload.len()).max(1);
        let mut sent = 0;
        while sent < transmit.payload.len() {
            let rest = &transmit.payload[sent..];
            let chunk = &rest[..rest.len().min(self.gso_bytes(segment))];
            match self.send_chunk(dest, transmit, chunk, segment) {
                Ok(()) => sent += chunk.len(),
                // Kernels before 6.14 give one answer to "no segmentation here" and to "a segment is too
                // large for the interface". A single segment tells which it was; only the
                // former lasts.
                Err(error) if chunk.len() > segment && may_mean_no_segmentation(&error) => {
                    match self.send_chunk(dest, transmit, &chunk[..segment], segment) {
                        Ok(()) => sent += segment,
                        Err(error) => return (sent, Err(error)),
                    }
                    self.segmentation.refused(Instant::now());
                }
                Err(error) => return (sent, Err(error)),
            }
        }
        (sent, Ok(()))
    }

    fn send_chunk(
        &self,
        destination: SocketAddr,
        transmit: &Transmit<'_>,
        contents: &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination,
            ecn: transmit.ecn.and_then(EcnCodepoint::from_bits),
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: transmit.src_ip.filter(|ip| ip.is_ipv4() == destination.ip().to_canonical().is_ipv4()),
        };
        match transmit.src_ip {
            None => self.sends.send(&self.socket, &transmit),
            Some(_) => self.pinned.send(&self.socket, &transmit, &self.sends),
        }
    }

    /// Bytes that one system call may take: whole segments, or a single one of any size.
    fn gso_bytes(&self, segment: usize) -> usize {
        let segments = self.max_gso_segments().min(MAX_UDP4_PAYLOAD / segment).max(1);
        segments * segment
    }

    /// IPv4 destinations in the form the socket takes.
    #[inline]
    fn wire_address(&self, dest: SocketAddr) -> io::Result<SocketAddr> {
        match (self.ipv6, dest) {
            (true, SocketAddr::V4(v4)) => {
                let mapped = |ip: Ipv4Addr| SocketAddr::from((ip.to_ipv6_mapped(), v4.port()));
                match self.nat64().map(|prefix| prefix.outward(dest)) {
                    None | Some(SocketAddr::V4(_)) => Ok(mapped(*v4.ip())),
                    Some(translated) => Ok(translated),
                }
            }
            (false, SocketAddr::V6(_)) => {
                Err(io::Error::new(io::ErrorKind::NetworkUnreachable, "this port is open on IPv4 only"))
            }
            (true, SocketAddr::V6(_)) | (false, SocketAddr::V4(_)) => Ok(dest),
        }
    }

    /// Waits until datagrams can be received, until [`wake`](Self::wake) is called, or for `timeout`.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Woken> {
        self.wait_beside(&mut [None, None, None], false, timeout)
    }

    /// [`wait`](Self::wait), which each of `others` ends as well, and room in the socket's buffer if that is
    /// waited for; the others then say what became of them.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn wait_beside<'fd>(
        &'fd self,
        others: &mut [Option<PollFd<'fd>>; 3],
        room: bool,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        let wanted = if room { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let (socket, waker) = (PollFd::new(&self.socket, wanted), PollFd::new(&*self.waker, PollFlags::IN));
        let nothing = || PollFd::new(&self.socket, PollFlags::empty());
        let mut fds = [socket, waker, nothing(), nothing(), nothing()];
        let mut used = 2;
        for (fd, other) in fds.iter_mut().skip(used).zip(others.iter().flatten()) {
            *fd = other.clone();
            used += 1;
        }
        poll(&mut fds[..used], timeout)?;
        let [socket, waker, polled @ ..] = fds;
        let readable = !socket.revents().difference(PollFlags::OUT).is_empty();
        let woken = Woken { readable, called: !waker.revents().is_empty() };
        if woken.called {
            let mut count = [0; 8];
            // Only fails if another waiter was faster.
            let _ = rustix::io::read(&*self.waker, &mut count);
        }
        others.iter_mut().flatten().zip(polled).for_each(|(other, polled)| *other = polled);
        Ok(woken)
    }

    /// The caller, who sends in bulk and found no room, leaves some to others until the port
    /// [admits](Self::admits_bulk) bulk again.
    pub(crate) fn reserve(&self) {
        self.reserve.open(&self.socket);
    }

    /// Whether who [left room to others](Self::reserve) may send again; if so, no more room is left to them.
    #[inline]
    pub(crate) fn admits_bulk(&self) -> bool {
        self.reserve.close(&self.socket)
    }

    /// Waits until the socket's buffer has room again, or for `timeout`. True if it has.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn wait_writable(&self, timeout: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        poll(&mut fds, Some(timeout))?;
        Ok(!fds[0].revents().is_empty())
    }

    /// Ends the current [`wait`](Self::wait), or else the next one.
    pub fn wake(&self) {
        // Only fails when the counter is at its limit, and then the waiter is woken already.
        let _ = rustix::io::write(&*self.waker, &1u64.to_ne_bytes());
    }

    /// The local address from which the kernel would send to `dest` now: an IPv6 one for an IPv4 destination
    /// that is reached through a translator.
    ///
    /// # Errors
    /// There is no route.
    pub fn source_for(&self, dest: SocketAddr) -> io::Result<IpAddr> {
        Self::native_source_for(self.outward(dest))
    }

    /// The local address from which this host's kernel would send to `dest` now, without any translator.
    ///
    /// # Errors
    /// There is no route.
    pub fn native_source_for(dest: SocketAddr) -> io::Result<IpAddr> {
        let any: IpAddr = match dest {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let probe = std::net::UdpSocket::bind((any, 0))?;
        probe.connect(dest)?;
        Ok(probe.local_addr()?.ip().to_canonical())
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What the kernel says when the way out cannot segment: no checksum offload, IPsec, some drivers.
fn may_mean_no_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// The errors of a host whose kernel has no IPv6, or has it switched off.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EADDRNOTAVAIL | libc::ENOPROTOOPT)
    )
}

/// Has the kernel keep so many bytes for a socket of what it receives and sends, beyond the system's limits where we
/// may (CAP_NET_ADMIN), up to them otherwise. Small buffers are slow, not wrong.
///
/// # Errors
/// One of them stays as it is.
pub fn enlarge_buffers(socket: &impl AsFd, received: usize, sent: usize) -> io::Result<()> {
    use rustix::net::sockopt;
    let receives = sockopt::set_socket_recv_buffer_size_force(socket, received)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, received));
    let sends = sockopt::set_socket_send_buffer_size_force(socket, sent)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, sent));
    Ok(receives.and(sends)?)
}

/// `poll`, again after a signal: the time-out may then be longer, which no caller minds.
fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    loop {
        match rustix::event::poll(fds, timeout.as_ref()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
