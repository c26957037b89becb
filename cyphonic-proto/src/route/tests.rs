use NatFinding::{AddressDependent, EndpointIndependent, NoAddress, None as NoNat, Unknown};
use RouteKind::{Direct, HolePunch, Relay as Relayed, ResponderInitiated};

use super::*;

const FINDINGS: [NatFinding; 5] = [NoAddress, NoNat, EndpointIndependent, AddressDependent, Unknown];

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Adds to `node` the addresses and observations that lead to `finding`. `n` tells nodes apart, `public`
/// NATs.
fn give(node: &mut NodeNetwork, family: Family, finding: NatFinding, n: u8, public: u8) {
    let (own, seen, servers) = match family {
        Family::V4 => (
            at(&format!("10.0.{n}.2:7000")),
            [1, 2].map(|p| at(&format!("198.51.100.{public}:{}", 7000 + u16::from(n) * 10 + p))),
            [at("192.0.2.1:443"), at("192.0.2.2:443")],
        ),
        Family::V6 => (
            at(&format!("[2001:db8:{n}::2]:7000")),
            [1, 2].map(|p| at(&format!("[2001:db8:ff::{public}]:{}", 7000 + u16::from(n) * 10 + p))),
            [at("[2001:db8::1]:443"), at("[2001:db8::2]:443")],
        ),
    };
    if finding != NoAddress {
        node.addresses.push(own);
    }
    match finding {
        NoAddress => {}
        NoNat => node.observations.push((servers[0], own)),
        Unknown => node.observations.push((servers[0], seen[0])),
        EndpointIndependent => node.observations.extend(servers.map(|server| (server, seen[0]))),
        AddressDependent => node.observations.extend([(servers[0], seen[0]), (servers[1], seen[1])]),
    }
}

fn node(name: &str, n: u8, public: u8, v4: NatFinding, v6: NatFinding) -> NodeNetwork {
    let mut node = NodeNetwork { fqdn: name.into(), ..NodeNetwork::default() };
    give(&mut node, Family::V4, v4, n, public);
    give(&mut node, Family::V6, v6, n, public);
    assert_eq!((node.finding(Family::V4), node.finding(Family::V6)), (v4, v6));
    node
}

fn relay(v4: bool, v6: bool) -> Vec<Relay> {
    let mut addresses = Vec::new();
    addresses.extend(v4.then(|| at("192.0.2.9:443")));
    addresses.extend(v6.then(|| at("[2001:db8::9]:443")));
    let relay = Relay { name: "trs.lab".into(), addresses };
    if relay.addresses.is_empty() { vec![] } else { vec![relay] }
}

/// The table of the module's documentation, written out. Rows: initiator; columns: responder, both in
/// FINDINGS' order.
const ONE_FAMILY: [[Option<RouteKind>; 5]; 5] = [
    [None, None, None, None, None],
    [None, Some(Direct), Some(ResponderInitiated), Some(ResponderInitiated), Some(ResponderInitiated)],
    [None, Some(Direct), Some(Relayed), Some(Relayed), Some(Relayed)],
    [None, Some(Direct), Some(Relayed), Some(Relayed), Some(Relayed)],
    [None, Some(Direct), Some(Relayed), Some(Relayed), Some(Relayed)],
];

#[test]
fn one_family_follows_the_table() {
    for family in Family::ALL {
        for (row, a) in ONE_FAMILY.iter().zip(FINDINGS) {
            for (expected, b) in row.iter().zip(FINDINGS) {
                let make = |name, n, finding| match family {
                    Family::V4 => node(name, n, n, finding, NoAddress),
                    Family::V6 => node(name, n, n, NoAddress, finding),
                };
                let route = select(&make("a.lab", 1, a), &make("b.lab", 2, b), &[], &relay(true, true));
                assert_eq!(route.ok().map(|r| r.kind), *expected, "{family:?} {a:?} {b:?}");
                // Holes are punched where no relay joins the two, or it failed.
                let punched = (a, b) == (EndpointIndependent, EndpointIndependent);
                for (failed, relays) in [(&[][..], relay(false, false)), (&[Relayed], relay(true, true))] {
                    let route = select(&make("a.lab", 1, a), &make("b.lab", 2, b), failed, &relays);
                    let expected = expected.filter(|kind| *kind != Relayed).or(punched.then_some(HolePunch));
                    assert_eq!(route.ok().map(|r| r.kind), expected, "{family:?} {a:?} {b:?} {failed:?}");
                }
            }
        }
    }
}

/// Every combination of findings, shared NATs, failures and relays: what must hold of whatever comes out.
#[test]
fn every_combination_keeps_the_promises() {
    let mut combinations = 0;
    for_all(|a, b, one_nat, failed, relays| {
        combinations += 1;
        let context = || format!("{a:?} {b:?} {one_nat} {failed:?} {relays:?}");
        let Ok(route) = select(a, b, failed, relays) else {
            check_no_route(a, b, failed, relays, &context());
            return;
        };
        assert!(!failed.contains(&route.kind), "a failed kind came again: {}", context());
        assert!(!route.reason.is_empty() && route.reason.len() <= MAX_REASON, "{}", context());
        assert_eq!(route.relay.is_some(), route.kind == Relayed, "{}", context());
        let (_, dialled) = match route.kind {
            ResponderInitiated => (b, (a, &route.initiator_endpoints)),
            _ => (a, (b, &route.responder_endpoints)),
        };
        check_endpoints(&route, dialled.0, dialled.1, &context());
        check_nothing_better(a, b, failed, &route, &context());
    });
    assert_eq!(combinations, 5 * 5 * 5 * 5 * 2 * 16 * 4);
}

