//! Which route joins two networks: one pure table.
//!
//! Within one address family, by what is known of both ends ("EIM": a NAT with endpoint-independent mapping):
//!
//! | initiator \ responder | no address | no NAT | EIM | symmetric, unknown |
//! |---|---|---|---|---|
//! | no address | – | – | – | – |
//! | no NAT | – | direct | responder-initiated | responder-initiated |
//! | EIM | – | direct | (hole punch) | – |
//! | symmetric, unknown | – | direct | – | – |
//!
//! The two families are then merged: the first kind of [`ORDER`] that one of them allows and that has not
//! failed just now, with the endpoints of all families that allow it, IPv6 first. The relay joins the rest,
//! IPv4 to IPv6 among them: it carries the first packets while both ends look for a better path inside the
//! tunnel, and is there to fall back on. Only where no relay joins two ends is their tunnel set up through
//! punched holes, or, where servers saw both at one public address, perhaps inside one network.
//!
//! "No NAT" does not mean "reachable": a firewall may stand before the node. Both ends therefore send a
//! datagram first for every direct kind, and a kind that fails is skipped when the initiator asks again.

mod relay;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::message::{MAX_REASON, RouteKind, bounded};
use crate::nat::{self, Family, NatFinding};
use crate::netcheck::{Filtering, Findings, Mapping};
use crate::node::Relay;

/// Kinds, the best first.
pub const ORDER: [RouteKind; 4] =
    [RouteKind::Direct, RouteKind::ResponderInitiated, RouteKind::Relay, RouteKind::HolePunch];

/// What the NMS knows of one node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// The node's name, for the reason.
    pub fqdn: String,
    /// Its own addresses.
    pub addresses: Vec<SocketAddr>,
    /// What servers saw: (server, observed).
    pub observations: Vec<(SocketAddr, SocketAddr)>,
    /// Whether its network passes no UDP: it reaches relays by TCP, and nobody else.
    pub udp_blocked: bool,
    /// What it found out itself.
    pub findings: Findings,
    /// Round trips to relays that it measured.
    pub relay_latencies: BTreeMap<String, Duration>,
    /// The only relay that it wants.
    pub pinned_relay: Option<String>,
}

/// How a pair is joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who dials whom.
    pub kind: RouteKind,
    /// Where the responder finds the initiator.
    pub initiator_endpoints: Vec<SocketAddr>,
    /// Where the initiator finds the responder.
    pub responder_endpoints: Vec<SocketAddr>,
    /// The relay, for [`RouteKind::Relay`].
    pub relay: Option<Relay>,
    /// Why this route and no better one, for a person.
    pub reason: String,
}

/// Nothing joins the two.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct NoRoute {
    /// Why, for a person.
    pub reason: String,
}

impl NodeNetwork {
    /// What is known of the node's NAT in one family: what servers saw of its own port, and where that does
    /// not tell, what the node found out by other ports.
    pub fn finding(&self, family: Family) -> NatFinding {
        let seen = nat::find(family, &self.addresses, &self.observations);
        match (seen, self.findings.of(family).mapping) {
            (NatFinding::Unknown | NatFinding::EndpointIndependent, mapping) if mapping.is_dependent() => {
                NatFinding::AddressDependent
            }
            (NatFinding::Unknown, Mapping::EndpointIndependent) => NatFinding::EndpointIndependent,
            _ => seen,
        }
    }

    /// Whether anybody can send to the node in this family. What is not known of a node without NAT counts as
    /// open: it registers before it has looked, and a route that fails is not proposed again.
    pub fn is_open(&self, family: Family) -> bool {
        let findings = self.findings.of(family);
        let lets_in = matches!(findings.filtering, Filtering::EndpointIndependent | Filtering::Unknown);
        (self.finding(family) == NatFinding::None && lets_in) || !findings.port_mapped.is_empty()
    }

    /// Whether this is one of the node's own addresses, or one at which it is seen from outside.
    pub fn is_at(&self, endpoint: &SocketAddr) -> bool {
        let family = Family::of(endpoint);
        self.own(family).chain(self.observed(family)).any(|known| known == *endpoint)
    }

    /// Whether the node can send in this family.
    pub fn has(&self, family: Family) -> bool {
        self.finding(family) != NatFinding::NoAddress
    }

