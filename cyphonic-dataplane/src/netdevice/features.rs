//! What an interface's driver can do for XDP, asked of the kernel without touching the interface (the generic
//! netlink family `netdev`, Linux 6.3; `Documentation/netlink/specs/netdev.yaml`).

use std::io;

use rustix::net::netlink;

use super::netlink::{Netlink, attribute, push_attribute};

/// The family that knows the other families' numbers.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// The family asked for.
const FAMILY: &[u8] = b"netdev\0";
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// Verdicts, and redirection to sockets.
const NATIVE: u64 = 0b11;
const ZERO_COPY: u64 = 0b1000;
/// `NETDEV_XDP_ACT_REDIRECT` and `NETDEV_XDP_ACT_NDO_XMIT`.
const REDIRECT: u64 = 0b10;
const TRANSMIT: u64 = 0b100;

/// Bytes of generic netlink's own header: command, version, two that are reserved.
const GENERIC: usize = 4;

/// What a driver can do. Whether it can do so now, with these settings, only trying tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Run XDP programs that redirect to AF_XDP sockets.
    pub native: bool,
    /// Place packets directly into an AF_XDP socket's memory.
    pub zero_copy: bool,
}

/// What a driver does with frames that XDP programs redirect, now: many can only once a program is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpRedirection {
    /// It redirects what it received. Otherwise it drops that, silently.
    pub from: bool,
    /// It sends what was redirected to it. Otherwise it drops that, silently.
    pub to: bool,
}

/// What the driver of an interface, in the calling thread's network namespace, can do.
///
/// # Errors
/// There is no such interface, or the kernel is older than 6.3 and does not tell
/// ([`io::ErrorKind::NotFound`]).
pub fn xdp_features(interface: &str) -> io::Result<XdpFeatures> {
    let features = features(super::index(interface)?)?;
    Ok(XdpFeatures { native: features & NATIVE == NATIVE, zero_copy: features & ZERO_COPY != 0 })
}

/// What the driver of the interface with this number does with redirected frames.
///
/// # Errors
/// As [`xdp_features`].
pub(crate) fn xdp_redirection(index: u32) -> io::Result<XdpRedirection> {
    let features = features(index)?;
    Ok(XdpRedirection { from: features & REDIRECT != 0, to: features & TRANSMIT != 0 })
}

/// The bits of `enum netdev_xdp_act`.
fn features(index: u32) -> io::Result<u64> {
    let socket = Netlink::open(Some(netlink::GENERIC))?;
    let family = ask(&socket, CONTROL, GET_FAMILY, FAMILY_NAME, FAMILY)?;
    let family = attribute(&family, FAMILY_ID).and_then(|id| id.first_chunk()).copied();
    let family = u16::from_ne_bytes(family.ok_or(io::ErrorKind::InvalidData)?);
    let device = ask(&socket, family, GET_DEVICE, DEVICE_INDEX, &index.to_ne_bytes())?;
    let features =
        attribute(&device, DEVICE_XDP_FEATURES).and_then(|features| features.first_chunk()).copied();
    Ok(u64::from_ne_bytes(features.ok_or(io::ErrorKind::InvalidData)?))
}

/// Asks one question with one attribute. The answer's attributes.
fn ask(socket: &Netlink, family: u16, command: u8, name: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let mut question = vec![command, 1, 0, 0];
    push_attribute(&mut question, name, value)?;
    let answer = socket.ask(family, &question)?;
    Ok(answer.get(GENERIC..).ok_or(io::ErrorKind::InvalidData)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As far as this kernel tells.
    #[test]
    fn loopback_has_no_native_xdp_and_an_unknown_interface_is_an_error() {
        assert!(xdp_features("nosuch0").is_err());
        match xdp_features("lo") {
            Ok(features) => {
                assert_eq!(features, XdpFeatures { native: false, zero_copy: false });
                let nothing = XdpRedirection { from: false, to: false };
                assert_eq!(xdp_redirection(1).unwrap(), nothing);
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }
}
