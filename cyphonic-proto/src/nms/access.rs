//! The overlay's rules: each node is told those that hold at it, when it registers and when they become
//! others. They hold at the nodes; the NMS itself steers whom it always did.

use std::time::Instant;

use super::{Action, Nms};
use crate::access::{OverlayAccess, OverlayRule};
use crate::message::{AccessNotice, AccessRules, Message};

/// What holds, and how often others did before.
pub(super) struct Access {
    rules: Option<Vec<OverlayRule>>,
    revision: u64,
}

impl Access {
    pub(super) fn new(rules: Option<Vec<OverlayRule>>) -> Self {
        Self { rules, revision: 1 }
    }
}

impl Nms {
    /// Other rules hold from now on; `None`: nothing is restricted.
    pub fn handle_access(&mut self, _now: Instant, rules: Option<Vec<OverlayRule>>) {
        if self.access.rules == rules {
            return;
        }
        let revision = self.access.revision + 1;
        let before = std::mem::replace(&mut self.access, Access { rules, revision });
        let at =
            |access: &Access, fqdn: &str| OverlayAccess::at(fqdn, &self.config.zone, access.rules.as_deref());
        let registered = self.nodes.iter().filter(|(_, node)| node.registration.is_some());
        let concerned =
            registered.filter(|(_, node)| at(&before, &node.fqdn) != at(&self.access, &node.fqdn));
        let notices: Vec<_> =
            concerned.map(|(channel, node)| (*channel, self.access_at(&node.fqdn))).collect();
        for (channel, access) in notices {
            let exchange = self.fresh_exchange();
            let message = Message::AccessNotice(AccessNotice { access });
            self.counters.access_notices += 1;
            // Whether the node confirms makes no difference: an older one does not know the message.
            self.actions.push_back(Action::Request { channel, exchange, message });
        }
    }

    /// What a device is told.
    pub(super) fn access_at(&self, fqdn: &str) -> Option<AccessRules> {
        OverlayAccess::at(fqdn, &self.config.zone, self.access.rules.as_deref()).to_wire(self.access.revision)
    }
}
