//! The classifier on the virtual interface.

use std::fmt;

use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, ProgramError};
use cyphonic_common::InterfaceConfig;

use super::counters::ClassifierCounters;
use super::error::{BpfError, program_code};
use super::log::KernelLog;
use super::object::{EGRESS, INGRESS, Object};

/// How a program hangs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachKind {
    /// A tcx link (Linux 6.6): several programs share a hook without knowing each other, and the kernel detaches ours
    /// when this process ends, however it ends.
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
    /// Have the programs report every drop that is not noise, for [`EgressClassifier::flush_log`]. Costs time per drop.
    pub trace_drops: bool,
}

/// The eBPF programs on a virtual interface. Detached when dropped.
#[derive(Debug)]
pub struct EgressClassifier {
    // Dropped first: the programs must be gone from the interface before their log's map is.
    object: Object,
    kind: AttachKind,
    log: KernelLog,
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
        let log_level = if options.trace_drops { aya_log::Level::Trace as u8 } else { 0 };
        let mut object = Object::load(config, log_level)?;
        object.verify(EGRESS)?;
        object.verify(INGRESS)?;
        let log = KernelLog::open(&mut object)?;
        let kind = attach_first(&mut object, interface, options.kind)?;
        attach_program(&mut object, INGRESS, interface, TcAttachType::Ingress, kind)
            .map_err(|source| BpfError::from_attach(INGRESS, interface, kind, source))?;
        tracing::debug!(interface, %kind, "eBPF classifier attached");
        Ok(Self { object, kind, log })
    }

    /// How the programs hang on the interface.
    pub fn attach_kind(&self) -> AttachKind {
        self.kind
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// [`BpfError::Map`] where the kernel does not give the counters.
    pub fn counters(&self) -> Result<ClassifierCounters, BpfError> {
        ClassifierCounters::read(&self.object)
    }

    /// Turns what the programs have reported since the last call into `tracing` events (target `cyphonic_ebpf`).
    pub fn flush_log(&mut self) {
        self.log.flush();
    }
}

/// Attaches the egress program in the way asked for, or in the best way this kernel has.
fn attach_first(
    object: &mut Object,
    interface: &str,
    wanted: Option<AttachKind>,
) -> Result<AttachKind, BpfError> {
    let first = wanted.unwrap_or(AttachKind::Tcx);
    let error = match attach_program(object, EGRESS, interface, TcAttachType::Egress, first) {
        Ok(()) => return Ok(first),
        Err(error) => error,
    };
    // Kernels before 6.6 do not know this kind of link.
    let unknown = matches!(program_code(&error), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS));
    if wanted.is_some() || !unknown {
        return Err(BpfError::from_attach(EGRESS, interface, first, error));
    }
    let kind = AttachKind::Clsact;
    attach_program(object, EGRESS, interface, TcAttachType::Egress, kind)
        .map_err(|source| BpfError::from_attach(EGRESS, interface, kind, source))?;
    Ok(kind)
}

fn attach_program(
    object: &mut Object,
    program: &'static str,
    interface: &str,
    hook: TcAttachType,
    kind: AttachKind,
) -> Result<(), ProgramError> {
    let options = match kind {
        AttachKind::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
        AttachKind::Clsact => {
            add_clsact(interface)?;
            TcAttachOptions::Netlink(NlOptions::default())
        }
    };
    let program = object.program(program).map_err(|_| ProgramError::UnexpectedProgramType)?;
    program.attach_with_options(interface, hook, options)?;
    Ok(())
}

/// Someone else, or our other program, may have added it already.
fn add_clsact(interface: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface).map_err(ProgramError::from) {
        Err(ProgramError::TcError(tc::TcError::AlreadyAttached)) => Ok(()),
        Err(error) if program_code(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