    /// What joins or parts the node and others, in a person's words, to follow "is".
    fn phrase(&self, family: Family) -> &'static str {
        match self.finding(family) {
            NatFinding::None if !self.is_open(family) => "behind a firewall",
            finding => finding.phrase(),
        }
    }

    /// Where the node is seen from outside: what a gateway granted, then what servers saw.
    fn observed(&self, family: Family) -> impl Iterator<Item = SocketAddr> + '_ {
        let granted = self.findings.of(family).port_mapped.iter().copied();
        let seen = self.observations.iter().map(|(_, observed)| *observed);
        granted.chain(seen.filter(move |a| Family::of(a) == family))
    }

    fn own(&self, family: Family) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().copied().filter(move |a| Family::of(a) == family)
    }
}

/// The route for a pair, without the kinds that `failed` just now.
///
/// # Errors
/// Where even a relay cannot join the two.
pub fn select(
    initiator: &NodeNetwork,
    responder: &NodeNetwork,
    failed: &[RouteKind],
    relays: &[Relay],
) -> Result<Route, NoRoute> {
    select_without(initiator, responder, failed, relays, &[])
}

/// [`select`], also without the relays of these names, which an end could not reach just now.
///
/// # Errors
/// As [`select`].
pub fn select_without(
    initiator: &NodeNetwork,
    responder: &NodeNetwork,
    failed: &[RouteKind],
    relays: &[Relay],
    failed_relays: &[String],
) -> Result<Route, NoRoute> {
    let pair = Pair { initiator, responder };
    let usable = ORDER.into_iter().filter(|kind| !failed.contains(kind));
    let mut no_relay = None;
    for kind in usable {
        let route = match kind {
            RouteKind::Relay => {
                pair.relay(failed, relays, failed_relays).map_err(|error| no_relay = Some(error)).ok()
            }
            _ => pair.straight(kind),
        };
        if let Some(route) = route {
            return Ok(route);
        }
    }
    Err(no_relay.unwrap_or_else(|| {
        let reason = format!("every route failed: {}", pair.why_not_straight(failed));
        NoRoute { reason: bounded(&reason) }
    }))
}

struct Pair<'a> {
    initiator: &'a NodeNetwork,
    responder: &'a NodeNetwork,
}

