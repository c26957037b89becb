//! What stands before a device: nothing, a firewall, or a NAT.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::nat::Dependence::{AddressAndPort, Independent};
use crate::nat::Ports::{Random, Sequence};
use crate::nat::{Nat, NatKind, nat};

/// What stands before a device in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing: the address is public and open.
    Open,
    /// A stateful firewall: the address is public, but only answers come in.
    Firewall,
    /// Endpoint-independent mapping, address- and port-dependent filtering (RFC 4787).
    PortRestricted,
    /// Address- and port-dependent mapping and filtering, with ports that nobody can guess.
    Symmetric,
    /// Any other NAT.
    Nat(NatKind),
}

impl Gate {
    pub(crate) fn nat(self) -> Option<NatKind> {
        match self {
            Self::Open | Self::Firewall => None,
            Self::PortRestricted => Some(nat(Independent, AddressAndPort, Sequence)),
            Self::Symmetric => Some(nat(AddressAndPort, AddressAndPort, Random)),
            Self::Nat(kind) => Some(kind),
        }
    }
}

/// One device's gate in one family.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    pub(crate) own: SocketAddr,
    pub(crate) gate: Gate,
    nat: Option<Nat>,
    /// Whom a firewall lets in.
    allowed: BTreeSet<SocketAddr>,
}

impl Uplink {
    pub(crate) fn new(own: SocketAddr, gate: Gate, public: IpAddr) -> Self {
        let nat = gate.nat().map(|kind| Nat::new(kind, public));
        Self { own, gate, nat, allowed: BTreeSet::new() }
    }

    /// The source address that `to` sees.
    pub(crate) fn outbound(&mut self, now: Instant, to: SocketAddr) -> SocketAddr {
        match &mut self.nat {
            Some(nat) => nat.outbound(now, to),
            None => {
                self.allowed.insert(to);
                self.own
            }
        }
    }

    /// Whether a packet to `to` is this device's, and passes.
    pub(crate) fn inbound(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        match &self.nat {
            Some(nat) => nat.inbound(now, from, to),
            None => to == self.own && (self.gate == Gate::Open || self.allowed.contains(&from)),
        }
    }
}
