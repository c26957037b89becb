//! What rtnetlink tells of an interface (`RTM_GETLINK`, `linux/if_link.h`).

use std::io;

use super::netlink::{Netlink, attribute};

/// `RTM_GETLINK`.
const GET_LINK: u16 = 18;
/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `IFLA_LINKINFO`, and in it the kind.
const LINK_INFO: u16 = 18;
const KIND: u16 = 1;

/// An interface's attributes.
pub(super) fn attributes(index: u32) -> io::Result<Vec<u8>> {
    let mut question = vec![0; LINK_HEADER];
    question.get_mut(4..8).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&index.to_ne_bytes());
    let answer = Netlink::open(None)?.ask(GET_LINK, &question)?;
    Ok(answer.get(LINK_HEADER..).unwrap_or_default().to_vec())
}

/// A number among attributes.
pub(super) fn number(attributes: &[u8], name: u16) -> Option<u32> {
    attribute(attributes, name)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The kind of a device that is made of software; hardware has none.
pub(super) fn kind(attributes: &[u8]) -> Option<&[u8]> {
    let kind = attribute(attribute(attributes, LINK_INFO)?, KIND)?;
    Some(kind.strip_suffix(b"\0").unwrap_or(kind))
}
