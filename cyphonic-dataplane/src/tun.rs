//! The virtual interface as a TUN device with virtio-net headers.
//!
//! With offloads on, the kernel hands over super-packets: up to 64 KiB of one TCP (or UDP) flow under one
//! header, checksum and segmentation left to whoever puts them on a wire. One read or write then moves what
//! would else take fifty.

#![expect(unsafe_code, reason = "TUN devices are configured by ioctl")]

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::gso::VNET_HEADER_LEN;

/// The largest read: a virtio-net header and a full super-packet.
pub(crate) const MAX_READ: usize = VNET_HEADER_LEN + 65_536;

/// Packets that wait for the worker: what applications send in ten milliseconds at 400,000 packets a second,
/// for which another thread may have its processor. The kernel's default, 500, is full after one; packets are
/// then lost that the worker could have taken. The kernel charges what waits to nobody, and drops what finds
/// no place.
const QUEUE_LEN: libc::c_int = 4096;

/// Why the interface could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name does not fit the kernel's limit.
    #[error("{0:?} is not an interface name: 1 to 15 bytes, no '/', no space")]
    BadName(String),
    /// The kernel has no TUN driver, or this process may not use it.
    #[error(
        "cannot open /dev/net/tun: {0} (is the tun module loaded, and does this process have CAP_NET_ADMIN?)"
    )]
    Open(io::Error),
    /// The interface exists and is in use, or making it is not allowed.
    #[error(
        "cannot make the interface {name}: {source} (needs CAP_NET_ADMIN; EBUSY: another process uses it)"
    )]
    Create {
        /// The interface.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A setting was refused.
    #[error("cannot set {what} of {name}: {source}")]
    Configure {
        /// The interface.
        name: String,
        /// Which setting.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// The offloads the kernel granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunOffloads {
    /// TCP super-packets.
    pub tcp: bool,
    /// UDP super-packets (Linux 6.2).
    pub udp: bool,
}

/// A TUN device that is gone when its last handle is dropped.
#[derive(Clone, Debug)]
pub struct TunDevice {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
    offloads: TunOffloads,
}

impl TunDevice {
    /// Makes the interface `name` with `mtu`, in the calling thread's network namespace. Addresses, routes
    /// and bringing it up are the caller's.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub fn create(name: &str, mtu: u16) -> Result<Self, TunError> {
        Self::open(name, mtu, 0)
    }

    /// Makes the interface with several queues, each of which is read and written by a worker of its own.
    /// Which queue a packet of the host goes to is the kernel's guess until [`steer`](Self::steer) says
    /// otherwise. One queue is made as by [`create`](Self::create).
    ///
    /// # Errors
    /// Nothing is left behind.
    pub fn create_queues(name: &str, mtu: u16, queues: usize) -> Result<Vec<Self>, TunError> {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        (0..queues.max(1)).map(|_| Self::open(name, mtu, several)).collect()
    }

    fn open(name: &str, mtu: u16, flags: libc::c_int) -> Result<Self, TunError> {
        let bytes = interface_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(TunError::Open)?;
        let fd = OwnedFd::from(file);
        attach(fd.as_fd(), bytes, flags)
            .map_err(|source| TunError::Create { name: name.to_owned(), source })?;
        let configure = |what, source| TunError::Configure { name: name.to_owned(), what, source };
        set_header_len(fd.as_fd()).map_err(|e| configure("the virtio-net header length", e))?;
        let offloads = set_offloads(fd.as_fd()).map_err(|e| configure("the offloads", e))?;
        set_mtu(bytes, mtu).map_err(|e| configure("the MTU", e))?;
        set_queue_len(bytes, QUEUE_LEN).map_err(|e| configure("the queue's length", e))?;
        Ok(Self { fd: Arc::new(fd), name: name.into(), offloads })
    }

    /// Has a loaded socket filter program choose the queue of each packet: its result modulo their number.
    ///
    /// # Errors
    /// The kernel refused (it can since Linux 4.16).
    pub(crate) fn steer(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let program = program.as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one `int`, which `program` is and which outlives the call.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel granted.
    #[must_use]
    pub const fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Reads one packet with its virtio-net header. `WouldBlock` when there is none.
    pub(crate) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&*self.fd, buf)?)
    }

    /// Writes one packet from parts, the first of which is its virtio-net header.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(&*self.fd, parts)?)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `name` as the kernel's zero-terminated field.
fn interface_name(name: &str) -> Result<[libc::c_char; libc::IFNAMSIZ], TunError> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let clean = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
    if !fits || !clean || name == "." || name == ".." {
        return Err(TunError::BadName(name.to_owned()));
    }
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(bytes)
}

fn attach(fd: BorrowedFd<'_>, name: [libc::c_char; libc::IFNAMSIZ], flags: libc::c_int) -> io::Result<()> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, which may be written to, and which
    // outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn set_header_len(fd: BorrowedFd<'_>) -> io::Result<()> {
    let len = VNET_HEADER_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which `len` is and which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Asks for all offloads, then for fewer: a kernel refuses the whole request for one bit it does not know.
fn set_offloads(fd: BorrowedFd<'_>) -> io::Result<TunOffloads> {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let ask = |bits: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
    };
    if ask(TCP | UDP).is_ok() {
        return Ok(TunOffloads { tcp: true, udp: true });
    }
    ask(TCP).map(|()| TunOffloads { tcp: true, udp: false })
}

fn set_mtu(name: [libc::c_char; libc::IFNAMSIZ], mtu: u16) -> io::Result<()> {
    set(name, libc::SIOCSIFMTU, libc::__c_anonymous_ifr_ifru { ifru_mtu: libc::c_int::from(mtu) })
}

/// How many packets wait for a reader, in each of the interface's queues.
fn set_queue_len(name: [libc::c_char; libc::IFNAMSIZ], packets: libc::c_int) -> io::Result<()> {
    // The field has no name of its own in the union; it is an `int` like the MTU.
    set(name, libc::SIOCSIFTXQLEN, libc::__c_anonymous_ifr_ifru { ifru_mtu: packets })
}

fn set(
    name: [libc::c_char; libc::IFNAMSIZ],
    what: libc::Ioctl,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: value };
    // SAFETY: both requests that are made here read one `ifreq`, which `request` is and which outlives the
    // call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw const request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_or_read_as_a_pattern_are_refused() {
        for name in ["", "a-name-of-16-byte", "a/b", "a b", "cyph%d", "..", "a:1"] {
            assert!(interface_name(name).is_err(), "{name:?}");
        }
        assert!(interface_name("cyph0").is_ok());
    }
}
