//! The programs in a real kernel: by `BPF_PROG_TEST_RUN` for every verdict, and on a TUN device in a network
//! namespace.
//!
//! These tests need root and the eBPF objects, and fail where one is missing.

mod on_tun;
mod steering;
mod verdicts;
mod xsk;

use std::net::Ipv6Addr;

use cyphonic_common::InterfaceConfig;

const OWN: &str = "fd12:3456:789a:1::7";
const PEER: &str = "fd12:3456:789a:2::8002:9";
const FOREIGN: &str = "2001:db8::1";

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn config() -> InterfaceConfig {
    InterfaceConfig::new(address(OWN).octets(), address("fd12:3456:789a::").octets(), 48).unwrap()
}

/// How many damaged packets kernel and host judge: `cargo xtask fuzz` asks for millions.
fn cases(usual: u32) -> u32 {
    std::env::var("CYPHONIC_FUZZ_CASES").map_or(usual, |cases| cases.parse().unwrap())
}

/// An IPv6 packet of UDP. The checksum is right, for the kernel receives some of them.
fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    udp_with(source, destination, (4000, 5000), payload)
}

fn udp_with(source: &str, destination: &str, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (address(source), address(destination));
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        .udp(ports.0, ports.1)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// A TCP segment that opens a connection, or an answer to one.
fn tcp(source: &str, destination: &str, ports: (u16, u16), opens: bool) -> Vec<u8> {
    let builder =
        etherparse::PacketBuilder::ipv6(address(source).octets(), address(destination).octets(), 64);
    let builder = builder.tcp(ports.0, ports.1, 1, 1000).syn();
    let mut packet = Vec::new();
    let written =
        if opens { builder.write(&mut packet, b"") } else { builder.ack(2).write(&mut packet, b"") };
    written.unwrap();
    packet
}
