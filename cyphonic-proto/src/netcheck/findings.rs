//! What is known of a node's network.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::nat::Family;

/// How a NAT chooses the outer port and address (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Not known.
    #[default]
    Unknown,
    /// There is none: servers see the node's own address.
    NoNat,
    /// The same for every destination: others can be told of it.
    EndpointIndependent,
    /// The same for every port of one address; only one address could be asked.
    NotPortDependent,
    /// Another for each destination address ("symmetric").
    AddressDependent,
    /// Another for each destination address and port ("symmetric").
    AddressAndPortDependent,
}

/// Whose packets a NAT or firewall lets in (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Filtering {
    /// Not known.
    #[default]
    Unknown,
    /// Everybody's, once the node has sent something to somebody.
    EndpointIndependent,
    /// Those of every port of an address it has sent to; whether also of other addresses could not be asked.
    NotPortDependent,
    /// Those of addresses it has sent to.
    AddressDependent,
    /// Those of addresses and ports it has sent to.
    AddressAndPortDependent,
}

/// What is known for one IP version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyFindings {
    /// How the NAT maps.
    pub mapping: Mapping,
    /// Whom NAT and firewall let in.
    pub filtering: Filtering,
    /// Whether a packet to the node's own outer address comes back to it (RFC 4787 §6). `None`: not known,
    /// or there is no NAT.
    pub hairpin: Option<bool>,
    /// The longest time without a packet after which a mapping was seen to stand. It only grows.
    pub lifetime: Option<Duration>,
    /// By how much the outer port grows from one destination to the next, where it was always the same.
    pub port_delta: Option<i32>,
    /// Outer endpoints that the gateway was asked for and granted.
    pub port_mapped: Vec<SocketAddr>,
}

/// What is known of a node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Over IPv4.
    pub v4: FamilyFindings,
    /// Over IPv6.
    pub v6: FamilyFindings,
    /// What servers saw of the node's own port: (server, observed).
    pub observations: Vec<(SocketAddr, SocketAddr)>,
}

impl Mapping {
    /// In a person's words, to follow "mapping:".
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NoNat => "no NAT",
            Self::EndpointIndependent => "endpoint-independent",
            Self::NotPortDependent => "independent of the port (one address could be asked)",
            Self::AddressDependent => "address-dependent (symmetric)",
            Self::AddressAndPortDependent => "address- and port-dependent (symmetric)",
        }
    }

    /// Whether each destination sees another endpoint.
    pub const fn is_dependent(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }
}

impl Filtering {
    /// In a person's words, to follow "filtering:".
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "endpoint-independent (open)",
            Self::NotPortDependent => "independent of the port (one address could be asked)",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl FamilyFindings {
    /// Whether anybody may send to the node's own address: no NAT, and nothing filters.
    pub fn is_open(&self) -> bool {
        self.mapping == Mapping::NoNat && self.filtering == Filtering::EndpointIndependent
    }
}

impl Findings {
    /// What is known for an IP version.
    pub const fn of(&self, family: Family) -> &FamilyFindings {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The same, to be changed.
    pub const fn of_mut(&mut self, family: Family) -> &mut FamilyFindings {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The longest time without a packet after which a mapping was seen to stand; `None` as long as nothing
    /// is proven, which means to assume [`super::UNPROVEN_LIFETIME`].
    pub fn mapping_lifetime(&self, family: Family) -> Option<Duration> {
        self.of(family).lifetime
    }
}
