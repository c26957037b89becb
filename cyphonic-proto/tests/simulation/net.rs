//! NATs and firewalls.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// What stands before a device in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing: the address is public and open.
    Open,
    /// A stateful firewall: the address is public, but only answers come in.
    Firewall,
    /// Endpoint-independent mapping, address- and port-dependent filtering (RFC 4787).
    PortRestricted,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
}

/// One device's gate in one family.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    pub(crate) own: SocketAddr,
    pub(crate) gate: Gate,
    public: IpAddr,
    mappings: BTreeMap<Option<SocketAddr>, u16>,
    /// For each public port, who may send to it.
    allowed: BTreeMap<u16, BTreeSet<SocketAddr>>,
}

impl Uplink {
    pub(crate) fn new(own: SocketAddr, gate: Gate, public: IpAddr) -> Self {
        Self { own, gate, public, mappings: BTreeMap::new(), allowed: BTreeMap::new() }
    }

    /// The source address that `to` sees.
    pub(crate) fn outbound(&mut self, to: SocketAddr) -> SocketAddr {
        let port = match self.gate {
            Gate::Open | Gate::Firewall => self.own.port(),
            Gate::PortRestricted => self.map(None),
            Gate::Symmetric => self.map(Some(to)),
        };
        self.allowed.entry(port).or_default().insert(to);
        match self.gate {
            Gate::Open | Gate::Firewall => self.own,
            Gate::PortRestricted | Gate::Symmetric => SocketAddr::new(self.public, port),
        }
    }

    /// Whether a packet to `to` is this device's, and passes.
    pub(crate) fn inbound(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let allowed = || self.allowed.get(&to.port()).is_some_and(|peers| peers.contains(&from));
        match self.gate {
            Gate::Open => to == self.own,
            Gate::Firewall => to == self.own && allowed(),
            Gate::PortRestricted | Gate::Symmetric => to.ip() == self.public && allowed(),
        }
    }

    fn map(&mut self, key: Option<SocketAddr>) -> u16 {
        let fresh = 20_000 + u16::try_from(self.mappings.len()).unwrap();
        *self.mappings.entry(key).or_insert(fresh)
    }
}
