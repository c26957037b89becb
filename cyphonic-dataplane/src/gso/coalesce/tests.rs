//! Cutting and joining against etherparse as an independent judge of every header and checksum.

use std::net::Ipv6Addr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::gso::{SuperPacket, VNET_HEADER_LEN};

const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0xa);
const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0xb);
/// That the sender has heard of congestion (RFC 3168 §6.1), until the other end has.
const ECE: u8 = 0x40;

/// A TCP packet with a correct checksum; 12 bytes of time-stamp options.
fn tcp_packet(port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6(A.octets(), B.octets(), 64)
        .tcp(port, 443, sequence, 4096)
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .unwrap()
        .ack(77);
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet[IPV6_HEADER_LEN + tcp::FLAGS] = flags;
    fix_checksum(&mut packet, TCP, tcp::CHECKSUM);
    packet
}

fn udp_packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(A.octets(), B.octets(), 64).udp(port, 53).write(&mut packet, payload).unwrap();
    packet
}

fn fix_checksum(packet: &mut [u8], protocol: u8, field: usize) {
    let at = IPV6_HEADER_LEN + field;
    packet[at..at + 2].copy_from_slice(&[0, 0]);
    let sum = pseudo_header(packet, protocol, packet.len() - IPV6_HEADER_LEN).unwrap();
    let sum = sum.add(&packet[IPV6_HEADER_LEN..]);
    // Zero means "no checksum" in UDP and stands for itself in TCP.
    let sum = if protocol == UDP { sum.finish_udp() } else { sum.finish() };
    packet[at..at + 2].copy_from_slice(&sum);
}

/// What the kernel would hand over: one header, partial checksum.
fn super_packet(
    mut packet: Vec<u8>,
    protocol: u8,
    field: usize,
    header: usize,
    size: usize,
) -> (VnetHeader, Vec<u8>) {
    let len = packet.len() - IPV6_HEADER_LEN;
    let partial = pseudo_header(&packet, protocol, len).unwrap().fold();
    let at = IPV6_HEADER_LEN + field;
    packet[at..at + 2].copy_from_slice(&partial);
    let cwr = protocol == TCP && packet[IPV6_HEADER_LEN + tcp::FLAGS] & tcp::CWR != 0;
    let vnet = VnetHeader {
        needs_csum: true,
        kind: if protocol == TCP { GsoKind::Tcp6 } else { GsoKind::Udp },
        ecn: cwr,
        header_len: (IPV6_HEADER_LEN + header) as u16,
        gso_size: size as u16,
        csum_start: IPV6_HEADER_LEN as u16,
        csum_offset: field as u16,
    };
    (vnet, packet)
}

fn cut(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let whole = SuperPacket::parse(vnet, packet).expect("a packet the kernel would hand over");
    (0..whole.count())
        .map(|index| {
            let mut out = vec![0xee; whole.largest()];
            let len = whole.write_part(index, &mut out).expect("fits");
            assert_eq!(len, whole.part_len(index));
            out.truncate(len);
            out
        })
        .collect()
}

/// Joins packets and returns the device writes.
fn join(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new(true, true);
    for (index, packet) in packets.iter().enumerate() {
        coalescer.push(Slot { buffer: index as u32, start: 0, len: packet.len() as u32 }, packet);
    }
    let mut writes = Vec::new();
    coalescer.flush(
        |slot| &packets[slot.buffer as usize],
        |parts, _| writes.push(parts.iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>()),
    );
    writes
}

/// Checks a travelling packet's lengths and checksum with etherparse.
fn assert_intact(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).expect("well formed");
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("not IPv6") };
    assert_eq!(usize::from(ip.header().payload_length()) + IPV6_HEADER_LEN, packet.len());
    match sliced.transport.expect("a transport header") {
        TransportSlice::Tcp(segment) => {
            let sum = segment.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap();
            assert_eq!(segment.checksum(), sum);
        }
        TransportSlice::Udp(datagram) => {
            let header = datagram.to_header();
            let sum = header
                .calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), datagram.payload())
                .unwrap();
            assert_eq!(datagram.checksum(), sum);
            assert_eq!(usize::from(datagram.length()), packet.len() - IPV6_HEADER_LEN);
        }
        other => panic!("unexpected {other:?}"),
    }
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

