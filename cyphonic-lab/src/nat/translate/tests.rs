//! Packets through the translator and back, with every checksum verified.

use proptest::prelude::*;

use super::*;
use crate::nat::table::{Dependence, Ports};

const NOW: Duration = Duration::ZERO;
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const SERVER: &str = "198.51.100.1:7000";

fn translator(hairpin: bool) -> Translator {
    let behaviour = Behaviour {
        mapping: Dependence::EndpointIndependent,
        filtering: Dependence::EndpointIndependent,
        ports: Ports::Sequential,
        hairpin,
        udp_lifetime: Duration::from_secs(30),
        inbound_refresh: false,
    };
    let inside = vec!["192.168.0.0/24".parse().unwrap()];
    Translator::new(behaviour, EXTERNAL, inside, Some("64:ff9b::/96".parse().unwrap()), 1)
}

/// A UDP datagram with a right checksum, or none.
fn datagram(from: &str, to: &str, data: &[u8], checksum: bool) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut body = Vec::new();
    body.extend_from_slice(&from.port().to_be_bytes());
    body.extend_from_slice(&to.port().to_be_bytes());
    let length = u16::try_from(8 + data.len()).unwrap();
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(data);
    let header = Header {
        source: from.ip(),
        destination: to.ip(),
        protocol: UDP,
        hops: 60,
        class: 2,
        dont_fragment: true,
        id: 0,
        length,
    };
    if checksum {
        let value = !folded(pseudo_header_sum(&header) + sum(&body));
        set_word(&mut body, 6, if value == 0 { 0xffff } else { value }).unwrap();
    }
    let mut packet = Vec::new();
    encode(&header, &mut packet).unwrap();
    packet.extend_from_slice(&body);
    packet
}

/// The endpoints and data of a datagram whose checksums are right.
fn read(packet: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let (header, body) = decode(packet, true).unwrap();
    assert_eq!(header.protocol, UDP);
    assert!(!header.source.is_ipv4() || folded(sum(&packet[..IPV4_HEADER])) == 0xffff);
    if word(body, 6) != Some(0) {
        assert_eq!(folded(pseudo_header_sum(&header) + sum(body)), 0xffff);
    } else {
        assert!(header.source.is_ipv4());
    }
    let endpoint = |ip, at| SocketAddr::new(ip, word(body, at).unwrap());
    (endpoint(header.source, 0), endpoint(header.destination, 2), body[8..].to_vec())
}

