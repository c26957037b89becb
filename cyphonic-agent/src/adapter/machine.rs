//! What is known of the machine, and how many conversations with it there may be.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cyphonic_transport::quota::{Key, Quota};
use tokio::task::JoinSet;

use crate::complaints::Complaints;
use crate::config::{Carried, OfferedPort};
use crate::control::report::{HealthCheck, Severity, StandsForReport};

/// Conversations at a time, of each protocol in all and of one peer. A controller has room for a handful.
pub(super) const MAX_PLACES: usize = 1_024;
pub(super) const MAX_PLACES_OF_PEER: usize = 128;

/// A peer's flows at a port, at least: of all ports it has as many as connections, or these at each.
const FLOWS_AT_PORT: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    address: IpAddr,
    connections: Mutex<Quota<Peer>>,
    flows: Mutex<Quota<Peer>>,
    carried: AtomicU64,
    turned_away: AtomicU64,
    troubles: Mutex<Troubles>,
    // Aborted when dropped.
    carrying: Mutex<JoinSet<()>>,
    /// How many conversations of UDP one peer may have at a port.
    flows_at_port: usize,
}

/// By its virtual address, which its tunnel has proved, and of UDP by the port that it asks, since a port knows its own
/// flows alone. All of an overlay are of one network, so no group of them says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer(IpAddr, Option<OfferedPort>);

impl Key for Peer {
    fn group(&self) -> Option<Self> {
        None
    }
}

/// Where something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The port cannot be had on this host.
    Here,
    /// The machine did not answer, or refused.
    There,
}

impl Trouble {
    /// Whose an error is that came of speaking to the machine.
    pub(super) fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
            TimedOut,
        };
        match error.kind() {
            ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable
            | NetworkUnreachable | TimedOut => Self::There,
            _ => Self::Here,
        }
    }
}

#[derive(Debug, Default)]
struct Troubles {
    /// What the last attempt of each port came to, where it failed.
    present: BTreeMap<OfferedPort, (Trouble, String)>,
    told: Complaints<OfferedPort>,
}

/// A conversation's; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    machine: Arc<Machine>,
    peer: Peer,
    protocol: Carried,
}

impl Machine {
    /// A machine that has so many ports of UDP.
    pub(super) fn new(address: IpAddr, udp_ports: usize) -> Self {
        Self {
            address,
            connections: Mutex::new(Quota::new(MAX_PLACES)),
            flows: Mutex::new(Quota::new(MAX_PLACES)),
            carried: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            troubles: Mutex::default(),
            carrying: Mutex::default(),
            flows_at_port: (MAX_PLACES_OF_PEER / udp_ports.max(1)).max(FLOWS_AT_PORT),
        }
    }

    /// Where one of its ports is.
    pub(super) fn at(&self, port: OfferedPort) -> SocketAddr {
        SocketAddr::new(self.address, port.to)
    }

