//! The programs that keep packets with addresses of the overlay out, and in, on other interfaces than its own.

use aya::programs::ProgramError;
use aya::programs::links::Link as _;
use aya::programs::tc::{SchedClassifierLink, TcAttachType};

use super::classifier::{AttachKind, EgressClassifier, FIRST, Place, options_for};
use super::error::BpfError;
use super::object::{GUARD, KEEP};
use crate::netdevice;

/// The programs on one interface. Detached when dropped.
#[derive(Debug)]
pub struct GuardLink {
    _links: [SchedClassifierLink; 2],
}

impl EgressClassifier {
    /// Attaches to an interface that is not the overlay's, in the way in which the programs hang on that, before
    /// whatever hangs there.
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do; or another interface has the name by now. What goes by the interface
    /// is not judged then.
    pub fn guard(&mut self, interface: &str, index: u32) -> Result<GuardLink, BpfError> {
        let links = [
            self.attach_guard(GUARD, interface, TcAttachType::Ingress)?,
            self.attach_guard(KEEP, interface, TcAttachType::Egress)?,
        ];
        // Programs are attached by the name, and it is the interface with this number that is to be guarded.
        if netdevice::index(interface).ok() != Some(index) {
            return Err(BpfError::Renamed(interface.to_owned()));
        }
        tracing::debug!(interface, "the overlay's addresses are guarded");
        Ok(GuardLink { _links: links })
    }

    fn attach_guard(
        &mut self,
        name: &'static str,
        interface: &str,
        hook: TcAttachType,
    ) -> Result<SchedClassifierLink, BpfError> {
        let (kind, handle) = (self.attach_kind(), self.mark());
        let program = self.object().classifier(name)?;
        if program.fd().is_err() {
            program.load().map_err(|source| BpfError::from_program(name, source))?;
        }
        if kind == AttachKind::Clsact
            && let Ok(left) = SchedClassifierLink::attached(interface, hook, FIRST, handle, None)
        {
            // One of this device's that a killed process has left there. Most often there is none.
            let _ = left.detach();
        }
        let attached = options_for(interface, kind, Place::First(handle)).and_then(|options| {
            let id = program.attach_with_options(interface, hook, options)?;
            program.take_link(id)
        });
        attached.map_err(|source: ProgramError| BpfError::from_attach(name, interface, kind, source))
    }
}
