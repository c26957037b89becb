//! A tunnel without keys, for `cargo xtask bench`: `null_gso DEVICE MTU PORT PEER`.
//!
//! It makes the device in its own network namespace and prints `ready`; addresses and bringing it up are the
//! caller's.

#![expect(clippy::print_stdout, reason = "it says when it is ready")]

use std::error::Error;
use std::net::SocketAddr;

use cyphonic_dataplane::null_gso;
use cyphonic_dataplane::tun::TunDevice;
use cyphonic_dataplane::udp::UdpPort;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, mtu, port, peer] = arguments.as_slice() else {
        return Err("usage: null_gso DEVICE MTU PORT PEER".into());
    };
    let tun = TunDevice::create(device, mtu.parse()?)?;
    let port = UdpPort::bind(port.parse()?)?;
    let peer: SocketAddr = peer.parse()?;
    println!("ready");
    null_gso::run(&tun, &port, peer)?;
    Ok(())
}
