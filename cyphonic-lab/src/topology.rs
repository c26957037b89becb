//! The topology file: which networks, routers and hosts the lab has, and what its links are like.
//!
//! The file is parsed once into these values. Keys that are not listed here are errors that name the line,
//! and [`Topology::parse`] returns only what has passed [`Topology::validate`], so the rest of the crate
//! relies on:
//!
//! - every name a node, route, NAT or profile mentions exists;
//! - every address lies in the prefix of the network it is on, and is used there once;
//! - every gateway shares a network with the node that points at it.
//!
//! The file grows by optional keys (a second kind of NAT, a prefix for NAT64, a blocked protocol), each with
//! its own field in [`Nat`], [`Firewall`] or [`Router`]; existing files keep their meaning.

mod error;
mod scene;
mod unique;
mod units;
pub(crate) mod validate;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

pub use self::error::TopologyError;
pub use self::scene::DEFAULT_SCENE;
pub use self::units::{BitRate, Probability, Service};
use crate::nat::table::{Behaviour, DEFAULT_UDP_LIFETIME, Dependence, Ports};

/// The whole topology file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Version of the file format; this library reads version 1.
    pub version: u32,
    /// Segments: what shares a network reaches each other without a router.
    #[serde(deserialize_with = "unique::map")]
    pub networks: BTreeMap<String, Network>,
    /// Nodes that forward.
    #[serde(deserialize_with = "unique::map")]
    pub routers: BTreeMap<String, Router>,
    /// Nodes that run programs.
    #[serde(deserialize_with = "unique::map")]
    pub hosts: BTreeMap<String, Host>,
    /// Sets of link properties to choose from; the key inside is `node@network`.
    #[serde(default, deserialize_with = "unique::map")]
    pub profiles: BTreeMap<String, Profile>,
    /// Parts of it that are built by themselves, as lists of nodes; see [`Topology::scene`].
    #[serde(default, deserialize_with = "unique::map")]
    pub scenes: BTreeMap<String, Vec<String>>,
}

/// Link properties by `node@network`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Profile {
    /// The links that differ from a plain cable.
    #[serde(deserialize_with = "unique::map")]
    pub links: BTreeMap<String, Link>,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its IPv4 prefix, unless it is IPv6-only.
    pub ipv4: Option<Ipv4Net>,
    /// Its IPv6 prefix, unless it is IPv4-only.
    pub ipv6: Option<Ipv6Net>,
    /// Largest packet it carries.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
}

/// A node that forwards between its interfaces, and may translate or filter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its interfaces, named after their networks.
    pub interfaces: Vec<Interface>,
    /// Router its default routes point at.
    pub gateway: Option<String>,
    /// Further static routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Address translation, IPv4.
    pub nat: Option<Nat>,
    /// Packet filter for what is forwarded, both families.
    pub firewall: Option<Firewall>,
}

/// A node that runs programs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What the demo and tests run on it.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// A device's name in the overlay, without the zone.
    pub device: Option<String>,
    /// Its interfaces, named `lan0`, `lan1` and so on: a machine of its own has an `eth0` already.
    pub interfaces: Vec<Interface>,
    /// Router its default routes point at.
    pub gateway: Option<String>,
}

/// What a host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Authentication Service.
    As,
    /// Node Management Service.
    Nms,
    /// Tunnel Relay Service.
    Trs,
    /// An edge device with an agent.
    Device,
}

/// An attachment of a node to a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The network.
    pub network: String,
    /// Address in the network's IPv4 prefix; none if the node has no IPv4 there.
    pub ipv4: Option<Ipv4Addr>,
    /// Address in the network's IPv6 prefix; none if the node has no IPv6 there.
    pub ipv6: Option<Ipv6Addr>,
}

/// A static route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination prefix.
    pub to: IpNet,
    /// Next hop, on a network of the router.
    pub via: IpAddr,
}

