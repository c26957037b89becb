//! Where the port's datagrams arrive: on which processor the kernel takes them in.
//!
//! The kernel tells that only of connected sockets (`SO_INCOMING_CPU`), and the node's one port is none.

use std::fmt;

use aya::maps::{Array, MapData};

use super::error::BpfError;
use super::object::{ARRIVAL, Object};
use crate::udp::UdpPort;

/// What the program on the port has noted.
pub(crate) struct Arrivals(Array<MapData, u32>);

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Arrivals").field(&self.processor()).finish()
    }
}

impl Arrivals {
    /// The processor that took in the last datagram; `None` before the first one.
    pub(crate) fn processor(&self) -> Option<usize> {
        self.0.get(&0, 0).ok()?.checked_sub(1).map(|processor| processor as usize)
    }
}

/// Attaches the program to the port, which then knows where its datagrams arrive.
pub(super) fn watch(object: &mut Object, port: &UdpPort) -> Result<(), BpfError> {
    let map = object.take_arrival()?;
    let program = object.arrival()?;
    program.load().map_err(|source| BpfError::from_program(ARRIVAL, source))?;
    program.attach(port).map_err(|error| BpfError::Steer {
        program: ARRIVAL,
        what: "sockets",
        source: error.into(),
    })?;
    port.set_arrivals(Arrivals(map));
    Ok(())
}
