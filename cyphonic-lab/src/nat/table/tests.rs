//! The table against what RFC 4787 says in words, and against a model that remembers every packet.

use proptest::prelude::*;

use super::*;

const LIFE: Duration = Duration::from_secs(30);
const DEPENDENCES: [Dependence; 3] =
    [Dependence::EndpointIndependent, Dependence::AddressDependent, Dependence::AddressAndPortDependent];
const PORTS: [Ports; 3] = [Ports::Preserving, Ports::Sequential, Ports::Random];

fn behaviour(mapping: Dependence, filtering: Dependence, ports: Ports) -> Behaviour {
    Behaviour { mapping, filtering, ports, hairpin: false, udp_lifetime: LIFE, inbound_refresh: false }
}

fn inside(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 168, 0, host], 5_000))
}

fn remote(host: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, host), 7_000 + port)
}

fn out(table: &mut Table, now: Duration, host: u8, to: SocketAddrV4) -> u16 {
    table.outbound(now, Protocol::Udp, inside(host), to).unwrap()
}

#[test]
fn a_mapping_depends_on_what_its_name_says() {
    for (mapping, other_port, other_address) in
        [(DEPENDENCES[0], true, true), (DEPENDENCES[1], true, false), (DEPENDENCES[2], false, false)]
    {
        let mut table = Table::new(behaviour(mapping, DEPENDENCES[2], Ports::Random), 1);
        let first = out(&mut table, Duration::ZERO, 2, remote(1, 0));
        assert_eq!(out(&mut table, Duration::ZERO, 2, remote(1, 0)), first);
        assert_eq!(out(&mut table, Duration::ZERO, 2, remote(1, 1)) == first, other_port, "{mapping:?}");
        assert_eq!(out(&mut table, Duration::ZERO, 2, remote(2, 0)) == first, other_address, "{mapping:?}");
    }
}

#[test]
fn ports_are_kept_or_counted_or_drawn() {
    let ports = |ports| {
        let mut table = Table::new(behaviour(DEPENDENCES[2], DEPENDENCES[2], ports), 4);
        (0..4).map(|port| out(&mut table, Duration::ZERO, 2, remote(1, port))).collect::<Vec<_>>()
    };
    let kept = ports(Ports::Preserving);
    assert_eq!(kept[0], 5_000);
    assert_eq!(kept[3] - kept[1], 2);
    let counted = ports(Ports::Sequential);
    assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
    let drawn = ports(Ports::Random);
    assert!(drawn.windows(2).all(|pair| pair[1].abs_diff(pair[0]) > 1), "{drawn:?}");
    // Two hosts with the same port do not share it.
    let mut table = Table::new(behaviour(DEPENDENCES[0], DEPENDENCES[0], Ports::Preserving), 1);
    assert_eq!(out(&mut table, Duration::ZERO, 2, remote(1, 0)), 5_000);
    assert_ne!(out(&mut table, Duration::ZERO, 3, remote(1, 0)), 5_000);
}

#[test]
fn only_packets_out_refresh_unless_the_nat_says_otherwise() {
    let independent = behaviour(DEPENDENCES[0], DEPENDENCES[0], Ports::Random);
    for inbound_refresh in [false, true] {
        let mut table = Table::new(Behaviour { inbound_refresh, ..independent }, 1);
        let port = out(&mut table, Duration::ZERO, 2, remote(1, 0));
        let arrives = |table: &mut Table, seconds| {
            table.inbound(Duration::from_secs(seconds), Protocol::Udp, port, remote(1, 0)).is_some()
        };
        assert!(arrives(&mut table, 29));
        assert_eq!(arrives(&mut table, 31), inbound_refresh);
    }
}

#[test]
fn a_nat_without_room_refuses_and_recovers_when_mappings_expire() {
    let mut table = Table::new(behaviour(DEPENDENCES[2], DEPENDENCES[2], Ports::Sequential), 1);
    let many = |table: &mut Table, now| {
        let endpoints = (0..20_000_u16).map(|number| {
            SocketAddrV4::new(Ipv4Addr::new(198, 51, (number >> 8) as u8, number as u8), 7_000)
        });
        endpoints.filter(|to| table.outbound(now, Protocol::Udp, inside(2), *to).is_some()).count()
    };
    assert_eq!(many(&mut table, Duration::ZERO), MAX_MAPPINGS);
    assert_eq!(many(&mut table, LIFE), MAX_MAPPINGS);
    assert_eq!(table.by_port.len(), table.mappings.len());
}

/// One packet of the model's history.
#[derive(Debug, Clone)]
enum Event {
    Wait(u16),
    Out { host: u8, to: (u8, u16) },
    In { of: usize, from: (u8, u16) },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let endpoint = || (1u8..4, 0u16..3);
    let event = prop_oneof![
        (0u16..20).prop_map(Event::Wait),
        (2u8..5, endpoint()).prop_map(|(host, to)| Event::Out { host, to }),
        (0usize..64, endpoint()).prop_map(|(of, from)| Event::In { of, from }),
    ];
    prop::collection::vec(event, 1..120)
}

/// A packet that went out: when, from which host, to whom, by which port.
type Sent = (Duration, u8, SocketAddrV4, u16);

/// The last packet out that keeps the mapping of `(host, to)` alive, if it does.
fn living(sent: &[Sent], now: Duration, mapping: Dependence, host: u8, to: SocketAddrV4) -> Option<u16> {
    let same = |entry: &&Sent| entry.1 == host && scope(mapping, entry.2) == scope(mapping, to);
    sent.iter().rev().find(same).filter(|entry| now < entry.0 + LIFE).map(|entry| entry.3)
}

proptest! {
    #[test]
    fn whatever_happens_the_table_does_what_its_history_says(
        mapping in 0usize..3, filtering in 0usize..3, ports in 0usize..3, events in events(),
    ) {
        let (mapping, filtering) = (DEPENDENCES[mapping], DEPENDENCES[filtering]);
        let mut table = Table::new(behaviour(mapping, filtering, PORTS[ports]), 9);
        let (mut now, mut sent) = (Duration::ZERO, Vec::<Sent>::new());
        for event in events {
            match event {
                Event::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Event::Out { host, to: (address, port) } => {
                    let to = remote(address, port);
                    let before = living(&sent, now, mapping, host, to);
                    let given = out(&mut table, now, host, to);
                    if let Some(before) = before {
                        prop_assert_eq!(given, before, "a living mapping keeps its port");
                    } else {
                        let taken = sent.iter().any(|other| {
                            other.3 == given && living(&sent, now, mapping, other.1, other.2) == Some(given)
                        });
                        prop_assert!(!taken, "a port stands for one mapping at a time");
                    }
                    sent.push((now, host, to, given));
                }
                Event::In { of, from: (address, port) } => {
                    let Some((_, host, to, external)) = sent.get(of).copied() else { continue };
                    let from = remote(address, port);
                    let alive = living(&sent, now, mapping, host, to) == Some(external);
                    let admits = sent.iter().any(|other| {
                        other.1 == host
                            && scope(mapping, other.2) == scope(mapping, to)
                            && scope(filtering, other.2) == scope(filtering, from)
                            && other.3 == external
                            && now < other.0 + LIFE
                    });
                    let arrived = table.inbound(now, Protocol::Udp, external, from);
                    if alive {
                        prop_assert_eq!(arrived.is_some(), admits);
                        prop_assert_eq!(arrived.unwrap_or(inside(host)), inside(host));
                    }
                }
            }
        }
    }
}
