//! The relay in XDP.
//!
//! The program forwards what its table of legs says, before the kernel's stack sees it. What it leaves to the
//! stack (the next hop's link address is not known yet, the packet is too long, there is no checksum to build
//! on, see [`PassReason`](cyphonic_common::relay::PassReason)) arrives at the relay's socket, where a
//! [`UserspaceRelay`] has the same legs. So do packets of a leg that waits, for some tens of milliseconds,
//! until the kernel's hash map may take it. The statistics are the sum.
//!
//! Legs and program outlive the process that made them, if there is a BPF file system: a killed relay goes on
//! forwarding. The next process takes both over ([`RelayMap::adopted`]), and replaces the program without a
//! gap.
//!
//! **Memory.** The kernel's table takes 256 bytes for each leg it may hold; one leg in 150 has no room there
//! when all are bound, and takes 192 more. Userspace takes about 310 for each that is bound. A million legs:
//! 0.3 GB in the kernel and 0.3 GB in the process.

mod attach;
mod error;
mod interfaces;
pub mod legs;
mod neighbours;
mod object;
mod options;
mod pins;
mod program;
mod routing;
mod status;
pub mod watch;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuArray};
use cyphonic_common::relay::{LegEntry, LegError, PassReason, RelayCounterIndex, RelayState};
use cyphonic_common::{ConnectionId, Counter, DropReason};
use rustix::time::{ClockId, clock_gettime};

pub use self::error::XdpError;
use self::legs::{Legs, LegsError, Wait};
pub use self::options::{Attachment, BPF_FILE_SYSTEM, Hook, Mode, NATIVE_WHY, XdpOptions};
use self::pins::Pins;
use self::program::Program;
use self::routing::Routing;
pub use self::status::{Place, RunningRelay, running_relays};
use self::watch::Watcher;
use super::{Leg, LegStats, RelayMap, RelayMapError, UserspaceRelay};
use crate::bpf::pod::Value;
use crate::sync::lock;

/// Whether there are interfaces for a relay in XDP, by names and addresses as in [`XdpOptions`]. Nothing is
/// attached.
///
/// # Errors
/// If one that was named is not there or not up, there is none at all, or they cannot be listed.
pub fn check_interfaces(named: Option<&[String]>, addresses: &[IpAddr]) -> Result<(), XdpError> {
    interfaces::choose(named, addresses).map(drop)
}

/// For how long legs that must wait for the kernel gather: it costs the same for all of them.
const GATHERING: Duration = Duration::from_millis(50);

/// Forwards in XDP, and what XDP leaves, in userspace.
pub struct XdpRelay {
    userspace: Arc<UserspaceRelay>,
    /// The settling thread's too.
    kernel: Arc<Mutex<Kernel>>,
    /// Wakes the thread that has legs [settle](Legs::settle). It ends with this.
    settling: Option<SyncSender<()>>,
    /// Ends with this process, and the program knows it.
    _watcher: Option<Watcher>,
    /// The watcher's too.
    program: Arc<Mutex<Program>>,
    /// The same moment on two clocks: the program's, in nanoseconds, and ours.
    epoch: (u64, Instant),
    pins: Option<Pins>,
    capacity: usize,
}

/// What the control plane and readers of counters share.
struct Kernel {
    legs: Legs,
    counters: PerCpuArray<MapData, Value<Counter>>,
    /// Legs that nobody has claimed yet.
    adopted: HashSet<ConnectionId>,
}

impl XdpRelay {
    /// Attaches the program, and binds in `userspace` the legs that an earlier process left.
    ///
    /// # Errors
    /// [`XdpError`], whose text says what to do. Nothing stays attached then, and userspace has no leg.
    pub fn start(options: &XdpOptions, userspace: Arc<UserspaceRelay>) -> Result<Self, XdpError> {
        if options.mode == Mode::Userspace {
            return Err(XdpError::Userspace);
        }
        let pins = options.pins.as_deref().and_then(|file_system| {
            let opened = Pins::open(file_system, options.listen);
            opened
                .inspect_err(|error| {
                    let path = file_system.display();
                    tracing::warn!(%error, %path, "no BPF file system: the XDP relay ends with this process");
                })
                .ok()
        });
        let interfaces = interfaces::choose(options.interfaces.as_deref(), &options.addresses);
        let started = interfaces.and_then(|interfaces| {
            let mut program = Program::load(options, &interfaces, pins.as_ref())?;
            program.attach(&interfaces)?;
            Ok((program.object.take_legs()?, program.object.counters()?, program))
        });
        let (mut legs, counters, mut program) = started.inspect_err(|_| {
            // Nobody would fill an earlier process's maps.
            remove_leftovers(pins.as_ref());
        })?;
        program.stay();
        let adopted = if program.object.adopted { adopt(&mut legs, &userspace) } else { HashSet::new() };
        let program = Arc::new(Mutex::new(program));
        let followed = Arc::downgrade(&program);
        let follow = move |change| {
            if let Some(program) = followed.upgrade() {
                lock(&program).follow(change);
            }
        };
        let watcher = lock(&program).object.watch(follow).inspect_err(|error| {
            tracing::warn!(%error, "routes are asked for more often, and changes of interfaces are not followed");
        });
        let kernel = Arc::new(Mutex::new(Kernel { legs, counters, adopted }));
        Ok(Self {
            userspace,
            settling: start_settling(&kernel),
            kernel,
            _watcher: watcher.ok(),
            program,
            epoch: (monotonic_ns(), Instant::now()),
            pins,
            capacity: options.legs,
        })
    }

