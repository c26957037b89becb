//! Which interfaces the program goes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::XdpError;
use crate::netdevice::{self, Links, Vlans};

/// An address of each family that no host has, so that only the default route leads there (RFC 1112 §4, RFC
/// 4291 §2.4).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1))];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// One end of a virtual cable: see [`attach`](super::attach).
    pub(super) virtual_cable: bool,
    /// What may keep the program from being behind the driver.
    pub(super) vlans: Vlans,
}

/// Those that were named, or those that lead to the world and have the service's addresses.
pub(super) fn choose(named: Option<&[String]>, addresses: &[IpAddr]) -> Result<Vec<Interface>, XdpError> {
    let links = Links::list().map_err(XdpError::Interfaces)?;
    let names = names(named, &wanted(addresses)).map_err(XdpError::Interfaces)?;
    let mut chosen = Vec::new();
    for name in names {
        match open_up(&name, &links) {
            Some(interface) => chosen.push(interface),
            None if named.is_some() => return Err(XdpError::NoInterface(name)),
            // Gone since its address was listed.
            None => {}
        }
    }
    if chosen.is_empty() { Err(XdpError::NoInterfaces) } else { Ok(chosen) }
}

/// The service's addresses, and those of this host on the ways to the world.
pub(super) fn wanted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let towards = FAR.into_iter().filter_map(|far| source_towards(far).ok());
    addresses.iter().copied().chain(towards).collect()
}

/// Those that were named, whether they are there or not, or those that are there with one of these addresses.
pub(super) fn names(named: Option<&[String]>, wanted: &[IpAddr]) -> io::Result<Vec<String>> {
    if let Some(named) = named {
        return Ok(named.to_vec());
    }
    let with_addresses = getifaddrs()?.filter(|interface| {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|v6| IpAddr::V6(v6.ip()));
        is_usable(interface.flags) && v4.or(v6).is_some_and(|address| wanted.contains(&address))
    });
    let mut names: Vec<_> = with_addresses.map(|interface| interface.interface_name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether it is up and is Ethernet or looks like it.
fn is_usable(flags: InterfaceFlags) -> bool {
    let skipped = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
    flags.contains(InterfaceFlags::IFF_UP) && !flags.intersects(skipped)
}

/// The interface with this name, if the program may go there now.
pub(super) fn open_up(name: &str, links: &Links) -> Option<Interface> {
    let flags = InterfaceFlags::from_bits_truncate(links.flags(name)?.cast_signed());
    if is_usable(flags) { open(name, links) } else { None }
}

/// The interface with this name.
pub(super) fn open(name: &str, links: &Links) -> Option<Interface> {
    let index = links.index(name)?;
    let virtual_cable = driver(name).as_deref() == Some("veth");
    let vlans = links.vlans_above(name).unwrap_or_else(|error| {
        tracing::debug!(%error, interface = name, "no word of VLAN devices");
        Vlans::default()
    });
    Some(Interface { name: name.to_owned(), index, virtual_cable, vlans })
}

/// The driver's name, as the kernel tells it for real hardware and, by the link's kind, for virtual cables.
fn driver(name: &str) -> Option<String> {
    netdevice::driver(name).ok()
}

/// Our own address on the way to `far`. Nothing is sent.
fn source_towards(far: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(far, 9))?;
    Ok(socket.local_addr()?.ip().to_canonical())
}
