//! Frames, built and read by etherparse, which knows nothing of the relay. The tests of the program in a real
//! kernel use this file as well.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TransportSlice, UdpHeader,
};

use super::ConnectionId;

/// What a frame is built of.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) traffic_class: u8,
    pub(super) hop_limit: u8,
    pub(super) label: u16,
    pub(super) payload: Vec<u8>,
    pub(super) checksum: bool,
    pub(super) macs: ([u8; 6], [u8; 6]),
}

/// A frame made from nothing.
pub(super) fn build(spec: &Spec) -> Vec<u8> {
    let (source_port, destination_port) = (spec.source.port(), spec.destination.port());
    let (dscp, ecn) = (spec.traffic_class >> 2, spec.traffic_class & 3);
    let (ether_type, ip, mut udp) = match (spec.source.ip(), spec.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = Ipv4Header::new(
                0,
                spec.hop_limit,
                etherparse::IpNumber::UDP,
                source.octets(),
                destination.octets(),
            )
            .unwrap();
            (ip.dscp, ip.ecn) = (dscp.try_into().unwrap(), ecn.try_into().unwrap());
            (ip.identification, ip.dont_fragment) = (spec.label, true);
            ip.set_payload_len(8 + spec.payload.len()).unwrap();
            ip.header_checksum = ip.calc_header_checksum();
            let udp =
                UdpHeader::with_ipv4_checksum(source_port, destination_port, &ip, &spec.payload).unwrap();
            (EtherType::IPV4, ip.to_bytes().to_vec(), udp)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6Header {
                traffic_class: spec.traffic_class,
                flow_label: u32::from(spec.label).try_into().unwrap(),
                payload_length: 8 + spec.payload.len() as u16,
                next_header: etherparse::IpNumber::UDP,
                hop_limit: spec.hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            };
            let udp =
                UdpHeader::with_ipv6_checksum(source_port, destination_port, &ip, &spec.payload).unwrap();
            (EtherType::IPV6, ip.to_bytes().to_vec(), udp)
        }
        mixed => panic!("{mixed:?}"),
    };
    if !spec.checksum {
        udp.checksum = 0;
    }
    let ethernet = Ethernet2Header { destination: spec.macs.0, source: spec.macs.1, ether_type };
    [&ethernet.to_bytes()[..], &ip, &udp.to_bytes(), &spec.payload].concat()
}

/// A data packet's payload.
pub(super) fn payload(cid: ConnectionId, rest: &[u8]) -> Vec<u8> {
    [&[0x43][..], cid.as_bytes(), rest].concat()
}

/// Source, destination, payload and whether the UDP checksum is right (or absent).
pub(super) fn parse(frame: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>, bool) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP in {frame:02x?}") };
    let header = udp.to_header();
    let (source, destination, checksum) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let checksum = header.calc_checksum_ipv4(&ip, udp.payload()).unwrap();
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), checksum)
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            let checksum = header.calc_checksum_ipv6(&ip, udp.payload()).unwrap();
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), checksum)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let right = header.checksum == 0 || header.checksum == checksum;
    let end = |ip, port| SocketAddr::new(ip, port);
    (
        end(source, header.source_port),
        end(destination, header.destination_port),
        udp.payload().to_vec(),
        right,
    )
}
