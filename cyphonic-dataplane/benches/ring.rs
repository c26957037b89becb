//! What two rings carry between two network namespaces on this machine. Needs root.
//!
//! ```text
//! cargo bench -p cyphonic-dataplane --bench ring [-- SECONDS [offload|xdp|mixed] [tcp|udp|trip|single]]
//! ```
//!
//! `single` is TCP without super-packets at the device. Round trips are measured one after the other, and with a
//! pause between them, after which processors and threads must wake up. Both ends, both applications and the wire share the machine: compare lines of one run, not runs.

#![expect(clippy::print_stdout, reason = "a benchmark's output")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/ring_lab/mod.rs"]
mod ring_lab;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_dataplane::ring::RingCounters;
use ring_lab::{B, INTERFACE, Kinds, MIXED, Node, OFFLOAD, PATIENCE, XDP, joined};

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let length =
        Duration::from_secs(arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5));
    let measures = ["trip", "tcp", "udp", "single"];
    let all = !arguments.iter().any(|argument| measures.contains(&argument.as_str()));
    let chosen = |name: &str| all || arguments.iter().any(|argument| argument == name);
    let rings = [("offload", OFFLOAD), ("xdp", XDP), ("mixed", MIXED)];
    let any = rings.iter().any(|(name, _)| arguments.iter().any(|argument| argument == name));
    for (name, kinds) in rings {
        if arguments.iter().any(|argument| argument == name) || (!any && name != "mixed") {
            println!("{name}:");
            measure(kinds, length, chosen);
        }
    }
}

fn measure(kinds: Kinds, length: Duration, chosen: impl Fn(&str) -> bool) {
    let (a, b) = joined(kinds, false);
    if chosen("trip") {
        round_trips(&a, &b, "one after the other", Duration::ZERO);
        round_trips(&a, &b, "with pauses of 2 ms", Duration::from_millis(2));
    }
    if chosen("tcp") {
        bulk("TCP", &a, &b, length);
    }
    if chosen("udp") {
        small_datagrams(&a, &b, length);
    }
    if chosen("single") && kinds == OFFLOAD {
        for node in [&a, &b] {
            node.namespace.run(without_offloads);
        }
        bulk("TCP, one packet at a time from the device", &a, &b, length);
    }
}

fn without_offloads() {
    let arguments = ["-K", INTERFACE, "tso", "off", "gso", "off", "gro", "off"];
    let status = Command::new("ethtool").args(arguments).status().expect("ethtool is installed");
    assert!(status.success(), "{status}");
}

fn bulk(what: &str, a: &Node, b: &Node, length: Duration) {
    let own = b.own;
    let listener = b.namespace.run(move || TcpListener::bind((own, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let before = (a.ring.counters(), b.ring.counters());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut bytes, start) = (vec![0; 1 << 18], 0u64, Instant::now());
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return (bytes, start.elapsed()),
                read => bytes += read as u64,
            }
        }
    });
    a.namespace.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        let (buffer, end) = (vec![7; 1 << 18], Instant::now() + length);
        while Instant::now() < end {
            stream.write_all(&buffer).unwrap();
        }
    });
    let (bytes, elapsed) = receiver.join().unwrap();
    println!("    {what}: {:.2} Gbit/s", bytes as f64 * 8e-9 / elapsed.as_secs_f64());
    report(&before.0, &a.ring.counters(), &before.1, &b.ring.counters());
}

fn small_datagrams(a: &Node, b: &Node, length: Duration) {
    let own = (a.own, b.own);
    let receiver = b.namespace.run(move || UdpSocket::bind((own.1, 6000)).unwrap());
    let before = (a.ring.counters(), b.ring.counters());
    a.namespace.run(move || {
        let sender = UdpSocket::bind((own.0, 0)).unwrap();
        sender.connect((B, 6000)).unwrap();
        let end = Instant::now() + length;
        while Instant::now() < end {
            (0..64).for_each(|_| drop(sender.send(&[1; 64])));
        }
    });
    let after = (a.ring.counters(), b.ring.counters());
    let rate = |packets: u64| packets as f64 / length.as_secs_f64() / 1e3;
    let sent = rate(after.0.tx_packets - before.0.tx_packets);
    println!(
        "    UDP 64 B: {sent:.0} kpps sent, {:.0} kpps written",
        rate(after.1.rx_packets - before.1.rx_packets)
    );
    report(&before.0, &after.0, &before.1, &after.1);
    drop(receiver);
}

fn round_trips(a: &Node, b: &Node, how: &str, pause: Duration) {
    const ROUNDS: usize = 1000;
    let own = (a.own, b.own);
    let echo = b.namespace.run(move || UdpSocket::bind((own.1, 0)).unwrap());
    let port = echo.local_addr().unwrap().port();
    let echoing = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..ROUNDS {
            let (len, from) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..len], from).unwrap();
        }
    });
    let mut times = a.namespace.run(move || {
        let socket = UdpSocket::bind((own.0, 0)).unwrap();
        socket.connect((B, port)).unwrap();
        let round = |_| {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let start = Instant::now();
            socket.send(&[1; 32]).unwrap();
            socket.recv(&mut [0; 64]).unwrap();
            start.elapsed()
        };
        (0..ROUNDS).map(round).collect::<Vec<_>>()
    });
    echoing.join().unwrap();
    times.sort_unstable();
    println!("    round trip, {how}: p50 {:?}, p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
}

fn report(a0: &RingCounters, a1: &RingCounters, b0: &RingCounters, b1: &RingCounters) {
    let ratio = |packets: u64, calls: u64| packets as f64 / calls.max(1) as f64;
    let sends = ratio(a1.tx_packets - a0.tx_packets, a1.tx_sends - a0.tx_sends);
    let writes = ratio(b1.rx_packets - b0.rx_packets, b1.rx_writes - b0.rx_writes);
    println!("        {sends:.1} packets a send, {writes:.1} packets a device write");
    for (node, before, after) in [("sender", a0, a1), ("receiver", b0, b1)] {
        for ((reason, was), (_, is)) in
            before.drops().zip(after.drops()).filter(|((_, was), (_, is))| was != is)
        {
            println!("        {node} dropped {} packets: {reason}", is - was);
        }
    }
}
