//! Programs that choose the worker for a packet before it is queued.

use std::os::fd::AsFd;
use std::sync::Arc;

use aya::programs::ProgramError;
use cyphonic_common::map::name;

use super::error::BpfError;
use super::object::{Object, QUEUE, SOCKET};
use crate::tun::TunDevice;
use crate::udp::UdpPort;

/// Steers what applications send to the queue of the destination's worker.
pub(super) fn steer_queues(object: &mut Object, queues: &[TunDevice]) -> Result<(), BpfError> {
    let program = object.queue()?;
    program.load().map_err(|source| BpfError::from_program(QUEUE, source))?;
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Steer {
        program: QUEUE,
        what: "queues",
        source,
    };
    let fd = program.fd().map_err(|error: ProgramError| refused(error.into()))?;
    match queues.first() {
        // The program belongs to the interface: any queue will do.
        Some(queue) => queue.steer(fd.as_fd()).map_err(|error| refused(error.into())),
        None => Ok(()),
    }
}

/// Steers what arrives on the UDP port to the socket of its connection ID's worker.
pub(super) fn steer_sockets(object: &mut Object, ports: &[Arc<UdpPort>]) -> Result<(), BpfError> {
    let mut sockets = object.take_sockets()?;
    for (worker, port) in (0..).zip(ports) {
        sockets
            .set(worker, port.as_ref(), 0)
            .map_err(|source| BpfError::Map { map: name::SOCKETS, source })?;
    }
    let program = object.socket()?;
    program.load().map_err(|source| BpfError::from_program(SOCKET, source))?;
    let refused =
        |source: ProgramError| BpfError::Steer { program: SOCKET, what: "sockets", source: source.into() };
    match ports.first() {
        Some(port) => program.attach(port.as_ref()).map_err(refused),
        None => Ok(()),
    }
}
