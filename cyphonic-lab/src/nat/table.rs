//! The NAT of RFC 4787 as a machine: which external port stands for which endpoint inside, and who may send
//! to it.
//!
//! Time is an argument and counts from any fixed moment. Every table is bounded: what does not fit is
//! refused, as a NAT that has run out of ports refuses it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Mappings a NAT holds; home routers hold fewer.
const MAX_MAPPINGS: usize = 16_384;
/// Remote endpoints a mapping admits at a time.
const MAX_ADMITTED: usize = 4_096;
/// Ports below are not given: a packet from one looks like a service's.
const FIRST_PORT: u16 = 1_024;
/// How often what has expired is removed, where nothing else asks for it.
const SWEEP: Duration = Duration::from_secs(30);
/// The same while the table is full: not for every packet, since it looks at all mappings.
const FULL_SWEEP: Duration = Duration::from_secs(1);
/// RFC 5382 REQ-5: an established connection is kept for at least 2 hours 4 minutes.
const TCP_LIFETIME: Duration = Duration::from_secs(7_440);
/// RFC 5508 REQ-1: a query's mapping is kept for at least 60 seconds.
const ECHO_LIFETIME: Duration = Duration::from_secs(60);
/// RFC 4787 REQ-5 recommends this for UDP.
pub const DEFAULT_UDP_LIFETIME: Duration = Duration::from_secs(300);

/// What a decision depends on beside the endpoint inside (RFC 4787 §4.1 and §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependence {
    /// Nothing.
    EndpointIndependent,
    /// The remote address.
    AddressDependent,
    /// The remote address and port.
    AddressAndPortDependent,
}

/// How external ports are chosen (RFC 4787 §4.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// The endpoint's own port where it is free, the next free one otherwise.
    #[default]
    Preserving,
    /// One after the other.
    Sequential,
    /// Any.
    Random,
}

/// All that tells one NAT from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behaviour {
    /// What an external port depends on.
    pub mapping: Dependence,
    /// Whom a mapping admits, of those that something was sent to.
    pub filtering: Dependence,
    /// How ports are chosen.
    pub ports: Ports,
    /// Whether those inside reach each other by external endpoints (RFC 4787 §6).
    pub hairpin: bool,
    /// How long a UDP mapping lives after the last packet out (RFC 4787 §4.3).
    pub udp_lifetime: Duration,
    /// Whether packets in prolong its life too.
    pub inbound_refresh: bool,
}

/// What is translated. Ports of an echo are its identifier, and 0 at the remote end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// ICMP and ICMPv6 echo.
    Echo,
}

/// The part of a remote endpoint that a decision depends on.
type Scope = Option<(Ipv4Addr, Option<u16>)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    protocol: Protocol,
    inside: SocketAddr,
    scope: Scope,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    used: Duration,
    /// When something was last sent to whom, as far as filtering depends on it.
    contacted: HashMap<Scope, Duration>,
}

/// A NAT with one external address.
#[derive(Debug)]
pub struct Table {
    behaviour: Behaviour,
    random: SmallRng,
    next: u16,
    mappings: HashMap<Key, Mapping>,
    by_port: HashMap<(Protocol, u16), Key>,
    swept: Duration,
}

impl Table {
    /// An empty one; equal seeds give equal ports.
    pub fn new(behaviour: Behaviour, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let next = random.random_range(FIRST_PORT..=u16::MAX);
        Self {
            behaviour,
            random,
            next,
            mappings: HashMap::new(),
            by_port: HashMap::new(),
            swept: Duration::ZERO,
        }
    }

    /// Whether packets from inside to the external address return inside.
    pub fn hairpins(&self) -> bool {
        self.behaviour.hairpin
    }

    /// A packet leaves: the external port that stands for its source. It makes or refreshes the mapping, and
    /// admits the remote endpoint. `None` where there is no port left for it.
    pub fn outbound(
        &mut self,
        now: Duration,
        protocol: Protocol,
        inside: SocketAddr,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        let since = now.saturating_sub(self.swept);
        if since >= SWEEP || since >= FULL_SWEEP && self.mappings.len() >= MAX_MAPPINGS {
            self.sweep(now);
        }
        let key = self.key(protocol, inside, remote);
        let life = self.lifetime(protocol);
        let alive = self.mappings.get(&key).is_some_and(|mapping| now < mapping.used + life);
        if !alive {
            self.remove(&key);
            if self.mappings.len() >= MAX_MAPPINGS {
                return None;
            }
            let port = self.free_port(now, protocol, inside.port())?;
            self.by_port.insert((protocol, port), key);
            self.mappings.insert(key, Mapping { port, used: now, contacted: HashMap::new() });
        }
        let scope = scope(self.behaviour.filtering, remote);
        let mapping = self.mappings.get_mut(&key)?;
        mapping.used = now;
        if mapping.contacted.len() >= MAX_ADMITTED && !mapping.contacted.contains_key(&scope) {
            mapping.contacted.retain(|_, sent| now < *sent + life);
        }
        if mapping.contacted.len() < MAX_ADMITTED || mapping.contacted.contains_key(&scope) {
            mapping.contacted.insert(scope, now);
        }
        Some(mapping.port)
    }

