//! The programs of one node, on its virtual interface and its UDP port.

use std::fmt;
use std::sync::Arc;

use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcAttachType, TcHandle};
use aya::programs::{LinkOrder, ProgramError};
use cyphonic_common::InterfaceConfig;

use super::cards::CardSlots;
use super::counters::ClassifierCounters;
use super::error::BpfError;
use super::log::KernelLog;
use super::object::{EGRESS, INGRESS, NEAR, Object};
use super::tables::KernelTables;
use super::workers;
use crate::errno::errno;
use crate::tun::TunDevice;
use crate::udp::UdpPort;

/// How a program hangs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachKind {
    /// A tcx link (Linux 6.6): several programs share a hook without knowing each other, and the kernel
    /// detaches ours when this process ends, however it ends.
    Tcx,
    /// A filter on the clsact queueing discipline. It outlives a killed process until the interface goes; the
    /// virtual interface goes with the process that made it.
    Clsact,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What an operator may choose about the classifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Insist on one way to attach. By default tcx is tried first.
    pub kind: Option<AttachKind>,
    /// Have the programs report what they drop, for [`EgressClassifier::flush_log`]: all but noise, and at
    /// most once a second on each CPU, so that it costs next to nothing at any rate.
    pub log_drops: bool,
}

/// The programs in the kernel, verified but attached to nothing.
#[derive(Debug)]
pub struct Programs {
    object: Object,
    log: KernelLog,
    tables: Arc<KernelTables>,
    cards: Arc<CardSlots>,
    options: Options,
    mark: TcHandle,
}

impl Programs {
    /// Has the kernel load and verify the programs of a node.
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do.
    pub fn load(config: InterfaceConfig, options: Options) -> Result<Self, BpfError> {
        let log_level = if options.log_drops { aya_log::Level::Info as u8 } else { 0 };
        let mut object = Object::load(config.with_log_of_drops(options.log_drops), log_level)?;
        object.verify(EGRESS)?;
        object.verify(INGRESS)?;
        let tables = Arc::new(KernelTables::new(&mut object)?);
        let cards = Arc::new(CardSlots::new(&mut object)?);
        let log = KernelLog::open(&mut object)?;
        Ok(Self { object, log, tables, cards, options, mark: mark_of(&config) })
    }

    /// Has the programs choose, for every packet, the worker among several: `queues` are the virtual
    /// interface's and `ports` the sockets of the UDP port, both by worker.
    ///
    /// # Errors
    /// [`BpfError`]. Packets may then come to any worker.
    pub fn steer(&mut self, queues: &[TunDevice], ports: &[Arc<UdpPort>]) -> Result<(), BpfError> {
        workers::steer_queues(&mut self.object, queues)?;
        workers::steer_sockets(&mut self.object, ports)
    }

    /// Attaches the classifier to `interface`, which must have no link layer (a TUN device).
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do. Nothing stays attached then.
    pub fn attach(mut self, interface: &str) -> Result<EgressClassifier, BpfError> {
        let kind = attach_first(&mut self.object, EGRESS, interface, self.options.kind)?;
        attach_program(&mut self.object, INGRESS, interface, TcAttachType::Ingress, kind)
            .map_err(|source| BpfError::from_attach(INGRESS, interface, kind, source))?;
        tracing::debug!(interface, %kind, "eBPF classifier attached");
        Ok(self.attached(kind))
    }

    /// Attaches what judges packets out of tunnels to `interface`, the near end of a veth pair, whose far end
    /// judges those into tunnels ([`Programs::attach_virtual`]).
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do. Nothing stays attached then.
    pub fn attach_near_end(mut self, interface: &str) -> Result<EgressClassifier, BpfError> {
        self.object.verify(NEAR)?;
        let kind = attach_first(&mut self.object, NEAR, interface, self.options.kind)?;
        tracing::debug!(interface, %kind, "eBPF classifier attached");
        Ok(self.attached(kind))
    }

    fn attached(self, kind: AttachKind) -> EgressClassifier {
        let Self { object, log, tables, cards, mark, .. } = self;
        EgressClassifier { object, kind, log, tables, cards, mark }
    }

    /// What the programs know of peers and policy.
    pub fn tables(&self) -> Arc<KernelTables> {
        Arc::clone(&self.tables)
    }

    /// For the programs in front of AF_XDP sockets.
    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// What takes slots in the tests, which attach nothing.
    #[cfg(test)]
    pub(super) fn cards(&self) -> &Arc<CardSlots> {
        &self.cards
    }

    /// What the programs say in the tests, which attach nothing.
    #[cfg(test)]
    pub(super) fn log(&mut self) -> &mut KernelLog {
        &mut self.log
    }
}

/// The eBPF programs on a virtual interface. Detached when dropped.
#[derive(Debug)]
pub struct EgressClassifier {
    // Dropped first: the programs must be gone from the interface before their log's map is.
    object: Object,
    kind: AttachKind,
    log: KernelLog,
    tables: Arc<KernelTables>,
    cards: Arc<CardSlots>,
    mark: TcHandle,
}