fn for_all(mut check: impl FnMut(&NodeNetwork, &NodeNetwork, bool, &[RouteKind], &[Relay])) {
    let failures: Vec<Vec<_>> = (0..16u8)
        .map(|bits| {
            ORDER.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, kind)| *kind).collect()
        })
        .collect();
    let relays = [relay(false, false), relay(true, false), relay(false, true), relay(true, true)];
    for [a4, a6] in FINDINGS.iter().flat_map(|x| FINDINGS.map(|y| [*x, y])) {
        for [b4, b6] in FINDINGS.iter().flat_map(|x| FINDINGS.map(|y| [*x, y])) {
            for one_nat in [false, true] {
                let a = node("a.lab", 1, 1, a4, a6);
                let b = node("b.lab", 2, if one_nat { 1 } else { 2 }, b4, b6);
                for failed in &failures {
                    for relays in &relays {
                        check(&a, &b, one_nat, failed, relays);
                    }
                }
            }
        }
    }
}

fn check_no_route(a: &NodeNetwork, b: &NodeNetwork, failed: &[RouteKind], relays: &[Relay], context: &str) {
    let common_relay = relays.iter().any(|relay| reaches(a, relay) && reaches(b, relay));
    assert!(!common_relay || failed.contains(&Relayed), "a relay was at hand: {context}");
}

fn check_endpoints(route: &Route, dialled: &NodeNetwork, endpoints: &[SocketAddr], context: &str) {
    if let Some(relay) = &route.relay {
        assert!(reaches(dialled, relay), "{context}");
    }
    assert!(!endpoints.is_empty(), "nothing to dial: {context}");
    let known =
        |e: &SocketAddr| dialled.addresses.contains(e) || dialled.observations.iter().any(|(_, o)| o == e);
    assert!(endpoints.iter().all(known), "an endpoint that is not the peer's: {context}");
    let v6_first = endpoints.windows(2).all(|pair| pair[0].is_ipv6() || pair[1].is_ipv4());
    assert!(v6_first, "IPv6 comes first: {context}");
}

/// Whatever the kind chosen, no family has a better one that has not failed.
fn check_nothing_better(
    a: &NodeNetwork,
    b: &NodeNetwork,
    failed: &[RouteKind],
    route: &Route,
    context: &str,
) {
    let rank = |kind| ORDER.iter().position(|k| *k == kind).unwrap();
    for family in Family::ALL {
        let (x, y) = (a.finding(family), b.finding(family));
        if x == NoAddress || y == NoAddress {
            continue;
        }
        let mut possible = vec![];
        possible.extend((y == NoNat).then_some(Direct));
        possible.extend((x == NoNat).then_some(ResponderInitiated));
        possible.extend((x == EndpointIndependent && y == EndpointIndependent).then_some(HolePunch));
        for kind in possible.into_iter().filter(|kind| !failed.contains(kind)) {
            assert!(rank(route.kind) <= rank(kind), "{kind:?} was possible: {context}");
        }
    }
}

#[test]
fn two_nodes_behind_one_nat_are_told_each_others_own_addresses() {
    let a = node("a.lab", 1, 9, AddressDependent, NoAddress);
    let b = node("b.lab", 2, 9, Unknown, NoAddress);
    let route = select(&a, &b, &[], &relay(true, false)).unwrap();
    assert!(route.kind == Relayed && route.responder_endpoints.contains(&b.addresses[0]));
    let route = select(&a, &b, &[], &[]).unwrap();
    assert_eq!((route.kind, route.responder_endpoints[0]), (HolePunch, b.addresses[0]));
}

#[test]
fn the_reason_says_why_a_pair_is_relayed() {
    let relays = relay(true, true);
    let why = |a, b, failed: &[_]| select(&a, &b, failed, &relays).unwrap().reason;
    assert_eq!(
        why(
            node("a.lab", 1, 1, AddressDependent, NoAddress),
            node("c.lab", 2, 2, EndpointIndependent, NoAddress),
            &[]
        ),
        "relayed because a.lab is behind a symmetric NAT and c.lab behind a NAT with endpoint-independent mapping (IPv4)"
    );
    assert_eq!(
        why(node("a.lab", 1, 1, NoNat, NoAddress), node("c.lab", 2, 2, NoAddress, NoNat), &[]),
        "relayed because a.lab (IPv4) and c.lab (IPv6) share no IP version"
    );
    assert_eq!(
        why(node("a.lab", 1, 1, Unknown, NoAddress), node("c.lab", 2, 2, NoNat, NoAddress), &[Direct]),
        "relayed because direct failed; a.lab is behind a NAT of unknown kind and c.lab not behind a NAT (IPv4)"
    );
}

#[test]
fn without_a_common_relay_the_error_says_so() {
    let a = node("a.lab", 1, 1, NoNat, NoAddress);
    let c = node("c.lab", 2, 2, NoAddress, NoNat);
    let reason = |relays: &[Relay]| select(&a, &c, &[], relays).unwrap_err().reason;
    assert_eq!(reason(&relay(true, false)), "no relay can be reached by both a.lab (IPv4) and c.lab (IPv6)");
    assert_eq!(
        reason(&relay(false, false)),
        "a.lab (IPv4) and c.lab (IPv6) share no IP version, and this network has no relay"
    );
}
