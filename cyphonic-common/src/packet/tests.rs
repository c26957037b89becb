//! etherparse is the oracle: it builds packets and parses them independently.

use etherparse::{
    IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::prelude::*;

use super::*;

fn ip(bytes: &[u8]) -> Result<IpPacket, PacketError> {
    parse_ip(&mut Cursor::new(bytes))
}

fn udp_over_ipv4(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv4(source, destination, 20).udp(ports.0, ports.1).write(&mut out, payload).unwrap();
    out
}

fn udp_over_ipv6(source: [u8; 16], destination: [u8; 16], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv6(source, destination, 20).udp(ports.0, ports.1).write(&mut out, payload).unwrap();
    out
}

/// An IPv6 packet whose extension headers and payload are `rest`.
fn raw_ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: rest.len() as u16,
        next_header: IpNumber(next_header),
        hop_limit: 9,
        source: [1; 16],
        destination: [2; 16],
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], rest].concat()
}

proptest! {
    #[test]
    fn udp_over_ipv4_is_what_was_built(
        source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: Vec<u8>, vlan in proptest::option::of(0u16..4096),
    ) {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let mut frame = Vec::new();
        match vlan {
            Some(id) => builder
                .single_vlan(id.try_into().unwrap())
                .ipv4(source, destination, 33)
                .udp(ports.0, ports.1)
                .write(&mut frame, &payload)
                .unwrap(),
            None => builder.ipv4(source, destination, 33).udp(ports.0, ports.1).write(&mut frame, &payload).unwrap(),
        }
        let (ethernet, packet) = parse_ethernet(&mut Cursor::new(frame.as_slice())).unwrap();
        let packet = packet.unwrap();
        prop_assert_eq!((ethernet.source, ethernet.destination, ethernet.vlan), ([1; 6], [2; 6], vlan));
        let Ip::V4(header) = packet.ip else { panic!("not IPv4") };
        prop_assert_eq!((header.source, header.destination, header.hop_limit), (source, destination, 33));
        let Transport::Udp(udp) = packet.transport else { panic!("not UDP") };
        prop_assert_eq!((udp.source, udp.destination), ports);
        prop_assert_eq!(&frame[packet.payload_offset..][..packet.payload_len], payload.as_slice());
    }

    #[test]
    fn udp_over_ipv6_is_what_was_built(source: [u8; 16], destination: [u8; 16], ports: (u16, u16), payload: Vec<u8>) {
        let bytes = udp_over_ipv6(source, destination, ports, &payload);
        let packet = ip(&bytes).unwrap();
        let Ip::V6(header) = packet.ip else { panic!("not IPv6") };
        prop_assert_eq!((header.source, header.destination, header.hop_limit), (source, destination, 20));
        let Transport::Udp(udp) = packet.transport else { panic!("not UDP") };
        prop_assert_eq!((udp.source, udp.destination), ports);
        prop_assert_eq!(&bytes[packet.payload_offset..][..packet.payload_len], payload.as_slice());
    }

    #[test]
    fn ipv4_options_move_the_payload(words in 0usize..=10, payload: Vec<u8>, dscp in 0u8..64, ecn in 0u8..4) {
        let options = Ipv4Options::try_from(vec![1u8; words * 4].as_slice()).unwrap();
        let mut header = Ipv4Header::new(0, 7, IpNumber(253), [9; 4], [8; 4]).unwrap();
        header.options = options;
        header.dscp = dscp.try_into().unwrap();
        header.ecn = ecn.try_into().unwrap();
        header.set_payload_len(payload.len()).unwrap();
        let bytes = [&header.to_bytes()[..], &payload].concat();
        let packet = ip(&bytes).unwrap();
        let Ip::V4(parsed) = packet.ip else { panic!("not IPv4") };
        prop_assert_eq!(parsed.traffic_class, dscp << 2 | ecn);
        prop_assert_eq!(parsed.dont_fragment, header.dont_fragment);
        prop_assert_eq!(packet.transport, Transport::Other(253));
        prop_assert_eq!(&bytes[packet.payload_offset..][..packet.payload_len], payload.as_slice());
    }

    /// Random bytes hardly ever form a packet, so valid ones are damaged in a few places.
    #[test]
    fn damaged_packets_never_point_outside(
        v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..60),
        damage in proptest::collection::vec((0usize..100, any::<u8>()), 0..4), cut in 0usize..140,
    ) {
        let mut bytes = if v6 {
            udp_over_ipv6([1; 16], [2; 16], (1, 2), &payload)
        } else {
            udp_over_ipv4([1; 4], [2; 4], (1, 2), &payload)
        };
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        bytes.truncate(cut);
        if let Ok(packet) = ip(&bytes) {
            prop_assert!(packet.payload_offset + packet.payload_len <= bytes.len());
            agrees_with_the_oracle(&bytes, &packet)?;
        }
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes: Vec<u8>) {
        let _ = ip(&bytes);
        if let Ok((_, Some(packet))) = parse_ethernet(&mut Cursor::new(bytes.as_slice())) {
            prop_assert!(packet.payload_offset + packet.payload_len <= bytes.len());
        }
    }
}

