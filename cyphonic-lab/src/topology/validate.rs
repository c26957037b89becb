//! Checks that a parsed topology can be built: see the list in the parent module.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Interface, Member, Nat, NatKind, Network, Router, Topology, TopologyError};

/// Names become parts of namespace names and file paths; network names become interface names (15 bytes).
const LONGEST_NODE_NAME: usize = 32;
const LONGEST_NETWORK_NAME: usize = 15;
/// The switch namespace that bridges shared networks is called so; see [`crate::lab`].
pub(crate) const SWITCH: &str = "switch";
/// The smallest MTU IPv6 allows (RFC 8200 §5), and the largest Linux gives a veth or TAP by default.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=9216;

type Checked = Result<(), TopologyError>;

impl Topology {
    /// Checks what the types alone do not: see the module's documentation.
    ///
    /// # Errors
    /// The first contradiction found, with the path of its key.
    pub fn validate(&self) -> Checked {
        if self.version != 1 {
            let problem =
                format!("version {} is not known to this library, which reads version 1", self.version);
            return Err(TopologyError::invalid("version", problem));
        }
        self.networks.iter().try_for_each(|(name, network)| check_network(name, network))?;
        self.check_node_names()?;
        for (name, router) in &self.routers {
            self.check_node(&format!("routers.{name}"), name, router.gateway.as_deref())?;
            self.check_router(&format!("routers.{name}"), router)?;
        }
        for (name, host) in &self.hosts {
            self.check_node(&format!("hosts.{name}"), name, host.gateway.as_deref())?;
        }
        self.networks.keys().try_for_each(|name| self.check_members(name))?;
        self.check_devices()?;
        self.check_profiles()?;
        self.scenes.keys().try_for_each(|name| self.scene(name).map(drop))
    }

    fn check_node_names(&self) -> Checked {
        let mut seen = BTreeSet::new();
        for name in self.nodes() {
            let kind = if self.routers.contains_key(name) { "routers" } else { "hosts" };
            let at = format!("{kind}.{name}");
            check_name(&at, name, LONGEST_NODE_NAME)?;
            if name == SWITCH {
                return Err(TopologyError::invalid(at, "this name is reserved for the lab's own switch"));
            }
            if !seen.insert(name) {
                return Err(TopologyError::invalid(format!("hosts.{name}"), "a router has this name too"));
            }
        }
        Ok(())
    }

    fn check_node(&self, at: &str, name: &str, gateway: Option<&str>) -> Checked {
        let interfaces = self.interfaces(name);
        let mut networks = BTreeSet::new();
        for (index, interface) in interfaces.iter().enumerate() {
            let at = format!("{at}.interfaces[{index}]");
            if !networks.insert(&interface.network) {
                let problem =
                    format!("a second interface on `{}`: one per network is supported", interface.network);
                return Err(TopologyError::invalid(at, problem));
            }
            self.check_interface(&at, interface)?;
        }
        let Some(gateway) = gateway else { return Ok(()) };
        let at = format!("{at}.gateway");
        if !self.routers.contains_key(gateway) {
            return Err(TopologyError::unknown(
                at,
                "router",
                gateway,
                self.routers.keys().map(String::as_str),
            ));
        }
        let shared = self.interfaces(gateway).iter().any(|interface| networks.contains(&interface.network));
        if gateway == name || !shared {
            return Err(TopologyError::invalid(at, format!("`{gateway}` is on no network of this node")));
        }
        Ok(())
    }

    fn check_interface(&self, at: &str, interface: &Interface) -> Checked {
        let name = &interface.network;
        let network = self.known_network(&format!("{at}.network"), name)?;
        if interface.ipv4.is_none() && interface.ipv6.is_none() {
            return Err(TopologyError::invalid(at, "has neither an IPv4 nor an IPv6 address"));
        }
        if let Some(address) = interface.ipv4 {
            let prefix = network.ipv4.ok_or_else(|| no_family(at, "IPv4", name))?;
            let usable = address != prefix.network() && address != prefix.broadcast();
            if !prefix.contains(&address) || !usable {
                let problem = format!("{address} is not a host address in {name}'s prefix {prefix}");
                return Err(TopologyError::invalid(format!("{at}.ipv4"), problem));
            }
        }
        if let Some(address) = interface.ipv6 {
            let prefix = network.ipv6.ok_or_else(|| no_family(at, "IPv6", name))?;
            if !prefix.contains(&address) || address == prefix.network() {
                let problem = format!("{address} is not a host address in {name}'s prefix {prefix}");
                return Err(TopologyError::invalid(format!("{at}.ipv6"), problem));
            }
        }
        Ok(())
    }