proptest! {
    #[test]
    fn cut_tcp_is_intact_and_joining_it_gives_the_super_packet_back(
        len in 1usize..60_000, size in 900usize..1400, sequence in any::<u32>(), seed in any::<u8>(),
        push in any::<bool>(), fin in any::<bool>(), cwr in any::<bool>(), ece in any::<bool>(),
    ) {
        prop_assume!(len.div_ceil(size) <= MAX_PARTS);
        let mut flags = tcp::ACK;
        for (on, bit) in [(push, tcp::PSH), (fin, tcp::FIN), (cwr, tcp::CWR), (ece, ECE)] {
            flags |= if on { bit } else { 0 };
        }
        let packet = tcp_packet(1000, sequence, flags, &payload(len, seed));
        let (vnet, packet) = super_packet(packet, TCP, tcp::CHECKSUM, 32, size);
        let parts = cut(&vnet, &packet);
        prop_assert_eq!(parts.len(), len.div_ceil(size));
        for (index, part) in parts.iter().enumerate() {
            assert_intact(part);
            let expected = sequence.wrapping_add((index * size) as u32);
            prop_assert_eq!(be32(part, IPV6_HEADER_LEN + tcp::SEQUENCE), Some(expected));
            let got = part[IPV6_HEADER_LEN + tcp::FLAGS];
            prop_assert_eq!(got & tcp::CWR != 0, cwr && index == 0);
            prop_assert_eq!(got & ECE != 0, ece);
            prop_assert_eq!(got & (tcp::FIN | tcp::PSH) != 0, (fin || push) && index + 1 == parts.len());
        }
        let writes = join(&parts);
        prop_assert_eq!(writes.len(), 1);
        let (joined, body) = VnetHeader::parse(&writes[0]).unwrap();
        if parts.len() > 1 {
            prop_assert_eq!(joined, vnet);
            prop_assert_eq!(body, &packet[..]);
        } else {
            prop_assert_eq!(joined, VnetHeader::PLAIN);
            prop_assert_eq!(body, &parts[0][..]);
        }
    }

    #[test]
    fn cut_udp_is_intact_and_joining_it_gives_the_super_packet_back(
        len in 1usize..60_000, size in 1000usize..1400, seed in any::<u8>(),
    ) {
        prop_assume!(len.div_ceil(size) <= MAX_PARTS);
        let (vnet, packet) = super_packet(udp_packet(9, &payload(len, seed)), UDP, udp::CHECKSUM, 8, size);
        let parts = cut(&vnet, &packet);
        parts.iter().for_each(|part| assert_intact(part));
        let writes = join(&parts);
        prop_assert_eq!(writes.len(), 1);
        if parts.len() > 1 {
            let (joined, body) = VnetHeader::parse(&writes[0]).unwrap();
            prop_assert_eq!(joined, vnet);
            prop_assert_eq!(body, &packet[..]);
        }
    }

    /// Whatever the mix, cutting the writes again gives every packet once and every flow in order.
    #[test]
    fn joining_any_mix_keeps_every_packet_and_every_flows_order(
        choices in proptest::collection::vec((0u16..20, 0u8..8, 1usize..1300, any::<bool>()), 1..300),
    ) {
        let mut sequences = [0u32; 20];
        let packets: Vec<_> = choices.iter().enumerate().map(|(index, &(flow, what, len, ece))| {
            let ack = tcp::ACK | if ece { ECE } else { 0 };
            let body = payload(if what < 5 { 1200 } else { len }, index as u8);
            let sequence = &mut sequences[usize::from(flow)];
            let packet = match what {
                7 => tcp_packet(flow, *sequence, ack, &[]),
                6 => udp_packet(flow, &body),
                5 => tcp_packet(flow, *sequence, ack | tcp::PSH, &body),
                _ => tcp_packet(flow, *sequence, ack, &body),
            };
            if what < 6 {
                *sequence = sequence.wrapping_add(body.len() as u32);
            }
            packet
        }).collect();
        let mut out = Vec::new();
        for write in join(&packets) {
            let (vnet, body) = VnetHeader::parse(&write).unwrap();
            out.extend(cut(&vnet, body));
        }
        let of = |packets: &[Vec<u8>], protocol: u8, flow: u16| -> Vec<Vec<u8>> {
            packets.iter().filter(|p| p[6] == protocol && be16(p, IPV6_HEADER_LEN) == Some(flow)).cloned().collect()
        };
        prop_assert_eq!(out.len(), packets.len());
        for flow in 0..20 {
            for protocol in [TCP, UDP] {
                prop_assert_eq!(of(&out, protocol, flow), of(&packets, protocol, flow));
            }
        }
    }

    #[test]
    fn no_bytes_make_cutting_or_joining_panic(
        header in any::<[u8; 10]>(), mut packet in proptest::collection::vec(any::<u8>(), 0..400), tidy in any::<bool>(),
        kind in 0u8..6,
    ) {
        let mut read = header.to_vec();
        read[1] = kind;
        if tidy && packet.len() >= 48 {
            packet[0] = 0x60;
            let len = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet[6] = if kind == 5 { UDP } else { TCP };
            read[6..8].copy_from_slice(&40u16.to_ne_bytes());
            read[0] = 1;
        }
        read.extend_from_slice(&packet);
        let (vnet, body) = VnetHeader::parse(&read).unwrap();
        if let Some(whole) = SuperPacket::parse(&vnet, body) {
            let mut out = vec![0; 500];
            for index in 0..whole.count().min(500) {
                whole.write_part(index, &mut out);
            }
        }
        prop_assert_eq!(join(&[packet.clone(), packet]).len(), 2);
    }
}

