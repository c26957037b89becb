//! What a TCP socket that carries datagrams needs of the kernel, beyond what safe interfaces offer.

#![expect(unsafe_code, reason = "the option is set by a system call")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that may wait in the socket unsent before it stops being writable (`TCP_NOTSENT_LOWAT`). What waits
/// further up can still be dropped; what waits in the socket only grows old.
///
/// # Errors
/// The kernel refuses, or it is no TCP socket.
pub fn limit_unsent(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let fd = socket.as_fd();
    let len = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the descriptor is borrowed, hence open, and the kernel reads `len` bytes of a live `u32`, which
    // is what this option takes (tcp(7)).
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_socket_takes_it_and_another_does_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        limit_unsent(&tcp, 131_072).unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(limit_unsent(&udp, 131_072).is_err());
    }
}
