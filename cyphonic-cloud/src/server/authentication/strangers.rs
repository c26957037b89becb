//! How many strangers may be at the AS, and from where. Pure.
//!
//! A source is an IPv4 address, or the /64 in which an IPv6 host picks its addresses freely; a /48 has room
//! for four. Those who come through detours come from loopback, where each detour has a port. Its own door
//! has counted detours by source, so here each is a source, with room for little, and all have room together.

use std::net::{IpAddr, SocketAddr};

use cyphonic_transport::quota::{Key, Quota, network_of};

/// At once. Each may take what a connection's window has room for.
const IN_ALL: usize = 256;
/// Of one source: an enrolment takes moments.
const OF_SOURCE: usize = 16;
/// Of one detour: its client, and once more where that tries again.
const OF_DETOUR: usize = 2;
/// Of all detours: the other half is for those who come by UDP.
const OF_DETOURS: usize = IN_ALL / 2;

/// Where a stranger comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// All of its addresses.
    Network(IpAddr),
    /// What stands for its client on this host.
    Detour(SocketAddr),
    /// All of those.
    Detours,
}

impl Key for Source {
    fn group(&self) -> Option<Self> {
        match self {
            Self::Network(network) => network.group().map(Self::Network),
            Self::Detour(_) => Some(Self::Detours),
            Self::Detours => None,
        }
    }

    fn most_of_group(&self, most: usize) -> usize {
        match self {
            Self::Network(network) => network.most_of_group(most),
            Self::Detour(_) | Self::Detours => OF_DETOURS,
        }
    }
}

/// The strangers that are there.
#[derive(Debug)]
pub(super) struct Strangers(Quota<Source>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Quota::new(IN_ALL))
    }
}

impl Strangers {
    /// Lets one in, where there is room.
    pub(super) fn enter(&mut self, from: SocketAddr) -> bool {
        let (source, most) = source_of(from);
        let room = self.0.has_room(&source, most);
        if room {
            self.0.add(source);
        }
        room
    }

    /// One that was let in has left.
    pub(super) fn leave(&mut self, from: SocketAddr) {
        self.0.remove(&source_of(from).0);
    }
}

/// Where a stranger comes from, and how many may come from there.
pub(super) fn source_of(from: SocketAddr) -> (Source, usize) {
    match from.ip().to_canonical() {
        ip if ip.is_loopback() => (Source::Detour(SocketAddr::new(ip, from.port())), OF_DETOUR),
        ip => (Source::Network(network_of(ip)), OF_SOURCE),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    /// Each time from another port.
    fn at(text: &str) -> impl Iterator<Item = SocketAddr> {
        let ip: IpAddr = text.parse().unwrap();
        (1..).map(move |port| SocketAddr::new(ip, port))
    }

    /// How many more of these are let in.
    fn admitted(strangers: &mut Strangers, from: impl Iterator<Item = SocketAddr>) -> usize {
        from.filter(|from| strangers.enter(*from)).count()
    }

    #[test]
    fn one_source_cannot_take_all_the_room() {
        let mut strangers = Strangers::default();
        let same = at("192.0.2.1").zip(at("::ffff:192.0.2.1")).flat_map(|(v4, mapped)| [v4, mapped]);
        assert_eq!(admitted(&mut strangers, same.take(1_000)), OF_SOURCE);
        let host = |n: u16| SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n), 1));
        let network = (0..1_000).map(host);
        assert_eq!(admitted(&mut strangers, network), OF_SOURCE, "a host has many addresses in its network");
        assert_eq!(admitted(&mut strangers, at("192.0.2.2").take(1)), 1, "others find room");
    }

    #[test]
    fn one_detour_cannot_take_the_room_of_all() {
        let mut strangers = Strangers::default();
        let one = at("127.0.0.1").next().unwrap();
        assert_eq!(admitted(&mut strangers, [one; 1_000].into_iter()), OF_DETOUR);
        let others = at("127.0.0.1").skip(1).take(16);
        assert_eq!(admitted(&mut strangers, others), 16, "other detours find room");
        let rest = at("127.0.0.1").skip(17).take(1_000);
        assert_eq!(admitted(&mut strangers, rest), OF_DETOURS - OF_DETOUR - 16, "all detours together");
        assert_eq!(admitted(&mut strangers, at("::1").take(1)), 0, "by whichever address");
        assert_eq!(admitted(&mut strangers, at("192.0.2.1").take(1)), 1, "others find room");
    }

    #[test]
    fn many_sources_together_are_bounded_and_every_place_is_given_back() {
        let mut strangers = Strangers::default();
        let from = |at: u32| SocketAddr::from(((0x0a00_0000 + at).to_be_bytes(), 1));
        assert_eq!(admitted(&mut strangers, (0..1_000).map(from)), IN_ALL);
        strangers.leave(from(0));
        assert_eq!(admitted(&mut strangers, (1_000..2_000).map(from)), 1);
        (1..=1_000).map(from).for_each(|from| strangers.leave(from));
        assert_eq!(strangers.0.total(), 0);
    }
}
