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
        if access.is_none() && self.access.is_some() {
            return Err(BackendError::Settings(RULES_ARE_GONE.to_owned()));
        }
        self.set_access(access)
            .map_err(|error| BackendError::Settings(format!("`access` cannot be enforced: {error}")))?;
        self.node.handle_keep_open(now, &keep_open);
        Ok(())
    }

    /// What rules before and after allow passes all the time.
    fn set_access(&mut self, rules: Option<Vec<AccessRule>>) -> Result<(), RingError> {
        if self.access.as_ref().map(Access::rules) == rules.as_deref() {
            return Ok(());
        }
        let status = self.node.status();
        let mut access = rules.map(|rules| Access::new(rules, &status.zone, self.access.as_ref()));
        let tunnels = status.peers.iter().filter_map(|peer| Some((peer.fqdn.as_deref()?, &peer.tunnels)));
        let classes: Vec<_> = tunnels
            .flat_map(|(fqdn, tunnels)| {
                let class = access.as_mut().map_or(0, |access| class_of(access, fqdn));
                tunnels.iter().map(move |tunnel| (TunnelId(tunnel.id.0), class))
            })
            .collect();
        let all = Permissions::default();
        let before = self.access.as_ref().map_or(&all, Access::permissions);
        let after = access.as_ref().map_or(&all, Access::permissions);
        self.ring.set_permissions(Arc::new(before.and(after)))?;
        for (tunnel, class) in classes {
            self.ring.set_class(tunnel, class);
        }
        self.ring.set_permissions(Arc::new(after.clone()))?;
        self.access = access;
        Ok(())
    }
}

/// The class of a peer by rules that are not in force yet.
fn class_of(access: &mut Access, fqdn: &str) -> u32 {
    match access.class_of(fqdn) {
        Class::Known(class) => class,
        Class::New(new) => {
            let class = new.class;
            access.is_given(new);
            class
        }
    }
}
