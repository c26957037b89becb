//! A tunnel's paths: candidates, probes, the move to a better path, and the retreat from a dead one.
//!
//! A tunnel keeps its keys and packet numbers for life; where its packets go may change (RFC 9000 §9, with an
//! end that may begin behind a relay). Each end judges by itself on which path it sends: one may have moved
//! already while the other has not. Whatever arrives is opened all the same, so a move loses nothing.
//!
//! - *Candidates* (`telling`): each end tells the other where it may be reached (CANDIDATES, inside the
//!   tunnel). Where an authenticated probe comes from is one more.
//! - *Rounds* (`rounds`): both ends probe at the same time, right after the tunnel stands, so that each
//!   one's probes open its NAT for the other's. What answered is validated (RFC 9000 §8.2). Rounds are
//!   repeated ever more rarely while the tunnel is in use, and at once when there is news.
//! - *Choice* (`choice`): a better kind of path, or a clearly faster one of the same kind, is taken as soon
//!   as it answers.
//! - *Doubt* (`doubt`): a path that takes packets and brings none, or that the peer has left, is challenged
//!   together with those that could take its place. The first that answers when its time is up is taken. The
//!   relay is always among them.
//!
//! **Invariants.** Packets go only to an address that has answered a challenge, or at which the tunnel was
//! set up. Probes go only to addresses that the authenticated peer named or probed from, or, where both have moved,
//! to four that the NMS names, never to this host,
//! its link or the overlay; how many there are, how many probes a node sends, and how many of them at one
//! peer's word, is bounded.

mod budget;
mod candidate;
mod choice;
mod class;
mod doubt;
mod events;
mod own_addresses;
mod probing;
mod rounds;
mod schedule;
mod status;
mod telling;
mod watching;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) use budget::ProbeBudget;
use candidate::Candidate;
use doubt::{Doubt, Race};
use schedule::{PAUSE_LEAST, PAUSE_MOST, Steps};
pub use status::PathStatus;
pub use telling::CandidateSet;

use super::setups::Setup;
use crate::ConnectionId;
use crate::message::RouteKind;

/// Most of the peer's named addresses that are probed.
const MAX_NAMED: usize = 12;
/// Most addresses that are known only from the peer's probes.
const MAX_REFLEXIVE: usize = 4;
/// Sending without hearing for this long, or four round trips, begins a doubt.
const SILENCE_LEAST: Duration = Duration::from_millis(300);
/// The same where doubts proved groundless: a peer that only receives need not be asked all the time.
const SILENCE_MOST: Duration = Duration::from_secs(2);
/// A path in doubt has this long, or three round trips, to answer.
const PATIENCE: Duration = Duration::from_millis(200);
/// The round trip that is assumed of a path that was not measured.
const UNMEASURED: Duration = Duration::from_millis(100);
/// A direct tunnel in doubt looks for a relay after this, so that it has one within a second or so.
const SEEK: Duration = Duration::from_millis(500);
/// The same where this end has moved, at the least: the path may be longer than the one before.
const SEEK_MOVED: Duration = Duration::from_millis(15);

/// A tunnel's paths. See the module.
pub(super) struct Paths {
    /// The peer's own data connection ID.
    peer_cid: ConnectionId,
    candidates: Vec<Candidate>,
    current: SocketAddr,
    /// Since when packets go there.
    pub(super) since: Instant,
    /// When the tunnel first left its relay.
    pub(super) upgraded: Option<Instant>,
    /// The number of this end's newest list.
    sequence: u64,
    /// The number of the peer's newest list.
    heard: Option<u64>,
    telling: Option<Steps>,
    /// When the newest list had been told in vain: the peer is told again once it is heard.
    untold: Option<Instant>,
    /// This end is elsewhere than when the peer last told it that it knows where.
    moved: bool,
    round: Option<Steps>,
    /// Rounds that ended without a better path.
    rounds: u32,
    next_round: Option<Instant>,
    pause: Duration,
    doubt: Option<Doubt>,
    silence: Duration,
    retreats: u32,
    last_retreat: Option<Instant>,
    /// When the paths that are not in use are checked.
    check: Instant,
    /// The peer keeps the tunnel open.
    pub(super) kept_by_peer: bool,
}

/// How often a tunnel's relay is checked while packets go elsewhere, or the only path of a tunnel that is
/// kept open: more often than a TRS forgets a leg without packets (10 min).
const CHECK: Duration = Duration::from_secs(240);

impl Paths {
    /// The paths of a tunnel that was set up at an address.
    pub(super) fn new(
        now: Instant,
        setup: &Setup,
        peer_cid: ConnectionId,
        (remote, wire_cid): (SocketAddr, ConnectionId),
    ) -> Self {
        let first = match setup.kind {
            RouteKind::Relay => Candidate::relay(remote, wire_cid),
            RouteKind::Unspecified
            | RouteKind::Direct
            | RouteKind::ResponderInitiated
            | RouteKind::HolePunch => Candidate::direct(remote, peer_cid, false),
        };
        let mut paths = Self {
            peer_cid,
            candidates: vec![first],
            current: remote,
            since: now,
            upgraded: None,
            sequence: 0,
            heard: None,
            telling: None,
            untold: None,
            moved: false,
            round: None,
            rounds: 0,
            next_round: None,
            pause: PAUSE_LEAST,
            doubt: None,
            silence: SILENCE_LEAST,
            retreats: 0,
            last_retreat: None,
            check: now + CHECK,
            kept_by_peer: false,
        };
        paths.name(&setup.endpoints);
        paths
    }

