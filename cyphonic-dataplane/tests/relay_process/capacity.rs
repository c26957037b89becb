//! How many legs a relay has room for.

use std::net::SocketAddr;
use std::time::Instant;

use cyphonic_common::ConnectionId;
use cyphonic_dataplane::relay::xdp::XdpOptions;
use cyphonic_dataplane::relay::{Leg, RelayMap, RelayMapError};

use crate::lab::{Process, isolated, options};
#[test]
fn a_million_legs_fit() {
    const LEGS: u32 = 1_000_000;
    isolated(|pins| {
        let options = XdpOptions { legs: LEGS as usize, pins: None, ..options(pins) };
        let before = resident();
        // With its worker, which has a table of its own.
        let process = Process::start(&options);
        let xdp = &process.xdp;
        let start = Instant::now();
        let id = |number: u32| {
            let mut bytes = [0xff; 8];
            bytes[4..].copy_from_slice(&number.to_be_bytes());
            ConnectionId::from_random_data(bytes)
        };
        let node = |number: u32| SocketAddr::from((number.to_be_bytes(), 1000));
        for number in 0..LEGS {
            let number = number + (10 << 24);
            xdp.insert(id(number), Leg::new(node(number), node(number ^ 1), id(number ^ 1))).unwrap();
        }
        let filled = start.elapsed();
        let one_more = xdp.insert(id(1), Leg::new(node(10 << 24), node(11 << 24), id(2)));
        assert_eq!(one_more, Err(RelayMapError::Full { capacity: LEGS as usize }));
        let per_leg = (resident() - before) / u64::from(LEGS);
        println!("{LEGS} legs: {filled:?}, {per_leg} bytes a leg in this process");
        assert!(per_leg < 1_000, "{per_leg} bytes a leg");
        assert_eq!(xdp.len(), LEGS as usize);
        xdp.stop();
        process.kill();
    });
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