    fn check_router(&self, at: &str, router: &Router) -> Checked {
        if let Some(nat) = &router.nat {
            check_nat(&format!("{at}.nat"), nat, router)?;
        }
        if let Some(firewall) = &router.firewall {
            own_interface(&format!("{at}.firewall.outside"), router, &firewall.outside)?;
        }
        for (index, route) in router.routes.iter().enumerate() {
            let at = format!("{at}.routes[{index}].via");
            let reachable = router.interfaces.iter().any(|interface| self.on_link(interface, route.via));
            if !reachable {
                let problem = format!("{} is on no network of this router", route.via);
                return Err(TopologyError::invalid(at, problem));
            }
            if matches!(route.to, ipnet::IpNet::V4(_)) != route.via.is_ipv4() {
                let problem = format!("{} and {} are of different IP versions", route.to, route.via);
                return Err(TopologyError::invalid(at, problem));
            }
        }
        Ok(())
    }

    pub(super) fn on_link(&self, interface: &Interface, address: IpAddr) -> bool {
        let Some(network) = self.networks.get(&interface.network) else { return false };
        match address {
            IpAddr::V4(address) => {
                interface.ipv4.is_some() && network.ipv4.is_some_and(|prefix| prefix.contains(&address))
            }
            IpAddr::V6(address) => {
                interface.ipv6.is_some() && network.ipv6.is_some_and(|prefix| prefix.contains(&address))
            }
        }
    }