    /// Removes what a killed process that listened there left and that is not to be taken over.
    pub fn remove_leftovers(file_system: &Path, listen: SocketAddr) {
        remove_leftovers(Pins::left(file_system, listen).as_ref());
    }

    /// Where the program is now: it goes where interfaces, addresses and routes go.
    pub fn attachments(&self) -> Vec<Attachment> {
        lock(&self.program).attachments()
    }

    /// The relay of what XDP leaves.
    pub fn userspace(&self) -> &Arc<UserspaceRelay> {
        &self.userspace
    }

    /// What the program counted since this process configured it.
    pub fn counters(&self) -> XdpCounters {
        XdpCounters::read(&lock(&self.kernel).counters)
    }

    /// Takes the program off its interfaces for good, with all legs. Dropping does not: what is pinned goes
    /// on.
    pub fn stop(&self) {
        lock(&self.program).stop();
        self.pins.iter().for_each(Pins::remove);
    }

    /// Has legs that wait for the kernel settle soon, together with those that come meanwhile.
    fn settle(&self, kernel: &mut Kernel) {
        if !kernel.legs.are_waiting() {
            return;
        }
        let woken = self.settling.as_ref().map(|settling| settling.try_send(()));
        if matches!(woken, None | Some(Err(TrySendError::Disconnected(())))) {
            kernel.legs.settle();
        }
    }

    /// What became of a leg that was to be written to the kernel's table.
    fn written(&self, result: Result<(), LegsError>) -> Result<(), RelayMapError> {
        match result {
            Ok(()) => Ok(()),
            Err(LegsError::Leg(error @ LegError::TooManyAddresses(_))) => {
                tracing::warn!(%error, "the legs with it are relayed in userspace");
                Ok(())
            }
            Err(LegsError::Leg(error)) => Err(error.into()),
            Err(LegsError::Map(error)) => {
                tracing::warn!(%error, "the kernel takes no more legs");
                Err(RelayMapError::Full { capacity: self.capacity })
            }
        }
    }

    /// The leg in another's place, with that one's counters.
    fn overwrite(&self, kernel: &mut Kernel, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        let old = self.userspace.leg(cid).ok_or(RelayMapError::NotBound(cid))?;
        self.userspace.replace(cid, leg)?;
        let replaced = kernel.legs.replace(cid, &leg);
        self.settle(kernel);
        if let Err(LegsError::Leg(LegError::TooManyAddresses(_))) = &replaced {
            self.leave_to_userspace(kernel, cid);
        }
        let written = self.written(replaced);
        if written.is_err() {
            // As it was.
            let _ = self.userspace.replace(cid, old);
        }
        written
    }

    /// Takes a leg out of the kernel that goes on in userspace alone: it would go on in its old way. So do
    /// its counters.
    fn leave_to_userspace(&self, kernel: &mut Kernel, cid: ConnectionId) {
        if let Some(entry) = kernel.legs.remove(cid) {
            self.userspace.count_carried(cid, self.sum(LegStats::default(), Some(entry)));
        }
    }

    fn last_seen(&self, entry: &LegEntry) -> Option<Instant> {
        let (then_ns, then) = self.epoch;
        match entry.state.last_seen_ns {
            0 => None,
            ns if ns >= then_ns => then.checked_add(Duration::from_nanos(ns - then_ns)),
            ns => then.checked_sub(Duration::from_nanos(then_ns - ns)),
        }
    }