    /// A place for one more conversation of this peer with a port; none where it, or all together, have as many as
    /// there may be.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, port: OfferedPort) -> Option<Place> {
        let protocol = port.protocol;
        let (peer, most) = match protocol {
            Carried::Tcp => (Peer(peer, None), MAX_PLACES_OF_PEER),
            Carried::Udp => (Peer(peer, Some(port)), self.flows_at_port),
        };
        let mut places = lock(self.places(protocol));
        if !places.has_room(&peer, most) {
            return None;
        }
        places.add(peer);
        Some(Place { machine: Arc::clone(self), peer, protocol })
    }

    /// Carries a connection, until it ends or all do.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut carrying = lock(&self.carrying);
        while carrying.try_join_next().is_some() {}
        carrying.spawn(connection);
    }

    /// Returns when all have ended.
    pub(super) async fn end_connections(&self) {
        let mut carrying = std::mem::take(&mut *lock(&self.carrying));
        carrying.shutdown().await;
    }

    /// For one there was no place.
    pub(super) fn has_turned_away(&self, peer: IpAddr) {
        if self.turned_away.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "{peer} has as many conversations with {} as one may have, or all together have: more are turned away",
                self.address
            );
        }
    }

    /// A conversation has begun.
    pub(super) fn has_begun(&self) {
        self.carried.fetch_add(1, Ordering::Relaxed);
    }

    fn places(&self, protocol: Carried) -> &Mutex<Quota<Peer>> {
        match protocol {
            Carried::Tcp => &self.connections,
            Carried::Udp => &self.flows,
        }
    }

    /// The port is this agent's, and the host lets it use it.
    pub(super) fn is_well_here(&self, port: OfferedPort) {
        if self.is_over(port, |trouble| trouble == Trouble::Here) {
            tracing::info!("{}/{} is open to peers now", port.protocol, port.at);
        }
    }

    /// The machine has answered there.
    pub(super) fn has_answered(&self, port: OfferedPort) {
        if self.is_over(port, |_| true) {
            tracing::info!("what is for {}/{} of the machine goes there again", port.protocol, port.to);
        }
    }

    /// Whether there was trouble of this kind, which is over.
    fn is_over(&self, port: OfferedPort, is_meant: impl FnOnce(Trouble) -> bool) -> bool {
        let mut troubles = lock(&self.troubles);
        if !troubles.present.get(&port).is_some_and(|(trouble, _)| is_meant(*trouble)) {
            return false;
        }
        troubles.present.remove(&port);
        troubles.told.settle(&port)
    }

    /// What an attempt came to that failed.
    pub(super) fn note(&self, port: OfferedPort, trouble: Trouble, error: &io::Error) {
        let why = self.words(port, trouble, error);
        let mut troubles = lock(&self.troubles);
        if troubles.told.is_news(Instant::now(), port, &why) {
            tracing::warn!("{why}");
        }
        troubles.present.insert(port, (trouble, why));
    }

    fn words(&self, port: OfferedPort, trouble: Trouble, error: &io::Error) -> String {
        let OfferedPort { protocol, at, to } = port;
        match trouble {
            Trouble::Here => match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "peers cannot open {protocol}/{at} here: another program has that port of all of this host's addresses: have it \
                     listen at the host's own only, or offer another number, as `tcp/2222:22`"
                ),
                _ => format!("{protocol}/{at} is not carried on to {}:{to}: {error}", self.address),
            },
            Trouble::There => format!(
                "the machine {}, for which this device stands, does not answer at {protocol}/{to}: {error}",
                self.address
            ),
        }
    }

    pub(super) fn report(&self, services: Vec<String>) -> StandsForReport {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let standing = |places: &Mutex<Quota<Peer>>| lock(places).total() as u64;
        StandsForReport {
            address: Some(self.address),
            services,
            connections: standing(&self.connections),
            flows: standing(&self.flows),
            carried: of(&self.carried),
            turned_away: of(&self.turned_away),
        }
    }

    pub(super) fn health(&self) -> Vec<HealthCheck> {
        let troubles = lock(&self.troubles);
        let of = |wanted: Trouble, id: &str, severity| {
            let mut found = troubles.present.values().filter(|(trouble, _)| *trouble == wanted);
            let (_, first) = found.next()?;
            let message = match found.count() {
                0 => first.clone(),
                others => format!("{first} (and {others} other ports)"),
            };
            Some(HealthCheck { id: id.into(), severity, message })
        };
        let here = of(Trouble::Here, "stands-for", Severity::Error);
        here.into_iter().chain(of(Trouble::There, "machine", Severity::Warning)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(self.machine.places(self.protocol)).remove(&self.peer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16) -> IpAddr {
        [0xfd12, 0, 0, 0, 0, 0, 0, number].into()
    }

    #[test]
    fn one_peer_does_not_take_the_places_of_all() {
        let machine = Arc::new(Machine::new([192, 0, 2, 1].into(), 2));
        let port = |protocol, at| OfferedPort { protocol, at, to: 1 };
        let admit = |number| machine.admit(peer(number), port(Carried::Tcp, 1));
        let first: Vec<_> = (0..MAX_PLACES_OF_PEER).map(|_| admit(1).unwrap()).collect();
        assert!(admit(1).is_none());
        let others: Vec<_> =
            (MAX_PLACES_OF_PEER..MAX_PLACES).map(|number| admit(number as u16).unwrap()).collect();
        assert!(admit(2).is_none(), "all have as many as there may be");
        let ask = |at| machine.admit(peer(1), port(Carried::Udp, at));
        let flows: Vec<_> = (0..MAX_PLACES_OF_PEER / 2).map(|_| ask(1).unwrap()).collect();
        assert!(ask(1).is_none() && ask(2).is_some(), "those of a port take none of another's");
        drop(flows);
        let report = machine.report(Vec::new());
        assert_eq!((report.connections, report.flows), (MAX_PLACES as u64, 0));
        drop(first);
        assert!(admit(1).is_some());
        drop(others);
        assert_eq!(machine.report(Vec::new()).connections, 0);
    }

    #[test]
    fn a_port_is_told_of_until_its_next_attempt_succeeds() {
        let machine = Machine::new([192, 0, 2, 1].into(), 0);
        let port = |to| OfferedPort { protocol: Carried::Tcp, at: 7, to };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        machine.note(port(1), Trouble::There, &refused());
        machine.note(port(2), Trouble::There, &refused());
        machine.note(port(3), Trouble::Here, &io::Error::from(io::ErrorKind::AddrInUse));
        let ids: Vec<_> = machine.health().into_iter().map(|check| check.id).collect();
        assert_eq!(ids, ["stands-for", "machine"]);
        assert!(machine.health()[1].message.contains("(and 1 other ports)"));
        machine.has_answered(port(1));
        assert!(machine.health()[1].message.contains("tcp/2:"), "{:?}", machine.health());
        machine.is_well_here(port(2));
        assert_eq!(machine.health().len(), 2, "that the host lets it says nothing of the machine");
        machine.has_answered(port(2));
        machine.is_well_here(port(3));
        assert_eq!(machine.health(), []);
    }
}
