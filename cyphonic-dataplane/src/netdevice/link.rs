//! What rtnetlink tells of an interface (`RTM_GETLINK`, `linux/if_link.h`).

use std::io;

use super::netlink::{Netlink, attribute, push_attribute};

/// `RTM_GETLINK`.
const GET_LINK: u16 = 18;
/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `IFLA_LINKINFO`, and in it the kind.
const LINK_INFO: u16 = 18;
const KIND: u16 = 1;
/// `IFLA_IFNAME`.
const NAME: u16 = 3;
/// `IFLA_EXT_MASK`, and of its bits the one that leaves statistics out: half of what is told
/// (`RTEXT_FILTER_SKIP_STATS`).
const EXTENT: u16 = 29;
const WITHOUT_STATISTICS: u32 = 1 << 3;
/// How often a list is asked for again in which something may be missing, since interfaces came or went
/// meanwhile.
const TRIES: usize = 10;

/// The interfaces of a network namespace at one moment.
#[derive(Debug)]
pub struct Links(Vec<Link>);

/// One of them.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    /// `IFF_*`.
    flags: u32,
    pub(super) attributes: Vec<u8>,
}

impl Links {
    /// Those of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel does not tell, or they change too fast.
    pub fn list() -> io::Result<Self> {
        let mut question = vec![0; LINK_HEADER];
        push_attribute(&mut question, EXTENT, &WITHOUT_STATISTICS.to_ne_bytes())?;
        let mut tries = 1..=TRIES;
        loop {
            match Netlink::open(None)?.list(GET_LINK, &question) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries.next().is_some() => {}
                told => return Ok(Self(told?.into_iter().filter_map(Link::read).collect())),
            }
        }
    }

    /// The name of the interface with this number.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.all().find(|link| link.index == index)?.name()
    }

    /// The number of the interface with this name.
    pub fn index(&self, name: &str) -> Option<u32> {
        Some(self.named(name)?.index)
    }

    /// The flags (`IFF_*`) of the interface with this name.
    pub fn flags(&self, name: &str) -> Option<u32> {
        Some(self.named(name)?.flags)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.all().find(|link| link.name() == Some(name))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Link> {
        self.0.iter()
    }
}

impl Link {
    /// `struct ifinfomsg` and attributes.
    fn read(mut told: Vec<u8>) -> Option<Self> {
        let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *told.first_chunk::<LINK_HEADER>()?;
        told.drain(..LINK_HEADER);
        let [index, flags] = [[i0, i1, i2, i3], [f0, f1, f2, f3]].map(u32::from_ne_bytes);
        Some(Self { index, flags, attributes: told })
    }

    pub(super) fn name(&self) -> Option<&str> {
        let name = attribute(&self.attributes, NAME)?;
        str::from_utf8(name.strip_suffix(b"\0").unwrap_or(name)).ok()
    }
}

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
