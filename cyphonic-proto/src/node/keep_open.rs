//! Peers whose tunnels stay, though nobody uses them: an operator's choice.
//!
//! Such a peer's tunnel is set up once the node is registered, and anew when it is lost. It tells the peer so
//! (CANDIDATES), which then does not end it either as long as it hears from this node.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::{Node, Target, Timer, Tunnel};

/// Most peers that are kept open.
pub const MAX_KEPT_OPEN: usize = 256;
/// Between attempts at a kept peer that cannot be reached.
const AGAIN: Duration = Duration::from_secs(30);
/// After a tunnel's end, so that two ends that keep each other do not ask at the same moment.
const SOON: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(super) struct KeptOpen(BTreeSet<Ipv6Addr>);

impl Node {
    /// Peers, by full name or without the zone, whose tunnels are set up without anybody asking and stay
    /// while nobody uses them; those of before that are not among them do not any more. A name that cannot be
    /// one is ignored, and so are those beyond [`MAX_KEPT_OPEN`].
    pub fn handle_keep_open(&mut self, now: Instant, names: &[String]) {
        let before = std::mem::take(&mut self.kept_open.0);
        for name in names {
            let in_zone = Target::Name(format!("{}.{}", name.trim_end_matches('.'), self.config.zone));
            let found = self.locate(Target::Name(name.clone())).or_else(|_| self.locate(in_zone));
            let Ok((address, fqdn)) = found else { continue };
            let has_room = self.kept_open.0.len() < MAX_KEPT_OPEN;
            if address != self.own && has_room && self.note_peer(now, address, fqdn).is_ok() {
                self.kept_open.0.insert(address);
            }
        }
        self.tell_those_of(now, &before);
        self.keep_peers(now);
    }

    /// Others are kept now: peers with tunnels hear whether they are, and what is not kept ends some day.
    fn tell_those_of(&mut self, now: Instant, before: &BTreeSet<Ipv6Addr>) {
        let is_news = |peer: Ipv6Addr| before.contains(&peer) != self.keeps_open(peer);
        let concerned = self.tunnels.iter().filter(|(_, tunnel)| is_news(tunnel.peer)).map(|(id, _)| *id);
        for id in concerned.collect::<Vec<_>>() {
            // The others are told when they are heard.
            if self.tunnels.get(&id).is_some_and(Tunnel::may_have_been_told) {
                self.tell(now, id);
            }
            self.watch(now, id);
        }
    }

    pub(super) fn keeps_open(&self, peer: Ipv6Addr) -> bool {
        self.kept_open.0.contains(&peer)
    }

    /// Sets up what is missing.
    pub(super) fn keep_peers(&mut self, now: Instant) {
        if self.stopped || self.kept_open.0.is_empty() {
            return self.timers.clear(&Timer::KeptOpen);
        }
        self.timers.set(Timer::KeptOpen, now + AGAIN.mul_f64(self.rng.random_range(0.75..=1.0)));
        if !self.registration.registered {
            return;
        }
        let missing = |peer: &&Ipv6Addr| {
            self.peers.get(*peer).is_some_and(|peer| peer.tunnels.is_empty() && !peer.is_sought())
        };
        for peer in self.kept_open.0.iter().filter(missing).copied().collect::<Vec<_>>() {
            self.want_anew(now, peer);
        }
    }

    /// A tunnel has ended: if its peer is kept, it gets another.
    pub(super) fn keep_after(&mut self, now: Instant, peer: Ipv6Addr) {
        if self.keeps_open(peer) && !self.stopped {
            self.timers.set(Timer::KeptOpen, now + SOON.mul_f64(self.rng.random_range(0.5..=1.5)));
        }
    }
}
