//! The embedded object, loaded into the kernel.

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, ReusePortSockArray};
use aya::programs::{Program, ProgramError, SchedClassifier, SkReuseport, SocketFilter, Xdp};
use aya::{Ebpf, EbpfLoader};
use cyphonic_common::map::{Counter, InterfaceConfig, PeerEntry, name};
use cyphonic_common::policy::{MAX_FLOWS, MAX_FRAGMENTED, PolicyKey};
use cyphonic_common::steer;

use super::error::BpfError;
use super::pod::Value;

/// The program on the interface's egress.
pub(super) const EGRESS: &str = "cyphonic_egress";
/// The program on the interface's ingress.
pub(super) const INGRESS: &str = "cyphonic_ingress";
/// The program on the ingress of a veth pair's near end.
pub(super) const NEAR: &str = "cyphonic_near";
/// The program on the ingress of other interfaces.
pub(super) const GUARD: &str = "cyphonic_guard";
/// The program on the egress of other interfaces.
pub(super) const KEEP: &str = "cyphonic_keep";
/// The program that chooses the interface's queue.
pub(super) const QUEUE: &str = "cyphonic_queue";
/// The program that chooses the port's socket.
pub(super) const SOCKET: &str = "cyphonic_socket";

/// Places that each processor takes from a table before it uses them (`LOCAL_FREE_TARGET` of the kernel's
/// `bpf_lru_list.c`): without these, some processors would have one place each on kernels before 6.16.
const SPARE_PER_PROCESSOR: u32 = 128;

/// aya requires the alignment of a 64-bit ELF file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent"));

/// Programs and maps in the kernel, configured but not attached.
#[derive(Debug)]
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads the programs for an interface.
    pub(super) fn load(config: InterfaceConfig, log_level: u8) -> Result<Self, BpfError> {
        if OBJECT.is_empty() {
            return Err(BpfError::NotBuilt);
        }
        crate::memlock::raise_limit();
        let spare =
            SPARE_PER_PROCESSOR * aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(1));
        let ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS", MAX_FLOWS + spare)
            .map_max_entries("FRAGMENTED", MAX_FRAGMENTED + spare)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(OBJECT)
            .map_err(BpfError::from_load)?;
        let mut object = Self { ebpf };
        object.configure(config)?;
        Ok(object)
    }

    /// Has the kernel verify one of the programs on the interface.
    pub(super) fn verify(&mut self, program: &'static str) -> Result<(), BpfError> {
        self.classifier(program)?.load().map_err(|source| BpfError::from_program(program, source))
    }

    /// One of the programs on the interface.
    pub(super) fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, BpfError> {
        self.program(name)
    }

    /// The program that chooses the interface's queue.
    pub(super) fn queue(&mut self) -> Result<&mut SocketFilter, BpfError> {
        self.program(QUEUE)
    }

    /// The program that chooses the port's socket.
    pub(super) fn socket(&mut self) -> Result<&mut SkReuseport, BpfError> {
        self.program(SOCKET)
    }

    /// One of the programs in front of AF_XDP sockets.
    pub(super) fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, BpfError> {
        self.program(name)
    }

    /// A map that stays here.
    pub(super) fn map_mut(&mut self, map: &'static str) -> Result<&mut Map, BpfError> {
        self.ebpf.map_mut(map).ok_or(BpfError::Missing { what: map })
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<P, BpfError>
    where
        P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Missing { what: name })?;
        program.try_into().map_err(|source| BpfError::from_program(name, source))
    }

    /// All CPUs' counters.
    pub(super) fn counters(&self) -> Result<PerCpuArray<&MapData, Value<Counter>>, BpfError> {
        let map = self.ebpf.map(name::COUNTERS).ok_or(BpfError::Missing { what: name::COUNTERS })?;
        PerCpuArray::try_from(map).map_err(|source| BpfError::Map { map: name::COUNTERS, source })
    }

    /// Peers by virtual address.
    pub(super) fn take_peers(&mut self) -> Result<HashMap<MapData, [u8; 16], Value<PeerEntry>>, BpfError> {
        self.take(name::PEERS)
    }

    /// Workers by data connection ID.
    pub(super) fn take_cids(&mut self) -> Result<HashMap<MapData, [u8; 8], u32>, BpfError> {
        self.take(name::CIDS)
    }

    /// What may pass.
    pub(super) fn take_policy(&mut self) -> Result<HashMap<MapData, Value<PolicyKey>, u32>, BpfError> {
        self.take(name::POLICY)
    }

    /// Network cards' slots by their numbers.
    pub(super) fn take_cards(&mut self) -> Result<HashMap<MapData, u32, u32>, BpfError> {
        self.take(steer::name::CARDS)
    }

    /// The port's sockets by worker.
    pub(super) fn take_sockets(&mut self) -> Result<ReusePortSockArray<MapData>, BpfError> {
        self.take(name::SOCKETS)
    }

    fn take<M: TryFrom<Map, Error = MapError>>(&mut self, map: &'static str) -> Result<M, BpfError> {
        let taken = self.ebpf.take_map(map).ok_or(BpfError::Missing { what: map })?;
        M::try_from(taken).map_err(|source| BpfError::Map { map, source })
    }

    /// For attaching the logger.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn configure(&mut self, config: InterfaceConfig) -> Result<(), BpfError> {
        let failed = |source| BpfError::Map { map: name::CONFIG, source };
        let map = self.ebpf.map_mut(name::CONFIG).ok_or(BpfError::Missing { what: name::CONFIG })?;
        let mut map: Array<_, Value<InterfaceConfig>> = Array::try_from(map).map_err(failed)?;
        map.set(0, Value(config), 0).map_err(failed)
    }
}