    fn sum(&self, userspace: LegStats, entry: Option<LegEntry>) -> LegStats {
        let Some(entry) = entry else { return userspace };
        LegStats {
            packets: userspace.packets + entry.state.packets,
            bytes: userspace.bytes + entry.state.bytes,
            last_seen: userspace.last_seen.max(self.last_seen(&entry)),
        }
    }
}

impl RelayMap for XdpRelay {
    fn insert(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        let mut kernel = lock(&self.kernel);
        if kernel.adopted.contains(&cid) {
            if self.userspace.leg(cid).is_none_or(|bound| bound.real_cid != leg.real_cid) {
                return Err(RelayMapError::AlreadyBound(cid));
            }
            self.overwrite(&mut kernel, cid, leg)?;
            kernel.adopted.remove(&cid);
            return Ok(());
        }
        self.userspace.insert(cid, leg)?;
        let written = self.written(kernel.legs.insert(cid, &leg, RelayState::default()));
        self.settle(&mut kernel);
        if written.is_err() {
            self.userspace.remove(cid);
        }
        written
    }

    fn remove(&self, cid: ConnectionId) -> Option<LegStats> {
        let mut kernel = lock(&self.kernel);
        let entry = kernel.legs.remove(cid);
        kernel.adopted.remove(&cid);
        Some(self.sum(self.userspace.remove(cid)?, entry))
    }

    fn replace(&self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        self.overwrite(&mut lock(&self.kernel), cid, leg)
    }

    fn stats(&self, cid: ConnectionId) -> Option<LegStats> {
        let userspace = self.userspace.stats(cid)?;
        Some(self.sum(userspace, lock(&self.kernel).legs.get(cid)))
    }

    fn len(&self) -> usize {
        self.userspace.len()
    }

    fn adopted(&self) -> Vec<(ConnectionId, Leg)> {
        let kernel = lock(&self.kernel);
        kernel.adopted.iter().filter_map(|cid| Some((*cid, self.userspace.leg(*cid)?))).collect()
    }

    fn remove_adopted(&self) -> usize {
        let unclaimed: Vec<ConnectionId> = lock(&self.kernel).adopted.iter().copied().collect();
        unclaimed.into_iter().filter(|cid| self.remove(*cid).is_some()).count()
    }
}

/// Nothing if there can be no more threads: legs then settle one by one.
fn start_settling(kernel: &Arc<Mutex<Kernel>>) -> Option<SyncSender<()>> {
    let (wake, woken) = sync_channel(1);
    let kernel = Arc::clone(kernel);
    let settle = move || {
        for () in woken {
            std::thread::sleep(GATHERING);
            let begun = lock(&kernel).legs.begin_settling();
            // It holds up nobody who binds and unbinds legs.
            let waited = begun.map(Wait::wait);
            if waited.is_some_and(|waited| lock(&kernel).legs.end_settling(waited)) {
                // A second wait does: they could have some legs wait for ever.
                lock(&kernel).legs.settle();
            }
        }
    };
    let started = std::thread::Builder::new().name("cyphonic-legs".to_owned()).spawn(settle);
    started.inspect_err(|error| tracing::warn!(%error, "legs settle one by one")).ok().map(|_| wake)
}

fn remove_leftovers(pins: Option<&Pins>) {
    let Some(pins) = pins else { return };
    Routing::left(pins).restore(Some(pins));
    pins.remove();
}

/// What the program counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpCounters {
    /// Packets forwarded, and the bytes of their frames.
    pub forwarded: Counter,
    /// Packets left to the stack, by reason; reasons that never occurred are left out.
    pub passed: Vec<(PassReason, Counter)>,
    /// Packets dropped, likewise.
    pub dropped: Vec<(DropReason, Counter)>,
}

impl XdpCounters {
    fn read(map: &PerCpuArray<MapData, Value<Counter>>) -> Self {
        let read = |index: RelayCounterIndex| {
            let values = map.get(&index.index(), 0);
            values.map_or(Counter::default(), |values| {
                values.iter().fold(Counter::default(), |sum, value| sum.plus(value.0))
            })
        };
        Self {
            forwarded: RelayCounterIndex::forwarded().map(read).fold(Counter::default(), Counter::plus),
            passed: some(PassReason::ALL.iter().map(|why| (*why, read(RelayCounterIndex::Passed(*why))))),
            dropped: some(DropReason::ALL.iter().map(|why| (*why, read(RelayCounterIndex::Dropped(*why))))),
        }
    }
}

fn some<T>(all: impl Iterator<Item = (T, Counter)>) -> Vec<(T, Counter)> {
    all.filter(|(_, counter)| counter.packets > 0).collect()
}

