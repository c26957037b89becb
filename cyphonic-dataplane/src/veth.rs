//! Settings of a veth pair that only an ioctl reaches.

#![expect(unsafe_code, reason = "network devices are configured by ioctl")]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `ETHTOOL_STXCSUM` of `linux/ethtool.h`.
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Has the kernel complete the checksums of packets before they leave through `interface`, and with that cut them to
/// the interface's MTU: at the other end of a veth pair, an AF_XDP socket finds no one who would do it later.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn complete_checksums(interface: &str) -> io::Result<()> {
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    // Any socket will do.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut value = EthtoolValue { command: SET_TX_CHECKSUM, data: 0 };
    let data = (&raw mut value).cast::<c_char>();
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: SIOCETHTOOL reads one `ifreq`, whose name ends in a zero and whose pointer is to an `ethtool_value`, which
    // this command reads; both outlive the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(complete_checksums("nosuch0").is_err());
        assert!(complete_checksums("").is_err() && complete_checksums("a-name-of-16-byte").is_err());
    }
}
