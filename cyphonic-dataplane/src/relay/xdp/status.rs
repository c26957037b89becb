//! What relays run on this host, asked of the kernel: also those whose process has died.

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{ProgramInfo, loaded_programs};
use cyphonic_common::Counter;
use cyphonic_common::relay::RelayConfig;
use cyphonic_common::relay::map::name;

use super::error::errno;
use super::object::Value;
use super::{XdpCounters, XdpError};

/// A relay's program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningRelay {
    /// The program's number, as in `bpftool prog`.
    pub program: u32,
    /// The relay's UDP port.
    pub port: u16,
    /// The most legs.
    pub legs: u32,
    /// What it counted since its process configured it.
    pub counters: XdpCounters,
}

/// All relays' programs, in all network namespaces.
///
/// # Errors
/// The kernel does not list programs for this process.
pub fn running_relays() -> Result<Vec<RunningRelay>, XdpError> {
    let mut relays = Vec::new();
    for program in loaded_programs() {
        match program {
            Ok(program) if program.name_as_str() == Some(name::PROGRAM) => relays.extend(read(&program)),
            Ok(_) => {}
            // Gone since it was listed.
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(XdpError::load(error)),
        }
    }
    Ok(relays)
}

/// Nothing if it is another version's, or going.
fn read(program: &ProgramInfo) -> Option<RunningRelay> {
    let (mut port, mut legs, mut counters) = (None, None, None);
    for id in program.map_ids().ok()?? {
        let data = MapData::from_id(id).ok()?;
        let info = data.info().ok()?;
        match info.name_as_str() {
            Some(name::OVERFLOW) => legs = Some(info.max_entries()),
            Some(name::CONFIG) => {
                let map = Map::from_map_data(data).ok()?;
                let config: Array<_, Value<RelayConfig>> = Array::try_from(map).ok()?;
                port = Some(u16::from_be_bytes(config.get(&0, 0).ok()?.0.port()));
            }
            Some(name::COUNTERS) => {
                let map: PerCpuArray<_, Value<Counter>> =
                    PerCpuArray::try_from(Map::from_map_data(data).ok()?).ok()?;
                counters = Some(XdpCounters::read(&map));
            }
            _ => {}
        }
    }
    Some(RunningRelay { program: program.id(), port: port?, legs: legs?, counters: counters? })
}
