//! What network interfaces are asked and told: by ioctl here; what their drivers can do ([`xdp_features`]),
//! which XDP programs are on them ([`xdp_programs`]), which there are and which VLAN devices above them
//! ([`Links`]), by netlink.

#![expect(unsafe_code, reason = "network devices are configured by ioctl")]

mod features;
mod link;
pub(crate) mod netlink;
mod programs;
mod vlans;

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

pub(crate) use features::xdp_redirection;
pub use features::{XdpFeatures, XdpRedirection, xdp_features};
pub use link::Links;
pub use programs::{XdpPrograms, xdp_programs};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
pub use vlans::Vlans;

/// `ETHTOOL_STXCSUM` of `linux/ethtool.h`.
const SET_TX_CHECKSUM: u32 = 0x17;
/// `ETHTOOL_GFLAGS`, and of its flags `ETH_FLAG_RXVLAN`.
const GET_FLAGS: u32 = 0x25;
const RECEIVE_VLAN: u32 = 1 << 8;
/// `ETHTOOL_GCHANNELS`.
const GET_CHANNELS: u32 = 0x3c;

/// `ETHTOOL_GDRVINFO`.
const GET_DRIVER: u32 = 3;

/// What a command of ethtool's reads and writes: it starts with the command's number, and any bytes are a
/// valid value.
trait Ethtool {}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Ethtool for Value {}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct Driver {
    command: u32,
    name: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<Driver>() == 196);

impl Ethtool for Driver {}

/// `struct ethtool_channels`, whose maxima are of no interest here.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    receiving: u32,
    sending: u32,
    other: u32,
    combined: u32,
}

impl Ethtool for Channels {}

/// Has the kernel complete the checksums of packets before they leave through `interface`, and with that cut
/// them to the interface's MTU: at the other end of a veth pair, an AF_XDP socket finds no one who would do
/// it later.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn complete_checksums(interface: &str) -> io::Result<()> {
    ethtool(interface, &mut Value { command: SET_TX_CHECKSUM, data: 0 })
}

/// The kernel's number for the interface, in the calling thread's network namespace.
///
/// # Errors
/// There is no such interface.
pub(crate) fn index(interface: &str) -> io::Result<u32> {
    let socket = any_socket()?;
    Ok(rustix::net::netdevice::name_to_index(&socket, interface)?)
}

/// The interface with this number, in the calling thread's network namespace.
///
/// # Errors
/// There is no such interface.
pub fn name(index: u32) -> io::Result<String> {
    let socket = any_socket()?;
    Ok(rustix::net::netdevice::index_to_name(&socket, index)?)
}

/// The receive queues that are in use: one where the driver does not say.
///
/// # Errors
/// There is no such interface.
pub(crate) fn receive_queues(interface: &str) -> io::Result<u32> {
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    match ethtool(interface, &mut channels) {
        Ok(()) => Ok(channels.receiving.saturating_add(channels.combined).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error),
    }
}

/// The name of the interface's driver: for virtual ones, their kind.
///
/// # Errors
/// There is no such interface, or it does not say.
pub fn driver(interface: &str) -> io::Result<String> {
    let mut driver = Driver { command: GET_DRIVER, name: [0; 32], rest: [0; 160] };
    ethtool(interface, &mut driver)?;
    let name = CStr::from_bytes_until_nul(&driver.name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Whether the interface's driver takes VLAN tags off the frames that it receives.
fn takes_vlan_tags_off(interface: &str) -> io::Result<bool> {
    let mut flags = Value { command: GET_FLAGS, data: 0 };
    match ethtool(interface, &mut flags) {
        Ok(()) => Ok(flags.data & RECEIVE_VLAN != 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The largest packet that the interface carries.
///
/// # Errors
/// There is no such interface.
pub(crate) fn mtu(interface: &str) -> io::Result<usize> {
    let mut request = request_for(interface)?;
    // SAFETY: SIOCGIFMTU reads the zero-terminated name and writes a number into the `ifreq` it is given,
    // which is live and ours alone.
    let answer = unsafe {
        ioctl(libc::SIOCGIFMTU, &mut request)?;
        request.ifr_ifru.ifru_mtu
    };
    usize::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The interface's own link-layer address.
///
/// # Errors
/// There is no such interface, or it is no Ethernet device.
pub(crate) fn link_address(interface: &str) -> io::Result<[u8; 6]> {
    let mut request = request_for(interface)?;
    // SAFETY: SIOCGIFHWADDR reads the zero-terminated name and writes an address into the `ifreq` it is
    // given, which is live and ours alone; so this variant of the union is filled, and any bytes are a
    // valid value of it.
    let address = unsafe {
        ioctl(libc::SIOCGIFHWADDR, &mut request)?;
        request.ifr_ifru.ifru_hwaddr
    };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut bytes = [0; 6];
    for (to, from) in bytes.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(bytes)
}

fn ethtool<T: Ethtool>(interface: &str, command: &mut T) -> io::Result<()> {
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast::<c_char>();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, whose name ends in a zero and whose pointer is to what the
    // command in it has the kernel read and write (that is what `Ethtool` promises); both outlive the
    // call.
    unsafe { ioctl(libc::SIOCETHTOOL, &mut request) }
}

/// A question about an interface.
fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    // One byte stays zero, to end the name.
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed() as c_char;
    }
    Ok(request)
}

/// # Safety
/// What the request reads and writes through the `ifreq` must be there.
unsafe fn ioctl(number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = any_socket()?;
    // SAFETY: the descriptor is open, the request is about one `ifreq`, which is live, and the caller vouches
    // for the rest.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number as _, std::ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(complete_checksums("nosuch0").is_err());
        assert!(complete_checksums("").is_err() && complete_checksums("a-name-of-16-byte").is_err());
        assert!(receive_queues("nosuch0").is_err() && mtu("nosuch0").is_err());
        assert!(link_address("nosuch0").is_err());
    }

    #[test]
    fn loopback_is_no_ethernet_and_says_so() {
        assert_eq!(link_address("lo").unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert_eq!((mtu("lo").unwrap(), receive_queues("lo").unwrap()), (65_536, 1));
    }
}
