//! Settings that were read again while the engine runs.

use std::sync::Arc;
use std::time::Instant;

use cyphonic_dataplane::ring::{Permissions, RingError, TunnelId};

use super::access::{Access, Class};
use super::run::Engine;
use crate::config::{AccessRule, Reloadable};
use crate::control::BackendError;

/// An empty file, or one that is just being written, is no reason to let everybody in.
const RULES_ARE_GONE: &str = "`access` is gone, and had rules: to let every peer open everything, write \
                              `access: [{from: all, to: all}]`, or restart the daemon";

impl Engine {
    /// All of them, or none.
    pub(super) fn take_over(&mut self, now: Instant, settings: Reloadable) -> Result<(), BackendError> {
        let Reloadable { access, keep_open } = settings;
        match (access, &self.access) {
            (Some(rules), _) => self
                .set_access(rules)
                .map_err(|error| BackendError::Settings(format!("`access` cannot be enforced: {error}")))?,
            (None, Some(_)) => return Err(BackendError::Settings(RULES_ARE_GONE.to_owned())),
            (None, None) => {}
        }
        self.node.handle_keep_open(now, &keep_open);
        Ok(())
    }

    /// What rules before and after allow passes all the time.
    fn set_access(&mut self, rules: Vec<AccessRule>) -> Result<(), RingError> {
        if self.access.as_ref().is_some_and(|access| access.rules() == rules) {
            return Ok(());
        }
        let status = self.node.status();
        let mut after = Access::new(rules, &status.zone, self.access.as_ref());
        let mut classes = Vec::new();
        for peer in status.peers.iter().filter(|peer| !peer.tunnels.is_empty()) {
            let Some(fqdn) = &peer.fqdn else { continue };
            let class = class_of(&mut after, fqdn);
            classes.extend(peer.tunnels.iter().map(|tunnel| (TunnelId(tunnel.id.0), class)));
        }
        let before =
            self.access.as_ref().map_or_else(Permissions::default, |before| before.permissions().clone());
        self.ring.set_permissions(Arc::new(before.and(after.permissions())))?;
        for (tunnel, class) in classes {
            self.ring.set_class(tunnel, class);
        }
        // From here on the peers are of these classes, whatever comes.
        let permissions = Arc::new(after.permissions().clone());
        self.access = Some(after);
        self.ring.set_permissions(permissions)
    }
}

/// The class of a peer by rules that are not in force yet.
fn class_of(access: &mut Access, fqdn: &str) -> u32 {
    match access.class_of(fqdn) {
        Class::Known(class) => class,
        Class::New(new) => {
            let class = new.class;
            access.is_given(new, fqdn);
            class
        }
    }
}
