//! What can go wrong with AF_XDP, in words for the person who must act.

use std::io;

use rustix::io::Errno;

/// Why a socket could not be opened. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// No memory for packets.
    #[error("cannot map {bytes} bytes of packet memory: {source}")]
    Memory {
        /// How much.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel has no AF_XDP.
    #[error("this kernel has no AF_XDP sockets ({0}): use Linux 5.11 or later with CONFIG_XDP_SOCKETS")]
    Unsupported(io::Error),
    /// The process lacks privileges.
    #[error(
        "AF_XDP is not permitted to this process ({0}): it needs CAP_NET_RAW, and CAP_NET_ADMIN and CAP_BPF for its program"
    )]
    NotPermitted(io::Error),
    /// The memory may not be pinned.
    #[error(
        "the kernel may not pin {bytes} bytes of packet memory ({source}): raise RLIMIT_MEMLOCK (systemd: \
         LimitMEMLOCK=infinity) or give CAP_IPC_LOCK"
    )]
    Locked {
        /// How much.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// The driver cannot place packets directly into packet memory.
    #[error(
        "queue {queue} of {interface} cannot do zero-copy ({source}): its driver does not support it; use copy mode"
    )]
    NoZeroCopy {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// Another socket has the queue.
    #[error("queue {queue} of {interface} is in use by another AF_XDP socket: stop the program that has it")]
    Busy {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
    },
    /// There is no such interface or queue.
    #[error("there is no queue {queue} of an interface {interface} that is up ({source})")]
    NoQueue {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// Ring sizes are powers of two.
    #[error("an AF_XDP ring of {0} entries is impossible: it must be a power of two, up to 32768")]
    RingSize(u32),
    /// The system refused something else.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl XskError {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |error| Self::Io { doing, source: error.into() }
    }

    pub(super) fn from_socket(error: Errno) -> Self {
        match error {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted(error.into()),
            Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Self::Unsupported(error.into()),
            _ => Self::Io { doing: "open an AF_XDP socket", source: error.into() },
        }
    }

    pub(super) fn from_register(bytes: usize, error: Errno) -> Self {
        match error {
            Errno::NOBUFS | Errno::PERM => Self::Locked { bytes, source: error.into() },
            _ => Self::Io { doing: "register packet memory with the kernel", source: error.into() },
        }
    }

    pub(super) fn from_bind(interface: &str, queue: u32, error: Errno) -> Self {
        let (interface, source) = (interface.to_owned(), io::Error::from(error));
        match error {
            Errno::OPNOTSUPP => Self::NoZeroCopy { interface, queue, source },
            Errno::BUSY => Self::Busy { interface, queue },
            Errno::NODEV | Errno::INVAL | Errno::NETDOWN => Self::NoQueue { interface, queue, source },
            Errno::PERM | Errno::ACCESS => Self::NotPermitted(source),
            _ => Self::Io { doing: "bind an AF_XDP socket", source },
        }
    }
}
