//! The embedded object in the kernel, and its maps.

use aya::maps::{Array, DevMapHash, MapData, MapInfo, PerCpuArray};
#[cfg(test)]
use aya::maps::{HashMap, Map};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use cyphonic_common::Counter;
use cyphonic_common::relay::RelayConfig;
use cyphonic_common::relay::leg::MAX_OWN_ADDRESSES;
use cyphonic_common::relay::map::{MAX_EGRESS, name};
use cyphonic_common::relay::place::pairs_for;
#[cfg(test)]
use cyphonic_common::relay::{LegEntry, RelayWatch};

use super::XdpError;
use super::legs::Legs;
use super::pins::Pins;
use super::watch::{Change, Watcher};
use crate::bpf::pod::Value;
use crate::errno::errno;

/// aya requires the alignment of a 64-bit ELF file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay"));

/// The maps that hold the legs, and outlive the process together.
pub(super) const LEGS_MAPS: [&str; 3] = [name::LEGS, name::OVERFLOW, name::OWN_ADDRESSES];

/// Program and maps in the kernel, not attached yet.
pub(super) struct Object {
    ebpf: Ebpf,
    /// Whether the legs are an earlier process's.
    pub(super) adopted: bool,
}

impl Object {
    /// Loads it, with the legs that are pinned if they are of this size, else with new ones, which are
    /// pinned.
    pub(super) fn load(capacity: u32, pins: Option<&Pins>) -> Result<Self, XdpError> {
        if OBJECT.is_empty() {
            return Err(XdpError::NotBuilt);
        }
        crate::memlock::raise_limit();
        let adopted = pins.is_some_and(|pins| adoptable(pins, capacity));
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(name::LEGS, pairs_for(capacity));
        loader.map_max_entries(name::OVERFLOW, capacity.max(1));
        for name in LEGS_MAPS {
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let ebpf = loader.load(OBJECT).map_err(XdpError::load)?;
        let mut object = Self { ebpf, adopted };
        object.program()?.load().map_err(XdpError::load)?;
        Ok(object)
    }

    pub(super) fn program(&mut self) -> Result<&mut Xdp, XdpError> {
        let program = self.ebpf.program_mut(name::PROGRAM).ok_or(XdpError::Missing(name::PROGRAM))?;
        program.try_into().map_err(XdpError::load)
    }

    /// Until this is called, everything passes.
    pub(super) fn configure(&mut self, config: RelayConfig) -> Result<(), XdpError> {
        let failed = XdpError::map(name::CONFIG);
        let map = self.ebpf.map_mut(name::CONFIG).ok_or(XdpError::Missing(name::CONFIG))?;
        let mut map: Array<_, Value<RelayConfig>> =
            Array::try_from(map).map_err(|error| failed(error.into()))?;
        map.set(0, Value(config), 0).map_err(|error| failed(error.into()))
    }

    /// Lets packets leave by these interfaces, also those that came in by another one; and by none of those
    /// that were set before, if it is not among these.
    pub(super) fn set_egress(&mut self, interfaces: &[u32], before: &[u32]) -> Result<(), XdpError> {
        let failed = XdpError::map(name::EGRESS);
        let map = self.ebpf.map_mut(name::EGRESS).ok_or(XdpError::Missing(name::EGRESS))?;
        let mut map = DevMapHash::try_from(map).map_err(|error| failed(error.into()))?;
        for interface in interfaces.iter().take(MAX_EGRESS as usize) {
            map.insert(*interface, *interface, None, 0).map_err(|error| failed(error.into()))?;
        }
        for interface in before.iter().filter(|interface| !interfaces.contains(interface)) {
            match map.remove(*interface) {
                // Or it was removed with the interface.
                Err(error) if errno(&error) != Some(libc::ENOENT) => return Err(failed(error.into())),
                _ => {}
            }
        }
        Ok(())
    }

    /// The legs.
    pub(super) fn take_legs(&mut self) -> Result<Legs, XdpError> {
        Legs::take(&mut self.ebpf)
    }

    #[cfg(test)]
    pub(super) fn take_legs_with(&mut self, barrier: super::legs::Barrier) -> Legs {
        Legs::take_with(&mut self.ebpf, barrier).unwrap()
    }

    /// Watches routes for the program, and calls `follow` when it may have to be on other interfaces.
    pub(super) fn watch(&mut self, follow: impl FnMut(Change) + Send + 'static) -> Result<Watcher, XdpError> {
        Watcher::start_with(&mut self.ebpf, follow)
    }

    /// All CPUs' counters.
    pub(super) fn counters(&mut self) -> Result<PerCpuArray<MapData, Value<Counter>>, XdpError> {
        let map = self.ebpf.take_map(name::COUNTERS).ok_or(XdpError::Missing(name::COUNTERS))?;
        PerCpuArray::try_from(map).map_err(|error| XdpError::map(name::COUNTERS)(error.into()))
    }
}

#[cfg(test)]
impl Object {
    /// What the program was told last.
    pub(super) fn configured(&self) -> RelayConfig {
        let map = self.ebpf.map(name::CONFIG).unwrap();
        Array::<_, Value<RelayConfig>>::try_from(map).unwrap().get(&0, 0).unwrap().0
    }

    /// What the watcher writes, before it takes the map.
    pub(super) fn watched(&self) -> Array<MapData, Value<RelayWatch>> {
        let Some(Map::Array(map)) = self.ebpf.map(name::WATCH) else { panic!("no map") };
        Map::Array(once_more(map)).try_into().unwrap()
    }

    /// Legs without a place in the table, before somebody takes the map.
    pub(super) fn overflow(&self) -> HashMap<MapData, [u8; 8], Value<LegEntry>> {
        let Some(Map::HashMap(map)) = self.ebpf.map(name::OVERFLOW) else { panic!("no map") };
        Map::HashMap(once_more(map)).try_into().unwrap()
    }
}

#[cfg(test)]
fn once_more(map: &MapData) -> MapData {
    MapData::from_id(map.info().unwrap().id()).unwrap()
}

/// Whether there are legs of that size. If there are others, or not all that belongs to them, they are
/// removed.
fn adoptable(pins: &Pins, capacity: u32) -> bool {
    let entries = |name| MapInfo::from_pin(pins.map(name)).ok().map(|info| info.max_entries());
    let found = LEGS_MAPS.map(entries);
    if found == [Some(pairs_for(capacity)), Some(capacity.max(1)), Some(MAX_OWN_ADDRESSES as u32)] {
        return true;
    }
    if found != [None; 3] {
        tracing::info!("the relay's legs are made anew, since the number of bindings was changed");
    }
    for name in LEGS_MAPS {
        let _ = std::fs::remove_file(pins.map(name));
    }
    false
}
