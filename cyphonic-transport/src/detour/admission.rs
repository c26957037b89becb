//! How many connections are let in, from where, and who may stay. Pure.
//!
//! Devices that share a NAT, or one IPv6 network, share a source, so devices get room for many; strangers,
//! who are about to enrol, for few. A device has room for a few wherever it comes from, so that one
//! certificate at many sources does not take everybody's. It is known by its key: a name may be another
//! device's by now, while certificates of the one before are valid.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use cyphonic_dataplane::sync;
use cyphonic_proto::identity::KeyHash;
use tokio::sync::oneshot;

use crate::quota::{Quota, network_of};

/// Most connections, whoever has them, where descriptors suffice. Each takes two and some 200 KiB.
pub(super) const MAX_CONNECTIONS: usize = 2_048;
/// One of so many parts of them are a source's at most: all devices of a large site come from one.
const SHARE_OF_SOURCE: usize = 2;
/// Whose TLS handshake is under way, or who have no certificate.
const MAX_STRANGERS: usize = 256;
/// Of one source: a handshake takes moments, and an enrolment not many more.
const MAX_STRANGERS_PER_SOURCE: usize = 16;
/// Of one device: to AS, NMS and two relays, twice, since those of a network that it left are noticed only
/// after a minute.
const MAX_PER_DEVICE: usize = 8;

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("all {0} places are taken")]
    Full(usize),
    #[error("its address, or network, has {0} already")]
    OfSource(usize),
    #[error("too many have not shown a device's certificate yet")]
    Strangers,
}

#[derive(Debug)]
struct Counts {
    most: usize,
    all: Quota<IpAddr>,
    strangers: Quota<IpAddr>,
    /// The oldest connection of each first.
    devices: HashMap<KeyHash, VecDeque<OfDevice>>,
    next: u64,
}

#[derive(Debug)]
struct OfDevice {
    number: u64,
    /// Dropped with this, it tells the connection's [`Replaced`].
    _told: oneshot::Sender<()>,
}

/// Completes, one way or the other, once the connection has lost its place to newer ones of its device.
pub(super) type Replaced = oneshot::Receiver<()>;

#[derive(Debug)]
enum Holder {
    Stranger,
    Device { key: KeyHash, number: u64 },
}

/// The doorkeeper. Clones keep the same door.
#[derive(Debug, Clone)]
pub(super) struct Admission(Arc<Mutex<Counts>>);

/// A connection that was let in; its place is free again once this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Admission,
    source: IpAddr,
    holder: Holder,
}

impl Admission {
    /// For this many connections at most.
    pub(super) fn new(most: usize) -> Self {
        let counts = Counts {
            most,
            all: Quota::new(most),
            strangers: Quota::new(MAX_STRANGERS),
            devices: HashMap::new(),
            next: 0,
        };
        Self(Arc::new(Mutex::new(counts)))
    }

    /// Lets a connection in, as a stranger's.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn admit(&self, from: IpAddr) -> Result<Admitted, Refused> {
        let source = network_of(from);
        let mut counts = self.lock();
        counts.judge(&source)?;
        counts.all.add(source);
        counts.strangers.add(source);
        drop(counts);
        Ok(Admitted { admission: self.clone(), source, holder: Holder::Stranger })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        sync::lock(&self.0)
    }
}

impl Admitted {
    /// It has shown the certificate of the device with this key, whose oldest connection makes room where
    /// that has too many.
    pub(super) fn count_as_device(&mut self, key: KeyHash) -> Replaced {
        let mut counts = self.admission.lock();
        let number = counts.next;
        counts.next += 1;
        counts.leave(self.source, &self.holder);
        let (told, replaced) = oneshot::channel();
        let own = counts.devices.entry(key).or_default();
        own.push_back(OfDevice { number, _told: told });
        if own.len() > MAX_PER_DEVICE {
            own.pop_front();
        }
        drop(counts);
        self.holder = Holder::Device { key, number };
        replaced
    }
}

impl Counts {
    fn judge(&self, source: &IpAddr) -> Result<(), Refused> {
        let of_source = (self.most / SHARE_OF_SOURCE).max(1);
        if self.all.total() >= self.most {
            return Err(Refused::Full(self.most));
        }
        // A site that has a /48 has many sources, but no larger share.
        if !self.all.has_room(source, of_source) || self.all.of_group(source) >= of_source {
            return Err(Refused::OfSource(of_source));
        }
        if !self.strangers.has_room(source, MAX_STRANGERS_PER_SOURCE) {
            return Err(Refused::Strangers);
        }
        Ok(())
    }

