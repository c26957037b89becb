//! The table of legs in the kernel, which the program reads while it is written here.
//!
//! The array is mapped into this process: see [`place`](cyphonic_common::relay::place) for where in it a leg
//! stands. What has no room there is in the kernel's hash map, so that no leg is refused.
//!
//! **Invariants.** The program never sees half a leg:
//! - A leg is written to an entry that nobody can find, and its connection ID last.
//! - A leg never changes. Another one in its place is written elsewhere, before the old one is taken away, or
//!   the program finds none for a while.
//! - An entry that was emptied rests: it is not written before all programs that ran at that time have ended.
//!   Nor is one in the hash map, which the kernel would use again at once: so it takes nothing before that if
//!   it has given anything up. To wait for programs takes milliseconds, so what it cannot take waits, many
//!   legs together: see [`Legs::settle`]. Where legs change during a wait ([`Legs::begin_settling`]), its end
//!   frees only what was emptied before it began. Only where the kernel does not tell when programs have ended,
//!   the hash map is left to chance: a program that runs for microseconds would have to be overtaken by two
//!   changes.

#![expect(unsafe_code, reason = "memory is shared with the kernel, and a system call that no safe crate has")]

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use cyphonic_common::ConnectionId;
use cyphonic_common::relay::leg::MAX_OWN_ADDRESSES;
use cyphonic_common::relay::map::name;
use cyphonic_common::relay::place::PAIR_LEN;
use cyphonic_common::relay::{Leg, LegEntry, LegError, OwnAddresses, PackedLeg, Place, RelayState};

use super::XdpError;
use crate::bpf::pod::Value;
use crate::xsk::memory::Mapping;

/// Words of an entry. The first is the connection ID.
const WORDS: usize = size_of::<LegEntry>() / size_of::<u64>();
/// Entries that may rest before something is done about it, at least.
const MIN_RESTING: usize = 1024;
/// Legs that may wait for the hash map: then programs are waited for at once.
const MAX_WAITING: usize = 256;
/// In this time every program ends, for certain, where the kernel does not tell: a run takes microseconds.
const PROGRAMS_END: Duration = Duration::from_millis(100);
/// `MEMBARRIER_CMD_GLOBAL` of `linux/membarrier.h`.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Why a leg is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LegsError {
    /// The leg cannot be expressed.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// The kernel refused.
    #[error("the kernel takes no more legs: {0}")]
    Map(#[from] MapError),
}

/// The kernel's legs. One at a time may write them.
pub struct Legs {
    table: Mapping,
    /// Held for a program that is not loaded yet.
    _map: MapData,
    pairs: u32,
    overflow: HashMap<MapData, [u8; 8], Value<LegEntry>>,
    own: OwnAddresses,
    own_map: Array<MapData, [u8; 16]>,
    /// What was emptied and no wait for programs has begun since.
    resting: Resting,
    /// What was emptied before the wait began that is under way.
    awaited: Option<Resting>,
    /// Legs for the hash map while it may take none. They are in the kernel nowhere else.
    waiting: BTreeMap<ConnectionId, LegEntry>,
    /// Whether the kernel refused some of them when they were put there last.
    refused: bool,
    /// Nothing once the kernel has refused it.
    barrier: Option<Barrier>,
}

/// Returns when all programs that ran when it was called have ended.
pub type Barrier = fn() -> io::Result<()>;

/// What a program may still be reading.
#[derive(Default)]
struct Resting {
    /// Empty entries of the table.
    entries: HashSet<usize>,
    /// Whether the hash map has given up any.
    overflow: bool,
}

/// A wait for programs that the legs need not be held for: see [`Legs::begin_settling`].
#[must_use]
pub struct Wait(Barrier);

/// That it is over: nothing else makes one.
#[must_use]
pub struct Waited(io::Result<()>);

impl Wait {
    /// Waits, some milliseconds.
    pub fn wait(self) -> Waited {
        Waited(self.0())
    }
}

/// Where a leg is.
enum Spot {
    /// The entry's number.
    Table(usize),
    Overflow,
    /// Not in the kernel yet.
    Waiting,
}

