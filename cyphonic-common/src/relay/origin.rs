//! Where a packet comes from, and whether a leg is for such packets.
//!
//! In XDP a frame's headers tell it, in userspace the socket does; what a leg demands is the same for both.

use core::net::{IpAddr, SocketAddr};

use super::address::Address;
use super::map::Family;

/// A packet's sender, and the relay's address that it was sent to. The port is as it lies in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// IP version.
    pub family: Family,
    /// The sender's address.
    pub source: Address,
    /// The sender's port.
    pub source_port: u16,
    /// The relay's address. Of a leg, the unspecified one is any.
    pub destination: Address,
}

impl Origin {
    /// From a sender to one of the relay's addresses.
    #[must_use]
    pub fn new(from: SocketAddr, to: Option<IpAddr>) -> Self {
        let ip = from.ip();
        Self {
            family: Family::of(&ip),
            source: Address::of(&ip),
            source_port: from.port().to_be(),
            destination: to.as_ref().map_or(Address::UNSPECIFIED, Address::of),
        }
    }

    /// Whether a packet that comes like this is for a leg that is bound to `bound`. An IPv4-mapped address in
    /// an IPv6 packet is nobody's.
    #[inline(always)]
    #[must_use]
    pub fn is_bound(&self, bound: &Self) -> bool {
        bound.family as u32 == self.family as u32
            && bound.source == self.source
            && bound.source_port == self.source_port
            && (bound.destination.is_unspecified() || bound.destination == self.destination)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_leg_is_for_its_sender_and_for_no_other(
            from: SocketAddr, to: IpAddr, other: SocketAddr, elsewhere: IpAddr,
        ) {
            let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
            let (specified, same) = (!to.is_unspecified(), to.to_canonical() == elsewhere.to_canonical());
            let packet = Origin::new(from, Some(to));
            prop_assert!(packet.is_bound(&Origin::new(from, Some(to))));
            prop_assert!(packet.is_bound(&Origin::new(from, None)));
            prop_assert_eq!(packet.is_bound(&Origin::new(other, None)), canonical(from) == canonical(other));
            let another_port = SocketAddr::new(from.ip(), from.port() ^ 1);
            prop_assert!(!packet.is_bound(&Origin::new(another_port, Some(to))));
            if specified && !elsewhere.is_unspecified() {
                prop_assert_eq!(packet.is_bound(&Origin::new(from, Some(elsewhere))), same);
            }
        }
    }

    #[test]
    fn a_mapped_address_in_an_ipv6_packet_is_nobodys() {
        let v4 = Origin::new("192.0.2.1:5".parse().unwrap(), None);
        // As a frame's headers tell it: the words are the same.
        let mapped = Origin { family: Family::V6, ..v4 };
        assert!(v4.is_bound(&v4) && !mapped.is_bound(&v4));
    }
}