/// Network address translation towards one network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// How it maps and filters, in one word; the kernel's own NAT.
    pub kind: Option<NatKind>,
    /// What its mapping depends on; with `filtering`, in place of `kind`: the lab's own NAT.
    pub mapping: Option<Dependence>,
    /// What its filtering depends on.
    pub filtering: Option<Dependence>,
    /// How it chooses ports, where `mapping` is given.
    pub ports: Option<Ports>,
    /// Whether those behind it reach each other by their external endpoints, where `mapping` is given.
    #[serde(default)]
    pub hairpin: bool,
    /// Whether packets from outside prolong a mapping's life too, where `mapping` is given.
    #[serde(default)]
    pub inbound_refresh: bool,
    /// The prefix by which those behind it reach IPv4 from IPv6, where `mapping` is given: 96 bits (RFC
    /// 6052).
    pub nat64: Option<Ipv6Net>,
    /// The only endpoint inside, where `kind` is `one-to-one`.
    pub to: Option<Ipv4Addr>,
    /// The network on which the router's own address stands for those behind it.
    pub outside: String,
    /// Life of a UDP mapping without a reply (kernel default: 30 s); any mapping's where `mapping` is given.
    #[serde(default, deserialize_with = "units::optional_duration")]
    pub udp_timeout: Option<Duration>,
    /// Life of a UDP mapping that has seen traffic both ways (kernel default: 120 s).
    #[serde(default, deserialize_with = "units::optional_duration")]
    pub udp_timeout_stream: Option<Duration>,
}

impl Nat {
    /// What the lab's own NAT does, where it is one.
    pub fn behaviour(&self) -> Option<Behaviour> {
        Some(Behaviour {
            mapping: self.mapping?,
            filtering: self.filtering?,
            ports: self.ports.unwrap_or_default(),
            hairpin: self.hairpin,
            udp_lifetime: self.udp_timeout.unwrap_or(DEFAULT_UDP_LIFETIME),
            inbound_refresh: self.inbound_refresh,
        })
    }
}

/// NAT behaviour in the terms of RFC 3489, with what RFC 4787 calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatKind {
    /// No translation.
    None,
    /// Endpoint-independent mapping, endpoint-independent filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address-and-port-dependent filtering.
    PortRestricted,
    /// Address-and-port-dependent mapping to random ports, address-and-port-dependent filtering.
    Symmetric,
    /// A public address that stands for one endpoint inside, all ports both ways.
    OneToOne,
}

/// A packet filter between one network and those behind the router.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firewall {
    /// What may come in from `outside`.
    pub inbound: Inbound,
    /// The network it guards against.
    pub outside: String,
    /// The only services outside that those inside may use, as in `tcp/443`; all of them where it is not
    /// given.
    pub outbound: Option<Vec<Service>>,
}

/// Policy for packets that arrive from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inbound {
    /// All of them.
    Allow,
    /// Only those that belong to a flow begun inside.
    Stateful,
}

/// Properties of a cable: the same in both directions, but for those that are given by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// One-way delay.
    #[serde(default, deserialize_with = "units::duration")]
    pub delay: Duration,
    /// Largest deviation from the delay, drawn evenly for each frame; frames keep their order.
    #[serde(default, deserialize_with = "units::duration")]
    pub jitter: Duration,
    /// Share of frames lost, each by itself.
    #[serde(default)]
    pub loss: Probability,
    /// Share of frames that skip the delay, and so overtake those ahead of them.
    #[serde(default)]
    pub reorder: Probability,
    /// Capacity; none is unlimited.
    pub rate: Option<BitRate>,
    /// From the node to the network, in place of all the above.
    pub up: Option<Way>,
    /// From the network to the node, in place of all the above.
    pub down: Option<Way>,
}

