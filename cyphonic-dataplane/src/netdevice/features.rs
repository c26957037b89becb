//! What an interface's driver can do for XDP, asked of the kernel without touching the interface (the generic netlink
//! family `netdev`, Linux 6.3; `Documentation/netlink/specs/netdev.yaml`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, socket_with};

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

/// Bytes of a netlink message's own header, and of the generic one behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// The type of an answer that says no.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;

/// What a driver can do. Whether it can do so now, with these settings, only trying tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Run XDP programs that redirect to AF_XDP sockets.
    pub native: bool,
    /// Place packets directly into an AF_XDP socket's memory.
    pub zero_copy: bool,
}

/// What the driver of an interface, in the calling thread's network namespace, can do.
///
/// # Errors
/// There is no such interface, or the kernel is older than 6.3 and does not tell ([`io::ErrorKind::NotFound`]).
pub fn xdp_features(interface: &str) -> io::Result<XdpFeatures> {
    let index = super::index(interface)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))?;
    let family = ask(&socket, CONTROL, GET_FAMILY, FAMILY_NAME, FAMILY)?;
    let family = attribute(&family, FAMILY_ID).and_then(|id| id.first_chunk()).copied();
    let family = u16::from_ne_bytes(family.ok_or(io::ErrorKind::InvalidData)?);
    let device = ask(&socket, family, GET_DEVICE, DEVICE_INDEX, &index.to_ne_bytes())?;
    let features =
        attribute(&device, DEVICE_XDP_FEATURES).and_then(|features| features.first_chunk()).copied();
    let features = u64::from_ne_bytes(features.ok_or(io::ErrorKind::InvalidData)?);
    Ok(XdpFeatures { native: features & NATIVE == NATIVE, zero_copy: features & ZERO_COPY != 0 })
}

/// Asks one question with one attribute. The answer's attributes.
fn ask(socket: &OwnedFd, family: u16, command: u8, name: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let len = 4 + value.len();
    let padded = len.next_multiple_of(4);
    let mut question = Vec::with_capacity(HEADER + GENERIC + padded);
    question.extend_from_slice(&((HEADER + GENERIC + padded) as u32).to_ne_bytes());
    question.extend_from_slice(&family.to_ne_bytes());
    question.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time on a socket of our own needs neither.
    question.extend_from_slice(&[0; 8]);
    question.extend_from_slice(&[command, 1, 0, 0]);
    question.extend_from_slice(&(len as u16).to_ne_bytes());
    question.extend_from_slice(&name.to_ne_bytes());
    question.extend_from_slice(value);
    question.resize(HEADER + GENERIC + padded, 0);
    rustix::net::send(socket, &question, SendFlags::empty())?;
    let mut answer = vec![0; 8192];
    let (received, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(received);
    content(&answer).map(<[u8]>::to_vec)
}

/// The attributes of an answer.
fn content(answer: &[u8]) -> io::Result<&[u8]> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let [l0, l1, l2, l3, t0, t1, ..] = *answer.first_chunk::<HEADER>().ok_or_else(malformed)?;
    let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let body = answer.get(HEADER..len).ok_or_else(malformed)?;
    if u16::from_ne_bytes([t0, t1]) == ERROR {
        let code = i32::from_ne_bytes(*body.first_chunk().ok_or_else(malformed)?);
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    body.get(GENERIC..).ok_or_else(malformed)
}

/// The value of an attribute, if it is there.
fn attribute(mut attributes: &[u8], name: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, n0, n1] = *attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([n0, n1]) == name {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As far as this kernel tells.
    #[test]
    fn loopback_has_no_native_xdp_and_an_unknown_interface_is_an_error() {
        assert!(xdp_features("nosuch0").is_err());
        match xdp_features("lo") {
            Ok(features) => assert_eq!(features, XdpFeatures { native: false, zero_copy: false }),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }

    #[test]
    fn attributes_are_found_behind_others() {
        let attributes = [&[5, 0, 1, 0, 9, 0, 0, 0][..], &[6, 0, 3, 0, 7, 8]].concat();
        assert_eq!(attribute(&attributes, 1), Some(&[9][..]));
        assert_eq!(attribute(&attributes, 3), Some(&[7, 8][..]));
        assert_eq!(attribute(&attributes, 2), None);
    }

    proptest! {
        #[test]
        fn any_answer_ends_without_a_panic(answer: Vec<u8>, name: u16) {
            if let Ok(attributes) = content(&answer) {
                let _ = attribute(attributes, name);
            }
            let _ = attribute(&answer, name);
        }
    }
}
