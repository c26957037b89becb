//! Which NMS the node turns to: the overlay's own, or one that stands in for it.
//!
//! A dial that fails is followed by one of the next. A standby closes the connections of nodes while it hears
//! of the overlay's own NMS, and whoever was connected goes back to that one first. Since the two may not
//! hear of each other while both serve, a node at a standby tries the AS from time to time: if that answers,
//! the overlay's own NMS is tried again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::moves::Routes;
use super::{Node, Service, ServiceState, Timer};
use crate::backoff::Backoff;

/// After so long at a standby the node looks whether the cloud is back; longer each time that it was not.
const RETURN_LEAST: Duration = Duration::from_secs(60);
const RETURN_MOST: Duration = Duration::from_secs(960);

/// Whom the node turns to.
#[derive(Default)]
pub(super) struct Turn {
    /// A standby, by its name; none: the overlay's own NMS.
    standby: Option<String>,
    returns: Backoff,
}

impl Node {
    /// Whether it is a standby that the node turns to.
    pub(super) fn is_at_standby(&self) -> bool {
        self.nth_standby().is_some()
    }

    /// Name and addresses of the NMS that the node turns to.
    pub(super) fn nms(&self) -> (String, Vec<SocketAddr>) {
        let known = &self.registration.known;
        match self.nth_standby().and_then(|n| known.standbys.get(n)) {
            Some(standby) => (standby.name.clone(), standby.addresses.clone()),
            None => (known.nms_name.clone(), known.nms_addresses.clone()),
        }
    }

    /// One that the overlay has no more is as good as none.
    fn nth_standby(&self) -> Option<usize> {
        let name = self.turn.standby.as_ref()?;
        self.registration.known.standbys.iter().position(|standby| standby.name == *name)
    }

    /// The NMS was lost, or could not be reached. Returns whether another one is to be tried now.
    pub(super) fn turn_on(&mut self) -> bool {
        let Some(slot) = self.services.get(&Service::Nms) else { return false };
        let next = match slot.state {
            // It may only have restarted; and a standby may have ended it since the other is back.
            ServiceState::Connected => 0,
            ServiceState::Connecting => self.nth_standby().map_or(1, |n| n + 2),
            ServiceState::Unwanted | ServiceState::Waiting { .. } => return false,
        };
        self.turn_to(next);
        self.is_at_standby()
    }

    /// The host's routes are others: where none leads to the NMS, but one to another, the node turns there.
    pub(super) fn turn_where_routes_lead(&mut self, routes: &dyn Routes) {
        let leads = |address: &SocketAddr| routes.source_for(*address).is_some();
        let known = &self.registration.known;
        let standbys = known.standbys.iter().map(|standby| &standby.addresses);
        let mut all = std::iter::once(&known.nms_addresses).chain(standbys);
        if known.standbys.is_empty() || self.nms().1.iter().any(leads) {
            return;
        }
        if let Some(reached) = all.position(|addresses| addresses.iter().any(leads)) {
            self.turn_to(reached);
        }
    }

    /// To the overlay's own NMS (0), or a standby.
    fn turn_to(&mut self, nth: usize) {
        let standby = nth.checked_sub(1).and_then(|n| self.registration.known.standbys.get(n));
        self.turn.standby = standby.map(|standby| standby.name.clone());
        self.face();
    }

    /// The slot is for whom the node turns to.
    fn face(&mut self) {
        let (name, addresses) = self.nms();
        let Some(slot) = self.services.get_mut(&Service::Nms) else { return };
        if slot.addresses != addresses {
            // Whether a route leads there the dial finds out.
            (slot.reachable, slot.sources) = (true, None);
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