/// Properties of one direction of a cable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// One-way delay.
    #[serde(default, deserialize_with = "units::duration")]
    pub delay: Duration,
    /// Largest deviation from the delay, drawn evenly for each frame; frames keep their order.
    #[serde(default, deserialize_with = "units::duration")]
    pub jitter: Duration,
    /// Share of frames lost, each by itself.
    #[serde(default)]
    pub loss: Probability,
    /// Share of frames that skip the delay, and so overtake those ahead of them.
    #[serde(default)]
    pub reorder: Probability,
    /// Capacity; none is unlimited.
    pub rate: Option<BitRate>,
}

impl Topology {
    /// Reads and validates the topology file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, does not parse, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, TopologyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TopologyError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Parses and validates a topology.
    ///
    /// # Errors
    /// The text does not parse (the message has line and column) or contradicts itself (the message has the
    /// path of the key).
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let topology: Self = serde_yaml::from_str(text)?;
        topology.validate()?;
        Ok(topology)
    }

    /// The profile called `name`.
    ///
    /// # Errors
    /// There is no such profile; the message lists those that are there.
    pub fn profile(&self, name: &str) -> Result<&Profile, TopologyError> {
        self.profiles.get(name).ok_or_else(|| {
            TopologyError::unknown("--profile", "profile", name, self.profiles.keys().map(String::as_str))
        })
    }

    /// Names of all nodes, routers first.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.routers.keys().chain(self.hosts.keys()).map(String::as_str)
    }

    /// Interfaces of the node called `name`; empty if there is none.
    pub fn interfaces(&self, name: &str) -> &[Interface] {
        let router = self.routers.get(name).map(|router| router.interfaces.as_slice());
        router.or_else(|| self.hosts.get(name).map(|host| host.interfaces.as_slice())).unwrap_or_default()
    }

    /// Who is on a network: node names and their interface names, in file order by kind.
    pub fn members(&self, network: &str) -> Vec<Member<'_>> {
        let nodes = self.nodes().map(|node| (node, self.interfaces(node)));
        let all = nodes.flat_map(|(node, interfaces)| {
            interfaces.iter().enumerate().map(move |(index, interface)| Member {
                node,
                interface,
                device: self.interface_name(node, index),
            })
        });
        all.filter(|member| member.interface.network == network).collect()
    }

    /// Name of a node's `index`th interface inside its namespace: the network's on a router, `lanN` on a
    /// host.
    pub fn interface_name(&self, node: &str, index: usize) -> String {
        match self.routers.get(node).and_then(|router| router.interfaces.get(index)) {
            Some(interface) => interface.network.clone(),
            None => format!("lan{index}"),
        }
    }

    /// Hosts that have `role`, in the order of their names.
    pub fn hosts_with(&self, role: Role) -> impl Iterator<Item = (&str, &Host)> {
        let hosts = self.hosts.iter().map(|(name, host)| (name.as_str(), host));
        hosts.filter(move |(_, host)| host.roles.contains(&role))
    }
}

impl Host {
    /// Its addresses in file order, IPv4 before IPv6 on each interface.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.interfaces.iter().flat_map(|interface| {
            interface.ipv4.map(IpAddr::V4).into_iter().chain(interface.ipv6.map(IpAddr::V6))
        })
    }
}

impl Link {
    /// Whether the link does nothing that a cable does not.
    pub fn is_plain(&self) -> bool {
        self.ways().iter().all(|way| *way == Way::default())
    }

    /// Its two directions: from the node to the network, and back.
    pub fn ways(&self) -> [Way; 2] {
        let Self { delay, jitter, loss, reorder, rate, up, down } = *self;
        let both = Way { delay, jitter, loss, reorder, rate };
        [up.unwrap_or(both), down.unwrap_or(both)]
    }
}

/// A node's attachment as seen from its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The node.
    pub node: &'a str,
    /// Its attachment.
    pub interface: &'a Interface,
    /// The interface's name inside the node.
    pub device: String,
}

fn default_mtu() -> u16 {
    1500
}

#[cfg(test)]
mod tests;