#[test]
fn a_partial_checksum_without_segmentation_is_completed() {
    for (packet, protocol, field) in [
        (tcp_packet(1, 2, tcp::ACK | tcp::SYN, b""), TCP, tcp::CHECKSUM),
        (udp_packet(1, b"odd"), UDP, udp::CHECKSUM),
    ] {
        let (mut vnet, partial) = super_packet(packet.clone(), protocol, field, 8, 0);
        vnet.kind = GsoKind::None;
        assert_ne!(partial, packet);
        assert_eq!(cut(&vnet, &partial), vec![packet]);
    }
}

#[test]
fn a_packet_with_a_bad_checksum_is_never_joined() {
    let good = tcp_packet(1, 0, tcp::ACK, &payload(1000, 1));
    let mut bad = tcp_packet(1, 1000, tcp::ACK, &payload(1000, 2));
    *bad.last_mut().unwrap() ^= 1;
    let after = tcp_packet(1, 2000, tcp::ACK, &payload(1000, 3));
    let writes = join(&[good.clone(), bad.clone(), after.clone()]);
    let bodies: Vec<_> = writes.iter().map(|write| write[10..].to_vec()).collect();
    assert_eq!(bodies, vec![good, bad, after]);
}

/// A datagram that was too large, and so travels in fragments, is not overtaken by those after it.
#[test]
fn a_fragment_ends_what_its_protocol_has_begun_between_its_addresses() {
    let fragment_of = |protocol: u8| {
        let mut packet = udp_packet(1, &[0; 100]);
        packet[6] = FRAGMENT;
        packet[IPV6_HEADER_LEN..IPV6_HEADER_LEN + 8].copy_from_slice(&[protocol, 0, 0, 1, 0, 0, 0, 7]);
        packet
    };
    let (small, segment) = (udp_packet(1, &[1; 100]), |n: u32| tcp_packet(1, n * 100, tcp::ACK, &[2; 100]));
    let packets = [small.clone(), segment(0), fragment_of(UDP), small.clone(), small.clone(), segment(1)];
    let lens = |packets: &[Vec<u8>]| -> Vec<_> {
        join(packets).iter().map(|write| (write[VNET_HEADER_LEN + 6], write.len())).collect()
    };
    let alone = VNET_HEADER_LEN + small.len();
    let two_segments = VNET_HEADER_LEN + segment(0).len() + 100;
    let expected = [(UDP, alone), (TCP, two_segments), (FRAGMENT, alone), (UDP, alone + 100)];
    assert_eq!(lens(&packets), expected);
    let packets = [small.clone(), fragment_of(TCP), small.clone()];
    assert_eq!(lens(&packets), [(UDP, alone + 100), (FRAGMENT, alone)], "another protocol's");
    let mut elsewhere = fragment_of(UDP);
    elsewhere[23] ^= 1;
    let packets = [small.clone(), elsewhere, small];
    assert_eq!(lens(&packets), [(UDP, alone + 100), (FRAGMENT, alone)], "another address's");
}