/// What we accept as an unfragmented UDP packet, the oracle must see with the same ports and payload.
fn agrees_with_the_oracle(bytes: &[u8], packet: &IpPacket) -> Result<(), TestCaseError> {
    let Transport::Udp(udp) = packet.transport else { return Ok(()) };
    let Ok(oracle) = SlicedPacket::from_ip(bytes) else { return Ok(()) };
    let Some(TransportSlice::Udp(slice)) = oracle.transport else {
        return Err(TestCaseError::fail(format!("the oracle sees no UDP in {bytes:02x?}")));
    };
    prop_assert_eq!((slice.source_port(), slice.destination_port()), (udp.source, udp.destination));
    prop_assert_eq!(slice.payload(), &bytes[packet.payload_offset..][..packet.payload_len]);
    Ok(())
}

#[test]
fn fragments_of_ipv4_are_flagged() {
    let mut bytes = udp_over_ipv4([1; 4], [2; 4], (1, 2), b"payload");
    for (flags, fragment) in [([0x40, 0], false), ([0x20, 0], true), ([0, 1], true), ([0x3f, 0xff], true)] {
        bytes[6..8].copy_from_slice(&flags);
        let packet = ip(&bytes).unwrap();
        assert_eq!(packet.ip.is_fragment(), fragment, "{flags:?}");
        assert_eq!(packet.transport == Transport::Fragment, fragment);
    }
}

#[test]
fn extension_headers_are_followed_to_udp() {
    let udp = [0, 1, 0, 2, 0, 9, 0, 0, b'x'];
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let atomic_fragment = [51, 0, 0, 0, 1, 2, 3, 4];
    let authentication = [17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    let rest = [&hop_by_hop[..], &destination, &atomic_fragment, &authentication, &udp].concat();
    let packet = ip(&raw_ipv6(0, &rest)).unwrap();
    let Ip::V6(header) = packet.ip else { panic!("not IPv6") };
    assert_eq!((header.extensions_len, header.protocol, header.fragment), (8 + 16 + 8 + 12, 17, false));
    assert!(matches!(packet.transport, Transport::Udp(Udp { source: 1, destination: 2, .. })));
    assert_eq!(packet.payload_len, 1);
}

#[test]
fn a_fragment_of_ipv6_hides_its_transport() {
    for offset_and_more in [[0, 1], [0, 8], [0xff, 0xf9]] {
        let rest = [&[17, 0, offset_and_more[0], offset_and_more[1], 0, 0, 0, 1][..], &[0xff; 8]].concat();
        assert_eq!(ip(&raw_ipv6(44, &rest)).unwrap().transport, Transport::Fragment);
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let mut short_ihl = udp_over_ipv4([1; 4], [2; 4], (1, 2), b"");
    short_ihl[0] = 0x44;
    assert_eq!(ip(&short_ihl), Err(PacketError::HeaderLength));

    let mut ihl_beyond_total = udp_over_ipv4([1; 4], [2; 4], (1, 2), b"");
    ihl_beyond_total[0] = 0x4f;
    assert_eq!(ip(&ihl_beyond_total), Err(PacketError::HeaderLength));

    let mut udp_too_long = udp_over_ipv6([1; 16], [2; 16], (1, 2), b"abc");
    udp_too_long[45] += 1;
    assert_eq!(ip(&udp_too_long), Err(PacketError::Length));
    udp_too_long[45] = 7;
    assert_eq!(ip(&udp_too_long), Err(PacketError::Length));

    let endless: Vec<u8> = [[60u8, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    assert_eq!(ip(&raw_ipv6(60, &endless)), Err(PacketError::TooManyExtensions));

    assert_eq!(ip(&[0x50; 60]), Err(PacketError::Version(5)));
    let mut lying_frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([1; 4], [2; 4], 9)
        .udp(1, 2)
        .write(&mut lying_frame, b"")
        .unwrap();
    lying_frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(parse_ethernet(&mut Cursor::new(lying_frame.as_slice())), Err(PacketError::Version(4)));
}

#[test]
fn every_proper_prefix_of_a_packet_is_truncated() {
    for bytes in
        [udp_over_ipv4([1; 4], [2; 4], (1, 2), b"abc"), udp_over_ipv6([1; 16], [2; 16], (1, 2), b"abc")]
    {
        for len in 0..bytes.len() {
            assert_eq!(ip(&bytes[..len]), Err(PacketError::Truncated), "{len}");
        }
    }
}
