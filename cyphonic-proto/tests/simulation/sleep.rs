//! Devices whose agents are stopped for a while, as a debugger or a paused container does: what they are sent
//! meanwhile waits in their sockets and streams, and all of it comes when they go on.

use std::time::{Duration, Instant};

use cyphonic_proto::netcheck::Findings;
use cyphonic_proto::node::Sleep;

use crate::net::Gate::{Firewall, Open, PortRestricted};
use crate::relay_restarts::{gap, stream};
use crate::world::{Event, World};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The device that is stopped, since when, and what waits for it.
pub(crate) struct Sleeper {
    name: &'static str,
    since: Instant,
    waiting: Vec<Event>,
}

impl World {
    pub(crate) fn sleeps(&self, name: &str) -> bool {
        self.sleeper.as_ref().is_some_and(|sleeper| sleeper.name == name)
    }

    /// The event, unless it waits for a device that is stopped.
    pub(crate) fn keep_for_sleeper(&mut self, event: Event) -> Option<Event> {
        let device = match &event {
            Event::Answer { channel, .. }
            | Event::ToNode { channel, .. }
            | Event::Call { channel, .. }
            | Event::GivenUp { channel, .. }
            | Event::FrameToNode { channel, .. }
            | Event::ExchangeFailed { channel, .. }
            | Event::Connected(channel) => self.conns.get(channel).map(|conn| conn.device),
            Event::ConnectFailed { device, .. }
            | Event::DetourFailed { device, .. }
            | Event::PeerLeft { device, .. }
            | Event::Stats { device, .. } => Some(*device),
            Event::Lost { conn, at_node: true, .. } => Some(conn.device),
            Event::Datagram { to, .. } => {
                let owner = self.hosts.values().find(|host| host.uplinks.iter().any(|up| up.own == *to));
                owner.map(|host| host.name)
            }
            Event::Retransmit { dial } => self.dials.get(dial).map(|dial| dial.device),
            Event::Lost { .. }
            | Event::ToService { .. }
            | Event::NodeAnswer { .. }
            | Event::FrameToTrs { .. }
            | Event::Revive(_)
            | Event::Seen { .. }
            | Event::Idle(_) => None,
        };
        match &mut self.sleeper {
            Some(sleeper) if device == Some(sleeper.name) => {
                sleeper.waiting.push(event);
                None
            }
            _ => Some(event),
        }
    }

    fn stop(&mut self, name: &'static str) {
        self.sleeper = Some(Sleeper { name, since: self.now, waiting: Vec::new() });
    }

    /// The stopped device goes on: it notices, and takes in what has come, in the order in which it came.
    fn go_on(&mut self) {
        let Some(Sleeper { name, since, waiting }) = self.sleeper.take() else { return };
        waiting.into_iter().for_each(|event| self.schedule(Duration::ZERO, event));
        let length = self.now - since;
        let sleep = Sleep { length, counted: length };
        // What was to be done meanwhile may come before it is noticed: answers that did not come end
        // connections.
        self.with_node(name, 0, |node, now| {
            node.handle_timeout(now);
            node.handle_resumed(now, sleep);
        });
    }
}

#[test]
fn a_device_that_was_stopped_under_traffic_has_a_tunnel_within_round_trips() {
    for (sleeper, other, gate) in
        [("a", "b", Open), ("b", "a", Open), ("a", "b", Firewall), ("b", "a", Firewall)]
    {
        // The peer gives its end up after some seconds, and goes through its routes again and again.
        for length in (4..30).map(|half_seconds| SECOND * half_seconds / 2) {
            let mut world = World::new(31);
            world.add("a", None, Some(gate));
            world.add("b", None, Some(gate));
            world.settle();
            world.resolves("a", "b").unwrap();
            assert!(world.talk("a", "b", SECOND));
            world.run(4 * SECOND);
            assert!(stream(&mut world, sleeper, other, SECOND).is_empty());
            // It has news for the NMS, and does not hear the answer.
            let mut findings = Findings::default();
            findings.v6.hairpin = Some(true);
            world.with_node(sleeper, 0, |node, now| node.handle_findings(now, findings));
            world.run(55 * MS);
            world.stop(sleeper);
            let until = world.now + length;
            while world.now < until {
                world.send_inner(other, sleeper);
                world.run(100 * MS);
            }
            world.go_on();
            let gap = gap(&stream(&mut world, sleeper, other, 2 * SECOND));
            // Behind firewalls the new tunnel begins at the relay, which is twice as far.
            let round_trip = if gate == Open { ROUND_TRIP } else { 2 * ROUND_TRIP };
            assert!(gap <= 3 * round_trip + 50 * MS, "{sleeper} stopped for {length:?}: {gap:?}");
        }
    }
}

/// What a gateway granted may have ended meanwhile: it is asked when the network is looked at.
#[test]
fn a_device_that_slept_for_long_looks_at_its_network_at_once() {
    for (length, looks_again) in [(10 * SECOND, false), (3600 * SECOND, true)] {
        let mut world = World::new(37);
        world.add("a", Some(PortRestricted), None);
        world.settle();
        world.run(30 * SECOND);
        let before = world.looks["a"].len();
        // Of a clock that stood still.
        let sleep = Sleep { length, counted: Duration::ZERO };
        world.with_node("a", 0, |node, now| node.handle_resumed(now, sleep));
        world.run(5 * SECOND);
        assert_eq!(world.looks["a"].len() > before, looks_again, "asleep for {length:?}");
    }
}
