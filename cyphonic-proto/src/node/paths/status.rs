//! A tunnel's paths for people: where its packets go, and why there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Paths;
use crate::message::RouteKind;
use crate::node::tunnels::Tunnel;

/// The path that a tunnel's packets take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// Where they go: the peer, or its relay.
    pub remote: SocketAddr,
    /// The round trip, where it was measured.
    pub rtt: Option<Duration>,
    /// Since when they go there.
    pub since: Instant,
    /// When the tunnel first left its relay.
    pub upgraded: Option<Instant>,
    /// Whether the path seems dead and is being asked.
    pub doubted: bool,
    /// Why this path: one line of English.
    pub why: String,
}

impl Tunnel {
    pub(in crate::node) fn path_status(&self) -> PathStatus {
        PathStatus {
            remote: self.remote,
            rtt: self.paths.rtt(),
            since: self.paths.since,
            upgraded: self.paths.upgraded,
            doubted: self.paths.is_doubted(),
            why: self.paths.explain(),
        }
    }

    /// How its packets travel now, which is not always as it was set up.
    pub(in crate::node) fn route(&self) -> RouteKind {
        match (self.kind, self.paths.is_relayed()) {
            (RouteKind::Relay, false) => RouteKind::Direct,
            (kind, _) => kind,
        }
    }
}

impl Paths {
    fn explain(&self) -> String {
        match self.upgraded {
            _ if self.is_relayed() => self.why_relayed(),
            Some(_) => "moved from the relay to a direct path".to_owned(),
            None => "the path that the tunnel was set up on".to_owned(),
        }
    }

    fn why_relayed(&self) -> String {
        let direct = || self.candidates.iter().filter(|candidate| !candidate.is_relay());
        let tried = direct().filter(|candidate| candidate.tried).count();
        if self.round.is_some() && tried > 0 {
            format!("trying {}", addresses(tried))
        } else if self.upgraded.is_some() {
            "the direct path is silent".to_owned()
        } else if direct().count() == 0 {
            "the peer has told no address".to_owned()
        } else if self.rounds == 0 {
            "no direct path was tried yet".to_owned()
        } else if tried == 0 {
            "no address of the peer can be reached from here".to_owned()
        } else if tried == 1 {
            "the peer's one address does not answer".to_owned()
        } else {
            format!("none of {} answers", addresses(tried))
        }
    }
}

fn addresses(count: usize) -> String {
    if count == 1 { "one address".to_owned() } else { format!("{count} addresses") }
}