/// The handle of a device's filters, which another device's on the same host have not: from the end of its
/// virtual address, which is a hash.
fn mark_of(config: &InterfaceConfig) -> TcHandle {
    let [.., a, b, c, d] = *config.own();
    // Neither 0, which has the kernel choose, nor negative.
    TcHandle::new(u16::from_be_bytes([a, b]) & 0x3fff | 0x4000, u16::from_be_bytes([c, d]))
}

impl EgressClassifier {
    /// Loads the programs and attaches them to `interface`, which must have no link layer (a TUN device).
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do. Nothing stays attached then.
    pub fn attach(interface: &str, config: InterfaceConfig) -> Result<Self, BpfError> {
        Self::attach_with(interface, config, Options::default())
    }

    /// [`EgressClassifier::attach`] with choices.
    ///
    /// # Errors
    /// As [`EgressClassifier::attach`].
    pub fn attach_with(interface: &str, config: InterfaceConfig, options: Options) -> Result<Self, BpfError> {
        Programs::load(config, options)?.attach(interface)
    }

    /// How the programs hang on the interface.
    pub fn attach_kind(&self) -> AttachKind {
        self.kind
    }

    /// What the programs know of peers and policy.
    pub fn tables(&self) -> Arc<KernelTables> {
        Arc::clone(&self.tables)
    }

    /// See [`mark_of`].
    pub(super) fn mark(&self) -> TcHandle {
        self.mark
    }

    /// For the program on network cards.
    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// The slots of those cards.
    pub(super) fn cards(&self) -> &Arc<CardSlots> {
        &self.cards
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// [`BpfError::Map`] where the kernel does not give the counters.
    pub fn counters(&self) -> Result<ClassifierCounters, BpfError> {
        ClassifierCounters::read(&self.object)
    }

    /// Turns what the programs have reported since the last call into `tracing` events (target
    /// `cyphonic_ebpf`).
    pub fn flush_log(&mut self) {
        self.log.flush();
    }
}

/// Attaches the first program in the way asked for, or in the best way this kernel has.
fn attach_first(
    object: &mut Object,
    program: &'static str,
    interface: &str,
    wanted: Option<AttachKind>,
) -> Result<AttachKind, BpfError> {
    let hook = if program == EGRESS { TcAttachType::Egress } else { TcAttachType::Ingress };
    let first = wanted.unwrap_or(AttachKind::Tcx);
    let error = match attach_program(object, program, interface, hook, first) {
        Ok(()) => return Ok(first),
        Err(error) => error,
    };
    // Kernels before 6.6 do not know this kind of link.
    let unknown = matches!(errno(&error), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS));
    if wanted.is_some() || !unknown {
        return Err(BpfError::from_attach(program, interface, first, error));
    }
    let kind = AttachKind::Clsact;
    attach_program(object, program, interface, hook, kind)
        .map_err(|source| BpfError::from_attach(program, interface, kind, source))?;
    Ok(kind)
}

fn attach_program(
    object: &mut Object,
    program: &'static str,
    interface: &str,
    hook: TcAttachType,
    kind: AttachKind,
) -> Result<(), ProgramError> {
    let options = options_for(interface, kind, Place::Last)?;
    let program = object.classifier(program).map_err(|_| ProgramError::UnexpectedProgramType)?;
    program.attach_with_options(interface, hook, options)?;
    Ok(())
}

/// The priority of filters that are asked first.
pub(super) const FIRST: u16 = 1;

/// Where among the programs and filters that are on a hook when ours comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before them: they may let pass what ours does not, and then nobody asks ours. By clsact, which keeps a
    /// filter when its process is killed, this one knows it again.
    First(TcHandle),
    Last,
}

/// How to attach in that way, for which the interface is ready then.
pub(super) fn options_for(
    interface: &str,
    kind: AttachKind,
    place: Place,
) -> Result<TcAttachOptions, ProgramError> {
    Ok(match (kind, place) {
        (AttachKind::Tcx, Place::First(_)) => TcAttachOptions::TcxOrder(LinkOrder::first()),
        (AttachKind::Tcx, Place::Last) => TcAttachOptions::TcxOrder(LinkOrder::default()),
        (AttachKind::Clsact, place) => {
            add_clsact(interface)?;
            TcAttachOptions::Netlink(match place {
                Place::First(handle) => NlOptions { priority: FIRST, handle, ..NlOptions::default() },
                // 0 has the kernel choose a priority behind all others.
                Place::Last => NlOptions::default(),
            })
        }
    })
}

/// Someone else, or our other program, may have added it already.
fn add_clsact(interface: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface).map_err(ProgramError::from) {
        Err(ProgramError::TcError(tc::TcError::AlreadyAttached)) => Ok(()),
        Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
