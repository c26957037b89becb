//! Shared by the tests that build labs. They need root and fail without it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use cyphonic_lab::command::Cancel;
use cyphonic_lab::emulator::Emulator;
use cyphonic_lab::measure::{PingReport, PingRun, ping};
use cyphonic_lab::{Lab, LabConfig, Topology};

/// The default scene of the topology that the repository ships.
pub(crate) fn shipped() -> Topology {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../vagrant/topology.yaml");
    Topology::load(file.as_ref()).unwrap().default_scene().unwrap()
}

/// A configuration whose lab's name no other test run has.
pub(crate) fn config(test: &str, profile: &str) -> LabConfig {
    let emulator =
        Emulator { program: env!("CARGO_BIN_EXE_cyphonic-link-emulator").into(), arguments: Vec::new() };
    LabConfig { emulator, ..LabConfig::new(format!("t{}-{test}", std::process::id()), profile) }
}

pub(crate) fn up(topology: &Topology, test: &str, profile: &str) -> Lab {
    Lab::up(topology, &config(test, profile)).unwrap()
}

pub(crate) fn ping_from(lab: &Lab, node: &str, target: IpAddr, count: u32) -> PingReport {
    let run = PingRun { wait: Duration::from_secs(1), ..PingRun::new(target, count) };
    ping(&lab.namespace(node).unwrap(), &run, &Cancel::default()).unwrap()
}

/// A UDP socket on a node.
pub(crate) fn socket(lab: &Lab, node: &str, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let socket = lab.namespace(node).unwrap().inside(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Who sent the next datagram, if one comes.
pub(crate) fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}