fn through(translator: &mut Translator, packet: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    translator.translate(NOW, packet, &mut out).map(|()| out)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_datagram_goes_out_under_the_external_address_and_its_answer_returns() {
    for (inside, server) in
        [("192.168.0.2:5000", SERVER), ("[2001:db8::2]:5000", "[64:ff9b::198.51.100.1]:7000")]
    {
        for checksum in [true, false] {
            if !checksum && inside.starts_with('[') {
                continue;
            }
            let mut nat = translator(false);
            let packet = datagram(inside, server, b"odd", checksum);
            let (from, to, data) = read(&through(&mut nat, &packet).unwrap());
            assert_eq!((from.ip(), to, data), (EXTERNAL.into(), addr(SERVER), b"odd".to_vec()));
            let answer = datagram(SERVER, &from.to_string(), b"answer", checksum);
            let (from, to, data) = read(&through(&mut nat, &answer).unwrap());
            assert_eq!((from, to, data), (addr(server), addr(inside), b"answer".to_vec()));
        }
    }
}

#[test]
fn ipv6_gets_the_checksum_that_ipv4_left_out() {
    let mut nat = translator(false);
    let packet = datagram("[2001:db8::2]:5000", "[64:ff9b::198.51.100.1]:7000", b"x", true);
    let (from, ..) = read(&through(&mut nat, &packet).unwrap());
    let answer = datagram(SERVER, &from.to_string(), b"unsummed", false);
    assert_eq!(read(&through(&mut nat, &answer).unwrap()).2, b"unsummed");
}

#[test]
fn strangers_and_unknown_prefixes_are_dropped() {
    let mut nat = translator(false);
    assert_eq!(through(&mut nat, &datagram(SERVER, "203.0.113.9:6000", b"x", true)), None);
    assert_eq!(through(&mut nat, &datagram("[2001:db8::2]:5000", "[2001:db8:9::1]:7000", b"x", true)), None);
}

#[test]
fn those_inside_meet_by_external_endpoints_where_the_nat_hairpins() {
    for hairpin in [false, true] {
        let mut nat = translator(hairpin);
        let (x, ..) = read(&through(&mut nat, &datagram("192.168.0.2:5000", SERVER, b"", true)).unwrap());
        let meets = through(&mut nat, &datagram("192.168.0.3:5000", &x.to_string(), b"hello", true));
        assert_eq!(meets.is_some(), hairpin);
        if let Some(packet) = meets {
            let (from, to, _) = read(&packet);
            assert_eq!((from.ip(), to), (EXTERNAL.into(), addr("192.168.0.2:5000")));
        }
    }
}

/// An error about `packet`.
fn about(packet: &[u8], from: &str, kind: u8, code: u8, value: u16) -> Vec<u8> {
    let (quoted, _) = decode(packet, true).unwrap();
    let source: IpAddr = from.parse().unwrap();
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    let mut body = vec![kind, code, 0, 0, 0, 0];
    body.extend_from_slice(&value.to_be_bytes());
    body.extend_from_slice(&packet[..packet.len().min(64)]);
    let header = Header {
        source,
        destination: quoted.source,
        protocol,
        hops: 60,
        class: 0,
        dont_fragment: false,
        id: 0,
        length: u16::try_from(body.len()).unwrap(),
    };
    complete_icmp(&header, &mut body).unwrap();
    let mut error = Vec::new();
    encode(&header, &mut error).unwrap();
    error.extend_from_slice(&body);
    error
}

/// The type, code, value, receiver and quoted packet of an ICMP error whose checksum is right.
fn read_error(packet: &[u8]) -> (u8, u8, u16, IpAddr, Header, [u16; 2]) {
    let (header, body) = decode(packet, true).unwrap();
    let pseudo = if header.protocol == ICMPV6 { pseudo_header_sum(&header) } else { 0 };
    assert_eq!(folded(pseudo + sum(body)), 0xffff);
    let (quoted, rest) = decode(&body[ICMP_HEADER..], false).unwrap();
    let ports = [word(rest, 0).unwrap(), word(rest, 2).unwrap()];
    (body[0], body[1], word(body, 6).unwrap(), header.destination, quoted, ports)
}

#[test]
fn a_packet_too_big_reaches_the_sender_inside_in_its_own_terms() {
    for (inside, server, expected) in [
        ("192.168.0.2:5000", SERVER, (3, 4, 1400)),
        ("[2001:db8::2]:5000", "[64:ff9b::198.51.100.1]:7000", (2, 0, 1420)),
    ] {
        let mut nat = translator(false);
        let sent = through(&mut nat, &datagram(inside, server, &[7; 200], true)).unwrap();
        let error = about(&sent, "198.51.100.254", 3, 4, 1400);
        let (kind, code, mtu, to, quoted, ports) = read_error(&through(&mut nat, &error).unwrap());
        assert_eq!((kind, code, mtu), expected);
        assert_eq!(
            (to, quoted.source, quoted.destination),
            (addr(inside).ip(), addr(inside).ip(), addr(server).ip())
        );
        assert_eq!(ports, [5000, 7000]);
    }
}

#[test]
fn an_error_about_what_came_in_reaches_the_sender_outside() {
    for (inside, server, from, (kind, code, mtu)) in [
        ("192.168.0.2:5000", SERVER, "192.168.0.1", (3, 4, 1300)),
        ("[2001:db8::2]:5000", "[64:ff9b::198.51.100.1]:7000", "2001:db8::1", (2, 0, 1320)),
    ] {
        let mut nat = translator(false);
        let (own, ..) = read(&through(&mut nat, &datagram(inside, server, b"", true)).unwrap());
        let came = through(&mut nat, &datagram(SERVER, &own.to_string(), &[1; 300], true)).unwrap();
        let error = about(&came, from, kind, code, mtu);
        let (kind, code, mtu, to, quoted, ports) = read_error(&through(&mut nat, &error).unwrap());
        assert_eq!((kind, code, mtu), (3, 4, 1300));
        assert_eq!((to, quoted.source), (addr(SERVER).ip(), addr(SERVER).ip()));
        assert_eq!((quoted.destination, ports), (EXTERNAL.into(), [7000, own.port()]));
    }
}

#[test]
fn pings_cross_the_versions() {
    let mut nat = translator(false);
    let header = Header {
        source: "2001:db8::2".parse().unwrap(),
        destination: "64:ff9b::198.51.100.1".parse().unwrap(),
        protocol: ICMPV6,
        hops: 60,
        class: 0,
        dont_fragment: true,
        id: 0,
        length: 12,
    };
    let mut body = vec![icmp::V6_ECHO, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3, 4];
    complete_icmp(&header, &mut body).unwrap();
    let mut request = Vec::new();
    encode(&header, &mut request).unwrap();
    request.extend_from_slice(&body);
    let out = through(&mut nat, &request).unwrap();
    let (seen, body) = decode(&out, true).unwrap();
    assert_eq!(
        (seen.source, seen.protocol, body[0], folded(sum(body))),
        (EXTERNAL.into(), ICMP, icmp::ECHO, 0xffff)
    );

    let mut body = body.to_vec();
    body[0] = icmp::ECHO_REPLY;
    let reply = Header { source: seen.destination, destination: seen.source, ..seen };
    complete_icmp(&reply, &mut body).unwrap();
    let mut packet = Vec::new();
    encode(&reply, &mut packet).unwrap();
    packet.extend_from_slice(&body);
    let back = through(&mut nat, &packet).unwrap();
    let (seen, body) = decode(&back, true).unwrap();
    assert_eq!((seen.source, seen.destination), (header.destination, header.source));
    assert_eq!((body[0], word(body, 4)), (icmp::V6_ECHO_REPLY, Some(0x1234)));
    assert_eq!(folded(pseudo_header_sum(&seen) + sum(body)), 0xffff);
}

proptest! {
    #[test]
    fn no_packet_is_a_panic(mut packet in prop::collection::vec(any::<u8>(), 0..120), version in 0u8..3) {
        if let Some(first) = packet.first_mut() {
            *first = match version { 0 => 0x45, 1 => 0x60, _ => *first };
        }
        through(&mut translator(true), &packet);
    }

    #[test]
    fn no_damaged_datagram_is_a_panic_and_damage_is_not_mended(
        at in 28usize..60, bit in 0u8..8, data in prop::collection::vec(any::<u8>(), 32..64),
    ) {
        let mut packet = datagram("192.168.0.2:5000", SERVER, &data, true);
        packet[at] ^= 1 << bit;
        let out = through(&mut translator(false), &packet).unwrap();
        let (header, body) = decode(&out, true).unwrap();
        prop_assert_ne!(folded(pseudo_header_sum(&header) + sum(body)), 0xffff);
    }
}
