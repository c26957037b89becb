//! Which interfaces the program goes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use super::XdpError;
use crate::netdevice::{self, Vlans};

/// An address of each family that no host has, so that only the default route leads there (RFC 1112 §4, RFC 4291 §2.4).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1))];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// One end of a virtual cable: see [`Attacher`](super::attach::Attacher).
    pub(super) virtual_cable: bool,
    /// What may keep the program from being behind the driver.
    pub(super) vlans: Vlans,
}

/// Those that were named, or those that lead to the world and have the service's addresses.
pub(super) fn choose(named: Option<&[String]>, addresses: &[IpAddr]) -> Result<Vec<Interface>, XdpError> {
    let chosen = present(named, addresses).map_err(XdpError::Interfaces)?;
    let missing =
        named.unwrap_or_default().iter().find(|name| chosen.iter().all(|there| there.name != **name));
    match missing {
        Some(missing) => Err(XdpError::NoInterface(missing.clone())),
        None if chosen.is_empty() => Err(XdpError::NoInterfaces),
        None => Ok(chosen),
    }
}

/// As many of them as there are now.
pub(super) fn present(named: Option<&[String]>, addresses: &[IpAddr]) -> io::Result<Vec<Interface>> {
    let present = list()?;
    if let Some(named) = named {
        let is_there = |name: &&String| present.iter().any(|(there, _)| there == *name);
        return Ok(named.iter().filter(is_there).filter_map(|name| open(name)).collect());
    }
    let mut wanted: Vec<IpAddr> = addresses.to_vec();
    wanted.extend(FAR.into_iter().filter_map(|far| source_towards(far).ok()));
    let mut names: Vec<&String> =
        present.iter().filter(|(_, ip)| wanted.contains(ip)).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    Ok(names.into_iter().filter_map(|name| open(name)).collect())
}

/// Names and addresses of all interfaces that are up and are Ethernet or look like it. An interface without an address
/// stands here with the unspecified one.
fn list() -> io::Result<Vec<(String, IpAddr)>> {
    let skipped = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
    let all = getifaddrs()?.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.intersects(skipped)
    });
    Ok(all
        .map(|interface| {
            let address = interface.address.as_ref();
            let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|v4| IpAddr::V4(v4.ip()));
            let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|v6| IpAddr::V6(v6.ip()));
            (interface.interface_name, v4.or(v6).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
        })
        .collect())
}

/// The interface with this name.
pub(super) fn open(name: &str) -> Option<Interface> {
    let index = if_nametoindex(name).ok()?;
    let virtual_cable = driver(name).as_deref() == Some("veth");
    let vlans = netdevice::vlans_above(name).unwrap_or_else(|error| {
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
