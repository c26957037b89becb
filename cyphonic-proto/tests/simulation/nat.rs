//! A NAT of any kind of RFC 4787: mapping and filtering, how it chooses ports, and how long it remembers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What of the other end a mapping (§4.1) or a filter (§5) depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dependence {
    Independent,
    Address,
    AddressAndPort,
}

/// How external ports are chosen (§4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    Sequence,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NatKind {
    pub(crate) mapping: Dependence,
    pub(crate) filtering: Dependence,
    pub(crate) ports: Ports,
    /// Without packets from inside (§4.3): packets from outside refresh nothing here.
    pub(crate) lifetime: Duration,
}

/// One that forgets nothing within a test.
pub(crate) const fn nat(mapping: Dependence, filtering: Dependence, ports: Ports) -> NatKind {
    NatKind { mapping, filtering, ports, lifetime: Duration::from_secs(7200) }
}

#[derive(Clone, Debug)]
pub(crate) struct Nat {
    kind: NatKind,
    public: IpAddr,
    mappings: BTreeMap<Option<(IpAddr, u16)>, Entry>,
    made: u32,
}

#[derive(Clone, Debug)]
struct Entry {
    port: u16,
    until: Instant,
    /// Who was sent to, and until when that is remembered.
    peers: BTreeMap<SocketAddr, Instant>,
}

impl Nat {
    pub(crate) fn new(kind: NatKind, public: IpAddr) -> Self {
        Self { kind, public, mappings: BTreeMap::new(), made: 0 }
    }

    /// The source that `to` sees.
    pub(crate) fn outbound(&mut self, now: Instant, to: SocketAddr) -> SocketAddr {
        let key = match self.kind.mapping {
            Dependence::Independent => None,
            Dependence::Address => Some((to.ip(), 0)),
            Dependence::AddressAndPort => Some((to.ip(), to.port())),
        };
        self.mappings.retain(|_, entry| entry.until >= now);
        let until = now + self.kind.lifetime;
        if !self.mappings.contains_key(&key) {
            let port = self.fresh_port();
            self.mappings.insert(key, Entry { port, until, peers: BTreeMap::new() });
        }
        let entry = self.mappings.get_mut(&key).unwrap();
        entry.until = until;
        entry.peers.insert(to, until);
        SocketAddr::new(self.public, entry.port)
    }

    /// Whether a packet passes.
    pub(crate) fn inbound(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        let lives = |entry: &&Entry| entry.port == to.port() && entry.until >= now;
        let Some(entry) = self.mappings.values().find(lives).filter(|_| to.ip() == self.public) else {
            return false;
        };
        let mut peers = entry.peers.iter().filter(|(_, until)| **until >= now).map(|(peer, _)| peer);
        match self.kind.filtering {
            Dependence::Independent => true,
            Dependence::Address => peers.any(|peer| peer.ip() == from.ip()),
            Dependence::AddressAndPort => peers.any(|peer| *peer == from),
        }
    }

    fn fresh_port(&mut self) -> u16 {
        loop {
            self.made += 1;
            let port = match self.kind.ports {
                Ports::Sequence => 20_000 + self.made % 40_000,
                // A permutation of 2^16 (Knuth): no two follow each other closely.
                Ports::Random => (self.made.wrapping_mul(40_503) >> 1 ^ 0x5a5a) % 60_000 + 1024,
            };
            let port = u16::try_from(port).unwrap();
            if self.mappings.values().all(|entry| entry.port != port) {
                return port;
            }
        }
    }
}
