//! Asks an interface for its driver.

#![expect(unsafe_code, reason = "an ioctl that no safe crate has")]

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The name of the driver.
pub(super) fn driver(interface: &str) -> io::Result<String> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut info = DriverInfo { command: GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: it consists of integers and a union of integers and pointers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    // One byte stays zero, to end the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, whose name ends in a zero and whose pointer is to a live `ethtool_drvinfo`,
    // which is what the command in it has the kernel write.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let driver = CStr::from_bytes_until_nul(&info.driver).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(driver.to_string_lossy().into_owned())
}