/// Behind headers that this does not read may be a packet of any flow.
#[test]
fn extension_headers_end_what_has_begun_between_the_addresses() {
    let (small, segment) = (udp_packet(1, &[1; 100]), |n: u32| tcp_packet(1, n * 100, tcp::ACK, &[2; 100]));
    let writes = |packets: &[Vec<u8>]| -> Vec<_> {
        join(packets)
            .iter()
            .map(|write| (write[VNET_HEADER_LEN + 6], write.len() - VNET_HEADER_LEN))
            .collect()
    };
    for extension in EXTENSIONS {
        let mut extended = udp_packet(1, &[0; 100]);
        extended[6] = extension;
        let packets = [small.clone(), segment(0), extended.clone(), small.clone(), segment(1)];
        let (datagram, tcp) = (small.len(), segment(0).len());
        let apart = [(UDP, datagram), (TCP, tcp), (extension, datagram), (UDP, datagram), (TCP, tcp)];
        assert_eq!(writes(&packets), apart);
        extended[23] ^= 1;
        let packets = [small.clone(), extended, small.clone()];
        assert_eq!(writes(&packets), [(UDP, datagram + 100), (extension, datagram)], "another address's");
    }
}

#[test]
fn a_gap_another_window_or_other_options_end_a_super_packet() {
    let first = tcp_packet(1, 0, tcp::ACK, &payload(1000, 1));
    let next = tcp_packet(1, 1000, tcp::ACK, &payload(1000, 1));
    assert_eq!(join(&[first.clone(), next.clone()]).len(), 1, "the reference case joins");
    assert_eq!(join(&[first.clone(), tcp_packet(1, 1001, tcp::ACK, &payload(1000, 1))]).len(), 2);
    assert_eq!(join(&[first.clone(), tcp_packet(1, 1000, tcp::ACK | ECE, &payload(1000, 1))]).len(), 2);
    let touches = [IPV6_HEADER_LEN + 14, IPV6_HEADER_LEN + 28, IPV6_HEADER_LEN + 8, 1, 7];
    for at in touches {
        let mut other = next.clone();
        other[at] ^= 1;
        fix_checksum(&mut other, TCP, tcp::CHECKSUM);
        assert_eq!(join(&[first.clone(), other]).len(), 2, "byte {at}");
    }
}

#[test]
fn contradictory_headers_are_refused() {
    let (vnet, packet) =
        super_packet(tcp_packet(1, 0, tcp::ACK, &payload(3000, 1)), TCP, tcp::CHECKSUM, 32, 1000);
    assert!(SuperPacket::parse(&vnet, &packet).is_some());
    assert!(SuperPacket::parse(&VnetHeader { gso_size: 0, ..vnet }, &packet).is_none());
    assert!(SuperPacket::parse(&VnetHeader { needs_csum: false, ..vnet }, &packet).is_none());
    assert!(SuperPacket::parse(&VnetHeader { csum_start: 20, ..vnet }, &packet).is_none());
    assert!(SuperPacket::parse(&VnetHeader { csum_start: 60_000, ..vnet }, &packet).is_none());
    assert!(SuperPacket::parse(&VnetHeader { kind: GsoKind::Other, ..vnet }, &packet).is_none());
    assert!(SuperPacket::parse(&vnet, &packet[..packet.len() - 1]).is_none());
}
