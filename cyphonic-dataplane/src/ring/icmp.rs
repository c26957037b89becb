//! ICMPv6 errors to the node's own applications (RFC 4443): Destination Unreachable and Packet Too Big.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use cyphonic_common::Account;
use cyphonic_common::packet::icmpv6::{self, ICMPV6_HEADER_LEN, INFORMATIONAL, PACKET_TOO_BIG, UNREACHABLE};
use cyphonic_common::packet::ip::{
    IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_MIN_MTU, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LEN, IPV6_SOURCE,
};
use cyphonic_common::packet::protocol::{DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, ROUTING};

use crate::gso::{Sum, put};

/// An error packet is never longer than IPv6's least MTU (§2.4 c).
pub(super) const MAX_ERROR: usize = IPV6_MIN_MTU;
/// Of [`UNREACHABLE`]: this address, for whatever reason (§3.1).
const ADDRESS: u8 = 3;
/// The next headers of RFC 8200 §4 that stand between IPv6's and ICMPv6's own, and have the common layout.
const EXTENSIONS: [u8; 3] = [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS];

/// Errors of a kind in a burst, and per second (§2.4 f).
const BURST: u32 = 64;
const SECOND: Duration = Duration::from_secs(1);

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Problem {
    /// Type 1 code 3: no tunnel to the address can be had.
    Unreachable,
    /// Type 2: the path carries packets of this size.
    TooBig(u16),
}

/// Writes the error about `offending` into `out` and returns its length; `None` where RFC 4443 §2.4 (e)
/// forbids one: about an ICMPv6 error, or a packet from or to no single node.
pub(super) fn error(
    problem: Problem,
    own: Ipv6Addr,
    offending: &[u8],
    out: &mut [u8; MAX_ERROR],
) -> Option<usize> {
    let source = address(offending, IPV6_SOURCE)?;
    let destination = address(offending, IPV6_DESTINATION)?;
    if source.is_multicast() || source.is_unspecified() || destination.is_multicast() || is_error(offending) {
        return None;
    }
    let quoted = offending.get(..MAX_ERROR - IPV6_HEADER_LEN - ICMPV6_HEADER_LEN).unwrap_or(offending);
    let len = IPV6_HEADER_LEN + ICMPV6_HEADER_LEN + quoted.len();
    let packet = out.get_mut(..len)?;
    packet.fill(0);
    put(packet, 0, &[0x60])?;
    put(packet, IPV6_PAYLOAD_LEN, &((len - IPV6_HEADER_LEN) as u16).to_be_bytes())?;
    put(packet, IPV6_NEXT_HEADER, &[ICMPV6, 64])?;
    put(packet, IPV6_SOURCE, &own.octets())?;
    put(packet, IPV6_DESTINATION, &source.octets())?;
    match problem {
        Problem::Unreachable => put(packet, IPV6_HEADER_LEN, &[UNREACHABLE, ADDRESS])?,
        Problem::TooBig(mtu) => {
            put(packet, IPV6_HEADER_LEN, &[PACKET_TOO_BIG, 0])?;
            put(packet, IPV6_HEADER_LEN + icmpv6::MTU, &u32::from(mtu).to_be_bytes())?;
        }
    }
    put(packet, IPV6_HEADER_LEN + ICMPV6_HEADER_LEN, quoted)?;
    let (ip, body) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    let sum = Sum::default().add_pseudo_header(ip, ICMPV6, body.len() as u32).add(body).finish();
    put(packet, IPV6_HEADER_LEN + icmpv6::CHECKSUM, &sum)?;
    Some(len)
}

fn address(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    packet.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(Ipv6Addr::from)
}

/// Whether a packet is an ICMPv6 error itself, behind at most a few extension headers.
fn is_error(packet: &[u8]) -> bool {
    let (mut next, mut at) = (packet.get(IPV6_NEXT_HEADER).copied().unwrap_or(0), IPV6_HEADER_LEN);
    for _ in 0..8 {
        if next == ICMPV6 {
            return packet.get(at).is_none_or(|kind| *kind < INFORMATIONAL);
        }
        if !EXTENSIONS.contains(&next) {
            return false;
        }
        let (Some(following), Some(len)) = (packet.get(at), packet.get(at + 1)) else { return true };
        next = *following;
        at += (usize::from(*len) + 1) * 8;
    }
    true
}

/// A token bucket for each kind of error: a scan of addresses to which there is no tunnel must not keep a
/// path's MTU from those who use it.
#[derive(Debug)]
pub(super) struct ErrorLimit {
    start: Instant,
    unreachable: Account,
    too_big: Account,
}

impl ErrorLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, unreachable: Account::default(), too_big: Account::default() }
    }

    /// Whether one more may be sent. To be asked before it is written, which costs more.
    pub(super) fn allows(&mut self, problem: Problem, now: Instant) -> bool {
        let account = match problem {
            Problem::Unreachable => &mut self.unreachable,
            Problem::TooBig(_) => &mut self.too_big,
        };
        account.spend(now.saturating_duration_since(self.start), SECOND / BURST, SECOND)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Slice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn udp(len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(OWN.octets(), PEER.octets(), 64).udp(1, 2);
        builder.write(&mut packet, &vec![7; len]).unwrap();
        packet
    }

    /// The ICMPv6 part of an error, checked to be well formed and summed.
    fn written(problem: Problem, offending: &[u8]) -> Vec<u8> {
        let mut out = [0xff; MAX_ERROR];
        let len = error(problem, OWN, offending, &mut out).expect("an error is due");
        let sliced = SlicedPacket::from_ip(&out[..len]).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("not IPv6") };
        let (from, to) = (ip.header().source(), ip.header().destination());
        assert_eq!((from, to), (OWN.octets(), OWN.octets()));
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
        assert!(Icmpv6Slice::from_slice(icmp.slice()).unwrap().is_checksum_valid(from, to));
        icmp.slice().to_vec()
    }

    #[test]
    fn packet_too_big_carries_the_mtu_and_the_packet() {
        let offending = udp(100);
        let icmp = written(Problem::TooBig(1400), &offending);
        assert_eq!(icmp[..2], [2, 0]);
        assert_eq!(icmp[4..8], 1400u32.to_be_bytes());
        assert_eq!(icmp[8..], offending);
    }

    #[test]
    fn a_long_packet_is_quoted_up_to_the_least_mtu() {
        let icmp = written(Problem::Unreachable, &udp(5000));
        assert_eq!(icmp[..2], [1, 3]);
        assert_eq!(icmp.len(), MAX_ERROR - IPV6_HEADER_LEN);
    }

    #[test]
    fn no_error_answers_an_error_or_a_group() {
        let mut out = [0; MAX_ERROR];
        let mut icmp = out;
        let len = error(Problem::Unreachable, PEER, &udp(10), &mut icmp).unwrap();
        assert_eq!(error(Problem::Unreachable, OWN, &icmp[..len], &mut out), None);
        let mut to_group = udp(10);
        to_group[24] = 0xff;
        assert_eq!(error(Problem::Unreachable, OWN, &to_group, &mut out), None);
        assert_eq!(error(Problem::Unreachable, OWN, &[0x60; 39], &mut out), None);
    }

    #[test]
    fn errors_of_each_kind_come_in_bounded_bursts() {
        let start = Instant::now();
        let mut limit = ErrorLimit::new(start);
        for problem in [Problem::Unreachable, Problem::TooBig(1280)] {
            assert_eq!((0..1000).filter(|_| limit.allows(problem, start)).count(), BURST as usize);
            assert!(limit.allows(problem, start + SECOND));
        }
    }
}