    /// Takes the peer's list in place of the one before. Returns whether there is anything new.
    fn name(&mut self, remotes: &[SocketAddr]) -> bool {
        let current = self.current;
        let stays = |candidate: &Candidate| {
            candidate.is_relay()
                || !candidate.named
                || candidate.remote == current
                || remotes.contains(&candidate.remote)
        };
        self.candidates.retain(stays);
        let mut news = false;
        for remote in remotes.iter().take(MAX_NAMED) {
            match self.candidates.iter_mut().find(|candidate| candidate.remote == *remote) {
                Some(candidate) => candidate.named = true,
                None => {
                    self.candidates.push(Candidate::direct(*remote, self.peer_cid, true));
                    news = true;
                }
            }
        }
        news
    }

    /// Notes where the peer was heard from, or is said to be. Returns whether that is new.
    fn meet(&mut self, remote: SocketAddr) -> bool {
        if self.candidates.iter().any(|candidate| candidate.remote == remote) {
            return false;
        }
        let reflexive = |candidate: &&Candidate| !candidate.named && candidate.remote != self.current;
        if self.candidates.iter().filter(reflexive).count() >= MAX_REFLEXIVE {
            // The one that has not worked for longest makes room.
            let oldest = self.candidates.iter().filter(reflexive).min_by_key(|candidate| candidate.proved);
            let oldest = oldest.map(|candidate| candidate.remote);
            self.candidates.retain(|candidate| Some(candidate.remote) != oldest);
        }
        self.candidates.push(Candidate::direct(remote, self.peer_cid, false));
        true
    }

    pub(super) fn current(&self) -> Option<&Candidate> {
        self.candidate(self.current)
    }

    fn candidate(&self, remote: SocketAddr) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.remote == remote)
    }

    fn relay(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.is_relay())
    }

    /// Whether packets go through the relay.
    pub(super) fn is_relayed(&self) -> bool {
        self.current().is_some_and(Candidate::is_relay)
    }

    /// The current path's round trip, once it was measured.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.current().and_then(|candidate| candidate.rtt)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    /// The relay is elsewhere, or gone. Returns whether that is new.
    pub(super) fn set_relay(&mut self, relay: Option<(SocketAddr, ConnectionId)>) -> bool {
        let before = self.relay().map(|candidate| (candidate.remote, candidate.wire_cid));
        if before == relay {
            return false;
        }
        let was_current = self.is_relayed();
        self.candidates.retain(|candidate| !candidate.is_relay());
        if let Some((remote, leg)) = relay {
            self.candidates.retain(|candidate| candidate.remote != remote);
            self.candidates.push(Candidate::relay(remote, leg));
            if was_current {
                self.current = remote;
            }
        }
        true
    }

    /// What stands on the wire on the way through the relay.
    pub(super) fn relay_leg(&self) -> Option<ConnectionId> {
        self.relay().map(|candidate| candidate.wire_cid)
    }

    /// How long silence is borne before a doubt.
    fn silence(&self) -> Duration {
        self.silence.max(self.rtt().unwrap_or_default() * 4)
    }

    fn patience(&self) -> Duration {
        PATIENCE.max(self.rtt().unwrap_or(UNMEASURED) * 3)
    }

    /// A doubt came to nothing: the peer only receives.
    fn bear_longer_silence(&mut self) {
        self.silence = (self.silence * 2).min(SILENCE_MOST);
    }

    /// Inner packets come: silence would mean something.
    pub(super) fn note_answer(&mut self) {
        self.silence = SILENCE_LEAST;
    }

    /// Kinds of paths that a round looks for: where an end has moved, any, as the present one may be gone
    /// with all of its kind.
    fn is_sought(&self, candidate: &Candidate) -> bool {
        !candidate.is_relay()
            && candidate.remote != self.current
            && (self.is_moving() || self.current().is_none_or(|current| candidate.class <= current.class))
    }

    /// An end has moved, and no path has answered since.
    pub(super) fn is_moving(&self) -> bool {
        self.doubt.is_some_and(|doubt| doubt.race == Race::Open)
    }

    /// How long a doubt lasts before another tunnel is asked for, where no relay is there to fall back on. A
    /// peer that has not moved answers within a round trip; one that has moved at the same time does not,
    /// and only the NMS knows where both are.
    fn seek_after(&self) -> Duration {
        if !self.is_moving() {
            return SEEK;
        }
        (self.rtt().unwrap_or(UNMEASURED) * 9 / 8).clamp(SEEK_MOVED, SEEK)
    }

    /// Whether the peer named a better kind of path than the current one.
    fn may_improve(&self) -> bool {
        let better =
            |current: &Candidate| self.candidates.iter().any(|candidate| candidate.class < current.class);
        self.current().is_some_and(better)
    }

    fn end_round(&mut self, now: Instant) {
        self.round = None;
        self.rounds = self.rounds.saturating_add(1);
        // A retreat has set an earlier one.
        let ahead = self.next_round.filter(|at| *at > now);
        self.next_round = self.may_improve().then_some(ahead.unwrap_or(now + self.pause));
        if ahead.is_none() {
            self.pause = (self.pause * 2).min(PAUSE_MOST);
        }
    }
}