    fn check_members(&self, network: &str) -> Checked {
        let mut seen = BTreeSet::new();
        for Member { node, interface, .. } in self.members(network) {
            let addresses = interface.ipv4.map(IpAddr::V4).into_iter().chain(interface.ipv6.map(IpAddr::V6));
            for address in addresses {
                if !seen.insert(address) {
                    let problem = format!("{address}, which `{node}` wants, is taken");
                    return Err(TopologyError::invalid(format!("networks.{network}"), problem));
                }
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Checked {
        let mut seen = BTreeSet::new();
        for (name, host) in &self.hosts {
            let at = format!("hosts.{name}.device");
            let is_device = host.roles.contains(&super::Role::Device);
            match &host.device {
                Some(_) if !is_device => {
                    return Err(TopologyError::invalid(at, "a device name without the role `device`"));
                }
                None if is_device => {
                    return Err(TopologyError::invalid(
                        at,
                        "a device needs a name in the overlay, as in `a.lab`",
                    ));
                }
                Some(device) if !seen.insert(device) => {
                    return Err(TopologyError::invalid(at, format!("`{device}` is taken by another host")));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn check_profiles(&self) -> Checked {
        for (name, profile) in &self.profiles {
            for (key, link) in &profile.links {
                let at = format!("profiles.{name}.{key}");
                let Some((node, network)) = key.split_once('@') else {
                    return Err(TopologyError::invalid(at, "a link is written node@network"));
                };
                if link.ways().iter().any(|way| way.reorder.fraction() > 0.0 && way.delay.is_zero()) {
                    return Err(TopologyError::invalid(at, "without a delay there is nobody to overtake"));
                }
                self.known_network(&at, network)?;
                if !self.nodes().any(|known| known == node) {
                    return Err(TopologyError::unknown(at, "node", node, self.nodes()));
                }
                if !self.interfaces(node).iter().any(|interface| interface.network == network) {
                    return Err(TopologyError::invalid(at, format!("`{node}` is not on `{network}`")));
                }
            }
        }
        Ok(())
    }

    fn known_network(&self, at: &str, name: &str) -> Result<&Network, TopologyError> {
        let known = self.networks.keys().map(String::as_str);
        self.networks.get(name).ok_or_else(|| TopologyError::unknown(at, "network", name, known))
    }
}

fn check_network(name: &str, network: &Network) -> Checked {
    let at = format!("networks.{name}");
    check_name(&at, name, LONGEST_NETWORK_NAME)?;
    if network.ipv4.is_none() && network.ipv6.is_none() {
        return Err(TopologyError::invalid(at, "has neither an IPv4 nor an IPv6 prefix"));
    }
    if let Some(prefix) = network.ipv4.filter(|prefix| prefix.trunc() != *prefix) {
        let problem = format!("{prefix} has bits beyond its length: write {}", prefix.trunc());
        return Err(TopologyError::invalid(format!("{at}.ipv4"), problem));
    }
    if let Some(prefix) = network.ipv6.filter(|prefix| prefix.trunc() != *prefix) {
        let problem = format!("{prefix} has bits beyond its length: write {}", prefix.trunc());
        return Err(TopologyError::invalid(format!("{at}.ipv6"), problem));
    }
    if !MTU_RANGE.contains(&network.mtu) {
        let (low, high) = (MTU_RANGE.start(), MTU_RANGE.end());
        return Err(TopologyError::invalid(format!("{at}.mtu"), format!("must be from {low} to {high}")));
    }
    Ok(())
}

fn check_nat(at: &str, nat: &Nat, router: &Router) -> Checked {
    let refuse = |key: &str, problem: &str| Err(TopologyError::invalid(format!("{at}{key}"), problem));
    let interface = own_interface(&format!("{at}.outside"), router, &nat.outside)?;
    if interface.ipv4.is_none() {
        return refuse(".outside", "the router has no IPv4 address there to translate to");
    }
    let own = nat.mapping.is_some() || nat.filtering.is_some();
    if own && (nat.kind.is_some() || nat.mapping.is_none() || nat.filtering.is_none()) {
        return refuse("", "write either `kind`, or both `mapping` and `filtering`");
    }
    if !own && nat.kind.is_none() {
        return refuse("", "write `kind`, or `mapping` and `filtering`");
    }
    if own && nat.udp_timeout_stream.is_some() {
        return refuse(
            ".udp_timeout_stream",
            "with `mapping`, `udp_timeout` is the life of every UDP mapping",
        );
    }
    if !own && (nat.ports.is_some() || nat.hairpin || nat.inbound_refresh || nat.nat64.is_some()) {
        return refuse(
            "",
            "`ports`, `hairpin`, `inbound_refresh` and `nat64` go with `mapping` and `filtering`",
        );
    }
    if nat.nat64.is_some_and(|prefix| prefix.prefix_len() != 96 || prefix.trunc() != prefix) {
        return refuse(".nat64", "write a prefix of 96 bits, as in 64:ff9b::/96");
    }
    if nat.to.is_some() != (nat.kind == Some(NatKind::OneToOne)) {
        return refuse(
            ".to",
            "the kind `one-to-one`, and no other, has the address inside that it stands for",
        );
    }
    Ok(())
}

fn check_name(at: &str, name: &str, longest: usize) -> Checked {
    if is_name(name, longest) {
        return Ok(());
    }
    let problem =
        format!("a name has 1 to {longest} small letters, digits or inner hyphens and starts with a letter");
    Err(TopologyError::invalid(at, problem))
}

/// Whether `name` is safe in a namespace name, an interface name and a path.
pub(crate) fn is_name(name: &str, longest: usize) -> bool {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    bytes.len() <= longest
        && bytes.iter().all(inner)
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
}

fn own_interface<'a>(at: &str, router: &'a Router, network: &str) -> Result<&'a Interface, TopologyError> {
    let own = || router.interfaces.iter().map(|interface| interface.network.as_str());
    let found = router.interfaces.iter().find(|interface| interface.network == network);
    found.ok_or_else(|| TopologyError::unknown(at, "network of this router", network, own()))
}

fn no_family(at: &str, family: &str, network: &str) -> TopologyError {
    TopologyError::invalid(at, format!("has an {family} address, but `{network}` has no {family} prefix"))
}
