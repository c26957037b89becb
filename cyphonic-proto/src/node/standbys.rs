//! Which NMS the node turns to: the overlay's own, or one that stands in for it.
//!
//! A dial that fails, and a connection that ends before the node was registered, are followed by a dial of the
//! next. A standby closes the connections of nodes while it hears of the overlay's own NMS, and who was
//! registered goes back to that one first. Since the two may not hear of each other while both serve, a node at
//! a standby tries the AS from time to time: if that answers, the overlay's own NMS is tried again. Who cannot
//! be reached since no route leads there is passed over.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::moves::Routes;
use super::{Node, Service, ServiceState, Timer};
use crate::backoff::Backoff;
use crate::standby::Standby;

/// After so long at a standby the node looks whether the cloud is back; longer each time that it was not.
const RETURN_LEAST: Duration = Duration::from_secs(60);
const RETURN_MOST: Duration = Duration::from_secs(960);

/// Whom the node turns to.
#[derive(Default)]
pub(super) struct Turn {
    /// A standby, as it was known when the node turned to it; none: the overlay's own NMS.
    standby: Option<Standby>,
    returns: Backoff,
    /// Addresses that no route led to when the host last said. Of others the dial finds out.
    unrouted: BTreeSet<SocketAddr>,
}

impl Turn {
    fn leads(&self, addresses: &[SocketAddr]) -> bool {
        addresses.iter().any(|address| !self.unrouted.contains(address))
    }
}

impl Node {
    /// Whether it is a standby that the node turns to.
    pub(super) fn is_at_standby(&self) -> bool {
        self.turn.standby.is_some()
    }

    /// Name and addresses of the NMS that the node turns to.
    pub(super) fn nms(&self) -> (String, Vec<SocketAddr>) {
        let known = &self.registration.known;
        match &self.turn.standby {
            Some(standby) => (standby.name.clone(), standby.addresses.clone()),
            None => (known.nms_name.clone(), known.nms_addresses.clone()),
        }
    }

    /// The NMS was lost, or could not be reached. Returns whether another one is to be tried soon.
    pub(super) fn turn_on(&mut self) -> bool {
        let Some(slot) = self.services.get(&Service::Nms) else { return false };
        let present = self.present();
        let from = match slot.state {
            // It may only have restarted; and a standby may have ended it since the other is back.
            ServiceState::Connected if self.registration.registered => 0,
            ServiceState::Connected | ServiceState::Connecting => present + 1,
            ServiceState::Unwanted | ServiceState::Waiting { .. } => return false,
        };
        let all = self.registration.known.standbys.len() + 1;
        let mut in_turn = (from..all).chain(0..from.min(all));
        let Some(next) = in_turn.find(|nth| self.turn.leads(self.nth(*nth))) else { return false };
        self.turn_to(next);
        next > present
    }

    /// The host's routes are others: where none leads to the NMS, but one to another, the node turns there. A
    /// connection that stands may stand until the route is back.
    pub(super) fn turn_where_routes_lead(&mut self, routes: &dyn Routes) {
        let all = self.registration.known.standbys.len() + 1;
        let addresses = (0..all).flat_map(|nth| self.nth(nth).to_vec()).chain(self.nms().1);
        let unrouted = addresses.filter(|address| routes.source_for(*address).is_none()).collect();
        self.turn.unrouted = unrouted;
        if self.is_connected(&Service::Nms) || self.turn.leads(&self.nms().1) {
            return;
        }
        if let Some(next) = (0..all).find(|nth| self.turn.leads(self.nth(*nth))) {
            self.turn_to(next);
        }
    }

    /// Addresses of the overlay's own NMS (0), or a standby.
    fn nth(&self, nth: usize) -> &[SocketAddr] {
        let known = &self.registration.known;
        match nth.checked_sub(1) {
            Some(n) => known.standbys.get(n).map_or(&[], |standby| &standby.addresses),
            None => &known.nms_addresses,
        }
    }

    /// Which of them the node turns to. One that the overlay has no more stands before all others.
    fn present(&self) -> usize {
        let Some(standby) = &self.turn.standby else { return 0 };
        let position = self.registration.known.standbys.iter().position(|known| known.name == standby.name);
        position.map_or(0, |n| n + 1)
    }

    fn turn_to(&mut self, nth: usize) {
        self.turn.standby = nth.checked_sub(1).and_then(|n| self.registration.known.standbys.get(n)).cloned();
        let (name, addresses) = self.nms();
        let leads = self.turn.leads(&addresses);
        let Some(slot) = self.services.get_mut(&Service::Nms) else { return };
        if slot.addresses != addresses {
            (slot.reachable, slot.sources) = (leads, None);
        }
        (slot.name, slot.addresses) = (name, addresses);
    }

    /// The NMS has registered the node, which was not registered before.
    pub(super) fn stays_for_now(&mut self, now: Instant) {
        if !self.is_at_standby() {
            self.turn.returns.reset();
            self.timers.clear(&Timer::Return);
        } else {
            let wait = self.turn.returns.next(RETURN_LEAST * 2, RETURN_MOST, &mut self.rng);
            self.timers.set(Timer::Return, now + wait);
        }
    }

    /// Looks whether the cloud is back.
    pub(super) fn return_due(&mut self, now: Instant) {
        if self.is_at_standby() {
            self.want_login(now);
        }
    }

    /// The AS has answered. Returns whether the node goes back to the overlay's own NMS from a standby that
    /// it was connected to.
    pub(super) fn turn_back(&mut self, now: Instant) -> bool {
        if !self.is_at_standby() || !self.is_connected(&Service::Nms) {
            return false;
        }
        self.turn_to(0);
        self.replace_connection(now, &Service::Nms, "the overlay's own NMS may be back");
        true
    }
}
