//! The overlay's rules for this node: what the NMS told last holds until it tells otherwise, over its
//! restarts and this node's.

use super::{Action, CachedState, Node};
use crate::access::OverlayAccess;
use crate::message::{AccessNotice, AccessRules};

impl Node {
    /// With a registration. An NMS that tells nothing knows no rules.
    pub(super) fn access_registered(&mut self, told: Option<&AccessRules>) {
        match told {
            Some(told) => self.access_told(told),
            None => self.take_access(OverlayAccess::Unrestricted),
        }
    }

    /// Other rules hold now.
    pub(super) fn access_noticed(&mut self, notice: &AccessNotice) {
        if let Some(told) = &notice.access {
            self.access_told(told);
        }
    }

    /// What an NMS told before may arrive after.
    fn access_told(&mut self, told: &AccessRules) {
        let registration = &mut self.registration;
        if told.revision >= registration.access_revision {
            registration.access_revision = told.revision;
            self.take_access(OverlayAccess::from_wire(told));
        }
    }

    fn take_access(&mut self, access: OverlayAccess) {
        if self.registration.known.access != access {
            self.act(Action::Restrict(access.clone()));
            self.learn(CachedState { access, ..self.registration.known.clone() });
        }
    }
}
