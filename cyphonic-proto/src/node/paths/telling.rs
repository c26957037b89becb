//! How the peer is told where this end may be reached.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_common::frame::CandidateFlags;

use super::Steps;
use super::own_addresses::{self, Whereabouts};
use crate::id::TunnelId;
use crate::nat::Family;
use crate::node::tunnels::Tunnel;
use crate::node::{Node, Timer, TunnelControl};

/// How long news of this end's addresses are gathered before peers are told.
const GATHER: Duration = Duration::from_millis(50);

/// Where one end of a tunnel may be reached, as it tells the other in a CANDIDATES frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandidateSet {
    /// Counts the sender's lists in this tunnel, upwards; a list replaces those before it.
    pub sequence: u64,
    /// The highest number of the other end's lists that has reached this one; 0 before the first.
    pub heard: u64,
    /// What the sender asks for.
    pub flags: CandidateFlags,
    /// The endpoints, best first.
    pub endpoints: Vec<SocketAddr>,
}

impl Node {
    /// Tells the peer where this end may be reached, until it has answered.
    pub(in crate::node) fn tell(&mut self, now: Instant, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.paths.sequence += 1;
            tunnel.paths.telling = Some(Steps::telling(now));
        }
        self.step_telling(now, id);
    }

    pub(super) fn step_telling(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let heard = tunnel.last_rx;
        let paths = &mut tunnel.paths;
        if paths.telling.is_none() && paths.untold.take_if(|since| heard > Some(*since)).is_some() {
            // The peer, or the way to it, was away.
            paths.telling = Some(Steps::telling(now));
        }
        let Some(steps) = &mut paths.telling else { return };
        if steps.take(now) {
            self.send_candidates(now, id, true);
        } else if steps.is_over(now) {
            (paths.telling, paths.untold) = (None, Some(now));
        }
    }

    /// Where this node may be reached.
    pub(super) fn own_candidates(&self) -> Vec<SocketAddr> {
        let known = Whereabouts {
            addresses: &self.registration.addresses,
            observations: &self.registration.observations,
            mapped: Family::ALL.map(|family| self.findings().of(family).port_mapped.as_slice()),
            port_delta: self.findings().v4.port_delta,
        };
        own_addresses::told(known, self.prefix)
    }

    /// Sends this end's list once.
    pub(super) fn send_candidates(&mut self, now: Instant, id: TunnelId, answer: bool) {
        let endpoints = self.own_candidates();
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let flags = CandidateFlags { answer, keep: self.keeps_open(tunnel.peer), moved: tunnel.paths.moved };
        let set = CandidateSet {
            sequence: tunnel.paths.sequence,
            heard: tunnel.paths.heard.unwrap_or_default(),
            flags,
            endpoints,
        };
        self.control(now, id, TunnelControl::Candidates(set));
    }

    /// This end's addresses, or what is known of them, are others: peers are told before long.
    pub(in crate::node) fn candidates_changed(&mut self, now: Instant) {
        self.timers.set(Timer::Candidates, now + GATHER);
    }

    pub(in crate::node) fn candidates_due(&mut self, now: Instant) {
        let candidates = self.own_candidates();
        if self.told == candidates {
            return;
        }
        self.told = candidates;
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            if self.tunnels.get(&id).is_some_and(Tunnel::may_have_been_told) {
                self.tell(now, id);
                self.begin_anew(now, id);
                self.watch(now, id);
            }
        }
    }
}

impl Tunnel {
    /// Whether its peer has a list of this end's, or may have: one that has not been heard yet may have the
    /// list before, which counts as known once it answers.
    pub(in crate::node) fn may_have_been_told(&self) -> bool {
        self.is_told() || (self.retires_at.is_none() && self.paths.telling.is_some())
    }
}
