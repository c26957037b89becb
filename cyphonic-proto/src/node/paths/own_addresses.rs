//! Addresses at which this node may be reached: which there are, and which are worth trying first.

use std::net::SocketAddr;

use super::candidate::unique;
use crate::address::Prefix;
use crate::message::endpoint;
use crate::nat::{self, Family, NatFinding};

/// Ports that are guessed of a NAT that gives them in sequence. It gives one to each address that is probed,
/// and those are few.
const PREDICTED: u16 = 4;
/// The largest distance between the ports of two mappings that counts as a sequence.
const MAX_STRIDE: u16 = 16;

/// What a node knows of where it is: its own addresses, (server, observed) with the newest first, and what
/// gateways have mapped to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whereabouts<'a> {
    pub(super) addresses: &'a [SocketAddr],
    pub(super) observations: &'a [(SocketAddr, SocketAddr)],
    pub(super) mapped: [&'a [SocketAddr]; 2],
    /// By how much ports grow behind an IPv4 NAT, as the network check found out.
    pub(super) port_delta: Option<i32>,
}

/// Own addresses that are told before those that others see: a host with a bridge for each of its container
/// networks has more than a list has room for.
const OWN_FIRST: usize = 6;

/// Where this node may be reached, the likeliest first, as it is told to peers.
pub(super) fn told(known: Whereabouts<'_>, overlay: Prefix) -> Vec<SocketAddr> {
    let of = |family| known.addresses.iter().copied().filter(move |a| Family::of(a) == family);
    let own = || of(Family::V6).chain(of(Family::V4));
    let observed = known.observations.iter().map(|(_, observed)| *observed);
    let guessed = Family::ALL.into_iter().flat_map(|family| predicted(family, known));
    let mapped = known.mapped.into_iter().flatten().copied();
    let first = of(Family::V6).take(OWN_FIRST / 2).chain(of(Family::V4).take(OWN_FIRST / 2));
    let all = first.chain(mapped).chain(observed).chain(guessed).chain(own());
    unique(all.filter(|address| endpoint::is_candidate(address.ip(), overlay)))
}

/// The ports that a symmetric NAT will give to the next mappings, where those it gave so far are in sequence.
///
/// Where they are not there is nothing to guess: to meet a random one of 64,512 ports with a chance of one
/// half takes hundreds of sockets or packets at both ends (RFC 5128 §3.4 and the birthday paradox), more than
/// a small device and its NAT can spare.
fn predicted(family: Family, known: Whereabouts<'_>) -> Vec<SocketAddr> {
    let Whereabouts { addresses, observations, port_delta, .. } = known;
    if nat::find(family, addresses, observations) != NatFinding::AddressDependent {
        return Vec::new();
    }
    // The newest is first.
    let seen: Vec<_> =
        observations.iter().map(|(_, o)| *o).filter(|o| Family::of(o) == family).take(3).collect();
    let [newest, before, ..] = seen.as_slice() else { return Vec::new() };
    let stride = newest.port().wrapping_sub(before.port());
    let steady = seen.windows(2).all(|pair| {
        let [newer, older] = pair else { return false };
        newer.ip() == older.ip() && (1..=MAX_STRIDE).contains(&newer.port().wrapping_sub(older.port()))
    });
    // What was observed first may be long ago; the network check asked without anything in between, and then
    // once more.
    let found = port_delta.filter(|_| family == Family::V4).and_then(|delta| u16::try_from(delta).ok());
    let found = found.filter(|delta| (1..=MAX_STRIDE).contains(delta));
    let Some(stride) = found.or(steady.then_some(stride)) else { return Vec::new() };
    let next = |k: u16| newest.port().checked_add(stride.checked_mul(k)?);
    (1..=PREDICTED).filter_map(next).map(|port| SocketAddr::new(newest.ip(), port)).collect()
}

#[cfg(test)]
mod tests {
    use cyphonic_common::frame::MAX_CANDIDATES;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn overlay() -> Prefix {
        "fd12:3456:789a::/48".parse().unwrap()
    }

