//! Sockets on a queue of an interface.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::error::XskError;
use super::ring::{Consumer, Producer};
use super::rx::XskRx;
use super::tx::XskTx;
use super::umem::Umem;

/// Bytes of packets on their way out in copy mode, beyond which the kernel takes no more: two full rings.
const SEND_BUFFER: usize = 8 << 20;

/// Whether the driver places packets directly into packet memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyMode {
    /// Zero-copy where the driver can, else copy.
    #[default]
    Auto,
    /// Zero-copy or an error.
    ZeroCopy,
    /// The kernel copies every packet.
    Copy,
}

/// What a pair of sockets is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XskConfig {
    /// Entries of each ring: a power of two.
    pub ring_size: u32,
    /// Copy or zero-copy.
    pub mode: CopyMode,
}

impl Default for XskConfig {
    fn default() -> Self {
        Self { ring_size: 1024, mode: CopyMode::Auto }
    }
}

/// One queue of an interface, open in both directions.
///
/// The halves share nothing in userspace, so each may live in its own thread. They are two sockets of the
/// kernel's on the same memory: `poll` on a socket that can send also sends, under a lock, and so would slow
/// both directions.
#[derive(Debug)]
pub struct Xsk {
    /// What arrives. Put [`XskRx`]'s descriptor into the program's map of sockets.
    pub rx: XskRx,
    /// What is sent.
    pub tx: XskTx,
    /// Whether it is zero-copy.
    pub zero_copy: bool,
}

impl Xsk {
    /// Opens `queue` of the interface, in the calling thread's network namespace. The queue's program must be
    /// attached already where zero-copy is wanted: some drivers decide by it.
    ///
    /// Several queues, also of several interfaces, may be opened on the same memory; then all are zero-copy
    /// or none, as the first was.
    ///
    /// # Errors
    /// [`XskError`], whose text says what to do.
    pub fn open(umem: &Umem, interface: &str, queue: u32, config: XskConfig) -> Result<Self, XskError> {
        let size = config.ring_size;
        if !size.is_power_of_two() || size > 1 << 15 {
            return Err(XskError::RingSize(size));
        }
        let index = crate::netdevice::index(interface).map_err(|source| XskError::NoQueue {
            interface: interface.to_owned(),
            queue,
            source,
        })?;
        crate::memlock::raise_limit();
        // Held until the memory is known to the kernel by a socket that is bound.
        let mut first = umem.first();
        let receiving = socket()?;
        if first.is_none() {
            let bytes = umem.frames() * umem.frame_size();
            umem.register(receiving.as_fd()).map_err(|error| XskError::from_register(bytes, error))?;
        }
        let sized = XskError::io("size the rings of an AF_XDP socket");
        set_sizes(&receiving, size).map_err(sized)?;
        let offsets = sockopt::xdp_mmap_offsets(&receiving).map_err(XskError::io("locate AF_XDP rings"))?;
        let fd = receiving.as_fd();
        let fill = Producer::map(fd, &offsets.fr, XDP_UMEM_PGOFF_FILL_RING, size)?;
        let completion = Consumer::map(fd, &offsets.cr, XDP_UMEM_PGOFF_COMPLETION_RING, size)?;
        let received = Consumer::map(fd, &offsets.rx, XDP_PGOFF_RX_RING, size)?;

        let refused = |error| XskError::from_bind(interface, queue, error);
        match first.as_ref() {
            None => bind_first(&receiving, index, queue, config.mode).map_err(refused)?,
            Some(first) => bind_shared(&receiving, index, queue, first.as_fd()).map_err(refused)?,
        }
        let options = sockopt::xdp_options(&receiving).map_err(XskError::io("ask for AF_XDP options"))?;

        let sending = socket()?;
        sockopt::set_xdp_tx_ring_size(&sending, size)
            .map_err(XskError::io("size an AF_XDP transmit ring"))?;
        let offsets = sockopt::xdp_mmap_offsets(&sending).map_err(XskError::io("locate AF_XDP rings"))?;
        let sent = Producer::map(sending.as_fd(), &offsets.tx, XDP_PGOFF_TX_RING, size)?;
        bind_shared(&sending, index, queue, receiving.as_fd()).map_err(refused)?;
        enlarge_send_buffer(&sending);
        if first.is_none() {
            *first = Some(
                receiving.try_clone().map_err(|source| XskError::Io { doing: "keep a socket", source })?,
            );
        }
        drop(first);
        let rx = XskRx::new(receiving, umem.clone(), received, fill);
        rx.check_wakeups()?;
        Ok(Self {
            rx,
            tx: XskTx::new(sending, umem.clone(), sent, completion),
            zero_copy: options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY),
        })
    }
}

fn socket() -> Result<OwnedFd, XskError> {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(XskError::from_socket)
}

fn set_sizes(socket: &OwnedFd, size: u32) -> rustix::io::Result<()> {
    sockopt::set_xdp_umem_fill_ring_size(socket, size)?;
    sockopt::set_xdp_umem_completion_ring_size(socket, size)?;
    sockopt::set_xdp_rx_ring_size(socket, size)
}

fn bind_first(socket: &OwnedFd, index: u32, queue: u32, mode: CopyMode) -> rustix::io::Result<()> {
    let mode = match mode {
        // Without either flag the kernel tries zero-copy and falls back by itself.
        CopyMode::Auto => SocketAddrXdpFlags::empty(),
        CopyMode::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
        CopyMode::Copy => SocketAddrXdpFlags::XDP_COPY,
    };
    let flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    bind(socket, &SocketAddrXdp::new(flags, index, queue))
}

/// Mode and need-wakeup are inherited from the socket shared with.
fn bind_shared(socket: &OwnedFd, index: u32, queue: u32, with: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, index, queue);
    bind(socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: with })
}

/// Small ones are slow, not wrong.
fn enlarge_send_buffer(socket: &OwnedFd) {
    let result = sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER));
    if let Err(error) = result {
        tracing::debug!(%error, "an AF_XDP socket keeps the kernel's default send buffer");
    }
}
