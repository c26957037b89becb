//! How many strangers may be at the AS, and from where. Pure.
//!
//! A source is an IPv4 address, or the /64 in which an IPv6 host picks its addresses freely; a /48 has room for four. Those who come through the detour
//! all come from loopback: its own door has counted them by source, so here they are counted together.

use std::net::IpAddr;

use cyphonic_transport::tally::{Tally, network_of};

/// At once. Each may take what a connection's window has room for.
const IN_ALL: usize = 256;
/// Of one source: an enrolment takes moments.
const OF_SOURCE: usize = 16;
/// Of the detour: the other half is for those who come by UDP.
const OF_DETOUR: usize = IN_ALL / 2;

/// The strangers that are there.
#[derive(Debug)]
pub(super) struct Strangers(Tally<IpAddr>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Tally::new(IN_ALL))
    }
}

impl Strangers {
    /// Lets one in, where there is room.
    pub(super) fn enter(&mut self, from: IpAddr) -> bool {
        let (source, most) = source_of(from);
        let room = self.0.has_room(&source, most);
        if room {
            self.0.add(source);
        }
        room
    }

    /// One that was let in has left.
    pub(super) fn leave(&mut self, from: IpAddr) {
        self.0.remove(&source_of(from).0);
    }
}

/// Where a stranger comes from, and how many may come from there.
pub(super) fn source_of(address: IpAddr) -> (IpAddr, usize) {
    let address = address.to_canonical();
    if address.is_loopback() { (address, OF_DETOUR) } else { (network_of(address), OF_SOURCE) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How many more of these are let in.
    fn admitted(strangers: &mut Strangers, from: impl Iterator<Item = IpAddr>) -> usize {
        from.filter(|from| strangers.enter(*from)).count()
    }

    #[test]
    fn one_source_cannot_take_all_the_room() {
        let mut strangers = Strangers::default();
        let same = ["192.0.2.1", "::ffff:192.0.2.1"].map(ip).into_iter().cycle().take(1_000);
        assert_eq!(admitted(&mut strangers, same), OF_SOURCE);
        let network = (0..1_000u16).map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host).into());
        assert_eq!(admitted(&mut strangers, network), OF_SOURCE, "a host has many addresses in its network");
        let local = ["127.0.0.1", "::1"].map(ip).into_iter().flat_map(|from| [from; 1_000]);
        assert_eq!(admitted(&mut strangers, local.take(1_000)), OF_DETOUR);
        assert!(strangers.enter(ip("192.0.2.2")), "others find room");
    }

    #[test]
    fn many_sources_together_are_bounded_and_every_place_is_given_back() {
        let mut strangers = Strangers::default();
        let from = |at: u32| IpAddr::from((0x0a00_0000 + at).to_be_bytes());
        assert_eq!(admitted(&mut strangers, (0..1_000).map(from)), IN_ALL);
        strangers.leave(from(0));
        assert_eq!(admitted(&mut strangers, (1_000..2_000).map(from)), 1);
        (1..=1_000).map(from).for_each(|from| strangers.leave(from));
        assert_eq!(strangers.0.total(), 0);
    }
}