    /// Of a node at 10.0.0.2:7000 behind a NAT at 198.51.100.1: what as many servers saw, one after the
    /// other.
    fn seen(ports: &[u16]) -> Vec<(SocketAddr, SocketAddr)> {
        let server = |n| SocketAddr::from(([192, 0, 2, n], 443));
        let seen =
            (1..).zip(ports).map(|(n, port)| (server(n), SocketAddr::from(([198, 51, 100, 1], *port))));
        let mut seen: Vec<_> = seen.collect();
        seen.reverse();
        seen
    }

    #[test]
    fn ports_in_sequence_are_guessed_and_others_are_not() {
        let guess = |observations: &[(SocketAddr, SocketAddr)], port_delta| {
            let addresses = &[at("10.0.0.2:7000")];
            let known = Whereabouts { addresses, observations, mapped: [&[]; 2], port_delta };
            predicted(Family::V4, known).iter().map(SocketAddr::port).collect::<Vec<_>>()
        };
        let ports = |observations: &[(SocketAddr, SocketAddr)]| guess(observations, None);
        assert_eq!(ports(&seen(&[5000, 5001, 5002])), [5003, 5004, 5005, 5006]);
        assert_eq!(ports(&seen(&[5000, 5002])), [5004, 5006, 5008, 5010]);
        assert_eq!(ports(&seen(&[5000, 61000])), [0u16; 0]);
        assert_eq!(ports(&seen(&[5000, 5001, 41000])), [0u16; 0]);
        assert_eq!(ports(&seen(&[5000])), [0u16; 0], "one says nothing");
        assert_eq!(ports(&seen(&[5000, 5000])), [0u16; 0], "this NAT is not symmetric");
        assert_eq!(ports(&seen(&[65533, 65534])), [65535]);
        assert_eq!(guess(&seen(&[5000, 5002, 5060]), Some(2)), [5062, 5064, 5066, 5068], "found out apart");
        assert_eq!(guess(&seen(&[5000, 5002, 5060]), Some(-2)), [0u16; 0]);
    }

    #[test]
    fn what_is_told_has_no_address_of_the_host_the_link_or_the_overlay() {
        let addresses =
            ["10.0.0.2:7000", "127.0.0.1:1", "[fe80::1]:1", "[fd12:3456:789a::1]:1", "[2001:db8::1]:7000"]
                .map(at);
        let known = Whereabouts {
            addresses: &addresses,
            observations: &seen(&[5000]),
            mapped: [&[], &[at("198.51.100.1:41641")]],
            port_delta: None,
        };
        let expected =
            ["[2001:db8::1]:7000", "10.0.0.2:7000", "198.51.100.1:41641", "198.51.100.1:5000"].map(at);
        assert_eq!(told(known, overlay()), expected);
    }

    #[test]
    fn where_a_host_has_many_bridges_the_address_that_others_see_is_told_all_the_same() {
        let bridges = (17..31).map(|n| SocketAddr::from(([172, n, 0, 1], 7000)));
        let addresses: Vec<_> = [at("192.168.1.2:7000")].into_iter().chain(bridges).collect();
        let known = Whereabouts {
            addresses: &addresses,
            observations: &seen(&[5000]),
            mapped: [&[]; 2],
            port_delta: None,
        };
        let told = told(known, overlay());
        assert_eq!(told.len(), MAX_CANDIDATES);
        assert_eq!(told[0], at("192.168.1.2:7000"));
        assert_eq!(told[3], at("198.51.100.1:5000"));
    }

    proptest! {
        #[test]
        fn guesses_and_lists_are_bounded(ports: Vec<u16>, addresses: Vec<SocketAddr>) {
            let observations = seen(&ports[..ports.len().min(8)]);
            let mapped = [addresses.as_slice(); 2];
            let known =
                Whereabouts { addresses: &addresses, observations: &observations, mapped, port_delta: Some(3) };
            prop_assert!(predicted(Family::V4, known).len() <= usize::from(PREDICTED));
            prop_assert!(told(known, overlay()).len() <= MAX_CANDIDATES);
        }
    }
}
