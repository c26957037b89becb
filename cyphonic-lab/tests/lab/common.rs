//! Shared by the tests that build labs. They need root and fail without it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use cyphonic_lab::command::Cancel;
use cyphonic_lab::emulator::Emulator;
use cyphonic_lab::measure::{PingReport, PingRun, ping};
use cyphonic_lab::{Lab, LabConfig, Topology};

/// For what must come: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not come.
const SILENCE: Duration = Duration::from_millis(300);

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

/// A UDP socket on a node. A program that another test is just starting has a copy of every socket until it
/// runs, also of one that was closed here: a port may be taken a moment longer.
pub(crate) fn socket(lab: &Lab, node: &str, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let namespace = lab.namespace(node).unwrap();
    let end = Instant::now() + PATIENCE;
    let socket = loop {
        match namespace.inside(|| UdpSocket::bind(address)).unwrap() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => break bound.unwrap(),
        }
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Who sent the next datagram, which is expected: none if it does not come.
pub(crate) fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// Whether no datagram comes, as expected.
pub(crate) fn hears_nothing(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let heard = receive(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    heard.is_none()
}

/// Whether a datagram comes, with the patience for what is expected.
pub(crate) fn hears(socket: &UdpSocket, expected: bool) -> bool {
    if expected { receive(socket).is_some() } else { !hears_nothing(socket) }
}