/// Binds the legs of an earlier process in userspace too. One that userspace refuses goes, and so does one
/// that is there twice, since the process was killed while it put it in another's place: nobody knows which
/// of the two the program would find.
fn adopt(legs: &mut Legs, userspace: &UserspaceRelay) -> HashSet<ConnectionId> {
    let (mut adopted, mut refused) = (HashSet::new(), Vec::new());
    for (cid, leg) in legs.iter() {
        match userspace.insert(cid, leg) {
            Ok(()) => drop(adopted.insert(cid)),
            Err(error) => {
                tracing::debug!(%error, "an earlier relay's leg is of no use");
                refused.push(cid);
            }
        }
    }
    for cid in refused {
        adopted.remove(&cid);
        userspace.remove(cid);
        while legs.remove(cid).is_some() {}
    }
    adopted
}

/// The clock that the program reads.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

    use cyphonic_common::relay::PackedLeg;

    use super::object::Object;
    use super::*;

    /// Needs root and the eBPF objects.
    #[test]
    fn of_a_dead_process_only_legs_are_adopted_that_userspace_takes() {
        let cid = |byte| ConnectionId::from_random_data([byte; 8]);
        let leg = |port| {
            let to = ([198, 51, 100, 20], port).into();
            Leg::new("192.0.2.10:1000".parse().unwrap(), to, cid(9))
        };
        let mut object = Object::load(16, None).unwrap();
        let mut overflow = object.overflow();
        let mut legs = object.take_legs().unwrap();
        for number in 1..=3 {
            legs.insert(cid(number), &leg(2000), RelayState::default()).unwrap();
        }
        // It was killed before it took the old one away; and the third one's address makes no sense.
        let twice = PackedLeg::new(cid(2), &leg(3000), &Default::default()).unwrap();
        overflow.insert(cid(2).as_bytes(), Value(LegEntry::new(twice)), 0).unwrap();
        legs.replace(cid(3), &leg(0)).unwrap();
        let userspace = UserspaceRelay::new(16);
        assert_eq!(adopt(&mut legs, &userspace), HashSet::from([cid(1)]));
        assert_eq!((userspace.len(), userspace.leg(cid(1))), (1, Some(leg(2000))));
        assert_eq!(legs.iter().map(|(cid, _)| cid).collect::<Vec<_>>(), [cid(1)]);
    }

    /// Needs root and the eBPF objects.
    #[test]
    fn nobody_is_held_up_while_legs_wait_for_programs() {
        static HELD_UP: Mutex<()> = Mutex::new(());
        static BARRIERS: AtomicU32 = AtomicU32::new(0);
        let barrier = || {
            BARRIERS.fetch_add(1, Relaxed);
            drop(lock(&HELD_UP));
            Ok(())
        };
        let to = "198.51.100.20:2000".parse().unwrap();
        let leg = Leg::new("192.0.2.10:1000".parse().unwrap(), to, ConnectionId::from_random_data([99; 8]));
        let mut object = Object::load(2, None).unwrap();
        let (overflow, counters) = (object.overflow(), object.counters().unwrap());
        let in_overflow =
            || overflow.keys().map(|cid| ConnectionId::from_bytes(cid.unwrap())).collect::<Vec<_>>();
        let (mut legs, mut number) = (object.take_legs_with(barrier), 0);
        let mut insert = |legs: &mut Legs| {
            number += 1;
            let cid = ConnectionId::from_random_data([number; 8]);
            legs.insert(cid, &leg, RelayState::default()).unwrap();
        };
        while in_overflow().len() < 2 {
            insert(&mut legs);
        }
        let [gone, goes_later] = in_overflow().try_into().unwrap();
        legs.remove(gone).unwrap();
        while !legs.are_waiting() {
            insert(&mut legs);
        }
        let bound = legs.iter().count();
        let kernel = Arc::new(Mutex::new(Kernel { legs, counters, adopted: HashSet::new() }));
        let until = |what: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while !what() {
                assert!(Instant::now() < end, "it takes too long");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let programs_run = lock(&HELD_UP);
        let settling = start_settling(&kernel).unwrap();
        settling.send(()).unwrap();
        until(&|| BARRIERS.load(Relaxed) == 1);
        let mut during = kernel.try_lock().expect("the legs are nobody's");
        during.legs.remove(goes_later).unwrap();
        drop(during);
        drop(programs_run);
        // What was given up during the wait is waited for once more.
        until(&|| !lock(&kernel).legs.are_waiting());
        assert_eq!((BARRIERS.load(Relaxed), lock(&kernel).legs.iter().count()), (2, bound - 1));
    }
}