    /// A packet arrives at an external port: the endpoint inside that it is for, if its sender is admitted.
    pub fn inbound(
        &mut self,
        now: Duration,
        protocol: Protocol,
        port: u16,
        remote: SocketAddrV4,
    ) -> Option<SocketAddr> {
        let inside = self.admitted(now, protocol, port, remote)?;
        if self.behaviour.inbound_refresh {
            let scope = scope(self.behaviour.filtering, remote);
            let key = self.by_port.get(&(protocol, port))?;
            let mapping = self.mappings.get_mut(key)?;
            mapping.used = now;
            if let Some(sent) = mapping.contacted.get_mut(&scope) {
                *sent = now;
            }
        }
        Some(inside)
    }

    /// Like [`Self::inbound`], but changes nothing: for messages about a packet.
    pub fn admitted(
        &self,
        now: Duration,
        protocol: Protocol,
        port: u16,
        remote: SocketAddrV4,
    ) -> Option<SocketAddr> {
        let key = self.by_port.get(&(protocol, port))?;
        let mapping = self.mappings.get(key)?;
        let sent = mapping.contacted.get(&scope(self.behaviour.filtering, remote))?;
        let life = self.lifetime(protocol);
        (now < mapping.used + life && now < *sent + life).then_some(key.inside)
    }

    /// The external port of an endpoint inside towards a remote one, if there is a mapping.
    pub fn external_port(
        &self,
        now: Duration,
        protocol: Protocol,
        inside: SocketAddr,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        let mapping = self.mappings.get(&self.key(protocol, inside, remote))?;
        (now < mapping.used + self.lifetime(protocol)).then_some(mapping.port)
    }

    fn key(&self, protocol: Protocol, inside: SocketAddr, remote: SocketAddrV4) -> Key {
        Key { protocol, inside, scope: scope(self.behaviour.mapping, remote) }
    }

    fn lifetime(&self, protocol: Protocol) -> Duration {
        match protocol {
            Protocol::Udp => self.behaviour.udp_lifetime,
            Protocol::Tcp => TCP_LIFETIME,
            Protocol::Echo => ECHO_LIFETIME,
        }
    }

    fn free_port(&mut self, now: Duration, protocol: Protocol, own: u16) -> Option<u16> {
        if self.behaviour.ports == Ports::Preserving && self.take(now, protocol, own.max(FIRST_PORT)) {
            return Some(own.max(FIRST_PORT));
        }
        for _ in 0..=u16::MAX {
            let port = match self.behaviour.ports {
                Ports::Random => self.random.random_range(FIRST_PORT..=u16::MAX),
                Ports::Preserving | Ports::Sequential => {
                    let port = self.next;
                    self.next = port.checked_add(1).unwrap_or(FIRST_PORT);
                    port
                }
            };
            if self.take(now, protocol, port) {
                return Some(port);
            }
        }
        None
    }

    /// Whether a port is free, or has been freed now, since its mapping has expired.
    fn take(&mut self, now: Duration, protocol: Protocol, port: u16) -> bool {
        let Some(key) = self.by_port.get(&(protocol, port)).copied() else { return true };
        let life = self.lifetime(protocol);
        let expired = self.mappings.get(&key).is_none_or(|mapping| now >= mapping.used + life);
        if expired {
            self.remove(&key);
        }
        expired
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mapping) = self.mappings.remove(key) {
            self.by_port.remove(&(key.protocol, mapping.port));
        }
    }

    fn sweep(&mut self, now: Duration) {
        self.swept = now;
        let udp = self.behaviour.udp_lifetime;
        self.mappings.retain(|key, mapping| {
            let life = match key.protocol {
                Protocol::Udp => udp,
                Protocol::Tcp => TCP_LIFETIME,
                Protocol::Echo => ECHO_LIFETIME,
            };
            mapping.contacted.retain(|_, sent| now < *sent + life);
            now < mapping.used + life
        });
        let mappings = &self.mappings;
        self.by_port.retain(|_, key| mappings.contains_key(key));
    }
}

fn scope(dependence: Dependence, remote: SocketAddrV4) -> Scope {
    match dependence {
        Dependence::EndpointIndependent => None,
        Dependence::AddressDependent => Some((*remote.ip(), None)),
        Dependence::AddressAndPortDependent => Some((*remote.ip(), Some(remote.port()))),
    }
}

#[cfg(test)]
mod tests;
