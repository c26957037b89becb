//! How many connections are let in, from where, and who may stay. Pure.
//!
//! Devices that share a NAT, or one IPv6 network, share a source, so devices get room for many; strangers, who are about to
//! enrol, for few.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tally::{Tally, network_of};

/// Most connections, whoever has them, where descriptors suffice. Each takes two and some 200 KiB.
pub(super) const MAX_CONNECTIONS: usize = 2_048;
/// Of one source: sixty devices that are connected to AS, NMS and two relays.
const MAX_PER_SOURCE: usize = 256;
/// Whose TLS handshake is under way, or who have no certificate.
const MAX_STRANGERS: usize = 256;
/// Of one source: a handshake takes moments, and an enrolment not many more.
const MAX_STRANGERS_PER_SOURCE: usize = 16;

#[derive(Debug)]
struct Counts {
    all: Tally<IpAddr>,
    strangers: Tally<IpAddr>,
}

/// The doorkeeper. Clones keep the same door.
#[derive(Debug, Clone)]
pub(super) struct Admission(Arc<Mutex<Counts>>);

/// A connection that was let in; its place is free again once this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Admission,
    source: IpAddr,
    stranger: bool,
}

impl Admission {
    /// For this many connections at most.
    pub(super) fn new(most: usize) -> Self {
        let counts = Counts { all: Tally::new(most), strangers: Tally::new(MAX_STRANGERS) };
        Self(Arc::new(Mutex::new(counts)))
    }

    /// Lets a connection in, as a stranger's; none where there is no room.
    pub(super) fn admit(&self, from: IpAddr) -> Option<Admitted> {
        let source = network_of(from);
        let mut counts = self.lock();
        let room = counts.all.has_room(&source, MAX_PER_SOURCE)
            && counts.strangers.has_room(&source, MAX_STRANGERS_PER_SOURCE);
        if !room {
            return None;
        }
        counts.all.add(source);
        counts.strangers.add(source);
        drop(counts);
        Some(Admitted { admission: self.clone(), source, stranger: true })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after every statement that matters; a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// It has shown a device's certificate.
    pub(super) fn is_device(&mut self) {
        if std::mem::replace(&mut self.stranger, false) {
            self.admission.lock().strangers.remove(&self.source);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.all.remove(&self.source);
        if self.stranger {
            counts.strangers.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_cannot_take_all_the_room() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let mut held = Vec::new();
        while let Some(admitted) = admission.admit(ip("192.0.2.1")) {
            held.push(admitted);
        }
        assert_eq!(held.len(), MAX_STRANGERS_PER_SOURCE);
        assert!(admission.admit(ip("::ffff:192.0.2.1")).is_none(), "the same address, mapped");
        assert!(admission.admit(ip("192.0.2.2")).is_some());
        held.iter_mut().for_each(Admitted::is_device);
        while let Some(mut admitted) = admission.admit(ip("192.0.2.1")) {
            admitted.is_device();
            held.push(admitted);
        }
        assert_eq!(held.len(), MAX_PER_SOURCE);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let strangers =
            (0..1_000u16).map(|host| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host)));
        let held: Vec<_> = strangers.map_while(|from| admission.admit(from)).collect();
        assert_eq!(held.len(), MAX_STRANGERS_PER_SOURCE);
    }

    #[test]
    fn many_sources_together_are_bounded_and_every_place_is_given_back() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let from = |at: u32| IpAddr::from((0x0a00_0000 + at).to_be_bytes());
        let mut held: Vec<_> = (0..1_000).map_while(|at| admission.admit(from(at))).collect();
        assert_eq!(held.len(), MAX_STRANGERS);
        held.iter_mut().for_each(Admitted::is_device);
        let more = (1_000..).map_while(|at| {
            let mut admitted = admission.admit(from(at))?;
            admitted.is_device();
            Some(admitted)
        });
        held.extend(more);
        assert_eq!(held.len(), MAX_CONNECTIONS);
        drop(held);
        let counts = admission.lock();
        assert_eq!((counts.all.total(), counts.strangers.total()), (0, 0));
    }
}
