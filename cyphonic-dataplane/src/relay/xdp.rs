//! The relay in XDP.
//!
//! The program forwards what its table of legs says, before the kernel's stack sees it. What it leaves to the stack (the
//! next hop's link address is not known yet, the packet is too long, there is no checksum to build on, see
//! [`PassReason`](cyphonic_common::relay::PassReason)) arrives at the relay's socket, where a [`UserspaceRelay`] has
//! the same legs. Its statistics are the sum.
//!
//! Legs and program outlive the process that made them, if there is a BPF file system: a killed relay goes on
//! forwarding. The next process takes both over ([`RelayMap::adopted`]), and replaces the program without a gap.
//!
//! **Memory.** The kernel's table takes 256 bytes for each leg it may hold; one leg in 150 has no room there when all are
//! bound, and takes 192 more. Userspace takes about 310 for each that is bound. A million legs: 0.3 GB in the kernel and
//! 0.3 GB in the process.

mod attach;
mod error;
mod interfaces;
pub mod legs;
mod object;
mod options;
mod pins;
mod routing;
mod status;
pub mod watch;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuArray};
use cyphonic_common::relay::place::pairs_for;
use cyphonic_common::relay::{LegError, PassReason, RelayConfig, RelayCounterIndex, RelayEntry, RelayState};
use cyphonic_common::{ConnectionId, Counter, DropReason};
use rustix::time::{ClockId, clock_gettime};

use self::attach::Held;
pub use self::error::XdpError;
use self::interfaces::Interface;
use self::legs::{Legs, LegsError};
use self::object::{LEGS_MAPS, Object, Value};
pub use self::options::{Attachment, BPF_FILE_SYSTEM, Hook, Mode, NATIVE_WHY, XdpOptions};
use self::pins::Pins;
use self::routing::Routing;
pub use self::status::{Place, RunningRelay, running_relays};
use self::watch::Watcher;
use super::userspace::lock;
use super::{Leg, LegStats, RelayMap, RelayMapError, UserspaceRelay};
use crate::netdevice::{self, XdpRedirection};

/// Whether interfaces of these names are there for a relay in XDP. Nothing is attached.
///
/// # Errors
/// If one is not there or not up, or none can be listed.
pub fn check_interfaces(names: &[String]) -> Result<(), XdpError> {
    interfaces::choose(Some(names), &[]).map(drop)
}

/// Forwards in XDP, and what XDP leaves, in userspace.
pub struct XdpRelay {
    userspace: Arc<UserspaceRelay>,
    kernel: Mutex<Kernel>,
    attachments: Vec<Attachment>,
    /// The same moment on two clocks: the program's, in nanoseconds, and ours.
    epoch: (u64, Instant),
    routing: Routing,
    pins: Option<Pins>,
    capacity: usize,
}