impl Pair<'_> {
    /// The route of a kind that needs no relay, if one family allows it.
    fn straight(&self, kind: RouteKind) -> Option<Route> {
        let families: Vec<_> = Family::ALL.into_iter().filter(|family| self.allows(kind, *family)).collect();
        let first = *families.first()?;
        let end = |node: &NodeNetwork| {
            let all = families.iter().flat_map(|family| self.endpoints(node, *family));
            deduplicate(all)
        };
        let reason = self.why_straight(kind, first);
        let (initiator_endpoints, responder_endpoints) = (end(self.initiator), end(self.responder));
        Some(Route { kind, initiator_endpoints, responder_endpoints, relay: None, reason })
    }

    fn allows(&self, kind: RouteKind, family: Family) -> bool {
        use NatFinding::{EndpointIndependent, NoAddress};
        if self.initiator.udp_blocked || self.responder.udp_blocked {
            return false;
        }
        let (initiator, responder) = (self.initiator.finding(family), self.responder.finding(family));
        if initiator == NoAddress || responder == NoAddress {
            return false;
        }
        match kind {
            RouteKind::Direct => self.responder.is_open(family),
            RouteKind::ResponderInitiated => self.initiator.is_open(family),
            RouteKind::HolePunch => {
                let known = |node: &NodeNetwork| match node.finding(family) {
                    EndpointIndependent => true,
                    // A firewall without NAT: punching opens it as it does a NAT.
                    NatFinding::None => !node.is_open(family),
                    NoAddress | NatFinding::AddressDependent | NatFinding::Unknown => false,
                };
                known(self.initiator) && known(self.responder) || self.perhaps_one_network(family)
            }
            RouteKind::Relay | RouteKind::Unspecified => false,
        }
    }

    /// Both NATed, and seen at the same public IP address.
    fn perhaps_one_network(&self, family: Family) -> bool {
        let nated = |node: &NodeNetwork| node.finding(family) != NatFinding::None;
        let same = |a: SocketAddr| self.responder.observed(family).any(|b| a.ip() == b.ip());
        nated(self.initiator) && nated(self.responder) && self.initiator.observed(family).any(same)
    }

    /// Where one end may be found by the other.
    fn endpoints(&self, node: &NodeNetwork, family: Family) -> Vec<SocketAddr> {
        if self.perhaps_one_network(family) {
            return node.own(family).chain(node.observed(family)).collect();
        }
        node.observed(family).collect()
    }

    fn relay(
        &self,
        failed: &[RouteKind],
        relays: &[Relay],
        failed_relays: &[String],
    ) -> Result<Route, NoRoute> {
        let why = self.why_not_straight(failed);
        let Some(relay) = relay::choose(self.initiator, self.responder, failed_relays, relays) else {
            let (a, b) = (described(self.initiator), described(self.responder));
            let pins = [self.initiator, self.responder].map(|end| end.pinned_relay.as_deref());
            let reason = match pins {
                _ if relays.is_empty() => format!("{why}, and this network has no relay"),
                _ if !failed_relays.is_empty() => {
                    format!(
                        "{} failed, and no other relay can be reached by both {a} and {b}",
                        failed_relays.join(", ")
                    )
                }
                [Some(pin), _] | [None, Some(pin)] => {
                    format!("{pin} is pinned, and {a} or {b} cannot use it")
                }
                [None, None] => format!("no relay can be reached by both {a} and {b}"),
            };
            return Err(NoRoute { reason: bounded(&reason) });
        };
        Ok(Route {
            kind: RouteKind::Relay,
            // Once the relay carries, both ends look for a better path by themselves.
            initiator_endpoints: candidates(self.initiator),
            responder_endpoints: candidates(self.responder),
            relay: Some(relay.clone()),
            reason: bounded(&format!("relayed because {why}")),
        })
    }

    fn why_straight(&self, kind: RouteKind, family: Family) -> String {
        let (initiator, responder) = (short(self.initiator), short(self.responder));
        let family_name = name_of(family);
        let text = match kind {
            RouteKind::Direct if self.responder.finding(family) == NatFinding::None => {
                format!("direct because {responder} is not behind a NAT on {family_name}")
            }
            RouteKind::Direct => {
                format!("direct because the gateway of {responder} lets its port in on {family_name}")
            }
            RouteKind::ResponderInitiated => {
                format!("{responder} dials because {initiator} can be reached on {family_name}")
            }
            RouteKind::HolePunch if self.perhaps_one_network(family) => {
                format!("punched because {initiator} and {responder} share a public {family_name} address")
            }
            RouteKind::HolePunch => {
                format!("punched because both NATs map {family_name} independently of the endpoint")
            }
            RouteKind::Relay | RouteKind::Unspecified => String::new(),
        };
        bounded(&text)
    }

    /// Why no kind without a relay remains.
    fn why_not_straight(&self, failed: &[RouteKind]) -> String {
        let mut tried: Vec<_> =
            ORDER.into_iter().filter(|kind| failed.contains(kind)).map(RouteKind::name).collect();
        tried.dedup();
        let (initiator, responder) = (short(self.initiator), short(self.responder));
        if let Some(blocked) = [self.initiator, self.responder].into_iter().find(|node| node.udp_blocked) {
            return format!("the network of {} passes no UDP", short(blocked));
        }
        let shared = Family::ALL.into_iter().find(|f| self.initiator.has(*f) && self.responder.has(*f));
        let Some(family) = shared else {
            return format!(
                "{} and {} share no IP version",
                described(self.initiator),
                described(self.responder)
            );
        };
        let [a, b] = [self.initiator, self.responder].map(|node| node.phrase(family));
        let nats = format!("{initiator} is {a} and {responder} {b} ({})", name_of(family));
        if tried.is_empty() { nats } else { format!("{} failed; {nats}", tried.join(", ")) }
    }
}

/// All addresses at which a node may perhaps be reached: those that others saw, then its own.
pub(crate) fn candidates(node: &NodeNetwork) -> Vec<SocketAddr> {
    let of = |family| node.observed(family).chain(node.own(family));
    deduplicate(Family::ALL.into_iter().flat_map(of))
}

fn reaches(node: &NodeNetwork, relay: &Relay) -> bool {
    relay.addresses.iter().any(|address| node.has(Family::of(address)))
}

fn deduplicate(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses {
        if !unique.contains(&address) && unique.len() < crate::message::endpoint::MAX_ENDPOINTS {
            unique.push(address);
        }
    }
    unique
}

/// A name, cut so that two of them and a sentence fit a reason.
fn short(node: &NodeNetwork) -> &str {
    node.fqdn.get(..MAX_REASON / 4).unwrap_or(&node.fqdn)
}

/// The node with the IP versions it has.
fn described(node: &NodeNetwork) -> String {
    let versions: Vec<_> = Family::ALL.into_iter().filter(|f| node.has(*f)).map(name_of).collect();
    let versions = if versions.is_empty() { "no address".into() } else { versions.join(" and ") };
    format!("{} ({versions})", short(node))
}

const fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests;