impl Legs {
    /// Takes the maps of a loaded object.
    ///
    /// # Errors
    /// The object has none, or the kernel does not map the table.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, XdpError> {
        Self::take_with(ebpf, wait_for_programs)
    }

    /// [`take`](Self::take) with another barrier.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_with(ebpf: &mut Ebpf, barrier: Barrier) -> Result<Self, XdpError> {
        let Map::Array(map) = take(ebpf, name::LEGS)? else { return Err(XdpError::Missing(name::LEGS)) };
        let failed = XdpError::map(name::LEGS);
        let pairs = map.info().map_err(|error| failed(error.into()))?.max_entries();
        let len = pairs as usize * PAIR_LEN;
        let table = Mapping::shared(map.fd().as_fd(), len, 0).map_err(|error| failed(error.into()))?;
        let overflow = HashMap::try_from(take(ebpf, name::OVERFLOW)?);
        let overflow = overflow.map_err(|error| XdpError::map(name::OVERFLOW)(error.into()))?;
        let own_failed = XdpError::map(name::OWN_ADDRESSES);
        let own_map: Array<_, [u8; 16]> = take(ebpf, name::OWN_ADDRESSES)?
            .try_into()
            .map_err(|error: MapError| own_failed(error.into()))?;
        let own =
            OwnAddresses::from_octets((0..MAX_OWN_ADDRESSES as u32).map_while(|at| own_map.get(&at, 0).ok()));
        let mut this = Self {
            table,
            _map: map,
            pairs,
            overflow,
            own,
            own_map,
            resting: Resting::default(),
            awaited: None,
            waiting: BTreeMap::new(),
            refused: false,
            barrier: Some(barrier),
        };
        // What an earlier process emptied may be being read.
        if this.iter().next().is_some() && !this.programs_have_ended() {
            std::thread::sleep(PROGRAMS_END);
        }
        Ok(this)
    }

    /// How many pairs the table has.
    pub const fn pairs(&self) -> u32 {
        self.pairs
    }

    /// The leg with this virtual connection ID, its state and its way.
    pub fn get(&self, cid: ConnectionId) -> Option<LegEntry> {
        match self.spot(cid)? {
            Spot::Table(at) => self.read(at),
            Spot::Overflow => self.overflow.get(cid.as_bytes(), 0).ok().map(|value| value.0),
            Spot::Waiting => self.waiting.get(&cid).copied(),
        }
    }

    /// Binds a leg that is not bound. The program may find it no sooner than after [`settle`](Self::settle).
    ///
    /// # Errors
    /// [`LegsError`]. Nothing has changed.
    pub fn insert(&mut self, cid: ConnectionId, leg: &Leg, state: RelayState) -> Result<(), LegsError> {
        let leg = self.leg(cid, leg)?;
        self.put(cid, LegEntry { state, ..LegEntry::new(leg) })
    }

    /// Puts another leg in a bound one's place, as [`insert`](Self::insert) does; counters go on. Without one
    /// it is inserted.
    ///
    /// # Errors
    /// [`LegsError`]. Nothing has changed.
    pub fn replace(&mut self, cid: ConnectionId, leg: &Leg) -> Result<(), LegsError> {
        let leg = self.leg(cid, leg)?;
        let (old, found) = (self.spot(cid), self.get(cid));
        if found.is_some_and(|found| found.leg == leg) {
            return Ok(());
        }
        let state = found.map(|entry| entry.state).unwrap_or_default();
        let entry = LegEntry { state, ..LegEntry::new(leg) };
        match old {
            Some(Spot::Overflow) => match self.free(cid) {
                Some(at) => {
                    self.write(at, entry);
                    self.give_up(cid);
                    Ok(())
                }
                None if self.must_wait() => {
                    self.give_up(cid);
                    self.wait(cid, entry);
                    Ok(())
                }
                // The kernel replaces it in one step, by another entry.
                None => {
                    self.overflow.insert(cid.as_bytes(), Value(entry), 0)?;
                    self.resting.overflow = true;
                    Ok(())
                }
            },
            Some(Spot::Waiting) => {
                match self.free(cid) {
                    Some(at) => {
                        self.write(at, entry);
                        self.waiting.remove(&cid);
                    }
                    None => drop(self.waiting.insert(cid, entry)),
                }
                Ok(())
            }
            Some(Spot::Table(at)) => {
                self.put(cid, entry)?;
                self.empty(at);
                Ok(())
            }
            None => self.put(cid, entry),
        }
    }

    /// Unbinds, and returns what was bound: the program does not find it any more.
    pub fn remove(&mut self, cid: ConnectionId) -> Option<LegEntry> {
        let spot = self.spot(cid)?;
        let entry = self.get(cid);
        match spot {
            Spot::Table(at) => self.empty(at),
            Spot::Overflow => self.give_up(cid),
            Spot::Waiting => drop(self.waiting.remove(&cid)),
        }
        entry
    }

    /// Whether legs wait for [`settle`](Self::settle).
    pub fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Puts those legs into the kernel that wait until programs have ended: it waits for that once for all of
    /// them, some milliseconds. Until then userspace must relay them.
    pub fn settle(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.must_wait() && self.programs_have_ended() {
            self.nothing_rests();
        }
        self.put_waiting();
    }

    /// [`settle`](Self::settle) for who lets others change the legs during the wait, and tells
    /// [`end_settling`](Self::end_settling) of its end. Nothing where none is needed: the legs are in the kernel then, or
    /// somebody else's wait is under way that will put them there.
    pub fn begin_settling(&mut self) -> Option<Wait> {
        if self.awaited.is_some() {
            return None;
        }
        let Some(barrier) = self.barrier.filter(|_| self.must_wait() && !self.waiting.is_empty()) else {
            self.put_waiting();
            return None;
        };
        // What is emptied from now on, programs may find that outlast the wait.
        self.awaited = Some(std::mem::take(&mut self.resting));
        Some(Wait(barrier))
    }

    /// Puts legs into the kernel when a [wait](Self::begin_settling) is over. True if some must wait again, since the
    /// hash map has given up entries meanwhile.
    pub fn end_settling(&mut self, Waited(waited): Waited) -> bool {
        let awaited = self.awaited.take().unwrap_or_default();
        if !self.is_over(waited) {
            self.resting.entries.extend(awaited.entries);
            self.resting.overflow |= awaited.overflow;
        }
        self.put_waiting();
        self.must_wait() && !self.waiting.is_empty()
    }

    fn put_waiting(&mut self) {
        let mut refusal = None;
        for (cid, entry) in std::mem::take(&mut self.waiting) {
            if self.must_wait() && self.free(cid).is_none() {
                self.waiting.insert(cid, entry);
            } else if let Err(error) = self.put(cid, entry) {
                refusal = Some(error);
                self.waiting.insert(cid, entry);
            }
        }
        // Those that are refused for good come here each time.
        if let Some(error) = refusal.as_ref().filter(|_| !self.refused) {
            tracing::warn!(%error, legs = self.waiting.len(), "legs are relayed in userspace");
        }
        self.refused = refusal.is_some();
    }

    /// All legs.
    pub fn iter(&self) -> impl Iterator<Item = (ConnectionId, Leg)> + '_ {
        let entries = self.pairs as usize * 2;
        let table = (0..entries).filter_map(|at| self.read(at).filter(|entry| entry.leg.cid() != 0));
        let overflow = self.overflow.iter().filter_map(|found| found.ok().map(|(_, value)| value.0));
        table.chain(overflow).chain(self.waiting.values().copied()).map(|entry| {
            (ConnectionId::from_bytes(entry.leg.cid().to_ne_bytes()), entry.leg.unpacked(&self.own))
        })
    }

    /// The leg of a binding, whose addresses of the relay's are then known to the program.
    fn leg(&mut self, cid: ConnectionId, leg: &Leg) -> Result<PackedLeg, LegsError> {
        for own in [leg.local, leg.source].into_iter().flatten() {
            self.know(own)?;
        }
        Ok(PackedLeg::new(cid, leg, &self.own)?)
    }

    fn know(&mut self, own: IpAddr) -> Result<(), LegsError> {
        if self.own.number(Some(own)).is_none()
            && let Some(number) = self.own.add(own)
        {
            self.own_map.set(number.into(), self.own.octets(number), 0)?;
        }
        Ok(())
    }

    /// Writes a leg where nothing is, or has it wait.
    fn put(&mut self, cid: ConnectionId, entry: LegEntry) -> Result<(), LegsError> {
        match self.free(cid) {
            Some(at) => self.write(at, entry),
            None if self.must_wait() => self.wait(cid, entry),
            None => self.overflow.insert(cid.as_bytes(), Value(entry), 0)?,
        }
        Ok(())
    }

    /// Whether the hash map would use an entry again that a program may be reading.
    fn must_wait(&self) -> bool {
        self.barrier.is_some() && self.all_resting().any(|resting| resting.overflow)
    }

    fn all_resting(&self) -> impl Iterator<Item = &Resting> {
        std::iter::once(&self.resting).chain(&self.awaited)
    }

    fn wait(&mut self, cid: ConnectionId, entry: LegEntry) {
        self.waiting.insert(cid, entry);
        if self.waiting.len() >= MAX_WAITING {
            self.settle();
        }
    }

    /// Takes a leg out of the hash map.
    fn give_up(&mut self, cid: ConnectionId) {
        self.resting.overflow = true;
        if let Err(error) = self.overflow.remove(cid.as_bytes()) {
            tracing::error!(%error, "a leg stays in the kernel");
        }
    }

    /// An entry of the table for a leg.
    fn free(&self, cid: ConnectionId) -> Option<usize> {
        let rests = |at: &usize| self.all_resting().any(|resting| resting.entries.contains(at));
        self.candidates(cid).into_iter().find(|at| self.id(*at) == 0 && !rests(at))
    }

    /// All programs have ended that may have been reading what was emptied. A wait that is under way has nothing left to
    /// wait for.
    fn nothing_rests(&mut self) {
        self.resting = Resting::default();
        self.awaited.iter_mut().for_each(|awaited| *awaited = Resting::default());
    }

    /// The entries where the program looks for a leg, in its order.
    fn candidates(&self, cid: ConnectionId) -> [usize; 4] {
        let cid = u64::from_ne_bytes(*cid.as_bytes());
        let (first, second) = (Place::first(cid, self.pairs), Place::second(cid, self.pairs));
        let entry = |Place { pair, home }, other| pair as usize * 2 + (home ^ other);
        [entry(first, 0), entry(first, 1), entry(second, 0), entry(second, 1)]
    }

    /// In the order in which the program looks.
    fn spot(&self, cid: ConnectionId) -> Option<Spot> {
        let id = u64::from_ne_bytes(*cid.as_bytes());
        let at = self.candidates(cid).into_iter().find(|at| self.id(*at) == id);
        let waiting = || self.waiting.contains_key(&cid).then_some(Spot::Waiting);
        let in_overflow = || self.overflow.get(cid.as_bytes(), 0).is_ok().then_some(Spot::Overflow);
        at.map(Spot::Table).or_else(waiting).or_else(in_overflow)
    }

    fn id(&self, at: usize) -> u64 {
        self.words(at).map_or(0, |[id, ..]| id.load(Ordering::Relaxed))
    }

    fn words(&self, at: usize) -> Option<&[AtomicU64; WORDS]> {
        let entry = self.table.at(at * size_of::<LegEntry>(), size_of::<LegEntry>())?;
        // SAFETY: all of it is inside the mapping, which lives as long as this and begins a page; entries are
        // of words. The kernel side writes whole words, but for bytes that are always 0 and for `way`: what is
        // loaded of that may be partly old, which any bytes may be, and nobody goes by it.
        Some(unsafe { entry.cast().as_ref() })
    }

    fn read(&self, at: usize) -> Option<LegEntry> {
        let words = self.words(at)?.each_ref().map(|word| word.load(Ordering::Relaxed));
        // SAFETY: of the same size, and integers and byte arrays only, of which any bytes are a value.
        Some(unsafe { std::mem::transmute::<[u64; WORDS], LegEntry>(words) })
    }

    fn write(&self, at: usize, entry: LegEntry) {
        let Some([id, rest @ ..]) = self.words(at) else { return };
        // SAFETY: of the same size and without padding, as asserted beside its definition.
        let [new_id, new_rest @ ..] = unsafe { std::mem::transmute::<LegEntry, [u64; WORDS]>(entry) };
        for (word, new) in rest.iter().zip(new_rest) {
            word.store(new, Ordering::Relaxed);
        }
        id.store(new_id, Ordering::Release);
    }

    /// Takes a leg away.
    fn empty(&mut self, at: usize) {
        if let Some([id, ..]) = self.words(at) {
            id.store(0, Ordering::Relaxed);
        }
        self.resting.entries.insert(at);
        if self.resting.entries.len() < MIN_RESTING.max(self.pairs as usize / 8) {
            return;
        }
        // Otherwise they stay as they are: new legs go elsewhere.
        if self.programs_have_ended() {
            self.nothing_rests();
        }
    }

    /// Whether all programs have ended that ran when it was called. Not where the kernel does not tell.
    fn programs_have_ended(&mut self) -> bool {
        let waited = self.barrier.map(|barrier| barrier());
        waited.is_some_and(|waited| self.is_over(waited))
    }

    /// Whether a wait for programs was one. If the kernel refuses, it is not asked again.
    fn is_over(&mut self, waited: io::Result<()>) -> bool {
        let _ = waited.as_ref().inspect_err(|error| {
            tracing::warn!(%error, "no membarrier(2): entries of the relay's table are used only once");
            self.barrier = None;
        });
        waited.is_ok()
    }
}

/// Returns when all programs that run now have ended: on all processors, whatever they were doing (RCU).
fn wait_for_programs() -> io::Result<()> {
    // SAFETY: it takes no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, XdpError> {
    ebpf.take_map(name).ok_or(XdpError::Missing(name))
}