/// What the control plane and readers of counters share.
struct Kernel {
    legs: Legs,
    counters: PerCpuArray<MapData, Value<Counter>>,
    /// Legs that nobody has claimed yet.
    adopted: HashSet<ConnectionId>,
    held: Vec<Held>,
    /// Ends with this process, and the program knows it.
    _watcher: Option<Watcher>,
    /// Loaded as long as it is attached; dropped after the links.
    _object: Object,
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
            let opened = Pins::open(file_system, options.port);
            opened
                .inspect_err(|error| {
                    let path = file_system.display();
                    tracing::warn!(%error, %path, "no BPF file system: the XDP relay ends with this process");
                })
                .ok()
        });
        let interfaces = interfaces::choose(options.interfaces.as_deref(), &options.addresses);
        let started = interfaces.and_then(|interfaces| {
            let mut started = Started::new(options, &interfaces, pins.as_ref())?;
            // In an earlier program's place, frames are redirected from the first one on.
            let before = redirect_targets(&attach::left(&interfaces, pins.as_ref()), redirection);
            started.object.set_egress(&before, &[])?;
            started.attach(options, &interfaces, pins.as_ref())?;
            started.object.set_egress(&redirect_targets(&started.attached, redirection), &before)?;
            Ok((started.object.take_legs()?, started.object.counters()?, started))
        });
        let (legs, counters, started) = started.inspect_err(|_| {
            // Nobody would fill an earlier process's maps.
            remove_leftovers(pins.as_ref());
        })?;
        let adopted = if started.object.adopted { adopt(&legs, &userspace) } else { HashSet::new() };
        let Started { mut object, held, attachments, mut routing, .. } = started;
        routing.keep();
        let watcher =
            object.watch().inspect_err(|error| tracing::warn!(%error, "routes are asked for more often"));
        let kernel = Kernel { legs, counters, adopted, held, _watcher: watcher.ok(), _object: object };
        Ok(Self {
            userspace,
            kernel: Mutex::new(kernel),
            attachments,
            epoch: (monotonic_ns(), Instant::now()),
            routing,
            pins,
            capacity: options.legs,
        })
    }

    /// Removes what a killed process left that is not to be taken over.
    pub fn remove_leftovers(file_system: &Path, port: u16) {
        remove_leftovers(Pins::left(file_system, port).as_ref());
    }

    /// Where the program is.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The relay of what XDP leaves.
    pub fn userspace(&self) -> &Arc<UserspaceRelay> {
        &self.userspace
    }

    /// What the program counted since this process configured it.
    pub fn counters(&self) -> XdpCounters {
        XdpCounters::read(&lock(&self.kernel).counters)
    }

    /// Takes the program off its interfaces for good, with all legs. Dropping does not: what is pinned goes on.
    pub fn stop(&self) {
        lock(&self.kernel).held.clear();
        self.routing.restore(self.pins.as_ref());
        self.pins.iter().for_each(Pins::remove);
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

    /// Takes a leg out of the kernel that goes on in userspace alone: it would go on in its old way. So do its counters.
    fn leave_to_userspace(&self, kernel: &mut Kernel, cid: ConnectionId) {
        if let Some(entry) = kernel.legs.remove(cid) {
            self.userspace.count_carried(cid, self.sum(LegStats::default(), Some(entry)));
        }
    }

    fn last_seen(&self, entry: &RelayEntry) -> Option<Instant> {
        let (then_ns, then) = self.epoch;
        match entry.state.last_seen_ns {
            0 => None,
            ns if ns >= then_ns => then.checked_add(Duration::from_nanos(ns - then_ns)),
            ns => then.checked_sub(Duration::from_nanos(then_ns - ns)),
        }
    }

    fn sum(&self, userspace: LegStats, entry: Option<RelayEntry>) -> LegStats {
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

/// A program on its way to the interfaces.
struct Started {
    object: Object,
    config: RelayConfig,
    routing: Routing,
    held: Vec<Held>,
    attachments: Vec<Attachment>,
    attached: Vec<(u32, Hook)>,
}

impl Started {
    /// Loaded and configured.
    fn new(options: &XdpOptions, interfaces: &[Interface], pins: Option<&Pins>) -> Result<Self, XdpError> {
        let capacity = u32::try_from(options.legs).unwrap_or(u32::MAX);
        let mut object = Object::load(capacity, pins)?;
        // Before the program is anywhere: it may go in an earlier one's place, where packets are arriving. Until it is
        // known that none of them come merged, they may be.
        let mut config = RelayConfig::new(options.port, options.mode != Mode::Native);
        config = config.with_pairs(pairs_for(capacity));
        if interfaces.iter().any(|interface| interface.virtual_cable) {
            config = config.over_virtual_cables();
        }
        object.configure(config)?;
        let routing = Routing::enable(pins)?;
        Ok(Self { object, config, routing, held: Vec::new(), attachments: Vec::new(), attached: Vec::new() })
    }

    /// On all interfaces; with [`Mode::Auto`], on those that take it, if there is one.
    fn attach(
        &mut self,
        options: &XdpOptions,
        interfaces: &[Interface],
        pins: Option<&Pins>,
    ) -> Result<(), XdpError> {
        let mut refused = None;
        for interface in interfaces {
            match attach::attach(self.object.program()?, interface, options.mode, pins) {
                Ok((attachment, link)) => {
                    self.attached.push((interface.index, attachment.hook));
                    self.attachments.push(attachment);
                    self.held.push(link);
                }
                Err(error) if options.mode == Mode::Auto => refused = Some((interface, error)),
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some((_, error)) if self.attachments.is_empty() => return Err(error),
            Some((interface, error)) => {
                tracing::warn!(%error, interface = interface.name, "its packets are relayed in userspace");
            }
            None => {}
        }
        if self.attached.iter().all(|(_, hook)| *hook == Hook::Native) {
            self.object.configure(self.config.with_merged(false))?;
        }
        if let Some(pins) = pins {
            let links = self.attached.iter().map(|(index, hook)| pins.link(*index, *hook));
            let maps = LEGS_MAPS.map(|name| pins.map(name));
            pins.remove_others(&links.chain(maps).collect::<Vec<_>>());
        }
        Ok(())
    }
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

/// Binds the legs of an earlier process in userspace too. One that userspace refuses goes.
fn adopt(legs: &Legs, userspace: &UserspaceRelay) -> HashSet<ConnectionId> {
    legs.iter().filter(|(cid, leg)| userspace.insert(*cid, *leg).is_ok()).map(|(cid, _)| cid).collect()
}

/// Frames can be redirected from anywhere to a driver that runs the program and sends what others redirect, unless one of the
/// drivers that run it would drop what it is to redirect; behind drivers, from anywhere to anywhere else that is behind its
/// driver, but not from a driver to there. Of a driver that the kernel tells nothing of, the best is believed.
fn redirect_targets(
    attached: &[(u32, Hook)],
    redirection: impl Fn(u32) -> Option<XdpRedirection>,
) -> Vec<u32> {
    let native: Vec<_> = attached.iter().filter(|(_, hook)| *hook == Hook::Native).collect();
    if native.is_empty() {
        return attached.iter().map(|(index, _)| *index).collect();
    }
    let can = native.into_iter().map(|(index, _)| (*index, redirection(*index)));
    let can: Vec<_> =
        can.map(|(index, can)| (index, can.unwrap_or(XdpRedirection { from: true, to: true }))).collect();
    if can.iter().any(|(_, can)| !can.from) {
        return Vec::new();
    }
    can.into_iter().filter(|(_, can)| can.to).map(|(index, _)| index).collect()
}

/// What the kernel tells of a driver. Asked when the program is there: with one, many can do more.
fn redirection(index: u32) -> Option<XdpRedirection> {
    let asked = netdevice::xdp_redirection(index);
    asked.inspect_err(|error| tracing::debug!(%error, index, "no word of what the driver can redirect")).ok()
}

/// The clock that the program reads.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_redirected_only_where_drivers_do_not_lose_them() {
        use Hook::{Generic, Native};
        let can = |from, to| Some(XdpRedirection { from, to });
        let targets = |attached: &[(u32, Hook, Option<XdpRedirection>)]| {
            let places: Vec<_> = attached.iter().map(|(index, hook, _)| (*index, *hook)).collect();
            redirect_targets(&places, |asked| attached.iter().find(|(index, ..)| *index == asked)?.2)
        };
        assert_eq!(targets(&[(2, Native, can(true, true)), (3, Native, can(true, false))]), [2]);
        assert_eq!(targets(&[(2, Native, can(true, true)), (3, Native, can(false, true))]), [0; 0]);
        // Kernels before 6.3 do not tell.
        assert_eq!(targets(&[(2, Native, None), (3, Native, None)]), [2, 3]);
        // Behind drivers nobody asks them, and no driver redirects to there.
        assert_eq!(targets(&[(2, Generic, can(false, false)), (3, Generic, can(false, false))]), [2, 3]);
        assert_eq!(targets(&[(2, Generic, can(true, true)), (3, Native, can(true, true))]), [3]);
    }
}