    fn leave(&mut self, source: IpAddr, holder: &Holder) {
        match holder {
            Holder::Stranger => self.strangers.remove(&source),
            Holder::Device { key, number } => {
                let Some(own) = self.devices.get_mut(key) else { return };
                own.retain(|connection| connection.number != *number);
                if own.is_empty() {
                    self.devices.remove(key);
                }
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.all.remove(&self.source);
        counts.leave(self.source, &self.holder);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(number: usize) -> KeyHash {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        KeyHash(key)
    }

    fn all_devices(held: &mut [Admitted]) {
        for (number, admitted) in held.iter_mut().enumerate() {
            admitted.count_as_device(key(number));
        }
    }

    #[test]
    fn one_device_has_few_wherever_it_comes_from_and_its_oldest_make_room() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let mut from = (0u16..).map(|n| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1)));
        let mut connect = |device| {
            let mut admitted = admission.admit(from.next().unwrap()).unwrap();
            let replaced = admitted.count_as_device(key(device));
            (admitted, replaced)
        };
        let is_replaced = |replaced: &mut Replaced| replaced.try_recv() == Err(TryRecvError::Closed);
        let (_other, mut other) = connect(2);
        let mut held: Vec<_> = (0..2 * MAX_PER_DEVICE).map(|_| connect(1)).collect();
        let replaced: Vec<_> = held.iter_mut().map(|(_, replaced)| is_replaced(replaced)).collect();
        assert_eq!(replaced, [[true; MAX_PER_DEVICE], [false; MAX_PER_DEVICE]].concat());
        // The replaced ones have gone; one more that goes by itself leaves room for one.
        held.drain(..=MAX_PER_DEVICE);
        held.push(connect(1));
        assert!(!held.iter_mut().any(|(_, replaced)| is_replaced(replaced)));
        held.push(connect(1));
        assert!(is_replaced(&mut held[0].1) && !is_replaced(&mut held[1].1) && !is_replaced(&mut other));
    }

    #[test]
    fn one_source_cannot_take_all_the_room() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let mut held = Vec::new();
        while let Ok(admitted) = admission.admit(ip("192.0.2.1")) {
            held.push(admitted);
        }
        assert_eq!(held.len(), MAX_STRANGERS_PER_SOURCE);
        let mapped = admission.admit(ip("::ffff:192.0.2.1")).unwrap_err();
        assert_eq!(mapped, Refused::Strangers, "the same address, mapped");
        assert!(admission.admit(ip("192.0.2.2")).is_ok());
        all_devices(&mut held);
        let refused = loop {
            match admission.admit(ip("192.0.2.1")) {
                Ok(mut admitted) => {
                    admitted.count_as_device(key(held.len()));
                    held.push(admitted);
                }
                Err(refused) => break refused,
            }
        };
        let half = MAX_CONNECTIONS / 2;
        assert_eq!((held.len(), refused), (half, Refused::OfSource(half)));
        assert!(admission.admit(ip("192.0.2.2")).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let strangers =
            (0..1_000u16).map(|host| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host)));
        let held: Vec<_> = strangers.map_while(|from| admission.admit(from).ok()).collect();
        assert_eq!(held.len(), MAX_STRANGERS_PER_SOURCE);
    }

    #[test]
    fn a_site_with_many_ipv6_networks_has_no_more_room_than_one_with_an_address() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let of_site = |n: usize| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, (n % 200) as u16, 0, 0, 0, 1));
        let mut held = Vec::new();
        while let Ok(mut admitted) = admission.admit(of_site(held.len())) {
            admitted.count_as_device(key(held.len()));
            held.push(admitted);
        }
        assert_eq!(held.len(), MAX_CONNECTIONS / 2);
        assert!(admission.admit(ip("2001:db8:2::1")).is_ok(), "another site");
    }

    #[test]
    fn many_sources_together_are_bounded_and_every_place_is_given_back() {
        let admission = Admission::new(MAX_CONNECTIONS);
        let from = |at: u32| IpAddr::from((0x0a00_0000 + at).to_be_bytes());
        let mut held: Vec<_> = (0..1_000).map_while(|at| admission.admit(from(at)).ok()).collect();
        assert_eq!(held.len(), MAX_STRANGERS);
        all_devices(&mut held);
        let more = (1_000..).map_while(|at| {
            let mut admitted = admission.admit(from(at)).ok()?;
            admitted.count_as_device(key(at as usize));
            Some(admitted)
        });
        held.extend(more);
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert_eq!(admission.admit(from(9_999)).unwrap_err(), Refused::Full(MAX_CONNECTIONS));
        drop(held);
        let counts = admission.lock();
        assert_eq!((counts.all.total(), counts.strangers.total(), counts.devices.len()), (0, 0, 0));
    }
}
