//! The program that keeps packets with addresses of the overlay out on other interfaces than its own.

use aya::programs::ProgramError;
use aya::programs::tc::{self, SchedClassifierLink, TcAttachType};

use super::classifier::{AttachKind, EgressClassifier, Place, options_for};
use super::error::BpfError;
use super::object::GUARD;

/// The program on one interface. Detached when dropped.
#[derive(Debug)]
pub struct GuardLink {
    _link: SchedClassifierLink,
}

impl EgressClassifier {
    /// Attaches to an interface that is not the overlay's, in the way in which the programs hang on that, before
    /// whatever hangs there.
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do. What comes in by the interface is not judged then.
    pub fn guard(&mut self, interface: &str) -> Result<GuardLink, BpfError> {
        let kind = self.attach_kind();
        let program = self.object().classifier(GUARD)?;
        if program.fd().is_err() {
            program.load().map_err(|source| BpfError::from_program(GUARD, source))?;
        }
        if kind == AttachKind::Clsact {
            // One that a killed process has left there. Most often there is none.
            let _ = tc::qdisc_detach_program(interface, TcAttachType::Ingress, GUARD);
        }
        let attached = options_for(interface, kind, Place::First).and_then(|options| {
            let id = program.attach_with_options(interface, TcAttachType::Ingress, options)?;
            program.take_link(id)
        });
        let link =
            attached.map_err(|source: ProgramError| BpfError::from_attach(GUARD, interface, kind, source))?;
        tracing::debug!(interface, %kind, "the overlay's addresses are guarded");
        Ok(GuardLink { _link: link })
    }
}
