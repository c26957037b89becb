//! Settings that were read again while the engine runs.

use std::sync::Arc;
use std::time::Instant;

use cyphonic_common::policy::EVERY_CLASS;
use cyphonic_dataplane::ring::{RingError, TunnelId};
use cyphonic_proto::access::{OverlayAccess, Services};
use cyphonic_proto::node::PeerStatus;

use super::access::{self, Access, Class, Rules};
use super::run::Engine;
use crate::config::Reloadable;
use crate::control::BackendError;

/// An empty file, or one that is just being written, is no reason to let everybody in.
const RULES_ARE_GONE: &str = "`access` is gone, and had rules: to let every peer open everything, write \
                              `access: [{from: all, to: all}]`, or restart the daemon";

impl Engine {
    /// All of them, or none.
    pub(super) fn take_over(&mut self, now: Instant, settings: Reloadable) -> Result<(), BackendError> {
        let Reloadable { access, keep_open } = settings;
        let before = self.access.rules();
        if access.is_none() && before.own.is_some() {
            return Err(BackendError::Settings(RULES_ARE_GONE.to_owned()));
        }
        let rules = Rules { own: access, ..before.clone() };
        self.set_access(rules)
            .map_err(|error| BackendError::Settings(format!("`access` cannot be enforced: {error}")))?;
        self.node.handle_keep_open(now, &keep_open);
        Ok(())
    }

    /// There are other services for peers to open here.
    pub(super) fn offer(&mut self, services: Services) {
        let rules = Rules { offered: Some(services), ..self.access.rules().clone() };
        if let Err(error) = self.set_access(rules) {
            tracing::error!(%error, "what this device offers of the machine's has no room here, and is denied");
            self.access_failure = Some(error.to_string());
        }
    }

    /// The overlay has other rules for this device.
    pub(super) fn restrict(&mut self, overlay: OverlayAccess) {
        tracing::info!("{}", told(&overlay));
        let rules = Rules { overlay, ..self.access.rules().clone() };
        let set = self.set_access(rules.clone()).or_else(|error| {
            tracing::warn!(%error, "the overlay's access rules have no room beside those before, which go first");
            self.replace_access(rules)
        });
        if let Err(error) = set {
            tracing::error!(
                %error,
                "the overlay's access rules have no room here: what they would allow is denied"
            );
            self.access_failure = Some(error.to_string());
        }
    }

    /// Rules for which there is no room beside those before, in their place: peers may open nothing for a
    /// moment, then what all may, and then what is each one's, as far as there is room.
    fn replace_access(&mut self, rules: Rules) -> Result<(), RingError> {
        let status = self.node.status();
        self.ring.set_permissions(Arc::new(access::nothing()))?;
        let tunnels =
            |peer: &PeerStatus| peer.tunnels.iter().map(|tunnel| TunnelId(tunnel.id.0)).collect::<Vec<_>>();
        status.peers.iter().flat_map(tunnels).for_each(|tunnel| self.ring.set_class(tunnel, EVERY_CLASS));
        self.access = Access::new(rules, &status.zone, Some(&self.access));
        if let Err(error) = self.ring.set_permissions(Arc::new(self.access.permissions().clone())) {
            self.access.is_denied();
            return Err(error);
        }
        for peer in status.peers.iter().filter(|peer| !peer.tunnels.is_empty()) {
            let Some(fqdn) = &peer.fqdn else { continue };
            let class = self.class_of(fqdn);
            tunnels(peer).into_iter().for_each(|tunnel| self.ring.set_class(tunnel, class));
        }
        self.access_failure = None;
        Ok(())
    }

    /// What rules before and after allow passes all the time. The same rules again change nothing, nor whether
    /// they are in force.
    fn set_access(&mut self, rules: Rules) -> Result<(), RingError> {
        if *self.access.rules() == rules {
            return Ok(());
        }
        let status = self.node.status();
        let mut after = Access::new(rules, &status.zone, Some(&self.access));
        let mut classes = Vec::new();
        for peer in status.peers.iter().filter(|peer| !peer.tunnels.is_empty()) {
            let class = peer.fqdn.as_ref().map_or(EVERY_CLASS, |fqdn| class_of(&mut after, fqdn));
            classes.extend(peer.tunnels.iter().map(|tunnel| (TunnelId(tunnel.id.0), class)));
        }
        self.ring.set_permissions(Arc::new(self.access.permissions().and(after.permissions())))?;
        for (tunnel, class) in classes {
            self.ring.set_class(tunnel, class);
        }
        // From here on the peers are of these classes, whatever comes.
        let permissions = Arc::new(after.permissions().clone());
        self.access = after;
        self.ring.set_permissions(permissions)?;
        self.access_failure = None;
        Ok(())
    }
}

/// For the log.
fn told(overlay: &OverlayAccess) -> String {
    match overlay.rules() {
        Some(rules) => format!("the overlay's access rules for this device: {}", rules.len()),
        None => "the overlay has no access rules".to_owned(),
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
