//! What relays run on this host, asked of the kernel: also those whose process has died.

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{ProgramInfo, loaded_programs};
use cyphonic_common::Counter;
use cyphonic_common::relay::RelayConfig;
use cyphonic_common::relay::map::name;
use nix::net::if_::if_nameindex;

use super::options::{NATIVE_WHY, generic_why};
use super::{Hook, XdpCounters, XdpError};
use crate::bpf::pod::Value;
use crate::errno::errno;
use crate::netdevice;

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
    /// Where it is, as far as that is in the calling thread's network namespace.
    pub interfaces: Vec<Place>,
}

/// An interface that a relay's program is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The interface's name.
    pub interface: String,
    /// How the program hangs there.
    pub hook: Hook,
    /// Why so, as far as the kernel tells.
    pub why: String,
}

/// All relays' programs, in all network namespaces.
///
/// # Errors
/// The kernel does not list programs for this process.
pub fn running_relays() -> Result<Vec<RunningRelay>, XdpError> {
    let (mut relays, places) = (Vec::new(), places());
    for program in loaded_programs() {
        match program {
            Ok(program) if program.name_as_str() == Some(name::PROGRAM) => {
                relays.extend(read(&program, &places));
            }
            Ok(_) => {}
            // Gone since it was listed.
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(XdpError::load(error)),
        }
    }
    Ok(relays)
}

/// Every XDP program on this network namespace's interfaces, and how it hangs there.
fn places() -> Vec<(u32, Place)> {
    let mut places = Vec::new();
    let Ok(interfaces) = if_nameindex() else { return places };
    for interface in &interfaces {
        let name = interface.name().to_string_lossy();
        // Gone since it was listed.
        let Ok(programs) = netdevice::xdp_programs(&name) else { continue };
        let features = netdevice::xdp_features(&name).ok();
        let whys = [(Hook::Native, NATIVE_WHY), (Hook::Generic, generic_why(features))];
        for ((hook, why), program) in whys.into_iter().zip([programs.native, programs.generic]) {
            let place = Place { interface: name.clone().into_owned(), hook, why: why.to_owned() };
            places.extend(program.map(|program| (program, place)));
        }
    }
    places
}

/// Nothing if it is another version's, or going.
fn read(program: &ProgramInfo, places: &[(u32, Place)]) -> Option<RunningRelay> {
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
    let here = places.iter().filter(|(number, _)| *number == program.id());
    let interfaces = here.map(|(_, place)| place.clone()).collect();
    Some(RunningRelay { program: program.id(), port: port?, legs: legs?, counters: counters?, interfaces })
}
